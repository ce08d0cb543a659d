"""Segmentation: counts of pixels, the metrics that follow from them, and studies of networks that classify pixels."""

import sqlite3

import numpy as np
import pytest
import torch
from small_segmentation import NUM_CLASSES, NUM_IMAGES, Masks, Odd, Pixels
from torch import nn

import weanalysis as wa
from weanalysis.errors import DataError, StoreError, StudyError
from weanalysis.results import Store
from weanalysis.results.statistics import linear_change
from weanalysis.tasks import METRICS, find_metric
from weanalysis.tasks.pixels import PixelCounts, class_ious
from weanalysis.tasks.segmentation import VOID, Segmentation


def confusion(masks: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Target by prediction over all labelled pixels, counted one by one."""
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES))
    for target, answer in zip(masks.ravel(), predicted.ravel(), strict=True):
        if target != VOID:
            counts[target, answer] += 1
    return counts


def logits_of(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = net(images)
    return outputs["out"] if isinstance(outputs, dict) else outputs


def wounded(kind: type[nn.Module], row) -> nn.Module:
    """The network of a row of a location table."""
    net = kind()
    net.get_submodule(row.layer).weight.data[int(row.out_channel), int(row.in_channel)] = 0
    return net


@pytest.fixture(scope="module", params=[Pixels, Odd])
def studied(request, tmp_path_factory):
    """A study in exact and in naive evaluation: the kind of network, its data, and both tables with their stores."""
    net = request.param().eval()
    data, studies = Masks(net), {}
    for evaluate in ("exact", "naive"):
        cache = tmp_path_factory.mktemp(evaluate)
        table = wa.ablate(
            net, data, "location", evaluate, "miou", cache=str(cache), grid=(4, 4), shard_size=12, batch_size=5
        )
        studies[evaluate] = table, cache / "results.sqlite"
    return request.param, data, studies


def test_counts_by_hand():
    outputs = torch.tensor([[[[2.0, 0.0, 0.0, torch.nan]], [[0.0, 3.0, 1.0, 0.0]]]])
    targets = torch.tensor([[[0, 0, VOID, 1]]])
    assert Segmentation().pixels(outputs, targets).tolist() == [[[2, 1], [1, 0], [1, 1]]]
    loss = Segmentation().statistics(outputs[..., :3], targets[..., :3])["loss"]
    by_hand = nn.functional.cross_entropy(outputs[..., :3], targets[..., :3], ignore_index=VOID)
    assert float(loss) == pytest.approx(float(by_hand))
    nothing = torch.full_like(targets, VOID)
    assert (
        Segmentation().pixels(outputs, nothing).sum() == 0
        and Segmentation().statistics(outputs, nothing)["loss"].isnan()
    )


def test_exact_is_naive_in_every_count_and_row(studied):
    *_, studies = studied
    exact, naive = (table.drop(columns="evaluate") for table, _ in studies.values())
    assert exact.equals(naive)
    kept = []
    for _, path in studies.values():
        with sqlite3.connect(path) as db:
            kept.append(
                [db.execute(f"SELECT * FROM {table}").fetchall() for table in ("intact_pixels", "block_pixels")]
            )
    assert len(kept[0][0]) == 3 and kept[0] == kept[1]


def iou_by_hand(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> float:
    """The mean IoU in percent over the classes that are true somewhere, from pixels of each class."""
    return 100 * float(np.mean([r / (t + p - r) for r, t, p in zip(right, true, predicted, strict=True) if t]))


def test_rows_are_what_a_confusion_matrix_by_hand_gives(studied):
    kind, data, studies = studied
    table, path = studies["exact"]
    net, masks = kind().eval(), data.masks.numpy()
    intact = confusion(masks, logits_of(net, data.images).argmax(1).numpy())
    with Store.open(path) as store:
        metrics = store.metrics(1)
        tables = {name: store.table(1, name) for name in (*metrics, "iou:2")}
        assert metrics == ["miou", "loss", "pixel-accuracy"] and tables["miou"].equals(table)
        for place in (0, 5, len(table) - 1):
            after = confusion(masks, logits_of(wounded(kind, table.iloc[place]), data.images).argmax(1).numpy())
            for name, value in {
                "miou": lambda counts: iou_by_hand(counts.diagonal(), counts.sum(1), counts.sum(0)),
                "pixel-accuracy": lambda counts: 100 * counts.trace() / counts.sum(),
                "iou:2": lambda counts: 100 * counts[2, 2] / (counts[2].sum() + counts[:, 2].sum() - counts[2, 2]),
            }.items():
                row = tables[name].iloc[place]
                assert row["intact"] == pytest.approx(value(intact)) and row["ablated"] == pytest.approx(value(after))
                assert row["drop"] == pytest.approx(value(intact) - value(after))
            of_classes = store.class_table(1, place)
            assert of_classes["after"].to_numpy() == pytest.approx(
                [100 * after[c, c] / (after[c].sum() + after[:, c].sum() - after[c, c]) for c in range(NUM_CLASSES)]
            )


def test_images_are_told_by_the_pixels_that_changed(studied):
    kind, data, studies = studied
    table, path = studies["exact"]
    with Store.open(path) as store:
        changes, intact = store.pixel_changes(1, 0), store.intact(1)
        assert store.compare(1, 0, 3).difference == pytest.approx(table["drop"][3] - table["drop"][0])
        with pytest.raises(StoreError, match="no image of study 1 has a class, so that none is right"):
            store.changes(1, 0)
        with pytest.raises(StoreError, match="no class of study 1 is called 'dog': choose from 0, 1, 2, 3"):
            store.table(1, "iou:dog")
        with pytest.raises(
            StoreError, match=r"metric 'top1', since the images .* choose from loss, miou, pixel-accuracy"
        ):
            store.table(1, "top1")
    assert intact["target"].isna().all() and len(intact) == NUM_IMAGES
    before, after = (logits_of(one, data.images).argmax(1) for one in (kind().eval(), wounded(kind, table.iloc[0])))
    moved = ((before != after) & (data.masks != VOID)).flatten(1).sum(1).numpy()
    assert set(changes["image_id"]) <= set(np.flatnonzero(moved)) and changes["drop"].is_monotonic_decreasing
    first = changes.iloc[0]
    image = int(first["image_id"])
    one = confusion(data.masks[image].numpy(), after[image].numpy())
    ious = [one[c, c] / (one[c].sum() + one[:, c].sum() - one[c, c]) for c in range(NUM_CLASSES) if one[c].sum()]
    assert first["iou_after"] == pytest.approx(100 * np.mean(ious)) and first["pixels_changed"] <= moved[image]


def test_a_study_goes_on_where_layers_were_dropped(studied, tmp_path):
    from weanalysis.results.store import Writer

    _, _, studies = studied
    table, path = studies["exact"]
    copied = tmp_path / "results.sqlite"
    copied.write_bytes(path.read_bytes())
    with Store.open(copied) as store:
        ids = store.ablation_ids(1)
    with Writer.open(copied) as writer:
        writer.forget(1, ids[:7])
    with Store.open(copied) as store:
        left = store.table(1)
    assert (left["num_images"][:7] == 0).all() and left["drop"][:7].isna().all()
    assert left["drop"][7:].equals(table["drop"][7:])


@pytest.mark.parametrize("damage", ["x'00'", "zeroblob(40)", "NULL"])
def test_damaged_counts_are_one_line(studied, tmp_path, damage):
    copied = tmp_path / "results.sqlite"
    copied.write_bytes(studied[2]["exact"][1].read_bytes())
    with sqlite3.connect(copied) as db:
        db.execute("CREATE TABLE t AS SELECT block_id, counts, positions, changes FROM block_pixels")
        db.execute("DROP TABLE block_pixels")
        db.execute(f"UPDATE t SET changes = {damage}")
        db.execute("ALTER TABLE t RENAME TO block_pixels")
    with Store.open(copied) as store, pytest.raises(StoreError, match="the pixels of block 1 are damaged"):
        store.table(1)


# The metrics themselves -----------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, num_images: int = 60, num_networks: int = 2) -> PixelCounts:
    """Counts of images whose pixels are right in seven of ten cases, or less with each further network."""
    targets = rng.integers(NUM_CLASSES, size=(num_images, 50)) * rng.integers(2, size=(num_images, 1))
    counts = np.zeros((num_networks, num_images, 3, NUM_CLASSES), np.int32)
    other, draw = rng.integers(NUM_CLASSES, size=targets.shape), rng.random(targets.shape)
    for number in range(num_networks):
        said = np.where(draw < 0.7 - 0.05 * number, targets, other)
        for c in range(NUM_CLASSES):
            counts[number, :, 0, c] = (targets == c).sum(1)
            counts[number, :, 1, c] = ((targets == c) & (said == c)).sum(1)
            counts[number, :, 2, c] = (said == c).sum(1)
    names = tuple("abcd")
    return PixelCounts(counts[0, :, 0], counts[:, :, 1], counts[:, :, 2], names)


@pytest.mark.parametrize("name", ["miou", "pixel-accuracy", "iou:b"])
def test_an_image_s_influence_is_the_slope_of_its_weight(name):
    counts = drawn(np.random.default_rng(0))
    aggregate, step = find_metric(name).aggregate, 1000
    linear = aggregate(counts)
    assert linear.influence.sum(1) == pytest.approx(0, abs=1e-6) and linear.is_sound.all()
    for image in (0, 7, 59):
        # The image once more, in step copies of all of them.
        places = np.concatenate([np.tile(np.arange(60), step), [image]])
        slope = (aggregate(counts.of_images(places)).values - linear.values) * len(places)
        assert slope == pytest.approx(linear.influence[:, image], rel=2e-2, abs=1e-3)


def test_linearization_and_bootstrap_agree():
    counts = drawn(np.random.default_rng(1), 200)
    metric = METRICS["miou"]
    sides = [metric.aggregate(counts.of_networks([row])) for row in (0, 1)]
    drop, low, high, p_value = (float(each[0]) for each in linear_change(*sides, metric.worse))
    rng, resampled = np.random.default_rng(2), []
    for _ in range(2000):
        images = rng.integers(200, size=200)
        true = counts.true[images].sum(0)
        before, after = (
            iou_by_hand(counts.right[row, images].sum(0), true, counts.predicted[row, images].sum(0)) for row in (0, 1)
        )
        resampled.append(before - after)
    assert drop > 0 and p_value < 0.05
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.1 * (high - low))


def test_mean_iou_is_torchmetrics():
    import weanalysis._torchvision  # noqa: F401 (before torchmetrics, which imports torchvision)

    torchmetrics = pytest.importorskip("torchmetrics")
    net = Pixels().eval()
    data = Masks(net)
    outputs = logits_of(net, data.images)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=NUM_CLASSES, ignore_index=VOID)
    of_pixels = Segmentation().pixels(outputs, data.masks)[None].numpy()
    counts = PixelCounts(of_pixels[0, :, 0], of_pixels[:, :, 1], of_pixels[:, :, 2])
    ours = METRICS["miou"].aggregate(counts).values[0]
    assert ours == pytest.approx(100 * float(theirs(outputs.argmax(1), data.masks)))
    assert ours == pytest.approx(class_ious(counts)[0].mean())


def test_a_class_that_no_image_has_takes_no_part_and_few_images_give_no_interval():
    counts = drawn(np.random.default_rng(3))
    true = counts.true.copy()
    true[:, 3], right = 0, counts.right * (np.arange(NUM_CLASSES) < 3)
    without = PixelCounts(true, right, counts.predicted, counts.classes)
    assert METRICS["miou"].aggregate(without).values == pytest.approx(class_ious(without)[:, :3].mean(1))
    assert np.isnan(find_metric("iou:d").aggregate(without).values).all()
    few = METRICS["miou"].aggregate(counts.of_images(np.arange(9)))
    assert not few.is_sound.any() and np.isfinite(few.values).all()
    low = linear_change(few.__class__(few.values[:1], few.influence[:1], few.is_sound[:1], 1.0), few)[1]
    assert np.isnan(low).all()


# What does not fit ----------------------------------------------------------------------------------------------------


class Classes(Masks):
    def __getitem__(self, index: int):
        return self.images[index], index % NUM_CLASSES


class Shrunk(Pixels):
    def forward(self, images):
        return self.scores(images)


def test_what_does_not_fit_is_one_line(tmp_path):
    net = Pixels().eval()
    data, classifier = Masks(net, 12), nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten())
    classes = Classes(net, 12)
    given = {"cache": str(tmp_path)}
    bad = Masks(net, 12)
    bad.masks = bad.masks[:, :6]
    with pytest.raises(DataError, match="item 0 of Masks has an image of 3 x 12 x 12 and a mask of 6 x 12"):
        wa.ablate(net, bad, "layer", metric="miou", **given)
    bad.masks = data.masks.float()
    with pytest.raises(DataError, match=r"item 0 of Masks has a torch.float32 tensor \(12, 12\) for a mask"):
        wa.ablate(net, bad, "layer", metric="miou", **given)
    bad.masks = data.masks.clone()
    bad.masks[3, 2, 2] = 4
    with pytest.raises(StudyError, match="a mask has the label 4, and the network's classes are 0 to 3"):
        wa.ablate(net, bad, "layer", metric="miou", **given)
    for network, images, metric, line in (
        (classifier, data, "miou", r"not \(images, classes, H, W\) logits; give a segmentation net"),
        (net, classes, None, r"not \(images, classes\) logits; give a classifier"),
        (classifier, classes, "miou", "item 0 of Classes has int 0 for a mask; give whole numbers"),
        (Shrunk().eval(), data, "miou", "answers 6 x 6 places and the masks have 12 x 12"),
        (net, data, "iou:9", "metric iou:9: no class is called so; choose from 0, 1, 2, 3"),
        (net, data, "iou:", "unknown metric 'iou:'"),
    ):
        with pytest.raises((DataError, StudyError), match=line):
            wa.ablate(network, images, "layer", metric=metric, **given)
    with pytest.raises(StudyError, match=r"miou needs all: use --evaluate exact$"):
        wa.ablate(net, data, "layer", "screened", "miou", **given)
    with pytest.raises(StudyError, match="needs a metric in which images are right or wrong"):
        wa.ablate(net, data, "layer", metric="miou", until_significant=True, **given)
    assert not (tmp_path / "results.sqlite").exists()

"""What follows from a kept segmentation study: pages, reports, exports, comparisons, scores, pruned networks."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run as command
from pages import charts, is_well, open_page, words

import weanalysis as wa
from weanalysis import figures
from weanalysis.ablation.predictions import shown_masks
from weanalysis.cache import Cache
from weanalysis.comparison import compare
from weanalysis.errors import DataError, StudyError
from weanalysis.models import build, load_network, save_checkpoint
from weanalysis.pruning import prune
from weanalysis.results import Store, find_improvements
from weanalysis.tasks import METRICS
from weanalysis.tasks.pixels import PixelCounts
from weanalysis.tasks.segmentation import Segmentation
from weanalysis.training import Recipe, train

SIDE, NUM_IMAGES = 16, 24


def network(seed: int) -> tuple[torch.nn.Module, dict]:
    """An untrained network that predicts several classes."""
    architecture = {"source": "builtin", "name": "fcn_resnet20", "num_classes": 11, "options": {"shortcut": "A"}}
    torch.manual_seed(seed)
    net = build(architecture)
    with torch.no_grad():
        net.score1.bias -= net(torch.randn(20, 3, SIDE, SIDE)).mean((0, 2, 3))
    return net, architecture


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache with a location and a magnitude study of a network on scenes of digits, one of another, and a run."""
    cache = Cache(tmp_path_factory.mktemp("kept"))
    cache.ready()
    for seed in (0, 1):
        net, architecture = network(seed)
        save_checkpoint(cache.root / f"net{seed}.safetensors", net, architecture, {})
        model = load_network(str(cache.root / f"net{seed}.safetensors"))
        data = wa.load_data("digit-scenes", model=model, image_size=SIDE, num_images=NUM_IMAGES, cache=cache)
        given = {"cache": cache, "layers": "conv1,layer3.2*"}
        wa.ablate(model, data, "location", grid=(2, 2), name=f"where-{seed}", **given)
    wa.ablate(model, data, "magnitude", percentiles=(50,), name="how-large", **given)
    recipe = Recipe.from_preset(
        "scenes", model="fcn_resnet20", data="digit-scenes", image_size=8, epochs=0.03, warmup_epochs=0, batch_size=16
    )
    train(recipe, cache, name="short", device="cpu")
    return cache


@pytest.fixture
def opened(kept, monkeypatch):
    monkeypatch.setenv("WEANALYSIS_CACHE", str(kept.root))
    return kept


def test_a_kernel_s_page_shows_the_masks_that_it_was_needed_for(opened):
    with Store.open(opened.results) as store:
        number = store.find("where-0")
        place = store.table(number)["drop"].idxmax()
        row = store.table(number).loc[place]
        changes, classes = store.pixel_changes(number, place), store.class_table(number, place)
    kernel = f"{row['layer']}:{row['out_channel']:.0f}:{row['in_channel']:.0f}"
    app = open_page("location", study=str(number), kernel=kernel)
    is_well(app)
    text = words(app)
    first = changes.iloc[0]
    assert "Images whose IoU fell most" in text and "intact mean IoU" in text
    assert f"IoU {first['iou_before']:.1f} % → {first['iou_after']:.1f} %" in text.replace("\\", "")
    assert not app.warning
    of_classes = next(one for one in charts(app) if one["layout"]["xaxis"].get("title", {}).get("text") == "IoU (%)")
    markers = [trace for trace in of_classes["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in markers] == ["intact", "ablated"]
    assert len(classes) == 11


@pytest.mark.parametrize("page", ["overview", "images", "magnitude", "compare", "runs"])
def test_every_other_page_opens(opened, page):
    app = open_page(page)
    is_well(app)
    if page == "runs":
        assert "mean IoU (%)" in app.selectbox(key="metric").options
    if page == "images":
        with Store.open(opened.results) as store:
            images = store.pixel_images(store.find("where-1"))
        falls = images[images["changed"] > 0].sort_values("mean_drop", ascending=False)["mean_drop"]
        said = [text.value for text in app.markdown if text.value.startswith("IoU")]
        assert [text.split(", ")[1].replace("−", "-").replace("±", "") for text in said] == [
            "0.00" if abs(fall) < 0.005 else f"{-fall:+.2f}" for fall in falls
        ]


def test_masks_are_shown_as_they_were_measured(kept):
    with Store.open(kept.results) as store:
        number = store.find("where-0")
        about = store.describe(number)
        changes = store.pixel_changes(number, 0)
    image = int(changes["image_id"][0])
    shown = shown_masks(kept, about, 0, [image])[0]
    assert shown.pixels.shape == (SIDE, SIDE, 3) and shown.truth.shape == (SIDE, SIDE)
    assert ((shown.before != shown.after) & (shown.truth != 255)).sum() >= changes["pixels_changed"][0]
    for mask, column in ((shown.before, "iou_before"), (shown.after, "iou_after")):
        ious = [
            ((mask == c) & (shown.truth == c)).sum() / ((mask == c) | (shown.truth == c)).sum()
            for c in np.unique(shown.truth)
        ]
        assert 100 * np.mean(ious) == pytest.approx(changes[column][0])
    with pytest.raises(DataError, match="no longer has the image number 99999"):
        shown_masks(kept, about, 0, [99999])
    with pytest.raises(StudyError, match="the weights of this study are no longer in the cache"):
        shown_masks(kept, {**about, "weights_hash": "0"}, 0, [image])
    with pytest.raises(StudyError, match="it has other ablations now"):
        shown_masks(kept, about, 10_000, [image])
    with pytest.raises(DataError, match="a dataset of its own"):
        shown_masks(kept, {**about, "data": "dataset"}, 0, [image])


def test_an_overlay_colours_classes_and_stripes_what_is_void():
    picture = np.full((4, 8, 3), 100, np.uint8)
    mask = np.array([[0, 0, 1, 1, 2, 2, 255, 255]] * 4)
    drawn = figures.overlay(picture, mask, 255)
    assert (drawn[:, :2] == 100).all() and len({tuple(one) for one in drawn[0, 2:6].tolist()}) == 2
    assert {tuple(one) for one in drawn[:, 6:].reshape(-1, 3).tolist()} == {(128, 128, 128), (100, 100, 100)}
    assert len({figures.class_colour(index) for index in range(30)}) == 30
    empty = pd.DataFrame(columns=["class", "num_images", "before", "after", "drop"], dtype=float)
    assert "No class" in figures.iou_by_class(empty).layout.annotations[0].text


def test_reports_exports_and_lists_know_of_it(opened, tmp_path, capsys):
    target = tmp_path / "report.html"
    assert command("report", "where-0", "how-large", "short", "-o", str(target)) == 0
    text = target.read_text()
    assert "The mean IoU of the intact network is" in text and "Mean IoU by epoch" in text
    capsys.readouterr()
    out = tmp_path / "classes.csv"
    assert command("export", "where-0", "--metric", "iou:3", "-o", str(out)) == 0
    assert (pd.read_csv(out)["metric"] == "iou:3").all()
    assert command("export", "where-0", "--metric", "iou:eleven", "-o", str(out)) == 1
    assert "is called 'eleven': choose from background, 0" in " ".join(capsys.readouterr().err.split())
    for what, words_in_it in (("studies", "where-0"), ("runs", "short"), ("models", "deeplabv3_resnet50")):
        assert command("list", what) == 0
        assert words_in_it in capsys.readouterr().out
    assert command("list", "data", "--json") == 0
    assert {"voc", "cityscapes", "digit-scenes"} <= {one["name"] for one in json.loads(capsys.readouterr().out)["data"]}


def counts_of(net: torch.nn.Module, data) -> PixelCounts:
    images, masks = data.batch(0, len(data))
    with torch.no_grad():
        pixels = Segmentation().pixels(net(images), masks)[None].numpy()
    return PixelCounts(pixels[0, :, 0], pixels[:, :, 1], pixels[:, :, 2], data.classes)


def test_networks_and_studies_are_compared_by_their_mean_iou(kept):
    models = [load_network(str(kept.root / f"net{seed}.safetensors")) for seed in (0, 1)]
    data = wa.load_data("digit-scenes", image_size=SIDE, num_images=NUM_IMAGES)
    values = [float(METRICS["miou"].aggregate(counts_of(model.net, data)).values[0]) for model in models]
    between = compare(*models, data, cache=kept)
    assert between.metric == "miou" and between.difference == pytest.approx(values[1] - values[0])
    with pytest.raises(StudyError, match="metric top1 is one of classification, and digit-scenes is data of segm"):
        compare(*models, data, metric="top1", cache=kept)
    studies = compare("where-0", "where-1", cache=kept)
    with Store.open(kept.results) as store:
        drops = [store.table(store.find(f"where-{seed}"))["drop"] for seed in (0, 1)]
        with pytest.raises(
            StudyError, match=r"counts images that turn right or wrong, and of masks \(miou\) none does"
        ):
            find_improvements(store, store.find("where-0"))
    assert studies.places["difference"].to_numpy() == pytest.approx((drops[1] - drops[0]).to_numpy(), abs=1e-5)
    of_class = compare("where-0", "where-1", metric="iou:background", cache=kept)
    assert of_class.places["difference"].notna().all()


def test_kernels_are_scored_by_the_loss_of_pixels_and_pruned(opened):
    kept = opened
    model = load_network(str(kept.root / "net0.safetensors"))
    data = wa.load_data("digit-scenes", image_size=SIDE, num_images=8)
    maps = wa.saliency_maps(model, data, "taylor", layers="conv1", cache=kept).maps
    net, expected = load_network(str(kept.root / "net0.safetensors")).net, []
    for image, mask in data:
        loss = torch.nn.functional.cross_entropy(net(image[None]), mask[None])
        gradient = torch.autograd.grad(loss, net.conv1.weight)[0]
        expected.append((net.conv1.weight * gradient).sum((2, 3)).abs().detach())
    scores = maps.of("taylor", "kernel", "conv1")
    np.testing.assert_allclose(scores, torch.stack(expected).mean(0).numpy(), rtol=1e-3, atol=1e-7)
    pruned = prune(model, data, "l1", 0.5, curve=(0.9,), cache=kept)
    values = [float(METRICS["miou"].aggregate(counts_of(one.net, data)).values[0]) for one in (model, pruned.model)]
    row = pruned.table.iloc[0]
    assert [row["intact"], row["ablated"]] == pytest.approx(values) and math.isnan(row["num_flipped"])
    assert pruned.about["metric"] == "miou" and "mean IoU" in pruned.model.notes[-1]
    app = open_page("pruning")
    is_well(app)
    assert "unpruned mean IoU" in words(app) and charts(app)[0]["layout"]["yaxis"]["title"]["text"] == "mean IoU (%)"


def test_an_unknown_task_of_the_demo_is_one_line(capsys):
    assert command("demo", "--task", "poetry") == 1
    assert "unknown task 'poetry': choose from classification, segmentation" in capsys.readouterr().err

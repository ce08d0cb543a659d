"""Metrics: what is kept of each image, what follows from it, and what one line says where a metric cannot be had."""

import copy
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from scipy import stats
from streamlit.testing.v1 import AppTest
from torch import nn

from weanalysis.ablation import Evaluator, ablate, make_study
from weanalysis.comparison import compare
from weanalysis.dashboard import app_folder
from weanalysis.errors import StoreError, StudyError
from weanalysis.models import Model
from weanalysis.report import write_report
from weanalysis.results import Store, find_improvements
from weanalysis.results.statistics import compare_values, linear_change, mean_change, mean_table, selected_intervals
from weanalysis.results.store import Writer
from weanalysis.results.store.writer import encode_values
from weanalysis.tasks import COUNTING, METRICS, Metric, find_metric, metrics_of_task
from weanalysis.tasks.aggregates import Answers, calibration_error, macro_f1
from weanalysis.tasks.classification import Classification

NUM_IMAGES = 60


class Images(torch.utils.data.Dataset):
    """Noise, with the answers of a network as targets, but for a tenth."""

    def __init__(self, net: nn.Module):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(NUM_IMAGES, 3, 10, 10, generator=generator)
        with torch.no_grad():
            self.targets = net(self.images).argmax(1)
        self.targets[:6] = (self.targets[:6] + 1) % 6

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])


def network(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    first = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    net = nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 6), *last).eval()
    net[7].weight.data *= 6
    return net


def plain_losses(net: nn.Module, data: Images) -> torch.Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(net(data.images).double(), data.targets, reduction="none")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory):
    """A study of all kernels in shards of 25 images, measured once, for the loss."""
    cache, net = tmp_path_factory.mktemp("cache"), network()
    data = Images(net)
    table = ablate(net, data, "location", metric="loss", cache=str(cache), grid="all", shard_size=25)
    return cache / "results.sqlite", net, data, table


# What is measured -----------------------------------------------------------------------------------------------------


def test_a_row_of_the_loss_is_a_paired_t_test_over_images(studied):
    _, net, data, table = studied
    before = plain_losses(net, data)
    assert (table["metric"] == "loss").all() and (table["num_images"] == NUM_IMAGES).all()
    assert table["num_flipped"].isna().all() and (table["screen_low"] == table["drop"]).all()
    for row in table.itertuples():
        wounded = network()
        wounded.get_submodule(row.layer).weight.data[int(row.out_channel), int(row.in_channel)] = 0
        change = (plain_losses(wounded, data) - before).numpy()
        test = stats.ttest_1samp(change, 0)
        low, high = test.confidence_interval(0.95)
        assert row.intact == pytest.approx(before.mean().item(), abs=1e-6)
        assert row.ablated == pytest.approx(before.mean().item() + change.mean(), abs=1e-6)
        assert (row.drop, row.drop_low, row.drop_high) == pytest.approx((change.mean(), low, high), abs=1e-6)
        assert row.p_value == pytest.approx(test.pvalue, abs=1e-4)
    assert (table["q_value"] <= 0.05).sum() > 5


def test_one_run_answers_every_metric(studied):
    path, net, data, table = studied
    again = ablate(net, data, "location", cache=str(path.parent), grid="all", shard_size=25)
    assert again.attrs["reused"] == 3 * len(again) and again.attrs["study_id"] == table.attrs["study_id"]
    assert (again["metric"] == "top1").all() and again["num_flipped"].notna().all()
    with Store.open(path) as store:
        assert store.table(1, "loss")["drop"].tolist() == table["drop"].tolist()
        assert store.table(1, "top5")["metric"].tolist() == ["top5"] * len(table)


def test_naive_exact_and_pooled_agree_on_each_image(studied):
    _, net, data, _ = studied
    ablations = make_study("location", net, grid="all").ablations
    results = []
    for mode, pooled in (("naive", False), ("exact", False), ("exact", True)):
        evaluator = Evaluator(net, mode, batch_size=13, pooled=pooled)
        results.append(evaluator.measure(data.images, data.targets, ablations).values["loss"])
    for other in results[1:]:
        assert np.abs(other.intact - results[0].intact).max() < 1e-5
        assert np.abs(other.changes - results[0].changes).max() < 1e-5 < np.abs(other.changes).max()
    assert Evaluator(net, "screened").measure(data.images, data.targets, ablations).values == {}


def test_probabilities_are_not_taken_for_logits(tmp_path):
    plain, net = network(), network(nn.Softmax(1))
    data = Images(plain)
    tables = [ablate(one, data, "layer", metric="loss", cache=str(tmp_path)) for one in (plain, net)]
    assert tables[1]["drop"].to_numpy() == pytest.approx(tables[0]["drop"].to_numpy(), abs=1e-4)
    assert not Classification.of(torch.tensor([[0.5, 0.6]])).probabilities
    assert not Classification.of(torch.tensor([[1.5, -0.5]])).probabilities
    said: list[str] = []
    ablate(network(nn.Sigmoid()), data, "layer", metric="loss", cache=str(tmp_path), say=said.append)
    assert any("take them for logits" in line for line in said)


# What is kept ---------------------------------------------------------------------------------------------------------


def test_changes_of_each_image_are_kept_in_half_precision(studied):
    path, net, data, _ = studied
    with Store.open(path) as store:
        changes = store.value_changes(1, 3, "loss")
    wounded, before = network(), plain_losses(net, data).numpy()
    wounded[0].weight.data[1, 0] = 0
    after = plain_losses(wounded, data).numpy()
    ids = changes["image_id"].astype(int)
    assert sorted(ids) == list(range(NUM_IMAGES))
    assert changes["before"] == pytest.approx(before[ids], abs=1e-5)
    assert changes["after"] == pytest.approx(after[ids], abs=1e-5 + 2**-11 * np.abs(after - before).max())


def test_of_a_large_study_those_images_are_kept_that_changed_most(studied, tmp_path, monkeypatch):
    path, net, data, whole = studied
    monkeypatch.setattr("weanalysis.ablation.record.MOST_NUMBERS_KEPT", len(whole) * 12)
    table = ablate(net, data, "location", metric="loss", cache=str(tmp_path), grid="all", shard_size=25)
    assert table["drop"].tolist() == whole["drop"].tolist() and table["p_value"].tolist() == whole["p_value"].tolist()
    with Store.open(path) as store, Store.open(tmp_path / "results.sqlite") as small:
        every, some = store.value_changes(1, 3, "loss"), small.value_changes(1, 3, "loss")
        assert len(some["image_id"]) == 15, "5 of each of three shards"
        sizes = np.abs(every["after"] - every["before"])
        kept = np.isin(every["image_id"], some["image_id"])
        for low in (0, 25, 50):
            span = slice(low, low + 25)
            assert sizes[span][kept[span]].min() >= sizes[span][~kept[span]].max()
        assert np.isnan(small.compare(1, 0, 3, "loss").difference_low), "not from a part of the images"
        apart = store.compare(1, 0, 3, "loss").difference
        assert small.compare(1, 0, 3, "loss").difference == pytest.approx(apart, abs=1e-3)


def test_what_is_no_number_is_kept_first_and_gives_no_drop():
    changes = np.array([[0.1, np.nan, 0.2], [3.0, -4.0, 1.0]], np.float32)
    moments, kept, positions, values = encode_values(changes, 1)
    assert kept == 1 and np.frombuffer(positions, np.int32).tolist() == [1, 1]
    assert np.isnan(np.frombuffer(values, np.float16)[0]) and np.frombuffer(values, np.float16)[1] == -4
    sums = np.frombuffer(moments, np.float64).reshape(2, 2)
    mean, low, _, p_value = mean_change(3, *sums)
    assert np.isnan([mean[0], low[0], p_value[0]]).all() and mean[1] == 0


def test_a_file_of_an_older_version_keeps_its_results_and_gets_losses_when_asked(studied, tmp_path):
    path, net, data, _ = studied
    old = tmp_path / "results.sqlite"
    old.write_bytes(path.read_bytes())
    with sqlite3.connect(old) as db:
        db.executescript("DROP TABLE intact_values; DROP TABLE block_values; PRAGMA user_version = 3;")
    with Store.open(old) as store:
        before = store.table(1, "top1")
        losses = store.table(1, "loss")
    assert losses["drop"].isna().all() and (losses["num_images"] == 0).all()
    same = ablate(net, data, "location", cache=str(tmp_path), grid="all", shard_size=25)
    assert same.attrs["reused"] == 3 * len(same), "answers are not measured again"
    assert same.drop(columns="metric").equals(before.drop(columns="metric"))
    table = ablate(net, data, "location", metric="loss", cache=str(tmp_path), grid="all", shard_size=25)
    assert table.attrs["reused"] == 0 and (table["num_images"] == NUM_IMAGES).all()
    with Store.open(old) as store:
        assert store.table(1, "top1").equals(before), "an image counts once"
        assert store.table(1, "loss")["drop"].tolist() == table["drop"].tolist()


def test_forgetting_some_ablations_keeps_the_losses_of_the_others(studied, tmp_path):
    path, *_ = studied
    copied = tmp_path / "results.sqlite"
    copied.write_bytes(path.read_bytes())
    with Writer.open(copied) as writer, Store.open(copied) as store:
        ids, before = store.ablation_ids(1), store.table(1, "loss")
        writer.forget(1, ids[2:4])
        after = store.table(1, "loss")
    assert after["num_images"].tolist() == [0 if place in (2, 3) else NUM_IMAGES for place in range(len(ids))]
    left = [place for place in range(len(ids)) if place not in (2, 3)]
    assert after.loc[left, "drop"].tolist() == before.loc[left, "drop"].tolist()


@pytest.mark.parametrize("damage", ["moments = x'00'", "num_kept = 99", "changes = x'0000'", "num_kept = 1"])
def test_damaged_losses_are_one_line(studied, tmp_path, damage):
    copied = tmp_path / "results.sqlite"
    copied.write_bytes(studied[0].read_bytes())
    with sqlite3.connect(copied) as db:
        db.execute(f"UPDATE block_values SET {damage}")
    with Store.open(copied) as store, pytest.raises(StoreError, match="loss of block 1 is damaged"):
        store.table(1, "loss")


# What follows ---------------------------------------------------------------------------------------------------------


def test_a_mean_has_no_interval_where_its_spread_says_nothing():
    mean, low, high, p_value = mean_change([4, 4, 1, 0], [0.0, 2.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])
    assert mean[:3].tolist() == [0.0, 0.5, 1.0] and np.isnan(mean[3])
    assert np.isnan(low).all() and np.isnan(high).all()
    assert p_value[0] == 1.0 and np.isnan(p_value[1:]).all()
    with pytest.raises(ValueError, match="confidence"):
        mean_change(4, 1.0, 1.0, 1.5)


def test_a_metric_of_which_more_is_better_has_the_sign_turned(studied):
    import pandas as pd

    moments = pd.DataFrame({"num_images": [4], "intact": [2.0], "change": [2.0], "squares": [4.0]})
    loss, gain = mean_table(moments), mean_table(moments, worse=-1)
    assert gain["drop"].item() == -loss["drop"].item() and gain["drop_low"].item() == -loss["drop_high"].item()
    assert gain["ablated"].item() == loss["ablated"].item() == 1.0


def test_intervals_of_chosen_rows_are_students_at_a_higher_confidence(studied):
    table = studied[3]
    top = table.sort_values("drop", ascending=False)[:2]
    chosen = selected_intervals(top, len(table))
    level = 1 - 0.05 * 2 / len(table)
    for row in chosen.itertuples():
        error = (row.drop_high - row.drop_low) / 2 / stats.t.ppf(0.975, NUM_IMAGES - 1)
        reach = error * stats.t.ppf((1 + level) / 2, NUM_IMAGES - 1)
        assert (row.selected_low, row.selected_high) == pytest.approx((row.drop - reach, row.drop + reach))


def test_two_ablations_are_compared_on_the_same_images():
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1, 50), generator.normal(0.5, 1, 40)
    comparison = compare_values((np.arange(50), one), (np.arange(20, 60), other))
    apart = other[:30] - one[20:]
    test = stats.ttest_1samp(apart, 0)
    assert comparison.num_images == 30 and comparison.num_left_out == 30
    assert comparison.difference == pytest.approx(apart.mean()) and comparison.p_value == pytest.approx(test.pvalue)
    assert (comparison.difference_low, comparison.difference_high) == pytest.approx(
        tuple(test.confidence_interval(0.95))
    )


# What cannot be had ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"evaluate": "screened"},
            "--evaluate screened leaves out images .* loss needs all: use --evaluate exact, or --metric top1",
        ),
        ({"until_ci": 1.0}, r"--until-ci 1 needs a metric in which images are right or wrong \(top1, top5\), not loss"),
        ({"until_significant": True}, "--until-significant needs a metric"),
    ],
)
def test_what_the_loss_does_not_support_is_one_line(tmp_path, settings, line):
    net = network()
    with pytest.raises(StudyError, match=line):
        ablate(net, Images(net), metric="loss", cache=str(tmp_path), **settings)


def test_readers_ask_what_a_metric_supports(studied, tmp_path):
    path, net, data, _ = studied
    with Store.open(path) as store:
        for ask in (lambda: store.changes(1, 0, "loss"), lambda: store.correctness(1, 0, "loss")):
            with pytest.raises(StoreError, match="no image is right or wrong in loss: choose from top1, top5"):
                ask()
        with pytest.raises(StudyError, match=r"--find detrimental counts images .* top1 or top5, not loss"):
            find_improvements(store, 1, "loss")
        with pytest.raises(StudyError, match="unknown metric"):
            store.counts(1, "loss")
    ablate(net, data, "layer", cache=str(tmp_path), until_ci=50.0)
    ablate(net, data, "location", cache=str(tmp_path), evaluate="screened", grid="2x2")
    with Store.open(tmp_path / "results.sqlite") as store:
        with pytest.raises(StoreError, match=r"stopped early by what its top1 showed .* no interval of its loss holds"):
            store.table(1, "loss")
        with pytest.raises(StoreError, match=r"screened for top1, .* loss were left out; .*--evaluate exact"):
            store.table(2, "loss")


def test_an_unknown_metric_lists_those_there_are():
    with pytest.raises(StudyError, match="choose from ece, loss, macro-f1, miou, pixel-accuracy, top1, top5"):
        find_metric("auc")
    with pytest.raises(StudyError, match="choose from top1, top5"):
        find_metric("loss", COUNTING)
    assert {name for name, metric in METRICS.items() if metric.worse == 1} == {"loss", "ece"}


def test_the_command_measures_and_tells_the_loss(tmp_path: Path, capsys):
    words = ["ablate", "--model", "resnet20", "--weights", "none", "--images", "40", "--grid", "1x1"]
    words += ["--metric", "loss", "--cache", str(tmp_path)]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metric"] == "loss" and printed["images_needed"] is None and 1 < printed["intact"] < 5
    assert all(row["num_flipped"] is None and row["drop"] is not None for row in printed["rows"])
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert "D, nats [interval]" in out and "Student's t test" in out and "increase of the mean loss in nats" in out
    assert "points" not in out and "flip" not in out
    assert run(*words, "--find", "detrimental") == 1
    assert "--metric top1 or top5, not loss" in capsys.readouterr().err


# Functions of all answers ---------------------------------------------------------------------------------------------


def test_macro_f1_and_calibration_are_those_of_others():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    targets = rng.integers(4, size=300)
    predictions = np.where(rng.random((3, 300)) < 0.6, targets, rng.integers(5, size=(3, 300)))
    confidence = rng.random((3, 300))
    score = macro_f1(Answers(targets, predictions))
    classes = np.unique(targets)
    wanted = [metrics.f1_score(targets, one, average="macro", labels=classes) for one in predictions]
    assert score.values == pytest.approx(100 * np.array(wanted))
    errors = []
    for answers, sure in zip(predictions, confidence, strict=True):
        bins = [(sure > low / 15) & (sure <= (low + 1) / 15) for low in range(15)]
        errors.append(
            sum(abs((answers == targets)[one].mean() - sure[one].mean()) * one.mean() for one in bins if one.any())
        )
    score = calibration_error(Answers(targets, predictions, confidence))
    assert score.values == pytest.approx(100 * np.array(errors))


@pytest.mark.parametrize("aggregate", [macro_f1, calibration_error])
def test_the_linearization_agrees_with_a_bootstrap_over_images(aggregate):
    """Of D of one ablation, on the same images: the standard error of both ways differs by less than a tenth."""
    rng = np.random.default_rng(1)
    targets = rng.integers(5, size=1500)
    before = np.where(rng.random(1500) < 0.8, targets, rng.integers(5, size=1500))
    after = np.where(rng.random(1500) < 0.9, before, rng.integers(5, size=1500))
    confidence = np.stack([0.95 - 0.3 * rng.random(1500) ** 2, 0.97 - 0.3 * rng.random(1500) ** 2])
    predictions = np.stack([before, after])

    def linear(images):
        return [
            aggregate(Answers(targets[images], predictions[[row]][:, images], confidence[[row]][:, images]))
            for row in (0, 1)
        ]

    drawn = [linear(rng.integers(1500, size=1500)) for _ in range(400)]
    spread = np.std([two.values[0] - one.values[0] for one, two in drawn])
    drop, low, high, _ = linear_change(*linear(np.arange(1500)))
    assert (high - drop)[0] / stats.t.ppf(0.975, 1499) == pytest.approx(spread, rel=0.1)
    assert (drop - low)[0] == pytest.approx((high - drop)[0])


def test_an_interval_is_left_out_where_it_would_not_hold():
    rng = np.random.default_rng(2)
    targets = rng.integers(10, size=2000)
    assert macro_f1(Answers(targets, targets[None])).is_sound.all()
    assert not macro_f1(Answers(targets[:60], targets[None, :60])).is_sound.any(), "few of a class"
    many = rng.integers(100, size=2000)
    assert not macro_f1(Answers(many, many[None])).is_sound.any(), "many classes"
    confidence = 1 - 0.6 * rng.beta(0.6, 2.5, (1, 2000))
    calibrated = np.where(rng.random((1, 2000)) < confidence, targets, -1)
    overconfident = np.where(rng.random((1, 2000)) < confidence - 0.15, targets, -1)
    sound = [calibration_error(Answers(targets, one, confidence)).is_sound[0] for one in (calibrated, overconfident)]
    assert sound == [False, True]
    one, two = (calibration_error(Answers(targets, each, confidence)) for each in (calibrated, overconfident))
    drop, low, high, p_value = linear_change(one, two)
    assert drop[0] > 10 and np.isnan([low[0], high[0], p_value[0]]).all()


def test_a_study_of_few_classes_is_not_read_in_top_5(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    data = [(torch.rand(3, 8, 8), index % 4) for index in range(8)]
    ablate(net, data, "layer", cache=str(tmp_path))
    with Store.open(tmp_path / "results.sqlite") as store:
        assert store.metrics(1) == ["top1", "loss", "macro-f1", "ece"]


@pytest.mark.parametrize("name", ["macro-f1", "ece"])
def test_a_study_of_the_loss_is_read_in_metrics_of_all_answers(studied, name):
    path, net, data, _ = studied
    with Store.open(path) as store:
        assert set(store.metrics(1)) == {"loss", "top1", "top5", "macro-f1", "ece"}
        table, apart = store.table(1, name), store.compare(1, 0, 3, name)
    assert apart.difference == pytest.approx(table["drop"][3] - table["drop"][0])
    assert table["num_flipped"].isna().all() and (table["num_images"] == NUM_IMAGES).all()

    def value(other: nn.Module) -> float:
        with torch.no_grad():
            outputs = other(data.images).softmax(1)
        answers = Answers(data.targets.numpy(), outputs.argmax(1)[None].numpy(), outputs.max(1).values[None].numpy())
        return METRICS[name].aggregate(answers).values[0]

    for place in (0, 3, 10, len(table) - 1):
        row, wounded = table.iloc[place], network()
        wounded.get_submodule(row["layer"]).weight.data[int(row["out_channel"]), int(row["in_channel"])] = 0
        assert row["intact"] == pytest.approx(value(net), abs=1e-4)
        # A confidence in half precision may fall into the next bin.
        assert row["ablated"] == pytest.approx(value(wounded), abs=1e-6 if name == "macro-f1" else 0.1)
        assert row["drop"] == pytest.approx(METRICS[name].worse * (row["ablated"] - row["intact"]))


def test_measured_in_parts_it_counts_the_images_that_each_ablation_has(studied, tmp_path):
    path, *_ = studied
    copied = tmp_path / "results.sqlite"
    copied.write_bytes(path.read_bytes())
    with sqlite3.connect(copied) as db:
        db.execute("DELETE FROM blocks WHERE start = 50")
    with Store.open(copied) as store:
        table = store.table(1, "macro-f1")
        intact = store.intact(1)
    assert (table["num_images"] == 50).all()
    seen = intact[:50]
    answers = Answers(seen["target"].to_numpy(), seen["prediction"].to_numpy()[None])
    assert table["intact"][0] == pytest.approx(macro_f1(answers).values[0])


def test_what_needs_all_numbers_says_so_where_they_are_not_kept(studied, tmp_path, monkeypatch):
    _, net, data, whole = studied
    monkeypatch.setattr("weanalysis.ablation.record.MOST_NUMBERS_KEPT", len(whole) * 12)
    given = {"cache": str(tmp_path), "grid": "all", "shard_size": 25}
    with pytest.raises(StudyError, match="of which not all are kept, and ece needs all: give fewer --images"):
        ablate(net, data, "location", metric="ece", **given)
    ablate(net, data, "location", metric="macro-f1", **given)
    with Store.open(tmp_path / "results.sqlite") as store:
        assert store.metrics(1) == ["macro-f1", "top1", "top5", "loss"]
        with pytest.raises(StoreError, match="keeps the confidence of those images alone that changed most"):
            store.table(1, "ece")


def test_outputs_that_stop_being_probabilities_have_no_loss(tmp_path):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(nn.Softmax(1))

        def forward(self, images):
            return self.net(images) + 5 * (images[:, :1, 0, 0] > 2)

    data = Images(network())
    data.images[:, 0, 0, 0] = torch.arange(NUM_IMAGES) / 10
    with pytest.raises(
        StudyError, match=r"the loss of image 21 is no finite number .*its outputs are no probabilities"
    ):
        ablate(Sometimes(), data, "layer", metric="loss", cache=str(tmp_path))
    assert ablate(Sometimes(), data, "layer", cache=str(tmp_path))["drop"].notna().all()


# Compared -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_studies(tmp_path_factory: pytest.TempPathFactory):
    """The same study of two networks, in one cache."""
    cache, net, other = tmp_path_factory.mktemp("cache"), network(), network()
    other[3].weight.data *= 1.3
    data = Images(net)
    for name, one in (("first", net), ("second", other)):
        ablate(one, data, "location", metric="loss", cache=str(cache), grid="all", shard_size=25, name=name)
    return cache, net, other, data


@pytest.mark.parametrize("name", ["loss", "macro-f1", "ece"])
def test_studies_are_compared_place_by_place_in_any_metric(two_studies, name):
    cache, net, other, data = two_studies
    comparison = compare("first", "second", cache=str(cache), metric=name)
    with Store.open(cache / "results.sqlite") as store:
        one, two = store.table(1, name), store.table(2, name)
    assert comparison.metric == name and len(comparison.places) == len(one) and comparison.images.empty
    assert comparison.places["first"].to_numpy() == pytest.approx(one["drop"].to_numpy(), abs=2e-4)
    apart = (two["drop"] - one["drop"]).to_numpy()
    assert comparison.places["difference"].to_numpy() == pytest.approx(apart, abs=4e-4)
    assert comparison.difference == pytest.approx(apart.mean(), abs=4e-4)
    assert comparison.intact == pytest.approx((one["intact"][0], two["intact"][0]), abs=1e-4)
    assert comparison.accuracy.difference == pytest.approx(comparison.intact[1] - comparison.intact[0])
    if name != "loss":
        return
    before = [plain_losses(each, data).numpy() for each in (net, other)]
    for place in (0, 5):
        row = comparison.places.iloc[place]
        changes = []
        for each, intact in zip((net, other), before, strict=True):
            wounded = copy.deepcopy(each)
            wounded.get_submodule(row["layer"]).weight.data[int(row["out_channel"]), int(row["in_channel"])] = 0
            changes.append(plain_losses(wounded, data).numpy() - intact)
        test = stats.ttest_1samp(changes[1] - changes[0], 0)
        low, high = test.confidence_interval(0.95)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high), abs=2e-3)
        assert row["p_value"] == pytest.approx(test.pvalue, abs=0.02)
    test = stats.ttest_1samp(before[1] - before[0], 0)
    assert comparison.accuracy.p_value == pytest.approx(test.pvalue, rel=1e-3)
    assert comparison.largest(3)["selected_low"].notna().all()


def test_networks_are_compared_in_any_metric(two_studies):
    _, net, other, data = two_studies
    models = [Model(name, each, {"source": "module"}, "given", 6) for name, each in (("a", net), ("b", other))]
    comparison = compare(*models, data=data, metric="loss", device="cpu")
    losses = [plain_losses(each, data).numpy() for each in (net, other)]
    test = stats.ttest_1samp(losses[1] - losses[0], 0)
    assert comparison.difference == pytest.approx((losses[1] - losses[0]).mean(), abs=1e-5)
    assert comparison.p_value == pytest.approx(test.pvalue, rel=1e-3) and np.isnan(comparison.alone).all()
    assert [side.accuracy[0] for side in comparison.sides] == pytest.approx([one.mean() for one in losses], abs=1e-5)
    comparison = compare(*models, data=data, metric="macro-f1", device="cpu")
    assert comparison.difference == pytest.approx(comparison.sides[1].accuracy[0] - comparison.sides[0].accuracy[0])
    with pytest.raises(StudyError, match="accuracies to reach go with --metric top1 or top5, not loss"):
        compare(*models, data=data, metric="loss", reach=[90.0])
    with pytest.raises(StudyError, match="unknown metric 'auc'"):
        compare(*models, data=data, metric="auc")


def test_command_report_and_page_compare_in_the_loss(two_studies, tmp_path, capsys, monkeypatch):
    cache, *_ = two_studies
    assert run("compare", "first", "second", "--metric", "loss", "--cache", str(cache)) == 0
    printed = capsys.readouterr().out
    comparison = compare("first", "second", cache=str(cache), metric="loss")
    assert (
        f"B minus A: {comparison.difference:+.4f} nats" in printed
        and "Intact loss: A" in printed
        and "Student's t" in printed
    )
    assert "Images that are lost" not in printed and "points" not in printed
    page = write_report(["1", "2"], tmp_path / "page.html", cache=str(cache), metric="loss").path.read_text()
    assert METRICS["loss"].words(comparison.difference) in page and "Intact, the loss of first (1)" in page
    monkeypatch.setenv("WEANALYSIS_CACHE", str(cache))
    app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=60)
    app.query_params["metric"] = "loss"
    app.run()
    app.switch_page("views/compare.py").run()
    assert not app.exception and not app.error
    shown = " ".join(str(one.value) for one in app.markdown)
    words = METRICS["loss"].words(abs(comparison.difference), signed=False)
    assert words in shown and "nats" in shown


def test_a_metric_that_one_study_lacks_is_one_line(two_studies, tmp_path):
    cache, *_ = two_studies
    copied = tmp_path / "results.sqlite"
    copied.write_bytes((cache / "results.sqlite").read_bytes())
    with sqlite3.connect(copied) as db:
        db.execute("DELETE FROM block_values WHERE block_id IN (SELECT id FROM blocks WHERE context_id = 2)")
    with pytest.raises(StudyError, match="second does not know D of ece: it has loss, top1, top5, macro-f1; choose"):
        compare("first", "second", cache=str(tmp_path), metric="ece")


# Added as CONTRIBUTING.md says ----------------------------------------------------------------------------------------


def test_a_metric_is_added_as_the_recipe_says(tmp_path, monkeypatch):
    """A metric with a number of its own, and one with a bit of its own, in two steps each; nothing else is changed."""
    entropy = Metric("entropy", "entropy", "nats", "nats", "entropy", "mean", 1)
    top2 = Metric("top2", "top-2", "points", "%", "correct", "proportion", -1, bit=4, guesses=2)
    for metric in (entropy, top2):
        monkeypatch.setitem(METRICS, metric.name, metric)
    plain_statistics, plain_answers = Classification.statistics, Classification.answers

    def statistics(self, outputs, targets):
        logs = outputs.float().log_softmax(1)
        return {**plain_statistics(self, outputs, targets), "entropy": -(logs.exp() * logs).sum(1)}

    def answers(self, outputs, targets):
        predictions, correct = plain_answers(self, outputs, targets)
        within = (outputs.topk(2, 1).indices == targets[:, None]).any(1)
        return predictions, correct + 4 * within.to(torch.uint8)

    monkeypatch.setattr(Classification, "statistics", statistics)
    monkeypatch.setattr(Classification, "answers", answers)
    monkeypatch.setattr("weanalysis.results.counts.COUNTING", ("top1", "top5", "top2"))
    net = network()
    data = Images(net)
    table = ablate(net, data, "layer", metric="entropy", cache=str(tmp_path))
    with torch.no_grad():
        before = net(data.images)
        for row in table.itertuples():
            wounded = network()
            wounded.get_submodule(row.layer).weight.data.zero_()
            after = wounded(data.images)
            sure = [-(one.softmax(1) * one.log_softmax(1)).sum(1).mean().item() for one in (before, after)]
            assert row.drop == pytest.approx(sure[1] - sure[0], abs=1e-5)
            within = [
                (one.topk(2, 1).indices == data.targets[:, None]).any(1).float().mean() for one in (before, after)
            ]
            with Store.open(tmp_path / "results.sqlite") as store:
                measured = store.table(1, "top2").loc[row.Index]
                assert measured["drop"] == pytest.approx(100 * (within[0] - within[1]).item(), abs=1e-4)
                assert set(store.metrics(1)) == {*metrics_of_task("classification")}

"""Comparisons: of two networks on the same images, of groups of runs, and of two studies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_studies import location_plan, write_study
from PIL import Image
from scipy import stats
from torch import nn

import weanalysis
from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.comparison import (
    Candidate,
    NetworkComparison,
    StudyComparison,
    compare,
    compare_studies,
    find_checkpoint,
    usual_pair,
)
from weanalysis.data import load_data
from weanalysis.errors import DataError, ModelError, StoreError, StudyError, WeanalysisError
from weanalysis.models import Model, build, load_network, save_checkpoint
from weanalysis.results.statistics import compare_maps, paired_difference, rank_agreement
from weanalysis.training import METRICS, Recipe, Run

CONTRACT = ["first", "second", "metric", "difference", "difference_low", "difference_high", "p_value", "num_images"]

# A network that always answers with one class has that class's share of the images right.
IMAGES_OF_CLASS = {"a": 2, "b": 3, "c": 5, "d": 10}
ACCURACY = {"a": 10.0, "b": 15.0, "c": 25.0, "d": 50.0}
CLASSES = tuple(IMAGES_OF_CLASS)


# Networks whose answers are known ---------------------------------------------------------------------------------


class Reads(nn.Module):
    """Takes its logits from the first row of one channel of the image."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[channel].view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, 0, 0, :]


def reader(channel: int, name: str) -> Model:
    return Model(name, Reads(channel).eval(), {"source": "module", "name": name}, "made", 6)


def pictures_with_answers(*right: list[bool]) -> list[tuple[torch.Tensor, int]]:
    """Images (3, 6, 6) whose channel c holds logits that are right where right[c] says so; 6 classes."""
    images = []
    for number in range(len(right[0])):
        image, target = torch.zeros(3, 6, 6), number % 6
        for channel, hits in enumerate(right):
            image[channel, 0, target if hits[number] else (target + 1) % 6] = 1.0
        images.append((image, target))
    return images


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_two_networks_are_compared_image_by_image(batch_size: int) -> None:
    # Both right 3 times, A alone once, B alone 4 times, none twice.
    in_a = [True] * 3 + [True] + [False] * 4 + [False] * 2
    in_b = [True] * 3 + [False] + [True] * 4 + [False] * 2
    data = pictures_with_answers(in_a, in_b)
    comparison = compare(reader(0, "A"), reader(1, "B"), data, batch_size=batch_size)
    assert isinstance(comparison, NetworkComparison)
    assert [side.accuracy for side in comparison.sides] == [(40.0,), (70.0,)]
    assert comparison.difference == pytest.approx(30)
    assert comparison.alone == (1, 4)
    assert comparison.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # at most 1 of 5 fair coins, both sides
    _, low, high = paired_difference(4, 1, 10)
    assert (comparison.difference_low, comparison.difference_high) == pytest.approx(
        (100 * float(low), 100 * float(high))
    )
    assert comparison.num_images == 10 and comparison.is_of_two_networks
    assert list(comparison.summary()) == CONTRACT

    back = compare(reader(1, "B"), reader(0, "A"), data)
    assert back.difference == pytest.approx(-30) and back.p_value == comparison.p_value
    assert (back.difference_low, back.difference_high) == pytest.approx(
        (-comparison.difference_high, -comparison.difference_low)
    )


def test_top5_counts_more_images_than_top1() -> None:
    data = pictures_with_answers([False] * 12, [True] * 12)
    # A wrong answer leaves the target's logit at 0, among five equal ones.
    comparison = compare(reader(0, "A"), reader(1, "B"), data, metric="top5")
    assert comparison.metric == "top5" and comparison.difference == 0
    assert compare(reader(0, "A"), reader(1, "B"), data).difference == 100


def test_networks_in_memory_are_neither_trained_nor_moved_nor_run_twice() -> None:
    model, seen = reader(0, "A"), []
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    data = pictures_with_answers([True] * 6)
    comparison = compare(
        model, model, data, report=lambda name, done, total: seen.append((name, done, total)), batch_size=4
    )
    assert seen == [("A", 4, 6), ("A", 6, 6)]
    assert comparison.difference == 0 and comparison.p_value == 1
    assert not model.net.training and all(torch.equal(before[k], v) for k, v in model.net.state_dict().items())


# Runs, as training leaves them --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in IMAGES_OF_CLASS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(
                    root / split / name / f"{number}.png"
                )
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def always(answer: str, excitation: str = "none") -> tuple[nn.Module, dict]:
    """A ResNet-20 for the four classes that always gives one of them, and its architecture."""
    torch.manual_seed(0)
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 4, "options": {"shortcut": "A"}}
    if excitation != "none":
        architecture["excitation"] = {"kind": excitation}
    net = build(architecture)
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.eye(4)[CLASSES.index(answer)])
    return net, architecture


def write_run(
    cache: Cache, folder: Path, name: str, answer: str, top1: tuple[float, ...] = (), finished: bool = True, **values
) -> Run:
    """Write a run whose network always gives one answer, with a validation accuracy for each epoch."""
    recipe = Recipe.from_preset(
        "digits", model="resnet20", data=f"imagefolder:{folder}", image_size=8, batch_size=10, **values
    )
    run = Run(cache.runs / name)
    run.folder.mkdir(parents=True)
    net, architecture = always(answer, recipe.excitation)
    data = load_data(recipe.data, image_size=8)
    extra = {"classes": list(CLASSES), "transform": data.transform.describe(), "data": recipe.data}
    save_checkpoint(run.checkpoint, net, architecture, extra)
    model = load_network(str(run.checkpoint))
    fingerprint = load_data(recipe.data, model=model).fingerprint
    created = f"2026-01-01T00:00:{len(list(cache.runs.iterdir())):02}+00:00"
    description = {
        "created": created,
        "recipe": recipe.to_json(),
        "image_size": 8,
        "train_images": "",
        "val_images": fingerprint,
    }
    run.recipe_file.write_text(json.dumps(description))
    rows = [
        {
            **dict.fromkeys(METRICS, 0.0),
            "epoch": epoch,
            "step": 2 * epoch,
            "seconds": 3.0 * epoch * (1 + recipe.seed),
            "val_top1": accuracy,
            "peak_memory_gib": 1.0 + recipe.seed,
        }
        for epoch, accuracy in enumerate(top1, start=1)
    ]
    lines = [",".join(METRICS), *(",".join(str(row[name]) for name in METRICS) for row in rows)]
    run.metrics_file.write_text("\n".join(lines) + "\n")
    if finished:
        run.result_file.write_text(json.dumps({"top1": ACCURACY[answer], "epochs": len(top1), "seconds": 1.0}))
    return run


def test_two_runs_are_compared_on_the_images_they_were_validated_on(cache: Cache, folder: Path) -> None:
    write_run(cache, folder, "plain", "c", (20, 40, 60, 50))
    write_run(cache, folder, "excited", "d", (30, 70, 80), excitation="lwe", seed=1)
    comparison = compare("plain", "excited", cache=cache)
    assert [side.accuracy for side in comparison.sides] == [(25.0,), (50.0,)]
    assert (comparison.difference, comparison.alone, comparison.num_images) == (25, (5, 10), 20)
    assert comparison.p_value == pytest.approx(stats.binomtest(5, 15).pvalue)
    assert comparison.difference_low < 25 < comparison.difference_high
    assert (comparison.first, comparison.second, comparison.data) == ("plain", "excited", f"imagefolder:{folder}")
    assert all("guessing gives 25.00 %" in note for note in comparison.notes)

    assert comparison.curves["first"].tolist() == [20, 40, 60, 50]
    assert comparison.curves["second"].tolist()[:3] == [30, 70, 80] and np.isnan(comparison.curves["second"].iloc[3])
    (row,) = comparison.reached.itertuples()
    assert (row.accuracy, row.first, row.second) == (60, 3, 2)  # the highest that both reached
    assert comparison.step_s == (1.5, 3.0) and comparison.memory_gib == (1.0, 2.0)
    assert comparison.recipes == {"excitation": ("none", "lwe"), "seed": (0, 1)}
    plain, _ = always("a")
    excited, _ = always("a", "lwe")
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (plain, excited)]
    assert comparison.costs["train_params"].tolist() == counts and counts[1] > counts[0]
    assert comparison.costs["inference_params"].tolist() == [counts[0]] * 2
    assert comparison.costs["gflops"].iloc[0] == comparison.costs["gflops"].iloc[1] > 0


def test_an_accuracy_that_was_not_reached_is_nan(cache: Cache, folder: Path) -> None:
    write_run(cache, folder, "one", "c", (20, 40))
    write_run(cache, folder, "two", "d", (30, 70), excitation="lwe")
    reached = compare("one", "two", reach=(30, 70), cache=cache).reached
    assert reached["first"].iloc[0] == 2 and np.isnan(reached["first"].iloc[1])
    assert reached["second"].tolist() == [1, 2]
    assert reached["first_runs"].tolist() == [1, 0] and reached["second_runs"].tolist() == [1, 1]


def test_several_runs_a_side_have_welch_s_interval_over_runs(cache: Cache, folder: Path) -> None:
    for seed, (plain, excited) in enumerate((("a", "c"), ("b", "d"), ("a", "d"))):
        write_run(cache, folder, f"plain{seed}", plain, (10, 20 + seed), seed=seed)
        write_run(cache, folder, f"excited{seed}", excited, (30, 50), seed=seed, excitation="lwe")
    comparison = compare("plain0,plain1,plain2", ["excited0", "excited1", "excited2"], cache=cache)
    first, second = [10.0, 15.0, 10.0], [25.0, 50.0, 50.0]
    assert [list(side.accuracy) for side in comparison.sides] == [first, second]
    expected = stats.ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval()
    assert comparison.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert (comparison.difference_low, comparison.difference_high) == pytest.approx((interval.low, interval.high))
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert not comparison.is_of_two_networks and np.isnan(comparison.alone[0])
    assert all("guessing gives" in note for note in comparison.notes)
    assert comparison.curves["first"].tolist() == [10, 21]  # means over runs
    assert comparison.reached["accuracy"].tolist() == [20]
    assert comparison.recipes == {"excitation": ("none", "lwe")}

    by_seed = compare("plain1", "excited2", every_seed=True, cache=cache)
    assert by_seed.difference == comparison.difference
    assert by_seed.first == "plain0,plain1,plain2" and by_seed.second == "excited0,excited1,excited2"

    single = compare("plain0", "excited0,excited1", cache=cache)
    assert single.difference == pytest.approx(27.5)
    assert np.isnan(single.difference_low) and np.isnan(single.p_value)
    assert any("at least two on either side" in note for note in single.notes)


def test_every_seed_takes_finished_runs_of_the_same_recipe_only(cache: Cache, folder: Path) -> None:
    write_run(cache, folder, "seed0", "a", (10,))
    write_run(cache, folder, "seed1", "b", (10,), seed=1)
    write_run(cache, folder, "seed2", "b", (10,), seed=2, finished=False)
    write_run(cache, folder, "other-rate", "c", (10,), seed=3, learning_rate=0.5)
    write_run(cache, folder, "excited0", "c", (10,), excitation="lwe")
    comparison = compare("seed0", "excited0", every_seed=True, cache=cache)
    assert (comparison.first, comparison.second) == ("seed0,seed1", "excited0")
    assert compare("seed0,seed1", "excited0", every_seed=True, cache=cache).first == "seed0,seed1"
    with pytest.raises(StoreError, match="is no run, so runs of other seeds"):
        compare(reader(0, "A"), "seed0", every_seed=True, cache=cache)


def test_what_a_reader_must_know_is_noted(cache: Cache, folder: Path) -> None:
    write_run(cache, folder, "done", "a", (10,))
    unfinished = write_run(cache, folder, "unfinished", "d", (10, 20), finished=False, seed=1, learning_rate=0.5)
    description = unfinished.description
    unfinished.recipe_file.write_text(json.dumps({**description, "val_images": "others"}))
    notes = compare("done", "unfinished", cache=cache).notes
    assert "unfinished is not finished: this is its network after 2 epochs" in notes
    assert any("not the images that unfinished was validated on" in note for note in notes)
    both = compare("done,unfinished", "done", cache=cache).notes
    assert any("differ in learning_rate" in note for note in both)


def test_a_side_is_found_by_name_beginning_folder_or_file(cache: Cache, folder: Path) -> None:
    run = write_run(cache, folder, "plain-33d7dbca", "a", (10,))
    for text in ("plain-33d7dbca", "plain", "run:plain", str(run.folder), str(run.checkpoint)):
        assert find_checkpoint(text, cache).resolve() == run.checkpoint.resolve()
    assert compare(run, run.checkpoint, cache=cache).difference == 0
    # A checkpoint in a run's folder is that run's.
    assert len(compare(run.checkpoint, run, cache=cache).curves) == 1


def test_checkpoints_need_no_run(cache: Cache, folder: Path, tmp_path: Path) -> None:
    paths = []
    for answer in ("b", "d"):
        net, architecture = always(answer)
        paths.append(tmp_path / f"{answer}.safetensors")
        save_checkpoint(paths[-1], net, architecture, {"classes": list(CLASSES)})
    comparison = compare(*paths, data=f"imagefolder:{folder}", cache=cache)
    assert comparison.difference == 35 and comparison.curves.empty and comparison.reached.empty
    assert np.isnan(comparison.step_s).all() and comparison.recipes == {}
    assert compare(*paths, data=f"imagefolder:{folder}", num_images=7, cache=cache).num_images == 7
    with pytest.raises(DataError, match=r"does not say which images.*--data"):
        compare(*paths, cache=cache)
    noted = compare(*paths, data=f"imagefolder:{folder}", reach=[50], cache=cache).notes
    assert any("no curves" in note for note in noted)


def test_networks_of_other_classes_or_images_are_refused(cache: Cache, folder: Path, tmp_path: Path) -> None:
    run = write_run(cache, folder, "plain", "a", (10,))
    net, architecture = always("b")
    three = {**architecture, "num_classes": 3}
    path = tmp_path / "three.safetensors"
    save_checkpoint(path, build(three), three, {"classes": ["a", "b", "c"], "data": run.recipe["data"]})
    with pytest.raises(DataError, match=r"three.safetensors: the data has 4 classes, the network only 3"):
        compare("plain", path, cache=cache)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, net, architecture, {"classes": ["a", "b", "c", "d"], "data": "digits"})
    with pytest.raises(DataError, match=r"trained on different images.*name those"):
        compare("plain", other, cache=cache)
    # With the images named, the same two can be compared.
    assert compare("plain", other, data=run.recipe["data"], cache=cache).num_images == 20
    renamed = tmp_path / "renamed.safetensors"
    save_checkpoint(renamed, net, architecture, {"classes": ["b", "a", "d", "x"]})
    with pytest.raises(DataError, match=r"renamed\.safetensors"):
        compare("plain", renamed, data=run.recipe["data"], cache=cache)


@pytest.mark.parametrize(
    ("first", "second", "options", "error", "line"),
    [
        ("nix", "plain", {}, StoreError, "unknown run or study 'nix'"),
        ("run:nix", "plain", {}, StoreError, "unknown run 'nix'"),
        ("plain", "pl", {}, StoreError, "2 runs and studies match 'pl': run:plot, run:plain"),
        ("plain,plain", "plot", {}, StoreError, "plain is named twice"),
        (",", "plain", {}, StoreError, "names nothing"),
        ("x" * 300, "plain", {}, StoreError, "unknown run or study 'xxx"),
        (",".join(["plain"] * 60), "plot", {}, StoreError, "plain is named twice"),
        ("missing.safetensors", "plain", {}, ModelError, "missing.safetensors cannot be read"),
        (".", "plain", {}, StoreError, "holds no training run"),
        ("plain", "begun", {}, ModelError, "begun has no checkpoint yet"),
        ("plain", "plot", {"metric": "top3"}, StudyError, "unknown metric 'top3'"),
        ("plain", "plot", {"metric": "top5"}, StudyError, "top5 says nothing of 4 classes"),
        ("plain", "plot", {"reach": [0]}, StudyError, "0 % cannot be reached"),
        ("plain", "plot", {"data": "photos"}, DataError, "unknown data 'photos'"),
        ("plain", "plot", {"device": "cuda:9"}, WeanalysisError, "cuda:9"),
        ("plain", 3.5, {}, ModelError, "float cannot be compared"),
    ],
)
def test_bad_input_is_one_line(cache, folder, tmp_path, monkeypatch, first, second, options, error, line) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(cache, folder, "plain", "a", (10,))
    write_run(cache, folder, "plot", "b", (10,), seed=1)
    write_run(cache, folder, "begun", "b", ()).checkpoint.unlink()
    with pytest.raises(error, match=line) as raised:
        compare(first, second, cache=cache, **options)
    assert "\n" not in str(raised.value)


def test_compare_is_public() -> None:
    assert weanalysis.compare is compare


# Studies ------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)
        with torch.no_grad():  # no class may win on every image
            self.head.bias -= self(torch.randn(100, 3, 8, 8)).mean(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


def noise(num_images: int = 30, shift: int = 0) -> list[tuple[torch.Tensor, int]]:
    images = torch.randn(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [(image, (index + shift) % 4) for index, image in enumerate(images)]


def lost_and_gained(net: nn.Module, data: list[tuple[torch.Tensor, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Zero each kernel by hand: (images, kernels) of +1 lost and -1 gained, and which images are right intact."""
    images, targets = torch.stack([image for image, _ in data]), torch.tensor([target for _, target in data])
    columns = []
    with torch.no_grad():
        intact = (net(images).argmax(1) == targets).numpy()
        for layer in (net.one, net.two):
            for out_channel in range(layer.out_channels):
                for in_channel in range(layer.in_channels):
                    kept = layer.weight[out_channel, in_channel].clone()
                    layer.weight[out_channel, in_channel] = 0
                    right = (net(images).argmax(1) == targets).numpy()
                    layer.weight[out_channel, in_channel] = kept
                    columns.append(intact.astype(int) - right.astype(int))
    return np.stack(columns, axis=1), intact


def test_two_studies_are_compared_place_by_place(cache: Cache) -> None:
    data = noise()
    for seed in (0, 1):
        ablate(Small(seed), data, "location", grid="all", cache=cache, name=f"net{seed}")
    comparison = compare("net0", "net1", cache=cache)
    assert isinstance(comparison, StudyComparison)
    (first, right_first), (second, right_second) = (lost_and_gained(Small(seed).eval(), data) for seed in (0, 1))
    drops = 100 * first.mean(axis=0), 100 * second.mean(axis=0)
    assert (drops[0] != 0).any() and (drops[1] != 0).any()
    assert len(comparison.places) == 28
    np.testing.assert_allclose(comparison.places["first"], drops[0], atol=1e-9)
    np.testing.assert_allclose(comparison.places["second"], drops[1], atol=1e-9)
    np.testing.assert_allclose(comparison.places["difference"], drops[1] - drops[0], atol=1e-9)
    assert (comparison.places["difference_low"] <= comparison.places["difference"]).all()
    assert (comparison.places["difference_high"] >= comparison.places["difference"]).all()
    adjusted = stats.false_discovery_control(comparison.places["p_value"])
    np.testing.assert_allclose(comparison.places["q_value"], adjusted)

    apart = 100 * (second.mean(axis=1) - first.mean(axis=1))
    interval = stats.ttest_1samp(apart, 0).confidence_interval()
    assert comparison.difference == pytest.approx(apart.mean())
    assert (comparison.difference_low, comparison.difference_high) == pytest.approx((interval.low, interval.high))
    assert comparison.agreement.value == pytest.approx(stats.spearmanr(*drops).statistic)
    assert comparison.intact == pytest.approx((100 * right_first.mean(), 100 * right_second.mean()))
    assert comparison.accuracy.difference == pytest.approx(100 * (right_second.mean() - right_first.mean()))
    lost = (first > 0).sum(axis=1), (second > 0).sum(axis=1)
    (costly,) = np.nonzero(lost[0] + lost[1])
    assert comparison.images["image_id"].tolist() == costly.tolist()
    assert comparison.images["first"].tolist() == lost[0][costly].tolist()
    assert comparison.images["second"].tolist() == lost[1][costly].tolist()
    assert list(comparison.summary()) == CONTRACT and comparison.summary()["metric"] == "drop of top1"
    assert all("guessing gives 25.00 %" in note for note in comparison.notes)
    assert compare("2", 1, cache=cache).difference == pytest.approx(-comparison.difference)


def test_the_largest_differences_have_intervals_for_having_been_chosen(cache: Cache) -> None:
    numbers = [
        write_study(cache.results, "location", location_plan(grid=2, seed=seed), name, seed=seed, weights_hash=name)
        for name, seed in (("one", 1), ("two", 2))
    ]
    comparison = compare_studies(*numbers, cache)
    rows = comparison.largest(5)
    assert list(rows.index) == list(comparison.places["difference"].abs().nlargest(5).index)
    level = 1 - 5 * 0.05 / len(comparison.places)
    wider = compare_maps(*comparison.changes, same_network=False, confidence=level).loc[rows.index]
    np.testing.assert_allclose(rows["selected_low"], wider["difference_low"])
    np.testing.assert_allclose(rows["selected_high"], wider["difference_high"])
    assert (rows["selected_low"] < rows["difference_low"]).all()
    by_layer = rank_agreement(
        comparison.places["first"], comparison.places["second"], blocks=comparison.places["layer"]
    )
    assert comparison.agreement == by_layer


def test_what_screened_studies_may_have_missed_is_told_beside_the_interval(cache: Cache) -> None:
    data = noise(300)
    for seed, evaluate in ((0, "screened"), (1, "screened"), (2, "exact")):
        options = {"max_error": 2.0} if evaluate == "screened" else {}
        ablate(Small(seed), data, "location", grid="all", cache=cache, name=f"net{seed}", evaluate=evaluate, **options)
    both, half = compare("net0", "net1", cache=cache), compare("net2", "net1", cache=cache)
    first, second, third = (lost_and_gained(Small(seed).eval(), data)[0].mean(axis=0) * 100 for seed in (0, 1, 2))
    for comparison, true in ((both, second - first), (half, second - third)):
        places = comparison.places
        assert (places["screen_low"] < places["screen_high"]).any()
        assert (places["screen_low"] <= places["difference"]).all()
        inside = (places["screen_low"] - 1e-9 <= true) & (true <= places["screen_high"] + 1e-9)
        assert inside.mean() >= 0.95
        assert any("screen_low and screen_high" in note for note in comparison.notes)
    assert (both.places["screen_high"] - both.places["screen_low"]).sum() > (
        half.places["screen_high"] - half.places["screen_low"]
    ).sum()
    comparison = compare("net2", "net2", cache=cache)
    assert (comparison.places["screen_low"] == comparison.places["screen_high"]).all()
    assert not any("screen" in note for note in comparison.notes)


def test_only_what_both_studies_measured_is_paired(cache: Cache) -> None:
    data = noise()
    ablate(Small(0), data, "location", grid="all", layers="one", cache=cache, name="one-layer")
    ablate(Small(1), data, "location", grid="all", cache=cache, name="both-layers")
    comparison = compare("one-layer", "both-layers", cache=cache)
    assert set(comparison.places["layer"]) == {"one"} and len(comparison.places) == 12
    assert any(note.startswith("16 places") for note in comparison.notes)
    same = compare("both-layers", "both-layers", cache=cache)
    assert same.difference == 0 and any("the same network" in note for note in same.notes)


def test_studies_that_cannot_be_paired_are_refused(cache: Cache, folder: Path) -> None:
    net, data = Small(0), noise()
    ablate(net, data, "location", grid="all", layers="one", cache=cache, name="kernels")
    ablate(net, data, "location", grid="all", layers="two", cache=cache, name="others")
    ablate(net, data, "layer", cache=cache, name="layers")
    ablate(net, noise(shift=1), "location", grid="all", layers="one", cache=cache, name="relabelled")
    write_run(cache, folder, "plain", "a", (10,))
    for first, second, options, line in (
        ("kernels", "layers", {}, "is a location study and layers a layer study"),
        ("kernels", "others", {}, "no place in common"),
        ("kernels", "relabelled", {}, "changed between"),
        ("kernels", "plain", {}, "'kernels' is a study and 'plain' a network"),
        ("plain", "kernels", {}, "'kernels' is a study and 'plain' a network"),
        ("kernels,plain", "plain", {}, "names a study among several"),
        ("kernels", "others", {"data": "digits"}, "leave the data out"),
        ("study:plain", "kernels", {}, "unknown study 'plain'"),
    ):
        with pytest.raises(WeanalysisError, match=line):
            compare(first, second, cache=cache, **options)
    with pytest.raises(StoreError, match="is a study; name a checkpoint"):
        find_checkpoint("kernels", cache)


def test_a_name_that_a_run_and_a_study_share_can_be_told_apart(cache: Cache, folder: Path) -> None:
    run = write_run(cache, folder, "twin", "a", (10,))
    ablate(Small(0), noise(), "layer", cache=cache, name="twin")
    with pytest.raises(StoreError, match=r"2 runs and studies match 'twin': run:twin, study:1 \(twin\)"):
        compare("twin", "twin", cache=cache)
    assert find_checkpoint("run:twin", cache) == run.checkpoint
    assert isinstance(compare("study:twin", "study:1", cache=cache), StudyComparison)


def test_networks_that_see_the_images_differently_are_paired_by_place(cache: Cache, folder: Path) -> None:
    spec = f"imagefolder:{folder}"
    for size in (8, 10):
        ablate(Small(size), load_data(spec, image_size=size), "layer", cache=cache, name=f"size{size}")
    comparison = compare("size8", "size10", cache=cache)
    assert comparison.num_images == 20 and any("see the images differently" in note for note in comparison.notes)
    moved = replace(load_data(spec, image_size=8), spec="imagefolder:elsewhere")
    ablate(Small(8), moved, "layer", cache=cache, name="elsewhere", shard_size=100)
    with pytest.raises(StudyError, match=r"measured on imagefolder:.*elsewhere"):
        compare("size8", "elsewhere", cache=cache)


def test_the_usual_pair_is_a_baseline_and_its_excited_twin() -> None:
    def study(number: int, excited: bool, grid: str = "5x5", kind: str = "location") -> Candidate:
        return Candidate.of({"id": number, "kind": kind, "options": {"grid": grid}, "data": "digits"}, excited)

    newest_first = [study(5, False, "9x9"), study(4, True), study(3, False), study(2, False), study(1, True)]
    assert usual_pair(newest_first) == (3, 4), "the newest of either"
    assert usual_pair(newest_first, 4) == (4, 3) and usual_pair(newest_first, 3) == (3, 4)
    assert usual_pair(newest_first, 5) == (5, 4), "no twin asked the same"
    assert usual_pair([study(9, False), *newest_first[3:]]) == (9, 1)
    assert usual_pair([study(3, False), study(2, False, "9x9"), study(1, False)]) == (1, 3), "the older one first"
    assert usual_pair([study(2, True), study(1, False, "all")]) == (1, 2), "of one kind at least"
    assert usual_pair([study(2, True), study(1, False, kind="layer")]) is None
    assert usual_pair([study(2, True), study(1, False, kind="layer")], 2) is None and usual_pair([]) is None


def test_a_study_screened_for_another_metric_is_refused_in_a_line(cache: Cache) -> None:
    data = noise()
    exact = ablate(Small(0), data, "layer", cache=cache, name="exact")
    screened = ablate(Small(1), data, "layer", cache=cache, name="screened", evaluate="screened", max_error=2.0)
    with pytest.raises(StudyError, match="screened was screened for top1, so that changes of loss were left out"):
        compare_studies(exact.attrs["study_id"], screened.attrs["study_id"], cache, "loss")

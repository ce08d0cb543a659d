"""Saliency criteria against closed forms and plain autograd; what is kept; agreement with D; the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from command_line import run
from scipy import stats
from torch import nn

from weanalysis.ablation import ablate
from weanalysis.errors import DataError, StoreError, StudyError
from weanalysis.excitation import excite, fold, multipliers
from weanalysis.results import Store
from weanalysis.results.saliency import MappedLayer, SaliencyMaps, describe_maps, list_maps, load_maps, save_maps
from weanalysis.results.statistics import agreement_table, rank_agreement
from weanalysis.saliency import CRITERIA, parse_criteria, saliency_maps, scored_study, studies_of


class Mean(nn.Module):
    """A 1x1 convolution whose outputs, averaged over the map, are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


class SamePadding(nn.Conv2d):
    """A convolution that pads in its own forward, as timm's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Mixed(nn.Module):
    """Strided, grouped, depthwise, reflecting, self-padding and twice-called convolutions, with in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect")
        self.depthwise = nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False)
        self.own = SamePadding(6, 6, 2)
        self.twice = nn.Conv2d(6, 6, 1)
        self.unused = nn.Conv2d(6, 2, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.grouped(x), inplace=True)
        x = self.own(self.depthwise(x))
        self.unused(x)
        x = self.twice(F.relu(self.twice(x), inplace=True))
        return self.fc(x.mean((2, 3)))


def mixed() -> nn.Module:
    torch.manual_seed(3)
    net = Mixed().eval()
    with torch.no_grad():
        net.norm.weight.uniform_(-2, 2)
        net.norm.running_mean.normal_()
        for parameter in net.parameters():
            parameter *= 2  # so that every score is far from 0
    return net


def images(number: int, classes: int = 3, size: int = 7) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(3, size, size, generator=generator), index % classes) for index in range(number)]


def by_units(values: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    """Sum (Out, In/groups, h, w) over units with plain loops."""
    num_out, num_in = values.shape[:2]
    inputs = np.zeros(groups * num_in)
    for out in range(num_out):
        for into in range(num_in):
            inputs[out // (num_out // groups) * num_in + into] += values[out, into].sum()
    return {
        "weight": values,
        "kernel": values.sum((2, 3)),
        "filter": values.sum((1, 2, 3)),
        "input channel": inputs,
        "layer": values.sum(),
    }


def expected_gradients(net: nn.Module, data: list, layer: str) -> dict[str, dict[str, np.ndarray]]:
    """Score a layer by running each image alone and asking autograd for the weight's gradient."""
    conv = net.get_submodule(layer)
    weight = conv.weight.detach().double().numpy()
    changes = []
    for image, target in data:
        loss = F.cross_entropy(net(image[None]), torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, conv.weight, allow_unused=True)
        changes.append(weight * (0 if gradient is None else gradient.double().numpy()))
    each = [by_units(change, conv.groups) for change in changes]
    units = each[0]
    total = by_units(np.mean(changes, 0), conv.groups)
    return {
        "taylor": {unit: np.mean([np.abs(one[unit]) for one in each], 0) for unit in units},
        "taylor-mean": {unit: np.abs(total[unit]) for unit in units},
        "fisher": {unit: np.mean([one[unit] ** 2 for one in each], 0) / 2 for unit in units},
        "obd": by_units(np.mean(np.square(changes), 0) / 2, conv.groups),
    }


def scores_of(measured, criterion: str, unit: str, layer: str) -> np.ndarray:
    return (measured.weights if unit == "weight" else measured.maps).of(criterion, unit, layer)


# The criteria ------------------------------------------------------------------------------------------------------


def test_a_hand_weighted_network_has_the_scores_of_the_closed_form(tmp_path) -> None:
    net = Mean().eval()
    with torch.no_grad():
        net.conv.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])[:, :, None, None])
    # Both images are constant maps: the logits are w @ x, and the loss's gradient (softmax - target) x.
    x = np.array([[1.0, 0.5, 4.0], [0.0, 1.0, -2.0]])
    data = [(torch.tensor(row, dtype=torch.float32)[:, None, None].expand(3, 2, 2), 0) for row in x]
    w = np.array([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])
    logits = x @ w.T
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    change = ((softmax - [1, 0])[:, :, None] * x[:, None, :]) * w  # (image, out, in)
    measured = saliency_maps(net, data, cache=tmp_path)
    expected = {
        ("magnitude", "filter"): [1, 1],
        ("magnitude", "layer"): 1,
        ("l1", "filter"): [3, 3],
        ("l1", "input channel"): [4, 2, 0],
        ("l2", "filter"): [math.sqrt(5), 3],
        ("l2", "kernel"): np.abs(w),
        ("taylor", "kernel"): np.abs(change).mean(0),
        ("taylor", "filter"): np.abs(change.sum(2)).mean(0),
        ("taylor", "layer"): np.abs(change.sum((1, 2))).mean(),
        ("taylor-mean", "input channel"): np.abs(change.mean(0).sum(0)),
        ("fisher", "filter"): (change.sum(2) ** 2).mean(0) / 2,
        ("obd", "filter"): (change**2).mean(0).sum(1) / 2,
        ("activation", "kernel"): np.abs(w) * np.sqrt((x**2).mean(0)),
        ("activation", "filter"): np.sqrt((logits**2).mean(0)),
        ("activation", "layer"): np.sqrt((logits**2).mean(0).sum()),
    }
    for (criterion, unit), value in expected.items():
        np.testing.assert_allclose(scores_of(measured, criterion, unit, "conv"), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_gradient_criterion_equals_plain_autograd_image_by_image(tmp_path, batch_size) -> None:
    net, data = mixed(), images(7)
    measured = saliency_maps(net, data, cache=tmp_path, batch_size=batch_size)
    layers = [layer.name for layer in measured.maps.layers]
    assert sorted(layers) == ["depthwise", "grouped", "own", "stem", "twice", "unused"]
    for layer in layers:
        for criterion, units in expected_gradients(net, data, layer).items():
            assert layer == "unused" or np.max(units["kernel"]) > 1e-6
            for unit, value in units.items():
                got = scores_of(measured, criterion, unit, layer)
                np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-5 * np.max(value))


def test_activations_of_a_grouped_layer_belong_to_the_channels_that_it_reads(tmp_path) -> None:
    net, data = mixed(), images(5)
    measured = saliency_maps(net, data, "activation", cache=tmp_path)
    seen = {}
    hook = net.grouped.register_forward_hook(lambda _, args, output: seen.update(x=args[0].clone(), y=output.clone()))
    with torch.no_grad():
        net(torch.stack([image for image, _ in data]))
    hook.remove()
    square = seen["x"].double().square().mean((0, 2, 3)).numpy()
    weight = net.grouped.weight.detach().double().square().numpy()
    reads = np.stack([square[:2]] * 3 + [square[2:]] * 3)
    units = by_units(weight * reads[:, :, None, None], 2)
    for unit in ("weight", "kernel", "input channel"):
        np.testing.assert_allclose(scores_of(measured, "activation", unit, "grouped"), np.sqrt(units[unit]), rtol=1e-5)
    output = seen["y"].double().square().mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(scores_of(measured, "activation", "filter", "grouped"), np.sqrt(output), rtol=1e-5)


def test_gamma_is_that_of_the_norm_right_behind_and_missing_elsewhere(tmp_path) -> None:
    net = mixed()
    measured = saliency_maps(net, images(2), "bn-gamma,l1", cache=tmp_path)
    gamma = net.norm.weight.detach().abs().numpy()
    np.testing.assert_array_equal(scores_of(measured, "bn-gamma", "filter", "stem"), gamma)
    np.testing.assert_array_equal(scores_of(measured, "bn-gamma", "kernel", "stem"), np.repeat(gamma[:, None], 3, 1))
    assert np.isnan(scores_of(measured, "bn-gamma", "input channel", "stem")).all()
    assert np.isnan(scores_of(measured, "bn-gamma", "filter", "grouped")).all()
    assert scores_of(measured, "bn-gamma", "filter", "grouped").shape == (6,)


def test_an_excited_network_has_its_multipliers_and_is_scored_on_its_folded_weights(tmp_path) -> None:
    torch.manual_seed(0)
    net = excite(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, groups=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        "lwe",
    ).eval()
    m = {name: value.detach().numpy() for name, value in multipliers(net).items()}
    measured = saliency_maps(net, images(3), cache=tmp_path)
    np.testing.assert_array_equal(scores_of(measured, "lwe-multiplier", "kernel", "2"), m["2"])
    np.testing.assert_allclose(scores_of(measured, "lwe-multiplier", "filter", "2"), m["2"].mean(1), rtol=1e-6)
    np.testing.assert_allclose(scores_of(measured, "lwe-multiplier", "input channel", "2"), m["2"].mean(0), rtol=1e-6)
    plain = fold(net)
    expected = plain[2].weight.detach().abs().sum((2, 3)).numpy()
    np.testing.assert_allclose(scores_of(measured, "l1", "kernel", "2"), expected, rtol=1e-6)


def test_weights_gradients_and_modes_are_untouched_also_after_a_failure(tmp_path) -> None:
    net = mixed().train()
    net.stem.weight.grad = torch.full_like(net.stem.weight, 7.0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def check() -> None:
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert (net.stem.weight.grad == 7).all() and net.fc.weight.grad is None
        assert net.training and all(module.training for module in net.modules())
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())

    saliency_maps(net, images(3), cache=tmp_path)
    check()
    with pytest.raises(DataError, match="class index 8 is beyond the network's 3 outputs"):
        saliency_maps(net, [*images(2), (torch.zeros(3, 7, 7), 8)], cache=tmp_path)
    with pytest.raises(DataError, match="item 2 of list has pixels that are NaN or infinite"):
        saliency_maps(net, [*images(2), (torch.full((3, 7, 7), math.inf), 0)], cache=tmp_path)
    check()


# What a network lacks, and what is malformed -------------------------------------------------------------------------


def test_a_criterion_that_the_network_lacks_is_missing_with_a_line_and_refused_alone(tmp_path) -> None:
    net = Mean().eval()
    lines: list[str] = []
    measured = saliency_maps(net, images(2, 2), cache=tmp_path, say=lines.append)
    assert sorted(measured.lacking) == ["bn-gamma", "lwe-multiplier"]
    assert len([line for line in lines if "missing (NaN)" in line]) == 2
    for criterion in measured.lacking:
        for unit in ("weight", "kernel", "filter", "input channel", "layer"):
            assert np.isnan(scores_of(measured, criterion, unit, "conv")).all()
    with pytest.raises(StudyError, match=r"^lwe-multiplier: the selected layers have no LWE.*choose another criterion"):
        saliency_maps(net, images(2, 2), "lwe-multiplier", cache=tmp_path)
    with pytest.raises(StudyError, match="no batch norm stands right behind a selected layer"):
        saliency_maps(mixed(), images(2), "bn-gamma", "grouped,twice", cache=tmp_path)


def test_unknown_names_are_refused(tmp_path) -> None:
    with pytest.raises(StudyError, match="unknown criterion 'tailor': did you mean taylor"):
        parse_criteria("l1,tailor")
    with pytest.raises(StudyError, match="no criterion was given"):
        parse_criteria(" , ")
    assert parse_criteria(None) == tuple(CRITERIA) and parse_criteria("L2, taylor,l2") == ("l2", "taylor")
    with pytest.raises(StudyError, match="unknown layer 'convX'"):
        saliency_maps(Mean(), images(2, 2), layers="convX", cache=tmp_path)
    with pytest.raises(StudyError, match="batch size of 0"):
        saliency_maps(Mean(), images(2, 2), cache=tmp_path, batch_size=0)
    assert not (tmp_path / "saliency").exists()


# What is kept ----------------------------------------------------------------------------------------------------


def test_the_same_question_is_answered_from_the_cache_and_any_other_is_not(tmp_path) -> None:
    net, data = mixed(), images(4)
    calls = []
    first = saliency_maps(net, data, cache=tmp_path, report=lambda *status: calls.append(status))
    assert [call[:2] for call in calls] == [(4, 4)] and not first.reused
    again = saliency_maps(net, data, cache=tmp_path, report=lambda *status: calls.append(status))
    assert len(calls) == 1 and again.reused
    for kept, new in ((again.maps, first.maps), (again.weights, first.weights)):
        assert kept.maps.keys() == new.maps.keys() and kept.layers == new.layers
        for key, by_layer in new.maps.items():
            for layer, values in by_layer.items():
                np.testing.assert_array_equal(kept.maps[key][layer], values)
    others = [
        saliency_maps(net, data[:3], cache=tmp_path),
        saliency_maps(net, data, "taylor", cache=tmp_path),
        saliency_maps(net, data, layers="stem", cache=tmp_path),
    ]
    with torch.no_grad():
        net.fc.bias[0] += 1
    others.append(saliency_maps(net, data, cache=tmp_path))
    assert not any(other.reused for other in others)
    assert len({first.path, *(other.path for other in others)}) == 5
    listed = list_maps(tmp_path / "saliency")
    assert {path for path, _ in listed} == {first.path, *(other.path for other in others)}
    assert describe_maps(first.path)["weights_hash"] == first.maps.about["weights_hash"]


def test_a_file_that_holds_no_maps_is_refused_in_one_line_and_not_listed(tmp_path) -> None:
    layer = MappedLayer("a", 0, "plain", 1, (2, 2), (1, 1))
    save_maps(SaliencyMaps((layer,), ("l1",), {"created": 1}, {}), tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:40])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("cut", "bad", "missing"):
        with pytest.raises(StoreError, match="holds no saliency maps"):
            load_maps(tmp_path / f"{name}.safetensors")
    assert [path.stem for path, _ in list_maps(tmp_path)] == ["good"]


def test_scores_are_looked_up_by_what_a_row_zeroes() -> None:
    layer = MappedLayer("a", 3, "grouped (2)", 2, (2, 3), (1, 1))
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    maps = SaliencyMaps(
        (layer,),
        ("l1",),
        {},
        {
            ("l1", "kernel"): {"a": kernel},
            ("l1", "filter"): {"a": np.float32([10, 20])},
            ("l1", "input channel"): {"a": np.arange(100, 106, dtype=np.float32)},
        },
    )
    nan = np.nan
    rows = pd.DataFrame(
        [
            ("a", "kernel", 1, 2),
            ("a", "input channel", nan, 4),
            ("a", "filter", 1, nan),
            ("a", "layer", nan, nan),
            ("b", "kernel", 0, 0),
            (None, "single", nan, nan),
            ("a", "lowest", nan, 1),
        ],
        columns=["layer", "selection", "out_channel", "in_channel"],
        index=[5, 3, 9, 1, 0, 2, 7],
    )
    np.testing.assert_array_equal(maps.scores("l1", rows), [5, 104, 20, nan, nan, nan, nan])
    table = maps.table()
    assert len(table) == 6 + 2 + 6 + 1
    np.testing.assert_array_equal(maps.scores("l1", table), table["l1"])
    with pytest.raises(StoreError, match="no map of b"):
        maps.of("l1", "kernel", "b")


# Agreement with D -------------------------------------------------------------------------------------------------


def test_agreement_is_scipy_s_and_keeps_kinds_and_layers_apart() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "layer": ["a"] * 20 + ["b"] * 20 + ["a"] * 10,
            "depth": [1.0] * 20 + [0.0] * 20 + [1.0] * 10,
            "selection": ["kernel"] * 40 + ["filter"] * 10,
            "drop": random.normal(size=50),
        }
    )
    table["same"], table["none"] = 2 * table["drop"] + 1, np.nan
    table["noisy"] = table["drop"] + random.normal(size=50)
    table.loc[0, "drop"] = np.nan
    agreement = agreement_table(table, ["same", "noisy", "none"], top=0.1)
    by_layer = agreement.set_index(["selection", "criterion", agreement["layer"].fillna("")])
    known = table[1:40]
    row = by_layer.loc[("kernel", "noisy", "")]
    assert row["num_places"] == 39 and row["top_k"] == 4
    assert row["spearman"] == pytest.approx(stats.spearmanr(known["noisy"], known["drop"]).statistic)
    within = rank_agreement(known["noisy"], known["drop"], "kendall", blocks=known["layer"])
    assert row["kendall"] == pytest.approx(stats.kendalltau(known["noisy"], known["drop"]).statistic)
    assert row["kendall_p_value"] == pytest.approx(within.p_value) and np.isnan(row["spearman_low"])  # two layers
    of_layer, own = by_layer.loc[("kernel", "noisy", "b")], known[known["layer"] == "b"]
    assert of_layer["kendall_p_value"] == pytest.approx(stats.kendalltau(own["noisy"], own["drop"]).pvalue)
    assert of_layer["spearman_low"] < of_layer["spearman"] < of_layer["spearman_high"]
    shared = len(set(known["noisy"].nlargest(4).index) & set(known["drop"].nlargest(4).index))
    flipped = agreement_table(table.assign(num_flipped=table["drop"].abs()), ["noisy"], measured="num_flipped")
    expected = stats.spearmanr(known["noisy"], known["drop"].abs()).statistic
    assert flipped.iloc[0]["spearman"] == pytest.approx(expected) and flipped.iloc[0]["num_places"] == 39
    assert row["top_overlap"] == shared / 4 and row["top_chance"] == pytest.approx(4 / 39)
    assert by_layer.loc[("kernel", "same", "b"), "spearman"] == pytest.approx(1)
    assert by_layer.loc[("kernel", "same", "b"), "top_overlap"] == 1
    assert list(agreement[agreement["selection"] == "kernel"]["layer"].dropna())[:2] == ["b", "a"]  # by depth
    missing = by_layer.loc[("kernel", "none", "")]
    assert missing["num_places"] == 0 and missing[["spearman", "kendall_low", "top_overlap", "top_k"]].isna().all()
    p_values = [by_layer.loc[("kernel", "noisy", layer), "spearman_p_value"] for layer in "ab"]
    q_values = [by_layer.loc[("kernel", "noisy", layer), "q_value"] for layer in "ab"]
    np.testing.assert_allclose(q_values, stats.false_discovery_control(p_values))
    assert by_layer.loc[("filter", "same", "")]["num_places"] == 10  # one layer: no row of its own
    of_network, of_layers = (
        agreement_table(table, ["same", "noisy", "none"], scopes=(scope,)) for scope in ("network", "layer")
    )
    is_network = agreement["layer"].isna()
    for part, rows in ((of_network, agreement[is_network]), (of_layers, agreement[~is_network])):
        expected = rows.reset_index(drop=True).fillna({"layer": ""})
        pd.testing.assert_frame_equal(part.fillna({"layer": ""}), expected, check_dtype=False)
    assert agreement_table(table[table["selection"] == "filter"], ["same"], scopes=("layer",)).empty, "one layer"
    with pytest.raises(ValueError, match="top must be a share"):
        agreement_table(table, ["same"], top=1)


def test_a_network_in_which_nothing_flips_has_no_agreement() -> None:
    table = pd.DataFrame({"layer": "a", "depth": 0.0, "selection": "kernel", "drop": np.zeros(9), "l1": np.arange(9.0)})
    row = agreement_table(table, ["l1"]).iloc[0]
    assert row["num_places"] == 9 and row[["spearman", "kendall", "top_overlap", "top_p_value"]].isna().all()


def test_each_study_is_scored_with_its_own_units(tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    data = images(6, 4)
    for kind, options in (
        ("location", {"grid": "all"}),
        ("channel", {}),
        ("layer", {}),
        ("magnitude", {"percentiles": "10,50,100", "scope": "layer"}),
    ):
        ablate(net, data, kind, cache=tmp_path, name=kind, jobs=1, **options)
    measured = saliency_maps(net, data, cache=tmp_path)
    with Store.open(tmp_path / "results.sqlite") as store:
        numbers = studies_of(store, measured.maps.about["weights_hash"])
        scored = {store.describe(number)["kind"]: scored_study(measured, net, store, number) for number in numbers}
        assert sorted(scored) == ["channel", "layer", "location", "magnitude"]
        with pytest.raises(StudyError, match="location measured other weights"):
            studies_of(store, "f" * 64, "location")
        assert studies_of(store, "f" * 64) == []
    weight = net[2].weight.detach().numpy()
    row = scored["channel"].query("layer == '2' and selection == 'input channel' and in_channel == 4").iloc[0]
    assert row["l1"] == pytest.approx(np.abs(weight[2:, 1]).sum(), rel=1e-6)
    row = scored["location"].query("layer == '2' and out_channel == 3 and in_channel == 1").iloc[0]
    assert row["l2"] == pytest.approx(np.sqrt((weight[3, 1] ** 2).sum()), rel=1e-6)
    assert scored["layer"]["l1"].tolist() == pytest.approx([float(net[i].weight.detach().abs().sum()) for i in (0, 2)])
    ordered = np.sort(np.abs(weight).ravel())
    rows = scored["magnitude"].query("layer == '2'")
    assert rows["l1"].tolist() == pytest.approx([ordered[math.ceil(b * len(ordered) / 100) - 1] for b in (10, 50, 100)])
    taylor = measured.weights.of("taylor", "weight", "2").ravel()
    places = np.argsort(np.abs(weight).ravel(), kind="stable")
    assert rows["taylor"].iloc[2] == pytest.approx(taylor[places[-1]])


# The command --------------------------------------------------------------------------------------------------------


SMALL = [
    "saliency",
    "--model",
    "resnet20",
    "--weights",
    "none",
    "--num-classes",
    "10",
    "--images",
    "6",
    "--layers",
    "layer1.0.*",
]


def test_the_command_prints_one_json_object_or_tables_and_writes_the_scores(tmp_path, capsys) -> None:
    words = [*SMALL, "--cache", str(tmp_path)]
    torch.manual_seed(0)
    assert run(*words, "--json", "-o", str(tmp_path / "scores.parquet")) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["layers"] == ["layer1.0.conv1", "layer1.0.conv2"] and result["num_images"] == 6
    assert list(result["lacking"]) == ["lwe-multiplier"] and "lwe-multiplier" in captured.err
    assert result["most_important"]["kernel"]["lwe-multiplier"][0]["score"] is None
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert len(table[table["selection"] == "kernel"]) == 512
    best = result["most_important"]["kernel"]["taylor"][0]
    assert best["score"] == pytest.approx(table[table["selection"] == "kernel"]["taylor"].max(), rel=1e-6)
    torch.manual_seed(0)
    assert run(*words, "-o", str(tmp_path / "all.safetensors")) == 0
    text = capsys.readouterr().out
    assert "512 kernels of 2 layers" in text and "from the cache" in text and "No study in the cache" in text
    assert load_maps(tmp_path / "all.safetensors").of("taylor", "weight", "layer1.0.conv1").shape == (16, 16, 3, 3)


def test_the_command_compares_with_the_studies_of_the_same_weights(tmp_path, capsys) -> None:
    from weanalysis.models import load_network, save_checkpoint

    torch.manual_seed(0)
    model = load_network("resnet20", "none", 10)
    file, cache = tmp_path / "net.safetensors", ["--cache", str(tmp_path / "cache")]
    save_checkpoint(file, model.net, model.architecture)
    layers = ["--model", str(file), "--images", "20", "--layers", "layer1.0.*", "--quiet"]
    assert run("ablate", *layers, "--grid", "3x3", "--jobs", "1", "--name", "grid", *cache) == 0
    capsys.readouterr()
    assert run("saliency", *layers, *cache, "--json", "--top", "20") == 0
    rows = json.loads(capsys.readouterr().out)["agreement"]
    whole = [row for row in rows if row["layer"] is None]
    assert {row["criterion"] for row in whole} == set(CRITERIA) and {row["num_places"] for row in whole} == {18, 0}
    assert run("saliency", *layers, *cache, "--study", "grid") == 0
    text = capsys.readouterr().out
    assert "18 places (kernel), 20 images" in text and "Agreement with the measured D of top1" in text
    assert run("saliency", *layers, *cache, "--against", "flipped", "--quiet") == 0
    assert "Agreement with the number of images flipped" in capsys.readouterr().out
    assert run("saliency", *layers, *cache, "--against", "loss", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    loss = [row for row in printed["agreement"] if row["layer"] is None]
    with Store.open(tmp_path / "cache" / "results.sqlite") as store:
        kernels = store.table(1, "loss")
    scores = load_maps(Path(printed["maps"])).scores("taylor-mean", kernels)
    expected = stats.spearmanr(scores, kernels["drop"]).statistic
    correlations = [row["spearman"] for row in loss if row["criterion"] == "taylor-mean" and row["num_places"]]
    assert correlations == [pytest.approx(expected)]
    assert run("saliency", *layers, *cache, "--against", "loss") == 0
    assert "Agreement with the measured D of loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--criteria", "l3"], "unknown criterion 'l3'"),
        (["--against", "auc"], "unknown measurement 'auc'"),
        (["--top", "0"], "--top 0 is not allowed"),
        (["-o", "scores.txt"], "scores are written as .parquet"),
        (["-o", "nowhere/at/all.csv"], "does not exist"),
        (["--study", "7"], "there are no results"),
        (["--criteria", "lwe-multiplier"], "have no LWE"),
        (["--images", "0"], "0 images were asked for"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, line) -> None:
    assert run(*SMALL, *words, "--quiet", "--cache", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and line in captured.err and len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "saliency").exists()

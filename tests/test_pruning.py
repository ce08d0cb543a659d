"""Pruning: which units go, that the rest computes the same, that the file rebuilds it, and the curve's numbers."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from command_line import run
from made_studies import write_pruning
from scipy import stats
from torch import nn

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.errors import ModelError, StoreError, StudyError
from weanalysis.excitation import excite, fold
from weanalysis.figures.pruning import pruning_curves
from weanalysis.models import Model, build, load_network, save_checkpoint
from weanalysis.models.pruned import apply_sizes, sizes_of
from weanalysis.pruning import prune
from weanalysis.pruning.channels import find_groups, group_scores, remove_channels
from weanalysis.pruning.units import choose_lowest
from weanalysis.results import Store
from weanalysis.results.pruning import list_curves, load_curve
from weanalysis.results.saliency import MappedLayer, SaliencyMaps, load_maps, save_maps
from weanalysis.results.statistics import mcnemar_exact, paired_difference
from weanalysis.results.store import Writer
from weanalysis.saliency import saliency_maps


def images(number: int, size: int = 8, classes: int = 4) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(3, size, size, generator=generator), index % classes) for index in range(number)]


def stack(data: list) -> torch.Tensor:
    return torch.stack([image for image, _ in data])


def small() -> nn.Module:
    """Two convolutions, the first with a batch norm that is not the identity."""
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            for values in (norm.weight, norm.bias, norm.running_mean):
                values.normal_()
            norm.running_var.uniform_(0.5, 2)
        net[7].bias -= net(stack(images(40))).mean(0)  # so that its answers differ, and hang on every weight
    return net


def shaken(name: str, **options) -> Model:
    """A network with random weights whose batch norms differ from the identity."""
    torch.manual_seed(0)
    model = load_network(name, "none", 4, options)
    with torch.no_grad():
        for module in model.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_(std=0.1)
    return model


# Which units go -------------------------------------------------------------------------------------------------------


def test_the_lowest_go_over_the_network_or_in_each_layer_and_the_best_of_a_layer_stays() -> None:
    scores = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([10.0, 20.0, -1.0, 0.0])}
    network = choose_lowest(scores, 0.5, "network")
    assert network["a"].tolist() == [[True, True], [False, False]]
    assert network["b"].tolist() == [False, False, True, True]
    layer = choose_lowest(scores, 0.75, "layer")
    assert layer["a"].tolist() == [[True, True], [True, False]] and layer["b"].tolist() == [True, False, True, True]
    everything = choose_lowest({"low": np.array([1.0, 3.0, 2.0]), "high": np.array([8.0, 9.0, 7.0])}, 0.67, "network")
    assert everything["low"].tolist() == [True, False, True] and everything["high"].sum() == 1
    assert choose_lowest({"a": np.zeros(4)}, 0.5, "layer")["a"].tolist() == [True, True, False, False]


# Kernels --------------------------------------------------------------------------------------------------------------


def test_pruned_kernels_are_zero_all_else_is_untouched_and_the_curve_counts_paired_images(tmp_path) -> None:
    net, data = small(), images(30)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = prune(net, data, "l1", 0.5, "kernel", cache=tmp_path, curve=(0.25, 0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    norms = {layer: net[int(layer)].weight.detach().abs().sum((2, 3)) for layer in "03"}
    limit = torch.cat([values.flatten() for values in norms.values()]).sort().values[33]
    expected = copy.deepcopy(net)
    with torch.no_grad():
        for layer, values in norms.items():
            expected[int(layer)].weight[values < limit] = 0
    for name, tensor in expected.state_dict().items():
        assert torch.equal(result.model.net.state_dict()[name], tensor)
    targets = torch.tensor([target for _, target in data])
    with torch.no_grad():
        was, now = (one(stack(data)).argmax(1) == targets for one in (net, expected))
    lost, gained = int((was & ~now).sum()), int((~was & now).sum())
    assert lost + gained > 0
    row = result.table.set_index("sparsity").loc[0.5]
    _, low, high = paired_difference(lost, gained, 30)
    assert row["drop"] == pytest.approx(100 * (lost - gained) / 30)
    assert (row["drop_low"], row["drop_high"]) == pytest.approx((100 * float(low), 100 * float(high)))
    assert row["p_value"] == pytest.approx(float(mcnemar_exact(lost, gained)))
    kept = load_curve(result.path)
    pd.testing.assert_frame_equal(kept.table, result.table.astype(float))
    assert kept.about["weights_hash"] == result.about["of_weights_hash"]
    assert kept.about["command"] == result.about["command"] and kept.about["layers"] == ["0", "3"]
    again, other = (prune(net, data, by, 0.5, cache=tmp_path, curve=(0.25, 0.5)) for by in ("l1", "l2"))
    assert again.path == result.path != other.path, "the same question has one answer"
    curves, problems = list_curves(Cache(tmp_path))
    assert not problems and len(curves) == 2 and len({curve.subject for curve in curves}) == 1
    assert row["intact"] == pytest.approx(100 * float(was.float().mean())) and row["num_flipped"] == lost + gained
    with torch.no_grad():
        losses = [F.cross_entropy(one(stack(data)).double(), targets, reduction="none") for one in (net, expected)]
    apart = (losses[1] - losses[0]).numpy()
    reach = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
    assert (row["loss_intact"], row["loss"]) == pytest.approx([float(one.mean()) for one in losses], abs=1e-5)
    assert (row["loss_drop"], row["loss_low"], row["loss_high"]) == pytest.approx((apart.mean(), *reach), abs=1e-5)
    assert (row["num_units"], row["num_pruned"]) == (66, 33)
    assert row["num_nonzero"] == row["num_params"] - 33 * 9 and list(result.table["num_pruned"]) == [16, 33]


def test_an_excited_network_is_pruned_in_its_folded_weights(tmp_path) -> None:
    net = excite(small(), "lwe").eval()
    result = prune(net, images(4), "lwe-multiplier", 0.3, cache=tmp_path, curve=())
    plain = fold(copy.deepcopy(net))
    left = result.model.net[3].weight != 0
    assert torch.equal(result.model.net[3].weight[left], plain[3].weight[left])
    assert not hasattr(result.model.net[3], "parametrizations") and not hasattr(result.model.net[3], "weight_mask")
    assert result.table["num_pruned"].tolist() == [20]


def test_layers_that_the_criterion_says_nothing_of_stay_whole(tmp_path) -> None:
    lines: list[str] = []
    result = prune(small(), images(4), "bn-gamma", 0.5, cache=tmp_path, curve=(), say=lines.append)
    assert result.about["layers"] == ["0"] and int((result.model.net[3].weight == 0).sum()) == 0
    assert any("not pruned, since bn-gamma says nothing of them: 3" in line for line in lines)


# Channels -------------------------------------------------------------------------------------------------------------


def test_a_removed_channel_is_one_whose_filter_norm_and_readers_are_gone(tmp_path) -> None:
    net, data = small(), images(5)
    result = prune(net, data, "l2", 0.5, "channel", cache=tmp_path, curve=())
    norms = [net[place].weight.detach().square().sum((1, 2, 3)).sqrt() for place in (0, 3)]
    limit = torch.cat(norms).sort().values[7]
    keep = [values >= limit for values in norms]
    expected = copy.deepcopy(net)
    with torch.no_grad():
        for values, kept in (
            (expected[0].weight, keep[0]),
            (expected[0].bias, keep[0]),
            (expected[1].weight, keep[0]),
            (expected[1].bias, keep[0]),
            (expected[3].weight, keep[1]),
        ):
            values[~kept] = 0
        torch.testing.assert_close(result.model.net(stack(data)), expected(stack(data)), rtol=1e-4, atol=1e-5)
    pruned = result.model.net
    assert pruned[0].weight.shape == (int(keep[0].sum()), 3, 3, 3) and pruned[1].num_features == int(keep[0].sum())
    assert pruned[3].weight.shape == (int(keep[1].sum()), int(keep[0].sum()), 3, 3)
    assert torch.equal(pruned[0].weight, net[0].weight[keep[0]]) and pruned[7].in_features == int(keep[1].sum())
    assert net[0].out_channels == 6 and all(parameter.grad is None for parameter in net.parameters())


def test_filters_that_are_added_go_together_and_padded_shortcuts_keep_theirs() -> None:
    batch = stack(images(2, 32))
    padded, skipped = find_groups(shaken("resnet20").net, batch)
    assert [group.root for group in padded] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
    assert [name for name, _ in skipped] == ["conv1"] and "padded with zeros" in skipped[0][1]
    projected, skipped = find_groups(shaken("resnet20", shortcut="B").net, batch)
    assert not skipped
    first = next(group for group in projected if "conv1" in group.filters)
    assert set(first.filters) == {"conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"}
    scores = {name: np.arange(16.0) for name in first.filters}
    assert group_scores([first], scores)[first.root].tolist() == [4 * value for value in range(16)]
    assert group_scores([first], {"conv1": np.arange(16.0)}) == {}


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("mobilenet_v2", 48), ("resnet18", 48)])
def test_the_checkpoint_rebuilds_the_smaller_network_with_equal_logits(tmp_path, name, size) -> None:
    model = shaken(name)
    data = images(4, size)
    result = prune(model, data, "l1", 0.4, "channel", "layer", cache=tmp_path, curve=())
    file = tmp_path / "pruned.safetensors"
    save_checkpoint(file, result.model.net, result.model.architecture)
    again = load_network(str(file))
    assert sum(p.numel() for p in again.net.parameters()) == result.table["num_params"].iloc[0]
    assert result.table["num_params"].iloc[0] < 0.75 * sum(p.numel() for p in model.net.parameters())
    assert result.table["gflops"].iloc[0] < result.about["intact_params"]["gflops"]
    with torch.no_grad():
        assert torch.equal(again.net(stack(data)), result.model.net(stack(data)))
    if name != "resnet20":
        return
    twice = prune(again, data, "l1", 0.4, "channel", "layer", cache=tmp_path, curve=())
    save_checkpoint(file, twice.model.net, twice.model.architecture)
    assert load_network(str(file)).net.layer3[0].conv1.out_channels == 23  # 64 -> 38 -> 23
    table = ablate(again, data, "location", grid="2x2", layers="layer1.0.*", cache=tmp_path, jobs=1)
    assert len(table) == 8 and table["drop"].notna().all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    original = small()
    smaller = remove_channels(original, stack(images(2)), {"0": [1, 4]})
    sizes = json.loads(json.dumps(sizes_of(smaller, original)))
    assert sizes["0"] == {"attributes": {"out_channels": 4}, "shapes": {"weight": [4, 3, 3, 3], "bias": [4]}}
    assert sizes["3"]["attributes"] == {"in_channels": 4} and set(sizes) == {"0", "1", "3"}
    rebuilt = apply_sizes(small(), sizes, "small")
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    for broken in (
        {"9": sizes["0"]},
        {"0": {"attributes": {"training": 1}, "shapes": {}}},
        {"0": {}},
        {"0": {"attributes": {}, "shapes": {"weight": [9, 3, 3, 3]}}},
        {"0": {"attributes": {}, "shapes": {"weight": [0, 3, 3, 3]}}},
        {"0": 3},
    ):
        with pytest.raises(ModelError, match=r"the pruned sizes of '.' do not fit small"):
            apply_sizes(small(), broken, "small")
    with pytest.raises(ModelError, match="other modules"):
        sizes_of(nn.Sequential(nn.Conv2d(3, 6, 3)), original)
    architecture = {**load_network("resnet20", "none").architecture, "pruned": {"nowhere": sizes["0"]}}
    with pytest.raises(ModelError, match="'nowhere' do not fit resnet20"):
        build(architecture)


def test_a_network_without_removable_channels_is_told_to_prune_kernels(tmp_path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(StudyError, match=r"no channel of the network can be removed.*--unit kernel"):
        prune(net, images(4), "l1", 0.5, "channel", cache=tmp_path, curve=())


# By the measured D ----------------------------------------------------------------------------------------------------


def test_by_the_measured_d_the_units_of_lowest_d_go(tmp_path) -> None:
    net, data = small(), images(40)
    drops = {}
    for kind, options in (("location", {"grid": "all"}), ("channel", {"side": "out"})):
        drops[kind] = ablate(net, data, kind, cache=tmp_path, name=kind, jobs=1, **options)
    kernels = drops["location"]
    assert kernels["drop"].nunique() > 3
    result = prune(net, data, "drop", 0.5, study="location", cache=tmp_path, curve=())
    pruned = {
        (row.layer, int(row.out_channel), int(row.in_channel))
        for row in kernels.itertuples()
        if not result.model.net[int(row.layer)].weight[int(row.out_channel), int(row.in_channel)].any()
    }
    gone = kernels[[(r.layer, int(r.out_channel), int(r.in_channel)) in pruned for r in kernels.itertuples()]]
    assert len(gone) == 33 and gone["drop"].max() <= kernels.drop(gone.index)["drop"].min()
    by_loss = prune(net, data, "drop", 0.5, study="location", metric="loss", cache=tmp_path, curve=())
    with Store.open(tmp_path / "results.sqlite") as store:
        of_loss = store.table(store.find("location"), "loss")["drop"].sort_values()
    assert "D of loss of study location" in by_loss.about["source"]
    pruned = [
        bool((by_loss.model.net.get_submodule(row.layer).weight[int(row.out_channel), int(row.in_channel)] == 0).all())
        for row in kernels.itertuples()
    ]
    assert of_loss[[place for place in kernels.index if pruned[place]]].max() <= of_loss.iloc[33]
    with pytest.raises(StudyError, match="a metric is for --by drop; leave it out, or prune by drop instead of l1"):
        prune(net, data, "l1", metric="loss", cache=tmp_path)
    channels = prune(net, data, "drop", 0.3, "channel", study="channel", cache=tmp_path, curve=())
    assert channels.model.net[0].out_channels + channels.model.net[3].out_channels == 14 - 4


def test_a_study_that_cannot_rank_every_unit_is_refused(tmp_path) -> None:
    net, data = small(), images(8)
    ablate(net, data, "location", grid="2x2", cache=tmp_path, name="grid", jobs=1)
    ablate(net, data, "channel", side="in", cache=tmp_path, name="inputs", jobs=1)
    with pytest.raises(StudyError, match="grid measured 4 of the 18 kernels of 0"):
        prune(net, data, "drop", 0.5, study="grid", cache=tmp_path)
    with pytest.raises(StudyError, match="inputs measured 0 of the 6 filters"):
        prune(net, data, "drop", 0.5, "channel", study="inputs", cache=tmp_path)
    with pytest.raises(StudyError, match="grid is a location study; to prune a channel"):
        prune(net, data, "drop", 0.5, "channel", study="grid", cache=tmp_path)
    with torch.no_grad():
        net[7].bias += 1
    with pytest.raises(StudyError, match="grid measured other weights"):
        prune(net, data, "drop", 0.5, study="grid", cache=tmp_path)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"by": "tailor"}, "unknown ranking 'tailor': did you mean taylor"),
        ({"by": "drop"}, "say which study"),
        ({"study": 1}, "a study is for --by drop"),
        ({"sparsity": 1.0}, "sparsity of 1 is not allowed"),
        ({"curve": (0.5, 0)}, "sparsity of 0 is not allowed"),
        ({"unit": "weight"}, "unknown unit 'weight'"),
        ({"scope": "world"}, "unknown scope 'world'"),
        ({"batch_size": 0}, "batch size of 0"),
        ({"by": "lwe-multiplier"}, "no LWE"),
    ],
)
def test_wrong_choices_are_one_line(tmp_path, options, line) -> None:
    with pytest.raises(StudyError, match=line):
        prune(small(), images(4), cache=tmp_path, **options)


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    model = load_network("resnet20", "none", 10)
    save_checkpoint(tmp_path / "net.safetensors", model.net, model.architecture)
    return tmp_path / "net.safetensors"


def test_the_command_writes_a_network_that_the_other_commands_take(tmp_path, capsys, checkpoint) -> None:
    cache, out = ["--cache", str(tmp_path / "cache")], tmp_path / "smaller.safetensors"
    words = ["--images", "10", "--unit", "channel", "--curve", "0.2", *cache]
    assert run("prune", str(checkpoint), *words, "--by", "fisher", "--sparsity", "0.4", "-o", str(out), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["sparsity"] for row in result["rows"]] == [0.2, 0.4] and result["output"] == str(out)
    assert result["rows"][1]["drop_low"] < result["rows"][1]["drop_high"] and result["unit"] == "channel"
    model = load_network(str(out))
    assert Path(result["kept"]).parent == tmp_path / "cache" / "pruning"
    assert "pruned by fisher" in model.notes[0] and model.transform is not None
    limited = ["--images", "5", "--layers", "layer1.0.conv1", "--quiet", *cache]
    assert run("ablate", "--model", str(out), *limited, "--grid", "2x2", "--jobs", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 4 and rows[0]["intact"] is not None
    assert run("prune", str(out), *words[:2], *cache, "--sparsity", "0.5", "--curve", "") == 0
    assert "kernels of 19 layers ranked by taylor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sparsity", "2"], "sparsity of 2 is not allowed"),
        (["--by", "drop", "--study", "1"], "there are no results"),
        (["--by", "magic"], "unknown ranking 'magic'"),
        (["--curve", "a,b"], "--curve 'a,b' is malformed"),
        (["-o", "pruned.pt"], "name it pruned.safetensors"),
        (["-o", "nowhere/pruned.safetensors"], "does not exist"),
        (["--model", "resnet20"], "not both"),
        (["--unit", "layer"], "unknown unit 'layer'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, checkpoint, words, line) -> None:
    assert run("prune", str(checkpoint), "--images", "4", "--quiet", "--cache", str(tmp_path / "cache"), *words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and line in captured.err and len(captured.err.strip().splitlines()) == 1


def test_curves_are_listed_sized_and_deleted_and_one_that_cannot_be_read_is_named(
    tmp_path, capsys, monkeypatch
) -> None:
    names, cache = write_pruning(tmp_path), ["--cache", str(tmp_path)]
    for name, content in {"torn": "{", "other": '{"rows": []}', "metric": None}.items():
        whole = (tmp_path / "pruning" / f"{names[0]}.json").read_text()
        (tmp_path / "pruning" / f"{name}.json").write_text(content or whole.replace('"top1"', '"magic"'))
    (tmp_path / "pruning" / ".half.json.1.part").write_text("{")
    assert run("list", "pruning", "--json", *cache) == 0
    captured = capsys.readouterr()
    listed = json.loads(captured.out)["pruning"]
    assert [row["name"] for row in listed] == names[::-1] and [row["by"] for row in listed] == ["taylor", "l1"]
    assert sorted(re.findall(r"(\w+)\.json is no record", captured.err)) == ["metric", "other", "torn"]
    assert run("list", "pruning", *cache) == 0 and run("cache", "--json", *cache) == 0
    captured = capsys.readouterr().out
    assert all(name in captured for name in names) and json.loads(captured.splitlines()[-1])["pruning"] > 1000
    assert run("cache", "delete", "--pruning", "../results", "--yes", *cache) == 1
    assert "unknown pruning '../results'" in capsys.readouterr().err
    delete = [word for name in (names[0], "torn", "other", "metric") for word in ("--pruning", name)]
    assert run("cache", "delete", *delete, "--yes", "--json", *cache) == 0
    assert json.loads(capsys.readouterr().out)["pruning"] == sorted([names[0], "torn", "other", "metric"])
    curves, problems = list_curves(Cache(tmp_path))
    assert [curve.name for curve in curves] == names[1:] and not problems
    assert run("cache", "delete", "--older-than", "0", "--yes", *cache) == 0 and not list_curves(Cache(tmp_path))[0]
    capsys.readouterr()
    assert run("list", "pruning", *cache) == 0 and "weanalysis prune --model" in capsys.readouterr().out
    for name in ("../evil", "a/b", "", ".hidden"):
        with pytest.raises(StoreError, match="no name of a pruning"):
            Cache(tmp_path).pruning_file(name)


def test_merging_a_cache_brings_its_curves_and_maps_but_for_those_that_cannot_be_read(tmp_path, capsys) -> None:
    one, two = Cache(tmp_path / "one").ready(), Cache(tmp_path / "two").ready()
    names = write_pruning(two.root)
    with Writer.open(two.results):
        pass
    (two.pruning / "torn.json").write_text("{")
    two.saliency.mkdir()
    layer = MappedLayer("one", 0, "conv", 1, (4, 3), (3, 3))
    save_maps(SaliencyMaps((layer,), ("l1",), {"created": 1}, {}), two.saliency_file("whole"))
    two.saliency_file("torn").write_bytes(b"no maps")
    for expected in ({"pruning": 2, "saliency": 1}, {"pruning": 0, "saliency": 0}):
        assert run("cache", "merge", "--from", str(two.root), "--cache", str(one.root), "--json") == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out).items() >= expected.items()
        assert captured.err.count("note: left out: ") == 2 and captured.err.count("torn") == 2
    assert [curve.name for curve in list_curves(one)[0]] == names[::-1] and not list_curves(one)[1]
    assert load_maps(one.saliency_file("whole")).criteria == ("l1",)
    assert not list(one.root.rglob("*.part")) and not list(one.root.rglob("torn*"))


def test_a_band_ends_where_the_score_does() -> None:
    """An accuracy of 98 % with D in [-4, 1] is drawn from 97 to 100 %; a loss has no upper end."""
    table = pd.DataFrame({"num_units": 10, "num_pruned": [2], "num_nonzero": 9, "intact": 98.0, "ablated": 98.0})
    table = table.assign(drop=0.0, drop_low=-4.0, drop_high=1.0)
    table = table.assign(loss_intact=0.1, loss=90.0, loss_drop=89.9, loss_low=-0.2, loss_high=120.0)
    ends = [
        [
            value
            for trace in pruning_curves({"l1": table}, "kernel", "top1", loss=loss).data
            if trace.fill
            for value in trace.y
        ]
        for loss in (False, True)
    ]
    assert (min(ends[0]), max(ends[0])) == (97.0, 100.0)
    assert min(ends[1]) == 0 and max(ends[1]) == pytest.approx(120.1)


def test_a_curve_that_cannot_be_kept_is_said_and_the_network_is_there(tmp_path) -> None:
    (tmp_path / "pruning").write_text("in the way")
    said: list[str] = []
    result = prune(small(), images(6), "l1", 0.5, cache=tmp_path, curve=(), say=said.append)
    assert result.path is None and any("not kept" in line and "cannot be written" in line for line in said)
    assert len(result.table) == 1 and (result.model.net[0].weight == 0).any()


def test_the_network_itself_is_never_overwritten(tmp_path, capsys, checkpoint) -> None:
    before = checkpoint.read_bytes()
    cache = ["--cache", str(tmp_path / "cache")]
    assert run("prune", str(checkpoint), "-o", str(checkpoint), *cache) == 1
    assert "is the network itself" in capsys.readouterr().err
    assert run("prune", str(tmp_path / "missing.safetensors"), *cache) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert checkpoint.read_bytes() == before


def test_the_pruned_weights_are_other_weights(tmp_path) -> None:
    net, data = small(), images(6)
    result = prune(net, data, "taylor", 0.5, cache=tmp_path, curve=())
    maps = saliency_maps(net, data, "taylor", cache=tmp_path).maps
    assert result.about["of_weights_hash"] == maps.about["weights_hash"] != result.model.weights_hash

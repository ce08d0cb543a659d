"""The multiplier study (§4.2), and ablating networks that were trained with weight excitation."""

import numpy as np
import pytest
import torch
from made_studies import location_plan, multiplier_plan, write_study
from safetensors.numpy import load_file
from torch import nn

from weanalysis.ablation import Evaluator, ablate, studies
from weanalysis.ablation.inputs import as_model
from weanalysis.ablation.preparation import prepare_on
from weanalysis.ablation.studies.multiplier import mean_multiplier
from weanalysis.cache import Cache
from weanalysis.data import as_images
from weanalysis.errors import StudyError
from weanalysis.excitation import excite, multipliers
from weanalysis.report import write_report
from weanalysis.results import Store
from weanalysis.results.contrast import lowest_and_highest


def excited_net(kind: str = "lwe") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 6),
    )
    net = excite(net, kind, reduction=2)
    # As trained: the multipliers of different channels differ.
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        net[-1].bias -= net(torch.randn(50, 3, 8, 8)).mean(0)
    return net.eval()


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.images = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return self.images[index], index % 6


def test_mean_multiplier_averages_over_the_outputs_that_read_the_channel():
    net = excited_net()
    of_layers = multipliers(net)
    grouped = next(layer for layer in studies.find_layers(net) if layer.name == "2")
    means = mean_multiplier(grouped, of_layers)
    m = of_layers["2"].numpy()  # (12, 4): outputs 0-5 read inputs 0-3, outputs 6-11 read inputs 4-7
    by_hand = [m[:6, c].mean() if c < 4 else m[6:, c - 4].mean() for c in range(8)]
    np.testing.assert_allclose(means, by_hand, rtol=1e-6)


def test_lowest_and_highest_are_those_and_the_stem_is_left_out():
    net = excited_net()
    study = studies.multiplier(net, draws=2, fractions=(0.5,))
    assert dict(study.skipped) == {"0": "the first convolution, which this study leaves out by choice"}
    assert study.layers == ("2", "4")
    assert study.options == {"channels": 1, "fractions": [0.5], "draws": 2, "seed": 0}
    # No option that another study gets changes it: what was measured is found again.
    assert study.key == "078c5872f132155d"
    assert study == studies.multiplier(net, draws=2, fractions=(0.5,), multiplier_of="channel")
    layers = {layer.name: layer for layer in studies.find_layers(net)}
    means = {name: mean_multiplier(layers[name], multipliers(net)) for name in study.layers}
    lowest, highest = study.ablations[0], study.ablations[1]
    assert (lowest.selection, highest.selection, lowest.layer) == ("lowest", "highest", None)
    for ablation, pick in ((lowest, np.argmin), (highest, np.argmax)):
        by_layer = {part.layer: part for part in ablation.parts}
        channel = int(pick(means["2"]))
        assert by_layer["2"].in_channels == (channel % 4,)
        assert by_layer["2"].out_channels == tuple(range(6) if channel < 4 else range(6, 12))
        assert by_layer["4"].in_channels == (int(pick(means["4"])),) and by_layer["4"].out_channels is None
        assert ablation.num_weights == 6 * 9 + 10 * 9
    half = [a for a in study.ablations if a.fraction == 0.5]
    assert [(a.selection, a.draw) for a in half] == [("lowest", None), ("highest", None), ("random", 0), ("random", 1)]
    assert {len([part for part in a.parts if part.layer == "4"]) for a in half} == {6}
    below, above = ({p.in_channels[0] for p in a.parts if p.layer == "4"} for a in half[:2])
    assert below | above == set(range(12)) and not below & above
    single = [a for a in study.ablations if a.layer is not None]
    assert [(a.layer, a.selection) for a in single] == [(x, s) for x in ("2", "4") for s in ("lowest", "highest")]
    assert single[0].in_channel == int(np.argmin(means["2"]))


@pytest.mark.parametrize("unit", ["channel", "kernel"])
def test_random_units_follow_the_seed(unit):
    net = excited_net()
    keys = [[a.key for a in studies.multiplier(net, seed=seed, multiplier_of=unit).ablations] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_kernels_are_ranked_by_their_own_multiplier():
    net = excited_net()
    study = studies.multiplier(net, draws=2, fractions=(0.5,), multiplier_of="kernel")
    of_layers = {name: m.numpy() for name, m in multipliers(net).items()}
    assert study.options["multiplier_of"] == "kernel" and study.key != studies.multiplier(net, draws=2).key
    for ablation, pick in zip(study.ablations[:2], (np.argmin, np.argmax), strict=True):
        for part in ablation.parts:
            out, into = np.unravel_index(pick(of_layers[part.layer]), of_layers[part.layer].shape)
            assert (part.out_channels, part.in_channels) == ((out,), (into,))  # of a group, counted within it
        assert ablation.num_weights == 2 * 9 and len(ablation.parts) == 2
    half = [a for a in study.ablations if a.fraction == 0.5]
    assert [(a.selection, a.draw) for a in half] == [("lowest", None), ("highest", None), ("random", 0), ("random", 1)]
    for ablation in half:
        zeroed = {name: np.zeros(m.shape, bool) for name, m in of_layers.items()}
        for part in ablation.parts:
            zeroed[part.layer][np.ix_(part.out_channels, part.in_channels)] = True
        for name in study.layers:
            m, gone = of_layers[name], zeroed[name]
            assert gone.sum() == m.size // 2
            if ablation.selection == "lowest":
                assert m[gone].max() < m[~gone].min()
            if ablation.selection == "highest":
                assert m[gone].min() > m[~gone].max()
        assert ablation.num_weights == 9 * sum(int(gone.sum()) for gone in zeroed.values())
    single = [a for a in study.ablations if a.layer == "4"]
    assert [(a.selection, of_layers["4"][a.out_channel, a.in_channel]) for a in single] == [
        ("lowest", of_layers["4"].min()),
        ("highest", of_layers["4"].max()),
    ]
    several = studies.multiplier(net, channels=3, multiplier_of="kernel").ablations[0]
    assert several.num_weights == 2 * 3 * 9 and several.out_channel is None


def test_the_d_of_kernels_is_that_of_zeroing_them_by_hand(tmp_path):
    net, cache, data = excited_net(), Cache(tmp_path / "c"), Images()
    table = ablate(net, data, "multiplier", multiplier_of="kernel", cache=cache)
    targets = np.arange(30) % 6
    plain = prepare_on(as_model(net), as_images(data)).model.net
    intact = 100 * (plain(data.images).argmax(1).numpy() == targets).mean()
    of_layers = multipliers(net)
    with torch.no_grad():
        for row, pick in ((0, torch.argmin), (1, torch.argmax)):
            copied = prepare_on(as_model(net), as_images(data)).model.net
            for name in ("2", "4"):
                copied.get_submodule(name).weight.view(-1, 9)[pick(of_layers[name])] = 0
            ablated = 100 * (copied(data.images).argmax(1).numpy() == targets).mean()
            assert table["drop"].iloc[row] == pytest.approx(intact - ablated)
    assert table.attrs["multiplier_of"] == "kernel" and table.attrs["d_high"] == table["drop"].iloc[1]
    channels = ablate(net, data, "multiplier", cache=cache)
    assert channels.attrs["multiplier_of"] == "channel" and channels.attrs["study_id"] != table.attrs["study_id"]
    from weanalysis.comparison import compare_studies

    with pytest.raises(StudyError, match="--multiplier-of"):
        compare_studies(table.attrs["study_id"], channels.attrs["study_id"], cache)


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe", "ws"])
def test_zeroing_folded_weights_is_zeroing_inside_the_excited_network(kind):
    """A hook that zeroes the weight the excited network computes with gives the logits that the engine measures."""
    net = excited_net(kind)
    images = torch.stack([image for image, _ in Images()])
    plain = prepare_on(as_model(net), as_images(Images())).model.net
    ablations = studies.location(plain, "2x2").ablations
    for evaluator in (Evaluator(plain, "exact"), Evaluator(plain, "naive")):
        for ablation in ablations:
            inside = excited_net(kind)
            inside.load_state_dict(net.state_dict())
            conv = inside.get_submodule(ablation.layer)
            mask = torch.ones(conv.out_channels, conv.in_channels // conv.groups, 1, 1)
            mask[ablation.out_channel, ablation.in_channel] = 0

            class Masked(nn.Module):
                def __init__(self, mask):
                    super().__init__()
                    self.mask = mask

                def forward(self, weight):
                    return weight * self.mask

            torch.nn.utils.parametrize.register_parametrization(conv, "weight", Masked(mask))
            with torch.no_grad():
                expected = inside(images)
            torch.testing.assert_close(evaluator.logits(images, ablation), expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(expected, net(images), atol=1e-4)


def test_study_of_an_excited_network_ends_with_d_low_and_d_high(tmp_path):
    net, cache = excited_net(), Cache(tmp_path / "c")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    table = ablate(net, Images(), "multiplier", cache=cache)
    lowest, highest = table.iloc[0], table.iloc[1]
    about = table.attrs
    assert about["d_low"] == lowest["drop"] and about["d_high"] == highest["drop"]
    assert about["d_low_interval"] == [lowest["drop_low"], lowest["drop_high"]]
    assert about["d_high_minus_d_low"] == pytest.approx(highest["drop"] - lowest["drop"])
    low, high = about["d_high_minus_d_low_interval"]
    assert low < about["d_high_minus_d_low"] < high
    twin = table[(table["selection"] == "lowest") & (table["fraction"] == 0.1)].iloc[0]
    assert twin["num_images"] == 30, "of 8 and 12 channels, a tenth is one: measured once, shown twice"
    assert twin["drop"] == lowest["drop"]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the network stays excited"
    (kept,) = cache.weights.glob("*-multipliers.safetensors")
    for name, m in load_file(kept).items():
        np.testing.assert_allclose(m, multipliers(net)[name].numpy())


def test_two_ablations_are_compared_on_the_same_images(tmp_path):
    cache = Cache(tmp_path / "c")
    net, data = excited_net(), Images()
    number = ablate(net, data, "multiplier", cache=cache, shard_size=7).attrs["study_id"]
    with Store.open(cache.results) as store:
        right = [store.correctness(number, position) for position in (0, 1)]
        comparison = store.compare(number, 0, 1)
    plain = prepare_on(as_model(net), as_images(Images())).model.net
    study = studies.multiplier(net)
    images, targets = data.images, np.arange(30) % 6
    for series, ablation in zip(right, study.ablations, strict=False):
        predictions = Evaluator(plain, "naive").logits(images, ablation).argmax(1).numpy()
        assert series.sort_index().tolist() == (predictions == targets).tolist()
    assert comparison.difference == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert comparison.num_images == 30


def test_a_network_without_lwe_is_refused_in_one_line(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    with pytest.raises(StudyError, match=r"no LWE multipliers.*--excitation lwe"):
        ablate(plain, Images(), "multiplier", cache=Cache(tmp_path / "c"))
    with pytest.raises(StudyError, match="no LWE"):
        studies.multiplier(excited_net("mwe"))
    with pytest.raises(StudyError, match="between 0 and 1"):
        studies.multiplier(excited_net(), fractions=(0.0, 0.5))
    with pytest.raises(StudyError, match="at least 1"):
        studies.multiplier(excited_net(), channels=0)
    with pytest.raises(StudyError, match=r"filter.*channel, kernel"):
        studies.multiplier(excited_net(), multiplier_of="filter")
    with pytest.raises(StudyError, match="no more than 120 kernels"):
        studies.multiplier(excited_net(), channels=120, multiplier_of="kernel")
    with pytest.raises(StudyError, match="no layer is left"):
        studies.multiplier(excited_net(), channels=12)


def test_d_low_and_d_high_are_one_answer_wherever_they_are_asked_for(tmp_path):
    cache = Cache(tmp_path)
    plan = multiplier_plan(["one", "two"])
    write_study(cache.results, "multiplier", plan, "measured", options={"multiplier_of": "kernel"})
    write_study(cache.results, "multiplier", plan, "begun", num_shards=0, state="running")
    write_study(cache.results, "location", location_plan(grid=1), "other")
    with Store.open(cache.results) as store:
        measured, *others = (store.find(name) for name in ("measured", "begun", "other"))
        table, contrast = store.table(measured), store.compare(measured, 0, 1)
        whole, begun, other = (lowest_and_highest(store, number) for number in (measured, *others))
    assert other is None and begun is not None and begun.comparison is None and begun.summary() == {}
    assert whole.unit == "kernel" and begun.unit == "input channel"
    assert whole.lowest.equals(table.loc[0]) and whole.highest.equals(table.loc[1])
    assert whole.random["draw"].tolist() == [0, 1, 2]
    summary = whole.summary()
    assert summary["d_high_minus_d_low"] == contrast.difference == pytest.approx(summary["d_high"] - summary["d_low"])
    assert summary["d_high_minus_d_low"] > 0, "the second, D_H, minus the first, D_L"
    reported = write_report(["measured"], tmp_path / "one.html", cache=cache).studies[0]
    assert {name: reported[name] for name in summary} == summary

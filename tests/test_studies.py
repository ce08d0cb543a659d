"""What to zero: positions, ranks, names, and what is skipped, against counts done by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from weanalysis._torchvision import torchvision
from weanalysis.ablation import studies
from weanalysis.ablation.weights import Weights
from weanalysis.errors import StudyError
from weanalysis.models import build


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


@pytest.mark.parametrize(
    ("count", "number", "expected"),
    [(64, 5, [0, 16, 32, 47, 63]), (3, 5, [0, 1, 2]), (8, 1, [0]), (5, 5, [0, 1, 2, 3, 4]), (512, 2, [0, 511])],
)
def test_grid_is_equidistant(count, number, expected):
    assert studies.equidistant(count, number) == expected


def test_location_finds_the_papers_16_layers_of_resnet50():
    net = torchvision.models.resnet50()
    study = studies.location(net)
    assert len(study.layers) == 16
    assert len(study.ablations) == 16 * 25
    assert all(name.endswith("conv2") for name in study.layers)
    assert {reason for _, reason in study.skipped} == {"its kernels are 1x1, not 3x3", "its kernels are 7x7, not 3x3"}


def test_location_of_resnet20_clips_the_stem_and_says_so():
    net = build({"source": "builtin", "name": "resnet20", "num_classes": 10})
    study = studies.location(net, "5x5")
    assert len(study.ablations) == 18 * 25 + 15
    assert study.notes == ("conv1 has 16x3 kernels: its grid is 5x3",)
    assert [a.depth for a in study.ablations[:16]] == [0] * 15 + [1]


def test_all_kernels_of_grouped_and_depthwise_layers():
    study = studies.location(small_net(), "all")
    per_layer = {name: sum(a.layer == name for a in study.ablations) for name in study.layers}
    assert per_layer == {"0": 8 * 3, "3": 8 * 1, "4": 6 * 4}
    assert dict(study.skipped) == {"2": "its kernels are 1x1, not 3x3"}
    clipped = studies.location(small_net(), "5x5").notes
    assert any("depthwise" in note for note in clipped) and any("grouped (2)" in note for note in clipped)


def test_kernel_size_any_takes_every_convolution():
    assert studies.location(small_net(), kernel_size="any").layers == ("0", "2", "3", "4")


def test_depth_follows_the_forward_pass_not_the_constructor():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Conv2d(4, 4, 3)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.second(self.first(x)).mean((2, 3))

    assert studies.location(Crossed()).layers == ("first", "second")


def zeroed_places(net: nn.Module, ablation: studies.Ablation) -> dict[str, list[int]]:
    """Flat indices that are zero inside `zeroed` and were not before, by layer."""
    layers = {name: module.weight for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    before = {name: weight.detach().clone() for name, weight in layers.items()}
    with Weights(net).zeroed(ablation):
        zeroed = {
            name: torch.nonzero((weight.detach() != before[name]).flatten()).flatten().tolist()
            for name, weight in layers.items()
        }
        for name, weight in layers.items():
            assert (weight.detach().flatten()[zeroed[name]] == 0).all()
    for name, weight in layers.items():
        assert torch.equal(weight.detach(), before[name])
    return {name: places for name, places in zeroed.items() if places}


def test_percentile_is_the_papers_rank():
    net = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False))  # 90 weights
    with torch.no_grad():
        magnitudes = torch.randperm(90, generator=torch.Generator().manual_seed(0)) + 1
        signs = torch.where(torch.rand(90, generator=torch.Generator().manual_seed(1)) < 0.5, -1, 1)
        net[0].weight.copy_((magnitudes * signs).view_as(net[0].weight))
    for percentile, rank in ((1, 1), (50, 45), (75, 68), (98, 89), (100, 90)):  # ⌈b·90/100⌉
        (ablation,) = studies.magnitude(net, [percentile]).ablations
        (place,) = zeroed_places(net, ablation)["0"]
        assert magnitudes[place] == rank
        assert ablation.num_weights == 1


def test_percentile_bins_cover_every_weight_once():
    net = small_net()
    study = studies.magnitude(net, range(10, 101, 10), percentile_width=10)
    places = [zeroed_places(net, ablation) for ablation in study.ablations]
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            covered = sorted(place for places_of_bin in places for place in places_of_bin.get(name, []))
            assert covered == list(range(module.weight.numel()))
    sizes = [len(places_of_bin["0"]) for places_of_bin in places]
    assert sum(sizes) == 216 and max(sizes) - min(sizes) <= 1
    assert [ablation.num_weights for ablation in study.ablations] == [
        sum(map(len, places_of_bin.values())) for places_of_bin in places
    ]


def test_repeats_are_the_nearest_weights_and_all_different():
    net = nn.Sequential(nn.Conv2d(1, 10, (1, 10), bias=False))  # 100 weights
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(1.0, 101.0).view_as(net[0].weight))
    for percentile, expected in ((50, {48, 49, 50, 51, 52}), (100, {96, 97, 98, 99, 100}), (1, {1, 2, 3, 4, 5})):
        study = studies.magnitude(net, [percentile], repeats=5)
        ranks = [zeroed_places(net, ablation)["0"][0] + 1 for ablation in study.ablations]
        assert set(ranks) == expected
        assert ranks[0] == percentile
        assert [ablation.draw for ablation in study.ablations] == [0, 1, 2, 3, 4]


def test_scope_layer_zeroes_one_layer_at_a_time():
    net = small_net()
    study = studies.magnitude(net, "50,100", scope="layer")
    assert [(a.layer, a.percentile) for a in study.ablations] == [
        (layer, b) for layer in ("0", "2", "3", "4") for b in (50.0, 100.0)
    ]
    assert all(list(zeroed_places(net, ablation)) == [ablation.layer] for ablation in study.ablations)


def test_equal_magnitudes_stay_in_memory_order():
    net = nn.Sequential(nn.Conv2d(1, 1, (1, 4), bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.5, -0.5, 0.5, -0.5]).view(1, 1, 1, 4))
    places = [zeroed_places(net, a)["0"] for a in studies.magnitude(net, "25,50,75,100").ablations]
    assert places == [[0], [1], [2], [3]]


def test_channels_of_a_grouped_convolution():
    net = small_net()
    study = studies.channel(net, layers="4")  # 8 -> 6 in 2 groups: weight (6, 4, 3, 3)
    filters = [a for a in study.ablations if a.selection == "filter"]
    inputs = [a for a in study.ablations if a.selection == "input channel"]
    assert len(filters) == 6 and len(inputs) == 8
    weight = np.arange(6 * 4 * 9).reshape(6, 4, 9)
    assert zeroed_places(net, filters[2])["4"] == weight[2].flatten().tolist()
    # Input channel 5 belongs to the second group: filters 3 to 5, the group's channel 1.
    assert zeroed_places(net, inputs[5])["4"] == weight[3:6, 1].flatten().tolist()
    assert all(a.num_weights == len(zeroed_places(net, a)["4"]) for a in study.ablations)


def test_zeroing_an_input_channel_is_the_same_as_silencing_it():
    net = nn.Sequential(nn.Conv2d(8, 6, 3, groups=2))
    images = torch.randn(2, 8, 5, 5)
    for ablation in studies.channel(net, side="in").ablations:
        silenced = images.clone()
        silenced[:, ablation.in_channel] = 0
        with Weights(net).zeroed(ablation):
            torch.testing.assert_close(net(images), net(silenced))


def test_depthwise_input_channels_are_its_filters():
    net = small_net()
    study = studies.channel(net, layers="3")
    assert {a.selection for a in study.ablations} == {"filter"}
    assert study.notes == ("3 is depthwise: its input channels are its filters, measured once",)
    with pytest.raises(StudyError, match="use side out"):
        studies.channel(net, side="in", layers="3")


def test_layer_study_zeroes_whole_layers():
    net = small_net()
    study = studies.layer(net, "[02]")
    assert [list(zeroed_places(net, a)) for a in study.ablations] == [["0"], ["2"]]
    assert [a.num_weights for a in study.ablations] == [216, 64]
    assert dict(study.skipped) == {"3": "does not match [02]", "4": "does not match [02]"}


def test_keys_say_what_is_zeroed_whatever_the_study():
    net = small_net()
    by_grid = {a.key for a in studies.location(net, "2x2").ablations}
    by_all = {a.key for a in studies.location(net, "all").ablations}
    assert by_grid < by_all
    assert "0[7;2]" in by_grid
    keys = [a.key for a in studies.magnitude(net, "1-100").ablations]
    assert len(set(keys)) == len(keys)
    some = studies.magnitude(net, [50], layers="0").ablations[0].key
    assert some not in keys


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda net: studies.make_study("locations", net), "did you mean location"),
        (lambda net: studies.location(net, "5x"), "malformed"),
        (lambda net: studies.location(net, "fivexfive"), "malformed"),
        (lambda net: studies.location(net, "0x5"), "empty"),
        (lambda net: studies.location(net, kernel_size=5), "no selected layer has 5x5 kernels"),
        (lambda net: studies.location(nn.Conv1d(2, 2, 5), kernel_size=3), "no selected layer has 3 kernels"),
        (lambda net: studies.location(net, kernel_size="big"), "malformed"),
        (lambda net: studies.location(net, layers="layer9*"), "unknown layer"),
        (lambda net: studies.magnitude(net, "0-10"), "percentile 0 is not allowed"),
        (lambda net: studies.magnitude(net, "101"), "percentile 101 is not allowed"),
        (lambda net: studies.magnitude(net, "ten"), "malformed"),
        (lambda net: studies.magnitude(net, "9-3"), "backwards"),
        (lambda net: studies.magnitude(net, ""), "malformed"),
        (lambda net: studies.magnitude(net, [float("nan")]), "not allowed"),
        (lambda net: studies.magnitude(net, scope="model"), "unknown scope"),
        (lambda net: studies.magnitude(net, repeats=0), "repeats 0"),
        (lambda net: studies.magnitude(net, percentile_width=0), "percentile width 0"),
        (lambda net: studies.magnitude(net, percentile_width=5, repeats=2), "exclude each other"),
        (lambda net: studies.channel(net, side="left"), "unknown channel side"),
        (lambda net: studies.channel(net, grid="0"), "malformed"),
        (lambda net: studies.layer(nn.Linear(3, 3)), "no convolution"),
    ],
)
def test_bad_requests_are_refused_in_one_line(make, line):
    with pytest.raises(StudyError, match=line) as caught:
        make(small_net())
    assert "\n" not in str(caught.value)


def test_a_convolution_that_makes_its_own_weight_is_left_out():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None]
            return nn.functional.conv2d(x, weight, self.bias)

    class SamePadded(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    net = nn.Sequential(Standardized(3, 4, 3), SamePadded(4, 4, 3))
    study = studies.location(net)
    assert study.layers == ("1",)
    assert "Standardized" in dict(study.skipped)["0"]

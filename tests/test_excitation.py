"""Weight excitation: its equations against a computation written out here, and what it does to whole networks."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from weanalysis._torchvision import torchvision
from weanalysis.errors import DeviceError, ExcitationError
from weanalysis.excitation import (
    KINDS,
    LWE,
    MWE,
    WeightStandardization,
    costs,
    excitation_of,
    excite,
    fold,
    multipliers,
)
from weanalysis.excitation.costs import LiveBytes
from weanalysis.models import build

SHAPES = {"1d": (6, 8, 5), "2d": (6, 8, 3, 3), "3d": (4, 8, 2, 3, 3), "1x1": (6, 8, 1, 1), "grouped": (8, 4, 3, 3)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The equations, in numpy and float64, weight by weight ----------------------------------------------------------------


def standardized(weight):
    result = np.empty_like(weight)
    for j, channel in enumerate(weight):
        deviation = math.sqrt(np.mean((channel - channel.mean()) ** 2) + 1e-10)
        result[j] = (channel - channel.mean()) / deviation
    return result


def location_multipliers(weight, fc1, bias1, fc2, bias2):
    """Equation 1 for every output channel j: m_j = sigmoid(FC2(ReLU(FC1(Avg(W_j)))))."""
    m = np.empty(weight.shape[:2])
    for j in range(weight.shape[0]):
        average = np.array([weight[j, i].sum() / weight[j, i].size for i in range(weight.shape[1])])
        hidden = [max(0.0, float(fc1[k] @ average) + bias1[k]) for k in range(len(bias1))]
        for i in range(weight.shape[1]):
            m[j, i] = 1 / (1 + math.exp(-(float(fc2[i] @ np.array(hidden)) + bias2[i])))
    return m


def magnified(weight, eps):
    """Equation 2."""
    limit = (1 + eps) * np.abs(weight).max()
    return limit * 0.5 * np.log((1 + weight / limit) / (1 - weight / limit))


def parameters_of(lwe):
    return [p.detach().double().numpy() for p in (lwe.fc1.weight, lwe.fc1.bias, lwe.fc2.weight, lwe.fc2.bias)]


def random_lwe(in_channels, **options):
    """LWE with larger parameters than at the start, so that m is far from 0.5."""
    lwe = LWE(in_channels, **options)
    for parameter in lwe.parameters():
        nn.init.normal_(parameter)
    return lwe


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lwe_is_equation_1(shape, normalize):
    weight = torch.randn(shape) * 0.3 + 0.1
    lwe = random_lwe(shape[1], reduction=4, normalize=normalize)
    seen = standardized(weight.double().numpy()) if normalize else weight.double().numpy()
    m = location_multipliers(seen, *parameters_of(lwe))
    assert m.std() > 0.05
    np.testing.assert_allclose(lwe.multiplier(weight).detach().numpy(), m, rtol=2e-5)
    expanded = m.reshape(*m.shape, *[1] * (len(shape) - 2))
    np.testing.assert_allclose(lwe(weight).detach().numpy(), seen * expanded, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.2])
def test_mwe_is_equation_2(eps, normalize):
    weight = torch.randn(6, 8, 3, 3) * 0.3 + 0.1
    seen = standardized(weight.double().numpy()) if normalize else weight.double().numpy()
    np.testing.assert_allclose(MWE(eps, normalize)(weight).numpy(), magnified(seen, eps), rtol=1e-4, atol=2e-6)


def test_standardization_gives_mean_0_and_variance_1():
    weight = torch.randn(6, 8, 3, 3) * 0.02 + 5  # a mean far above the spread, which costs digits
    result = WeightStandardization()(weight).double()
    np.testing.assert_allclose(result.numpy(), standardized(weight.double().numpy()), atol=2e-3)
    assert result.mean((1, 2, 3)).abs().max() < 1e-4
    assert (result.var((1, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_of_lwe(shape, normalize):
    weight = (torch.randn(shape, dtype=torch.double) + 0.1).requires_grad_()
    lwe = random_lwe(shape[1], reduction=4, normalize=normalize).double()
    names, values = zip(*lwe.named_parameters(), strict=True)

    def run(weight, *values):
        return torch.func.functional_call(lwe, dict(zip(names, values, strict=True)), (weight,))

    assert torch.autograd.gradcheck(run, (weight, *values))


def test_gradient_of_mwe_with_m_held_constant():
    # The largest weight is no input here, so M does not move when gradcheck moves the others.
    others = torch.randn(3, 2, 3, dtype=torch.double).clamp_(-2, 2).requires_grad_()
    largest = torch.full((1, 2, 3), 3.0, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda w: MWE(0.1, normalize=False)(torch.cat([w, largest]))[:3], (others,))


@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.2])
def test_gradient_of_mwe_is_equation_3_also_at_the_largest_weight(eps):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.double, requires_grad=True)
    MWE(eps, normalize=False)(weight).sum().backward()
    value = weight.detach().numpy()
    limit = (1 + eps) * np.abs(value).max()
    np.testing.assert_allclose(weight.grad.numpy(), limit**2 / (limit**2 - value**2), rtol=1e-9)


def test_largest_gain_of_mwe_is_the_papers():
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    MWE(0.1, normalize=False)(weight).sum().backward()
    assert weight.grad.max().item() == pytest.approx(1.1**2 / (1.1**2 - 1), rel=1e-5)
    assert round(weight.grad.max().item(), 2) == 5.76
    assert weight.grad.min().item() == pytest.approx(1, abs=1e-3)
    assert weight.grad.argmax() == weight.abs().argmax()


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe"])
def test_gradients_through_a_network_equal_those_of_composed_operations(kind):
    conv = excite(nn.Conv2d(8, 6, 3, dtype=torch.double), kind, reduction=4)
    chain = conv.parametrizations.weight
    images, upstream = torch.randn(2, 8, 5, 5, dtype=torch.double), torch.randn(2, 6, 3, 3, dtype=torch.double)
    parameters = [chain.original, *(p for step in chain for p in step.parameters())]

    rows = chain.original.flatten(1)
    weight = (rows - rows.mean(1, True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-10).sqrt()
    weight = weight.view_as(chain.original)
    if "lwe" in kind:
        weight = weight * chain[0].fc2(chain[0].fc1(weight.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
    if "mwe" in kind:
        limit = 1.1 * weight.abs().max().detach()
        weight = limit * 0.5 * torch.log((1 + weight / limit) / (1 - weight / limit))
    expected = torch.autograd.grad(F.conv2d(images, weight, conv.bias), parameters, upstream)

    gradients = torch.autograd.grad(conv(images), parameters, upstream)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


# Numbers at the edge --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe", "ws"])
def test_a_zero_weight_stays_zero_with_finite_gradients(kind):
    conv = nn.Conv2d(8, 6, 3)
    nn.init.zeros_(conv.weight)
    excite(conv, kind)
    conv(torch.randn(2, 8, 5, 5)).sum().backward()
    assert torch.equal(conv.weight, torch.zeros(6, 8, 3, 3))
    assert all(p.grad.isfinite().all() for p in conv.parameters())


def test_mwe_leaves_tiny_weights_as_they_are():
    weight = torch.full((2, 2, 3, 3), 1e-30, requires_grad=True)
    excited = MWE(0.1, normalize=False)(weight)
    excited.sum().backward()
    assert excited[0, 0, 0, 0].item() == pytest.approx(1.1e-30 * math.atanh(1 / 1.1), rel=1e-4)
    assert weight.grad[0, 0, 0, 0].item() == pytest.approx(5.76, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe"])
def test_half_precision_computes_in_float32(kind, dtype):
    conv = nn.Conv2d(16, 8, 3).to(dtype)
    exact = excite(copy.deepcopy(conv).float(), kind, eps=1e-3)
    excite(conv, kind, eps=1e-3)
    exact.load_state_dict(conv.state_dict())
    assert conv.weight.dtype == dtype and conv.weight.isfinite().all()
    if kind == "lwe+mwe":  # rounded to the weight's type in between, and eps = 0.001 steepens what was rounded
        torch.testing.assert_close(conv.weight.float(), exact.weight, rtol=0.1, atol=0.05)
    else:
        assert torch.equal(conv.weight, exact.weight.to(dtype))
    conv.weight.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe"])
def test_autocast_does_not_reach_the_excitation(kind):
    conv = excite(nn.Conv2d(16, 8, 3), kind, eps=1e-3)
    plain = conv.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv.weight, plain)
        output = conv(torch.randn(2, 16, 5, 5))
        assert output.dtype == torch.bfloat16
        output.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters())


def test_weights_in_channels_last_give_the_same():
    weight = torch.randn(6, 8, 3, 3)
    for step in (random_lwe(8, reduction=4), random_lwe(8, reduction=4, normalize=False), MWE(), MWE(0.1, False)):
        gradients = []
        for layout in (torch.contiguous_format, torch.channels_last):
            own = weight.clone(memory_format=layout).requires_grad_()
            out = step(own)
            (out * torch.arange(out.numel()).view_as(out)).sum().backward()
            gradients.append((out.detach(), own.grad))
        torch.testing.assert_close(gradients[0], gradients[1])


# Which convolutions get what ------------------------------------------------------------------------------------------


def steps(conv):
    if not parametrize.is_parametrized(conv, "weight"):
        return []
    return [(type(step).__name__, getattr(step, "normalize", None)) for step in conv.parametrizations.weight]


@pytest.mark.parametrize(
    ("kind", "ordinary", "depthwise"),
    [
        ("lwe", [("LWE", True)], []),
        ("mwe", [("MWE", True)], [("MWE", False)]),
        ("lwe+mwe", [("LWE", True), ("MWE", False)], [("MWE", False)]),
        ("we", [("LWE", True)], [("MWE", False)]),
        ("ws", [("WeightStandardization", None)], []),
        ("wn", [("_WeightNorm", None)], []),
        ("sn", [("_SpectralNorm", None)], []),
    ],
)
def test_depthwise_convolutions_get_mwe_or_nothing(kind, ordinary, depthwise):
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2))
    excite(net, kind)
    assert [steps(conv) for conv in net] == [ordinary, depthwise, ordinary]
    assert excitation_of(net)["kind"] == kind


def test_hidden_width_counts_the_inputs_of_one_group():
    net = excite(nn.Sequential(nn.Conv2d(64, 32, 3), nn.Conv2d(32, 64, 3, groups=4)), "lwe", reduction=4)
    assert [conv.parametrizations.weight[0].fc1.weight.shape for conv in net] == [(16, 64), (2, 8)]
    assert LWE(8).fc1.weight.shape == (1, 8)
    assert {name: tuple(m.shape) for name, m in multipliers(net).items()} == {"0": (32, 64), "1": (64, 8)}


def test_multipliers_start_near_one_half_and_come_without_gradient():
    of_layers = multipliers(excite(nn.Sequential(nn.Conv2d(64, 32, 3), nn.Conv2d(32, 64, 1)), "lwe"))
    for m in of_layers.values():
        assert not m.requires_grad
        assert m.min() > 0 and m.max() < 1
        assert abs(m.mean() - 0.5) < 0.05 and 0 < m.std() < 0.25


def test_multipliers_are_those_that_the_weights_carry():
    net = excite(nn.Sequential(nn.Conv2d(8, 6, 3)), "lwe+mwe", normalize=False)
    chain = net[0].parametrizations.weight
    torch.testing.assert_close(
        net[0].weight, MWE(0.1, normalize=False)(chain.original * multipliers(net)["0"][:, :, None, None])
    )


def test_a_single_weight_a_channel_is_not_standardized_to_nothing():
    for kind in ("lwe", "mwe", "lwe+mwe"):
        conv = excite(nn.Conv1d(1, 4, 1), kind)
        assert (conv.weight != 0).all()
    with pytest.raises(ExcitationError, match="suits none"):
        excite(nn.Conv1d(1, 4, 1), "ws")


def test_layers_are_chosen_by_name_and_pattern():
    net = excite(torchvision.models.resnet18(), "lwe", layers=["conv1", "layer1.*.conv2"])
    assert list(multipliers(net)) == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert excitation_of(net)["layers"] == ["conv1", "layer1.*.conv2"]


def test_attention_is_left_alone():
    class Gate(nn.Module):
        is_attention = True

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x * self.conv(x).sigmoid()

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Gate())
    assert list(multipliers(excite(net, "lwe"))) == ["0"]
    with pytest.raises(ExcitationError, match="outside attention"):
        excite(nn.Sequential(Gate()), "lwe")
    stock = excite(torchvision.models.mobilenet_v3_small(), "we")
    excited = [name for name, module in stock.named_modules() if parametrize.is_parametrized(module)]
    inside = [name for name, m in stock.named_modules() if type(m).__name__ == "SqueezeExcitation"]
    assert len(excited) == 34 and len(inside) == 9  # 52 convolutions, 2 in each of 9 attention blocks
    assert not any(name.startswith(block) for name in excited for block in inside)


def test_timms_attention_is_left_alone():
    import timm

    net = timm.create_model("resnet18", num_classes=2, block_args={"attn_layer": "cbam"})
    blocks = [name for name, module in net.named_modules() if type(module).__name__ == "CbamModule"]
    excite(net, "lwe")
    assert blocks and len(multipliers(net)) == 20
    assert not any(name.startswith(block) for name in multipliers(net) for block in blocks)


def test_another_excitation_is_one_function_and_one_entry(monkeypatch):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    monkeypatch.setitem(
        KINDS, "double", lambda conv, settings: parametrize.register_parametrization(conv, "weight", Doubled())
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    before = net[0].weight.detach().clone()
    assert excitation_of(excite(net, "double"))["kind"] == "double"
    assert torch.equal(fold(net)[0].weight, 2 * before)
    assert excitation_of(net) is None


# Whole networks -------------------------------------------------------------------------------------------------------


class Temporal(nn.Module):
    """A small 1-D network whose convolutions have biases and, some of them, groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 16, 5, padding=2)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 32, 3, groups=4)
        self.last = nn.Conv1d(32, 5, 1)

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x)).relu()).relu()).mean(2)


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (4, 3, 32, 32)),
    "resnext50_32x4d": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), (4, 3, 32, 32)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), (4, 3, 32, 32)),
    "r3d_18": (lambda: torchvision.models.video.r3d_18(num_classes=10), (2, 3, 4, 16, 16)),
    "temporal": (Temporal, (4, 3, 20)),
}


def trained_a_little(net, images):
    """Batch statistics that fit the excited weights; without them the outputs of a deep network overflow."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval()


@pytest.mark.parametrize("kind", ["lwe+mwe", "we"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_no_output_and_leaves_nothing_behind(name, kind):
    make, shape = NETWORKS[name]
    images = torch.randn(shape)
    stock = make()
    net = trained_a_little(excite(copy.deepcopy(stock), kind), images)
    with torch.no_grad():
        before = net(images)
        after = fold(net)(images)
    assert before.isfinite().all() and before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6 * before.abs().max().item())
    assert [type(module) for module in net.modules()] == [type(module) for module in stock.modules()]
    assert list(net.state_dict()) == list(stock.state_dict())
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
    assert excitation_of(net) is None
    stock.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(stock.eval()(images), after)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_folds_to_what_evaluation_computes(kind):
    net = excite(Temporal(), kind).train()
    images = torch.randn(4, 3, 20)
    for _ in range(2):
        net(images).sum().backward()  # spectral normalization moves its estimate in training
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(images)
        fold(net)
        assert net.training and all(p.requires_grad for p in net.parameters())
        torch.testing.assert_close(net.eval()(images), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert list(net.state_dict()) == list(Temporal().state_dict())


def test_folding_a_copy_leaves_the_original_excited():
    net = excite(Temporal(), "lwe").eval()
    images = torch.randn(4, 3, 20)
    twin = copy.deepcopy(net)
    folded = fold(copy.deepcopy(net))
    assert torch.equal(net(images), twin(images))
    torch.testing.assert_close(folded(images), net(images))
    assert excitation_of(net) == excitation_of(twin)
    fold(twin), fold(net)
    assert torch.equal(net(images), twin(images))


def test_a_copy_is_independent():
    net = excite(Temporal(), "lwe")
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.first.parametrizations.weight[0].fc2.bias.fill_(9)
    assert multipliers(twin)["first"].min() > 0.9 > multipliers(net)["first"].max()


def test_state_dict_round_trip_through_safetensors(tmp_path):
    net = excite(Temporal(), "lwe+mwe", normalize=False, reduction=2, eps=0.2, layers="*st*")
    assert not isinstance(net.second, parametrize.ParametrizationList) and steps(net.second) == []
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = excite(Temporal(), **excitation_of(net))
    assert not torch.equal(again.first.weight, net.first.weight)
    again.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    images = torch.randn(4, 3, 20)
    assert torch.equal(again.eval()(images), net.eval()(images))
    assert excitation_of(again) == {
        "kind": "lwe+mwe",
        "normalize": False,
        "reduction": 2,
        "eps": 0.2,
        "layers": ["*st*"],
    }


def test_parametrizations_nest_and_can_be_removed():
    conv = nn.Conv2d(8, 6, 3)
    plain = conv.weight.detach().clone()
    for step in (WeightStandardization(), LWE(8, normalize=False), MWE(normalize=False)):
        parametrize.register_parametrization(conv, "weight", step)
    both = nn.Conv2d(8, 6, 3)
    both.load_state_dict({"weight": plain, "bias": conv.bias})
    excite(both, "lwe+mwe")
    both.parametrizations.weight[0].load_state_dict(conv.parametrizations.weight[1].state_dict())
    torch.testing.assert_close(conv.weight, both.weight)
    assert list(multipliers(conv)) == [""]
    torch.testing.assert_close(multipliers(conv)[""], multipliers(both)[""])
    parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
    assert type(conv) is nn.Conv2d and torch.equal(conv.weight, plain)


def test_excitation_goes_on_top_of_another_parametrization():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)))
    excite(net, "lwe")
    expected = net[0].weight.detach().clone()
    assert multipliers(net)["0"].shape == (6, 8)
    torch.testing.assert_close(fold(net)[0].weight.detach(), expected)


@pytest.mark.parametrize("kind", ["lwe", "wn"])
def test_folding_keeps_frozen_weights_frozen(kind):
    net = Temporal()
    net.first.weight.requires_grad_(False)
    fold(excite(net, kind))
    assert list(net.state_dict()) == list(Temporal().state_dict())
    assert isinstance(net.first.weight, nn.Parameter)
    assert not net.first.weight.requires_grad and net.second.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_an_excited_network_stays_in_its_mode(kind):
    net = excite(Temporal().eval(), kind)
    assert not any(module.training for module in net.modules())
    images = torch.randn(4, 3, 20)
    assert torch.equal(net(images), net(images))  # spectral normalization moves its estimate only in training


def test_training_moves_weights_and_subnetworks():
    net = excite(Temporal(), "lwe")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, targets = torch.randn(16, 3, 20), torch.arange(16) % 5
    before = copy.deepcopy(net.state_dict())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    after = net.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in after if "parametrizations" in key} <= moved


# The paper's Table 1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "attention", "millions"),
    [
        ("mobilenet_v2", "lwe", None, 4.1),
        ("mobilenet_v2", "we", None, 4.1),
        ("mobilenet_v2", "we", "se", 4.2),
        ("resnet18", "lwe", None, 11.9),
        ("resnet18", "lwe", "se", 11.9),
        ("resnet50", "lwe", None, 28.1),
        ("resnet50", "lwe", "se", 30.6),
        ("resnet50", "lwe", "bam", 28.4),
        ("resnet50", "lwe", "cbam", 30.6),
        ("resnext50_32x4d", "lwe", None, 27.9),
        ("resnext50_32x4d", "lwe", "se", 30.4),
        ("wide_resnet50_2", "lwe", None, 72.3),
        ("wide_resnet50_2", "lwe", "se", 74.9),
        ("resnet152", "lwe", None, 67.3),
        ("resnet152", "lwe", "se", 73.9),
    ],
)
def test_parameters_of_table_1(name, kind, attention, millions):
    with torch.device("meta"):  # no memory, no arithmetic: only shapes count here
        net = build({"source": "torchvision", "name": name, "num_classes": 1000, "attention": attention})
        num_plain = sum(p.numel() for p in net.parameters())
        excite(net, kind)
    assert abs(sum(p.numel() for p in net.parameters()) / 1e6 - millions) <= 0.1
    assert sum(p.numel() for p in fold(net).parameters()) == num_plain


def test_costs_of_resnet18_and_gflops_of_resnet50():
    row = costs(excite(torchvision.models.resnet18(), "lwe"), image_size=32, batch_size=2, repeats=1)
    assert list(row) == [
        "model",
        "excitation",
        "attention",
        "train_params",
        "inference_params",
        "gflops",
        "batch_size",
        "train_memory_gib",
        "inference_memory_gib",
        "train_step_s",
        "inference_step_s",
    ]
    assert (row["model"], row["excitation"], row["attention"], row["batch_size"]) == ("ResNet", "lwe", "none", 2)
    assert (row["train_params"], row["inference_params"]) == (11_846_178, 11_689_512)
    # Weights, their gradients and their momentum at least; weights at least.
    assert row["train_memory_gib"] > 3 * 4 * 11_846_178 / 2**30 > row["inference_memory_gib"]
    assert row["inference_memory_gib"] > 4 * 11_689_512 / 2**30
    assert row["train_step_s"] > row["inference_step_s"] > 0
    net = build({"source": "torchvision", "name": "resnet50", "num_classes": 1000})
    row = costs(net, 224, batch_size=1, repeats=1, name="resnet50", attention="none")
    assert (row["model"], row["excitation"], row["attention"]) == ("resnet50", "none", "none")
    assert row["gflops"] == pytest.approx(4.09, abs=0.005)
    assert row["train_params"] == row["inference_params"] == 25_557_032


def test_costs_counted_by_hand():
    net = nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv1d(4, 1, 1, bias=False))
    row = costs(net, batch_size=10, input_shape=(2, 6), repeats=1)
    assert row["gflops"] == pytest.approx((4 * 4 * 2 * 3 + 4 * 4) / 1e9)  # outputs x weights of each, 4 positions
    # Both weights (28 numbers), the input (120), and the most of the rest at once: two maps of 160 numbers.
    assert row["inference_memory_gib"] * 2**30 == 4 * (28 + 120 + 2 * 160)
    assert excitation_of(net) is None


def test_live_bytes_follows_what_is_alive():
    held = torch.zeros(256)
    with LiveBytes(held, held.view(16, 16)) as live:
        assert live.now == 1024
        doubled = held * 2
        view = doubled.view(16, 16)
        del doubled
        assert live.now == 2048
        total = view + held.view(16, 16)
        del view
        assert (live.now, live.peak) == (2048, 3072)
        del total
    assert (live.now, live.peak) == (1024, 3072)


class Hungry(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if self.training:
            torch.empty(2**55)
        return self.conv(x)


def test_what_memory_does_not_allow_is_nan():
    row = costs(Hungry(), image_size=8, batch_size=2, repeats=1)
    assert math.isnan(row["train_memory_gib"]) and math.isnan(row["train_step_s"])
    assert row["inference_memory_gib"] > 0 and row["inference_step_s"] > 0


def test_costs_leave_the_network_and_the_random_numbers_alone():
    net = excite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()), "lwe")
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    costs(net, image_size=8, batch_size=2, repeats=1)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(torch.random.get_rng_state(), state) and excitation_of(net) is not None


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: excite(Temporal(), "lvve"), "unknown excitation 'lvve': did you mean lwe"),
        (lambda: excite(Temporal(), "mwe", eps=0), "eps of MWE must be a number of at least 1e-06, not 0"),
        (lambda: excite(Temporal(), "mwe", eps=-0.1), "not -0.1"),
        (lambda: excite(Temporal(), "mwe", eps=math.nan), "not nan"),
        (lambda: MWE(eps=0), "eps of MWE"),
        (lambda: excite(Temporal(), "lwe", reduction=0), "reduction of LWE .* at least 1, not 0"),
        (lambda: excite(Temporal(), "lwe", reduction=2.5), "whole number"),
        (lambda: LWE(8, reduction=-1), "not -1"),
        (lambda: excite(Temporal(), "lwe", layers="firts"), "unknown layer 'firts': did you mean first"),
        (lambda: excite(Temporal(), "lwe", layers=["first", "none.*"]), r"unknown layer 'none\.\*'"),
        (lambda: excite(Temporal(), "lwe", layers=[]), "choice of layers is empty"),
        (lambda: excite(nn.Sequential(nn.Linear(3, 3)), "lwe"), "no convolution"),
        (lambda: excite(nn.Conv2d(8, 8, 3, groups=8), "lwe"), "lwe suits none"),
        (lambda: excite(nn.LazyConv2d(4, 3), "lwe"), "no weight yet"),
        (lambda: excite(excite(Temporal(), "lwe"), "mwe"), "excited with lwe already"),
        (lambda: fold(Temporal()), "nothing to fold"),
        (lambda: multipliers(Temporal()), "no LWE"),
        (lambda: multipliers(excite(Temporal(), "mwe")), "no LWE"),
        (lambda: costs(Temporal(), batch_size=0, input_shape=(3, 20)), "at least 1, not batch size 0"),
        (lambda: costs(Temporal(), image_size=8), "does not run on this input"),
    ],
)
def test_one_clear_line(call, line):
    with pytest.raises(ExcitationError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_weight_with_a_hook_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    with pytest.raises(ExcitationError, match="hook"):
        excite(net, "lwe")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(DeviceError):
        costs(Temporal(), input_shape=(3, 20), device=device)


def test_a_refused_excitation_leaves_the_network_plain():
    net = Temporal()
    for bad in ({"kind": "lwe", "layers": ["first", "nowhere"]}, {"kind": "mwe", "eps": 0}):
        with pytest.raises(ExcitationError):
            excite(net, **bad)
    assert excitation_of(net) is None and list(net.state_dict()) == list(Temporal().state_dict())


# The public implementation, after its formulas ------------------------------------------------------------------------


def by_a_sample(weight):
    """Each output channel minus its mean, over the deviation of a sample plus 1e-5."""
    rows = weight.reshape(len(weight), -1)
    mean = rows.mean(1, keepdims=True)
    deviation = np.sqrt(((rows - mean) ** 2).sum(1, keepdims=True) / (rows.shape[1] - 1))
    return ((rows - mean) / (deviation + 1e-5)).reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_unbiased_divides_by_the_deviation_of_a_sample(shape):
    weight = torch.randn(shape) * 0.01 + 0.02  # so small that 1e-5 shows
    seen = by_a_sample(weight.double().numpy())
    assert np.abs(seen - standardized(weight.double().numpy())).max() > 5e-3
    lwe = random_lwe(shape[1], reduction=4, unbiased=True)
    m = location_multipliers(seen, *parameters_of(lwe))
    for step, expected in (
        (WeightStandardization(unbiased=True), seen),
        (MWE(unbiased=True), magnified(seen, 0.1)),
        (lwe, seen * m.reshape(*m.shape, *[1] * (len(shape) - 2))),
    ):
        np.testing.assert_allclose(step(weight).detach().numpy(), expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(lwe.multiplier(weight).detach().numpy(), m, rtol=1e-4)


@pytest.mark.parametrize(
    "step", [WeightStandardization(True), LWE(8, 4, unbiased=True), MWE(unbiased=True, constant_maximum=False)]
)
def test_gradients_of_the_public_implementation(step):
    step = step.double()
    assert torch.autograd.gradcheck(step, (torch.randn(4, 8, 3, dtype=torch.double).requires_grad_(),))


def test_the_gradient_through_the_largest_weight_is_added_to_that_of_equation_3():
    weight, eps = torch.tensor([[[[0.5]], [[-0.8]]], [[[0.1]], [[0.2]]]], dtype=torch.double), 0.1
    grads = []
    for constant in (True, False):
        leaf = weight.clone().requires_grad_()
        MWE(eps, normalize=False, constant_maximum=constant)(leaf).sum().backward()
        grads.append(leaf.grad.flatten().numpy())
    limit, values = (1 + eps) * 0.8, weight.flatten().numpy()
    np.testing.assert_allclose(grads[0], limit**2 / (limit**2 - values**2))
    # d/dM_A of M_A artanh(w / M_A), for every weight, comes to the largest one, which is negative.
    ratio = values / limit
    through = (1 + eps) * (np.arctanh(ratio) - ratio / (1 - ratio**2)).sum()
    np.testing.assert_allclose(grads[1] - grads[0], [0, -through, 0, 0], atol=1e-12)


def test_hidden_units_are_a_share_of_a_groups_inputs_or_of_all():
    for hidden_of, widths in (("group", [4, 2]), ("layer", [4, 8])):
        net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3, groups=4))
        excite(net, "lwe", reduction=4, hidden_of=hidden_of)
        assert [conv.parametrizations.weight[0].fc1.out_features for conv in net] == widths
        assert excitation_of(net).get("hidden_of", "group") == hidden_of
        again = excite(fold(copy.deepcopy(net)), **excitation_of(net))
        again.load_state_dict(net.state_dict())
    with pytest.raises(ExcitationError, match="a group or layer, not 'net'"):
        excite(fold(net), "lwe", hidden_of="net")


def test_a_description_says_more_only_where_it_is_not_as_usual():
    usual = {"kind": "mwe", "normalize": True, "reduction": 16, "eps": 0.1, "layers": None}
    assert excitation_of(excite(Temporal(), "mwe")) == usual
    unusual = {"unbiased": True, "constant_maximum": False, "hidden_of": "layer"}
    assert excitation_of(excite(Temporal(), "mwe", **unusual)) == usual | unusual

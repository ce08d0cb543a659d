"""Excitation beside the optimizer: the same training as with parametrizations, of a network with plain weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parametrize
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from weanalysis.errors import ExcitationError
from weanalysis.excitation import ExcitedOptimizer, excitation_of, excite, fold, multipliers
from weanalysis.excitation import optimizer as optimizer_module

KINDS = ("lwe", "mwe", "lwe+mwe", "we", "ws", "wn")

Make = Callable[[Any], Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda parameters: AdamW(parameters, lr=1e-2, weight_decay=0.1),
}


def network(kind: str | None = "lwe", **options: Any) -> nn.Sequential:
    """Seven convolutions: plain, depthwise, grouped, 1x1 with one hidden unit, two of one shape; always the same."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 32, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(6, 4, 1),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    # In float64, since AdamW makes steps of what rounding leaves where a gradient is 0, as before a batch norm.
    net = net.double()
    return excite(net, kind, **options) if kind else net


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 9, 9, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(count)]


def train(
    net: nn.Module, optimizer: Optimizer, parameters: Callable[[], Any], num_steps: int = 4, micro: int = 2
) -> None:
    """Steps of several micro-batches each, clipped."""
    data = iter(batches(num_steps * micro))
    for _ in range(num_steps):
        for _ in range(micro):
            images, targets = next(data)
            F.cross_entropy(net(images), targets).backward()
        clip_grad_norm_(parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
        )


def state_of(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    if not isinstance(optimizer, ExcitedOptimizer):
        return copy.deepcopy(net.state_dict())
    with optimizer.parametrized():
        return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize("stacked", [False, True, None])
@pytest.mark.parametrize(
    ("kind", "maker", "options"),
    [
        *((kind, "sgd", {}) for kind in KINDS),
        ("lwe", "adamw", {}),
        ("mwe", "adamw", {"eps": 0.01}),
        *((kind, "sgd", {"normalize": False}) for kind in ("lwe", "mwe", "lwe+mwe")),
        ("lwe", "sgd", {"reduction": 1, "hidden_of": "layer", "unbiased": True}),
        *((kind, "sgd", {"unbiased": True, "constant_maximum": False}) for kind in ("ws", "lwe+mwe")),
    ],
)
def test_it_trains_as_the_parametrization_does(
    monkeypatch: pytest.MonkeyPatch, kind: str, maker: str, options: dict[str, Any], stacked: bool | None
) -> None:
    monkeypatch.setattr(optimizer_module, "_SMALL", 200)  # None has stacks of one beside those of several
    usual, net = network(kind, **options), network(kind, **options)
    plain_names = list(network(None).state_dict())
    one = MAKERS[maker](usual.parameters())
    other = ExcitedOptimizer(MAKERS[maker](net.parameters()), net, stacked)
    assert list(net.state_dict()) == plain_names, "a plain network"
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    before = state_of(net, other)
    train(usual, one, usual.parameters)
    train(net, other, other.parameters)
    close(state_of(usual, one), state_of(net, other))
    changed = state_of(net, other)
    assert not any(torch.equal(before[name], changed[name]) for name in before if ".weight.original" in name)
    images = batches(1)[0][0]
    torch.testing.assert_close(net.eval()(images), usual.eval()(images), rtol=1e-4, atol=1e-4)
    close(fold(usual).state_dict(), fold(net).state_dict())
    assert excitation_of(net) is None


@pytest.mark.parametrize("stacked", [False, True, None])
def test_a_step_within_autocast_is_in_full_precision(stacked: bool | None) -> None:
    """Autocast is meant for the network; the excitation's own products stay what they are outside of it."""
    results = []
    for enabled in (False, True):
        net = network("lwe").float()
        optimizer = ExcitedOptimizer(SGD(net.parameters(), lr=0.1), net, stacked)
        F.cross_entropy(net(batches(1)[0][0].float()), batches(1)[0][1]).backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            optimizer.step()
        results.append(state_of(net, optimizer))
    close(*results)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("stacked", [False, True, None])
def test_the_memory_of_the_network_s_gradients_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, stacked: bool | None, normalize: bool
) -> None:
    """It may be that of a bucket of DDP, which the next backward pass fills, whatever was made of the gradient."""
    monkeypatch.setattr(optimizer_module, "_SMALL", 200)
    net = network("lwe", normalize=normalize)
    optimizer = ExcitedOptimizer(SGD(net.parameters(), lr=0.1), net, stacked)
    F.cross_entropy(net(batches(1)[0][0]), batches(1)[0][1]).backward()
    trained = set(optimizer.optimizer.param_groups[0]["params"])
    before = [one.grad for one in net.parameters() if one.grad is not None and one not in trained]
    kept, places = [one.clone() for one in before], {one.untyped_storage().data_ptr() for one in before}
    optimizer.pull()
    raw = [one.grad for one in trained - set(net.parameters()) if one.grad is not None and one.dim() == 4]
    assert len(before) == len(raw) >= 6
    assert all(torch.equal(one, other) for one, other in zip(before, kept, strict=True))
    assert not places & {one.untyped_storage().data_ptr() for one in raw}


def test_gradients_are_pulled_back_however_often_they_are_looked_at() -> None:
    usual, net = network("lwe+mwe"), network("lwe+mwe")
    optimizer = ExcitedOptimizer(SGD(net.parameters(), lr=0.1), net)
    for images, targets in batches(3):
        F.cross_entropy(usual(images), targets).backward()
        F.cross_entropy(net(images), targets).backward()
        assert len(optimizer.param_groups) == 1
    for one, other in zip(usual.parameters(), optimizer.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    optimizer.zero_grad()
    assert all(one.grad is None for one in (*net.parameters(), *optimizer.parameters()))


def test_gradients_are_unscaled_after_they_are_pulled_back() -> None:
    results = []
    for beside in (False, True):
        net = network("lwe")
        optimizer: Optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
        if beside:
            optimizer = ExcitedOptimizer(optimizer, net)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number, (images, targets) in enumerate(batches(4)):
            loss = F.cross_entropy(net(images), targets) * (torch.inf if number == 2 else 1)  # a step that is left out
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scaler.get_scale() == 512.0
        results.append(state_of(net, optimizer))
    close(*results)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "how", ["autocast", "bfloat16", "channels last", "compiled", "accelerate", "a schedule", "closure"]
)
def test_it_goes_with_what_else_there_is(how: str, stacked: bool) -> None:
    results = []
    for beside in (False, True):
        net = network("lwe")
        if how in ("autocast", "bfloat16"):
            net = net.to(torch.float32 if how == "autocast" else torch.bfloat16)
        if how == "channels last":
            net = net.to(memory_format=torch.channels_last)
        make: Make = (lambda p: LBFGS(p, lr=0.1, max_iter=3)) if how == "closure" else MAKERS["sgd"]
        optimizer: Optimizer = make(net.parameters())
        if beside:
            optimizer = ExcitedOptimizer(optimizer, net, stacked)
        schedule = OneCycleLR(optimizer, 0.2, total_steps=4) if how == "a schedule" else None
        run: Any = net
        if how == "compiled":
            run = torch.compile(net, backend="aot_eager")
        if how == "accelerate":
            accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
            run, optimizer = accelerator.prepare(net, optimizer)
        for images, targets in batches(4):
            images = images.to(net[0].bias.dtype)

            def loss(run: Any = run, images: Tensor = images, targets: Tensor = targets) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                    return F.cross_entropy(run(images).to(images.dtype), targets)

            def closure(net: nn.Module = net, optimizer: Optimizer = optimizer, loss: Any = loss) -> Tensor:
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            if how == "closure":
                optimizer.step(closure)
            elif how == "accelerate":
                with accelerator.accumulate(run):
                    accelerator.backward(loss())
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                closure()
                optimizer.step()
            if schedule:
                schedule.step()
        inner = optimizer.optimizer if how == "accelerate" else optimizer  # type: ignore[attr-defined]
        results.append(state_of(net, inner))
        if how == "channels last":
            assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    close(*results, tolerance={"autocast": 2e-2, "bfloat16": 3e-2}.get(how, 1e-9))


def test_a_training_that_is_stopped_goes_on_bit_for_bit() -> None:
    def begun() -> tuple[nn.Module, ExcitedOptimizer]:
        net = network("we")
        return net, ExcitedOptimizer(MAKERS["sgd"](net.parameters()), net)

    def step(net: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor]) -> None:
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    data = batches(4)
    net, optimizer = begun()
    for batch in data[:2]:
        step(net, optimizer, batch)
    kept = state_of(net, optimizer), copy.deepcopy(optimizer.state_dict())
    for batch in data[2:]:
        step(net, optimizer, batch)
    again, other = begun()
    with other.parametrized():
        again.load_state_dict(kept[0])
    other.load_state_dict(kept[1])
    for batch in data[2:]:
        step(again, other, batch)
    first, second = state_of(net, optimizer), state_of(again, other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_network_can_be_copied_looked_at_and_is_excited_once() -> None:
    net = network("lwe", layers=["0", "5"])
    expected = multipliers(net)
    optimizer = ExcitedOptimizer(MAKERS["sgd"](net.parameters()), net)
    assert excitation_of(net) is not None and excitation_of(net)["kind"] == "lwe"  # type: ignore[index]
    with optimizer.parametrized():
        of_layers = multipliers(net)
    assert all(torch.equal(of_layers[name], expected[name]) for name in expected)
    twin = copy.deepcopy(net)
    train(net, optimizer, optimizer.parameters, 1)
    assert not torch.equal(net[0].weight, twin[0].weight)
    with pytest.raises(ExcitationError, match="excited with lwe already"):
        excite(net, "mwe")
    with pytest.raises(ExcitationError, match="no weight of the network can be excited beside"):
        ExcitedOptimizer(MAKERS["sgd"](net.parameters()), net)


def test_networks_that_it_does_not_suit_are_refused_and_left_as_they_are() -> None:
    frozen = network("lwe")
    frozen[5].parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr,index]
    shared = network(None)
    shared.append(nn.Conv2d(4, 6, 3).double())
    shared[-1].weight = shared[9].weight
    unknown = network("lwe")
    cases = {
        "the weight of 5 is frozen": (frozen, frozen.parameters()),
        r"9\..* and 15\..* are one parameter": (tied := excite(shared, "lwe"), tied.parameters()),
        "does not know the parameter original of 0's": (unknown, unknown[14].parameters()),
        "no weight of the network": (spectral := network("sn"), spectral.parameters()),
        "excite.. it first": (plain := network(None), plain.parameters()),
    }
    for message, (net, parameters) in cases.items():
        before = list(net.state_dict())
        with pytest.raises(ExcitationError, match=message):
            ExcitedOptimizer(SGD(parameters, lr=0.1), net)
        assert list(net.state_dict()) == before
    net = network("lwe")
    optimizer = ExcitedOptimizer(SGD(net.parameters(), lr=0.1), net)
    net[0].weight = nn.Parameter(torch.zeros(8, 3, 3, 3).double())
    with pytest.raises(ExcitationError, match="the weight of 0 is not where it was"):
        optimizer.step()


def test_the_state_of_another_excitation_is_refused() -> None:
    net, other = network("lwe"), network("mwe")
    kept = ExcitedOptimizer(MAKERS["sgd"](net.parameters()), net)
    train(net, kept, kept.parameters, 1)
    before = ExcitedOptimizer(MAKERS["sgd"](other.parameters()), other)
    with pytest.raises(ExcitationError, match="kept with another excitation"):
        before.load_state_dict(kept.state_dict())
    wider = network("lwe", reduction=1)  # as many parameters, of other shapes
    with pytest.raises(ExcitationError, match="kept with another excitation"):
        ExcitedOptimizer(MAKERS["sgd"](wider.parameters()), wider).load_state_dict(kept.state_dict())


def test_a_layer_that_was_not_used_is_left_as_it_is() -> None:
    results = []
    for stacked in (None, False, True):
        torch.manual_seed(0)
        net = nn.ModuleList([nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3)]).double()
        excite(net, "lwe")
        optimizer: Optimizer = MAKERS["sgd"](net.parameters())
        if stacked is not None:
            optimizer = ExcitedOptimizer(optimizer, net, stacked)
        for _ in range(2):
            torch.manual_seed(1)
            net[0](torch.randn(2, 8, 5, 5, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(state_of(net, optimizer))
    close(results[0], results[1])
    close(results[0], results[2])

"""The kernels that excite all layers at once, in Triton's interpreter, against the parametrization in float64."""

from __future__ import annotations

import copy
import importlib
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weanalysis.errors import ExcitationError
from weanalysis.excitation import ExcitedOptimizer, excite, optimizer
from weanalysis.excitation._tables import Tables

pytest.importorskip("triton", reason="Triton comes with torch for NVIDIA GPUs")

PACKAGE = "weanalysis.excitation.kernels"

# Triton decides when it is imported, so that the interpreter has a process of its own.
IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IN_INTERPRETER, reason="run by test_in_the_interpreter")
compiled = pytest.mark.skipif(IN_INTERPRETER, reason="kernels are interpreted here")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if IN_INTERPRETER:
        monkeypatch.setattr(optimizer, "kernels_for", lambda device: importlib.import_module(PACKAGE))


@compiled
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"(\d+) passed", ran.stdout), ran.stdout


def two_dimensional() -> nn.Sequential:
    """Odd shapes, groups, one hidden unit, a depthwise one, more inputs than a tile, an input channel alone."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 6, (2, 1), groups=2),
        nn.Conv2d(6, 6, 2, groups=6),
        nn.Conv2d(6, 34, 1),
        nn.Conv2d(34, 3, (1, 2), bias=False),
    )


def one_and_three_dimensional() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Conv1d(4, 3, 5), nn.Conv3d(4, 2, (1, 2, 3))])


def inputs_of(net: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    return (
        [torch.randn(2, 1, 9, 9)]
        if isinstance(net, nn.Sequential)
        else [torch.randn(2, 4, 9), torch.randn(2, 4, 2, 4, 5)]
    )


def loss_of(net: Any, inputs: list[Tensor]) -> Tensor:
    outputs = (
        [net(inputs[0])] if isinstance(net, nn.Sequential) else [one(x) for one, x in zip(net, inputs, strict=True)]
    )
    return sum((output.square().mean() for output in outputs), torch.zeros(()))


def tabled(net: nn.Module) -> ExcitedOptimizer:
    made = ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net)
    assert all(isinstance(group, Tables) for group in made._groups)
    return made


def check_against_float64(net: nn.Module, how: Any = torch.float32, tolerance: float = 1e-5) -> None:
    """Values and gradients, relative to the largest of each tensor."""
    exact, inputs = copy.deepcopy(net).double(), [one.to(how) for one in inputs_of(net)]
    made = tabled(net)
    weights = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("weight")}
    for name, weight in weights.items():
        conv = exact.get_submodule(name.rpartition(".")[0])
        near(weight, conv.weight, tolerance, name)
    # The same gradient of each excited weight on both sides, so that convolutions round nothing.
    leaves = {name: conv.weight for name, conv in exact.named_children()}
    torch.manual_seed(2)
    for name, value in leaves.items():
        grad = torch.randn(value.shape, dtype=how)
        net.get_submodule(name).weight.grad = grad.to(memory_format=torch.preserve_format)
        value.backward(grad.double())
    made.pull()
    with made.parametrized():
        pulled = dict(net.named_parameters())
    for name, parameter in exact.named_parameters():
        if "bias" in name and "fc" not in name:
            continue
        assert pulled[name].grad is not None and parameter.grad is not None, name
        near(pulled[name].grad, parameter.grad, tolerance, name)
    assert inputs


def near(got: Tensor, exact: Tensor, tolerance: float, name: str) -> None:
    scale = float(exact.detach().abs().max())
    assert float((got.detach().double() - exact.detach()).abs().max()) <= tolerance * max(scale, 1e-30), name


CASES: list[tuple[str, dict[str, Any]]] = [
    ("lwe", {}),
    ("lwe", {"normalize": False, "reduction": 2}),
    ("lwe", {"unbiased": True, "hidden_of": "layer"}),
    ("mwe", {"eps": 0.2}),
    ("lwe+mwe", {}),
    ("ws", {"unbiased": True}),
]


@interpreted
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_values_and_gradients(kind: str, options: dict[str, Any]) -> None:
    check_against_float64(excite(two_dimensional(), kind, **options))


@interpreted
def test_other_dimensions_and_layouts() -> None:
    check_against_float64(excite(one_and_three_dimensional(), "lwe"))
    check_against_float64(excite(two_dimensional(), "lwe").to(memory_format=torch.channels_last))


@interpreted
def test_half_precision() -> None:
    # What is stored rounds to 1 in 256; what is computed does not.
    check_against_float64(excite(two_dimensional(), "lwe").to(torch.bfloat16), torch.bfloat16, 2**-8)


@interpreted
@pytest.mark.parametrize("kind", ["lwe", "mwe"])
def test_weights_of_zeros_stay_zeros(kind: str) -> None:
    net = two_dimensional()
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].weight[2:4].zero_()
    made = tabled(excite(net, kind))
    assert float(net[0].weight.abs().max()) == 0
    loss_of(net, inputs_of(net)).backward()
    assert all(torch.isfinite(one.grad).all() for one in made.parameters() if one.grad is not None)


@interpreted
def test_it_trains_as_the_parametrization_does() -> None:
    usual, net = (excite(two_dimensional(), "lwe") for _ in range(2))
    one, other = torch.optim.SGD(usual.parameters(), lr=0.02), tabled(net)
    for step in range(2):
        for micro in range(2):
            torch.manual_seed(10 * step + micro)
            images = torch.randn(2, 1, 9, 9)
            loss_of(usual, [images]).backward()
            loss_of(net, [images]).backward()
            assert len(other.param_groups) == 1, "looked at after each, so that gradients add up"
        for optimizer_of in (one, other):
            optimizer_of.step()
            optimizer_of.zero_grad()
    with other.parametrized():
        for (name, tensor), expected in zip(net.state_dict().items(), usual.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5, msg=name)


@interpreted
def test_a_layer_without_a_gradient_gets_none() -> None:
    net = excite(two_dimensional(), "lwe")
    made = tabled(net)
    net[0](inputs_of(net)[0]).square().mean().backward()
    made.pull()
    with made.parametrized():
        grads = {name: one.grad for name, one in net.named_parameters()}
    assert {name.partition(".")[0] for name, grad in grads.items() if grad is not None} == {"0"}


@interpreted
def test_weights_that_were_laid_out_anew_are_refused() -> None:
    net = excite(two_dimensional(), "lwe")
    made = tabled(net)
    raw = made._groups[0]._raw[1]  # type: ignore[union-attr]
    raw.data = raw.detach().transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ExcitationError, match="make it after the network has its dtype and memory format"):
        made.refresh()


@compiled
def test_every_kernel_compiles_for_a_gpu() -> None:
    """Down to machine code, which needs no GPU; started is another matter (test_gpu.py)."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = importlib.import_module(PACKAGE)
    pointers = {"table": "*i64", "rows": "*i32", "tiles": "*i32", "eps": "fp32"}
    full, half = kernels.dtype_of(torch.float32), kernels.dtype_of(torch.bfloat16)
    chosen = {"WEIGHT": full, "FC": full, "EXCITED": half, "GRAD": half, "TILE": kernels.TILE, "BLOCK": kernels.BLOCK}
    chosen |= {"UNBIASED": True, "LOCATE": True, "MAGNIFY": True}
    for name in (
        "statistics",
        "hidden_units",
        "multipliers",
        "finish",
        "of_multiplier",
        "of_hidden",
        "of_layers",
        "of_average",
        "of_weight",
    ):
        kernel = getattr(kernels, name)
        types = {p.name: "constexpr" if p.name in chosen else pointers.get(p.name, "*fp32") for p in kernel.params}
        values = {(p.num,): chosen[p.name] for p in kernel.params if p.name in chosen}
        made = compile_kernel(
            ASTSource(fn=kernel, signature=types, constexprs=values), target=GPUTarget("cuda", 90, 32)
        )
        assert made.asm["cubin"], name

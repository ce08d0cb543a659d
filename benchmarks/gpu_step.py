"""What excitation beside the optimizer costs on a GPU: right, how fast, and in how much memory, within four minutes.

    python -m benchmarks.gpu_step                                   # ResNet-50, batch 128, 224x224
    python -m benchmarks.gpu_step --device cpu --model resnet18 --batch-size 2 --image-size 32 --steps 2 --seconds 60

First excited weights and gradients of all layers are held against the parametrization in float64. Then steps (forward,
backward, SGD with momentum, channels last) are timed in bfloat16 (autocast) and in float32 with TF32, plain and with
torch.compile: the networks take turns, a step each, and a ratio is the median over rounds of two steps of one round. A
part that would begin after --seconds is left out, and said. Peak memory is the most that one network's training had
allocated, weights and momentum included, with no other network on the GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from weanalysis.excitation import ExcitedOptimizer, can_be_beside, excite
from weanalysis.models import build

BASELINE = "baseline"
KINDS = (BASELINE, "lwe", "mwe", "lwe+mwe", "ws")
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Size:
    """What is trained on what, and where."""

    model: str
    batch_size: int
    image_size: int
    device: torch.device


def make_step(size: Size, kind: str, half: bool, compiled: bool, beside: bool = True) -> Callable[[], None]:
    """A training step of a new network with an excitation."""
    torch.manual_seed(0)
    net = build({"source": "torchvision", "name": size.model, "num_classes": 1000}).train()
    if kind != BASELINE:
        excite(net, kind)
    net = net.to(size.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    if beside and can_be_beside(net):
        optimizer = ExcitedOptimizer(optimizer, net)
    run: Any = torch.compile(net) if compiled else net
    shape = size.batch_size, 3, size.image_size, size.image_size
    images = torch.randn(shape, device=size.device).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(size.batch_size, device=size.device) % 1000

    def step() -> None:
        with torch.autocast(size.device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(run(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_values(size: Size, kind: str) -> tuple[float, float]:
    """The largest relative errors of excited weights and of pulled gradients, against float64."""
    torch.manual_seed(0)
    net = excite(build({"source": "torchvision", "name": size.model, "num_classes": 1000}), kind).to(size.device)
    exact = copy.deepcopy(net).double()
    optimizer = ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=1e-3), net)
    weights = {name: module.weight for name, module in exact.named_modules() if hasattr(module, "parametrizations")}
    value_error = max(relative_error(net.get_submodule(name).weight, one) for name, one in weights.items())
    for name, one in weights.items():
        grad = torch.randn(one.shape, device=size.device)
        net.get_submodule(name).weight.grad = grad
        one.backward(grad.double())
    optimizer.pull()
    with optimizer.parametrized():
        pulled = dict(net.named_parameters())
    return value_error, max(
        relative_error(pulled[name].grad, parameter.grad)
        for name, parameter in exact.named_parameters()
        if parameter.grad is not None
    )


def relative_error(got: Any, exact: Any) -> float:
    """The largest error, relative to the largest value."""
    return float((got.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max().clamp_min(1e-12))


def timed(size: Size, step: Callable[[], None]) -> float:
    """Milliseconds of a step, the GPU waited for."""
    began = time.perf_counter()
    step()
    if size.device.type == "cuda":
        torch.cuda.synchronize(size.device)
    return 1e3 * (time.perf_counter() - began)


def peak_gib(size: Size, kind: str, half: bool, compiled: bool) -> float:
    """The most memory that training took, NaN on a CPU."""
    if size.device.type != "cuda":
        return float("nan")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(size.device)
    step = make_step(size, kind, half, compiled)
    step()
    torch.cuda.reset_peak_memory_stats(size.device)
    step()
    return (torch.cuda.max_memory_allocated(size.device) - before) / 2**30


def measure(size: Size, half: bool, compiled: bool, num_steps: int) -> Iterator[str]:
    """A row for each excitation."""
    memory = {kind: peak_gib(size, kind, half, compiled) for kind in KINDS}
    steps = {kind: make_step(size, kind, half, compiled) for kind in KINDS}
    if not compiled:
        steps["lwe parametrized"] = make_step(size, "lwe", half, compiled, beside=False)
    for step in steps.values():
        for _ in range(_WARM_UP_STEPS):
            step()
    rounds = [{name: timed(size, step) for name, step in steps.items()} for _ in range(num_steps)]
    for name in steps:
        ratios = [times[name] / times[BASELINE] for times in rounds]
        milliseconds = statistics.median(times[name] for times in rounds)
        yield f"{name:<18}{milliseconds:>10.2f}{statistics.median(ratios):>8.3f}{memory.get(name, float('nan')):>10.2f}"


def main() -> None:
    """Print what is right, then a table for each arithmetic, plain and compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--model", default="resnet50", help="a torchvision name")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each network")
    parser.add_argument("--seconds", type=float, default=180, help="after which no further part begins")
    given = parser.parse_args()
    began = time.perf_counter()
    size = Size(given.model, given.batch_size, given.image_size, given.device)
    where = torch.cuda.get_device_name(size.device) if size.device.type == "cuda" else "CPU"
    side = f"{size.image_size}x{size.image_size}"
    print(f"{size.model}, batch {size.batch_size}, {side}, {where}, torch {torch.__version__}", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    for kind in KINDS[1:]:
        values, grads = check_values(size, kind)
        print(
            f"{kind:<8} largest relative error against float64: weights {values:.1e}, gradients {grads:.1e}", flush=True
        )
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    for compiled in (False, True):
        for half in (True, False):
            title = f"{'bfloat16' if half else 'TF32'}{', compiled' if compiled else ''}"
            if time.perf_counter() - began > given.seconds:
                print(f"{title}: left out, {given.seconds:g} seconds are over")
                continue
            print(f"\n{title:<18}{'step (ms)':>10}{'ratio':>8}{'peak GiB':>10}", flush=True)
            for line in measure(size, half, compiled, given.steps):
                print(line, flush=True)
    print(f"\n{time.perf_counter() - began:.0f} seconds in all")


if __name__ == "__main__":
    main()

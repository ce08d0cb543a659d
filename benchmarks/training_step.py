"""What a training step costs under each excitation against the same network without: time and memory, side by side.

    python benchmarks/training_step.py            # ResNet-18, batch 64, 64x64 images, on two cores: about five minutes
    python benchmarks/training_step.py --quick    # fewer rounds, a smaller batch
    python benchmarks/training_step.py --device cuda --model resnet50 --batch-size 256 --image-size 224
    python benchmarks/training_step.py --count --model resnet50      # operations that a step adds, on any machine

A step is forward, backward and SGD with momentum; on a GPU forward and backward in bfloat16 where autocast has it.
Every round makes one step of every network, so that a change of the machine's speed meets all of them, in an order
that turns from round to round. A ratio compares two steps of one round; `fastest` compares the fastest steps of all
rounds. Processor time is what the process' threads spent together: what else runs on the machine counts less in it,
but threads that wait for work do count. The goal is a ratio of 1.10 at most for LWE, normalization included, and
below those of wn and sn. Excitation is done beside the optimizer (`ExcitedOptimizer`), with --parametrized as a
parametrization. --count tells operations that are not views, each of which a GPU starts at least one kernel for: with
the kernels that take all layers at once (a GPU with Triton), with layers of one shape stacked (a GPU without), and as a
parametrization.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weanalysis.excitation import ExcitedOptimizer, can_be_beside, excite
from weanalysis.excitation import optimizer as optimizer_module
from weanalysis.excitation.costs import LiveBytes
from weanalysis.models import build

BASELINE = "baseline"
KINDS = ("lwe", "mwe", "lwe+mwe", "ws", "wn", "sn")


def make_step(
    model: str,
    kind: str,
    batch_size: int,
    image_size: int,
    device: torch.device,
    beside: bool = True,
    stacked: bool | None = None,
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step of a network with excitation `kind`, and a way to count the most bytes alive during one."""
    torch.manual_seed(0)
    net = build({"source": "torchvision", "name": model, "num_classes": 1000}).train()
    if kind != BASELINE:
        excite(net, kind)
    net.to(device)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, foreach=True)
    if beside and can_be_beside(net):
        optimizer = ExcitedOptimizer(optimizer, net, stacked)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    targets = torch.arange(batch_size, device=device) % 1000

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(net(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes() -> int:
        states = [leaf for leaf in tree_leaves(optimizer.state_dict()["state"]) if isinstance(leaf, torch.Tensor)]
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with LiveBytes(*{*net.parameters(), *trained}, *net.buffers(), images, *states) as live:
            step()
        return live.peak

    return step, peak_bytes


# What gives a tensor without computing one, beside views, and what gives none.
_NO_KERNEL = ("empty", "new_empty", "_unsafe_view", "promote_types")


class Operations(TorchDispatchMode):
    """Counts the operations within for which a GPU starts a kernel: all but views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        self.count += not is_view and not func.__name__.startswith(_NO_KERNEL)
        return func(*args, **(kwargs or {}))


class CountedKernels:
    """Stands for the kernels of `excitation.kernels`: starts none, and counts how many would have been started."""

    TILE, BLOCK, COLUMNS = 32, 256, ()

    def __init__(self) -> None:
        self.count = 0

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """What stands for a dtype."""
        return dtype

    def __getattr__(self, name: str) -> CountedKernels:
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._start

    def _start(self, *args: Any) -> None:
        self.count += 1


def count_operations(model: str, kinds: Sequence[str], path: str) -> dict[str, int]:
    """How many operations a step has beyond the baseline's, on a path: "kernels", "stacked" or "parametrized"."""
    counts = {}
    for kind in (BASELINE, *kinds):
        kernels = CountedKernels()
        with mock.patch.object(optimizer_module, "kernels_for", lambda device, kernels=kernels: kernels):
            stacked = True if path == "stacked" else None
            step, _ = make_step(model, kind, 2, 64, torch.device("cpu"), path != "parametrized", stacked)
            step()
            kernels.count = 0
            with Operations() as operations:
                step()
        counts[kind] = operations.count + kernels.count
    return {kind: count - counts[BASELINE] for kind, count in counts.items() if kind != BASELINE}


def print_counts(model: str, kinds: Sequence[str], as_json: bool) -> None:
    """Print what each excitation adds in the ways that there are."""
    counts = {path: count_operations(model, kinds, path) for path in ("kernels", "stacked", "parametrized")}
    if as_json:
        print(json.dumps({model: counts["stacked"], **{f"{model} {path}": counts[path] for path in counts}}))
        return
    print(f"{model:<10}" + "".join(f"{path:>14}" for path in counts))
    for kind in kinds:
        print(f"{kind:<10}" + "".join(f"{of_path[kind]:>14,}" for of_path in counts.values()))


def main() -> None:
    """Print a row for the baseline and for each excitation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds at batch 16")
    parser.add_argument("--model", default="resnet18", help="a torchvision name")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--parametrized", action="store_true", help="as a parametrization, not beside the optimizer")
    parser.add_argument("--count", action="store_true", help="count operations instead of timing them")
    parser.add_argument("--json", action="store_true", help="with --count: as JSON")
    given = parser.parse_args()
    if given.count:
        print_counts(given.model, given.kinds.split(","), given.json)
        return
    if given.quick:
        given.rounds, given.batch_size = 5, 16
    torch.set_num_threads(given.threads)

    names = [BASELINE, *given.kinds.split(",")]
    size = given.batch_size, given.image_size
    steps = {name: make_step(given.model, name, *size, given.device, not given.parametrized) for name in names}
    if given.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    memory = {name: peak_bytes() for name, (_, peak_bytes) in steps.items()}
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(given.rounds + 1):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            began, used = time.perf_counter(), time.process_time()
            steps[name][0]()
            if turn:  # the first round warms up
                wall[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)

    where = torch.cuda.get_device_name(given.device) if given.device.type == "cuda" else "CPU"
    side = f"{given.image_size}x{given.image_size}"
    print(f"{given.model}, batch {given.batch_size}, {side}, {given.rounds} rounds, {where}")
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {given.threads} threads, "
        f"torch {torch.__version__}, load {', '.join(f'{load:.1f}' for load in os.getloadavg())}"
    )
    print(
        f"{'':<10}{'seconds':>9}{'ratio':>8}{'min':>7}{'max':>7}{'processor':>11}{'min':>7}{'max':>7}{'peak GiB':>10}"
    )
    for name in names:
        row = f"{name:<10}{statistics.median(wall[name]):>9.3f}"
        for times, width in ((wall, 8), (processor, 14)):
            ratios = [one / other for one, other in zip(times[name], times[BASELINE], strict=True)]
            row += f"{statistics.median(ratios):>{width}.3f}{min(ratios):>7.3f}{max(ratios):>7.3f}"
            row += f"{min(times[name]) / min(times[BASELINE]):>9.3f}"
        print(row + f"{memory[name] / 2**30:>10.3f}")


if __name__ == "__main__":
    main()

"""Whether the bounds of screened studies hold in networks of many kinds, those that mislead gradients among them.

    python benchmarks/coverage_families.py                       # all families, about half an hour of one core
    python benchmarks/coverage_families.py --only "hard gate" --seeds 1 --images 500

Each family is a kind of small network, made here from a seed. A study of it is measured twice: exactly, and screened
at the default; an ablation is inexact where the two differ. Seeds are added until a family has --wanted inexact
ablations, or --seeds have been tried. --keep FOLDER keeps what was measured exactly, for the next run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from weanalysis.ablation import Evaluator, studies
from weanalysis.ablation.evaluate import Measured, ScreenSettings
from weanalysis.excitation import excite, fold

SHARD = 250

Drawn = tuple[nn.Module, Tensor, Tensor]


class Sigmoid(nn.Module):
    """A sigmoid so steep that most of its outputs are next to 0 or 1, and their slopes next to 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(12 * x)


class Gate(nn.Module):
    """0 or 1, with the gradient of a sigmoid (a straight-through estimator)."""

    def forward(self, x: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * x)
        return (x > 0).to(x.dtype) + soft - soft.detach()


class Rounded(nn.Module):
    """A ReLU in steps of 1/2, whose gradient is a ReLU's."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return x + (torch.round(2 * x) / 2 - x).detach()


class Leak(nn.Module):
    """Passes what comes as it is, and a ten thousandth of its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-4 * x + (1 - 1e-4) * x.detach()


class Maxout(nn.Module):
    """The larger one of each two channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x[:, ::2], x[:, 1::2])


def cnn(activation: Callable[[], nn.Module] = nn.ReLU, classes: int = 10, width: int = 8, of: int = 1,
        after: dict[int, nn.Module] | None = None) -> nn.Sequential:  # fmt: skip
    """Four 3x3 convolutions, each followed by `after` and an activation that leaves one channel in `of`."""
    layers: list[nn.Module] = []
    channels = 3
    for number, out in enumerate((width, 2 * width, 2 * width, 3 * width)):
        layers += [nn.Conv2d(channels, of * out, 3, padding=1), *([after[number]] if number in (after or {}) else [])]
        layers += [activation(), *([nn.AvgPool2d(2)] if number in (1, 2) else [])]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def noisy_digits(count: int, seed: int, noise: float = 0.6) -> tuple[Tensor, Tensor]:
    """Handwritten digits under noise, (count, 3, 16, 16), and their classes."""
    generator = torch.Generator().manual_seed(seed)
    pictures, targets = load_digits(return_X_y=True)
    chosen = torch.randint(len(targets), (count,), generator=generator)
    images = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8)[chosen] / 8 - 1
    images = nn.functional.interpolate(images, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
    return images + noise * torch.randn(images.shape, generator=generator), torch.tensor(targets)[chosen]


def trained(net: nn.Module, seed: int, steps: int = 500, rate: float = 3e-3) -> nn.Module:
    """Train on noisy digits."""
    images, targets = noisy_digits(6000, 1000 + seed)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        some = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[some]), targets[some]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def of_digits(make: Callable[[], nn.Module]) -> Callable[[int, int], Drawn]:
    """A family trained on digits."""

    def draw(seed: int, count: int) -> Drawn:
        torch.manual_seed(seed)
        return trained(make(), seed), *noisy_digits(count, seed)

    return draw


def excited(seed: int, count: int) -> Drawn:
    """The small CNN with LWE, whose weights are then computed once and for all."""
    torch.manual_seed(seed)
    net = trained(excite(cnn(), "lwe"), seed)
    return fold(net), *noisy_digits(count, seed)


def untrained(seed: int, count: int, classes: int = 10, among: int = 2, width: int = 8) -> Drawn:
    """Weights as they are drawn, outputs centred; the targets are each drawn from the `among` largest outputs."""
    torch.manual_seed(seed)
    net = cnn(classes=classes, width=width).eval()
    images, _ = noisy_digits(count, seed)
    images = images * (0.5 + torch.rand(count, 3, 1, 1)) + torch.randn(count, 3, 1, 1)
    with torch.no_grad():
        outputs = torch.cat([net(some) for some in images.split(250)])
        net[-1].bias -= outputs.mean(0)
        outputs = outputs - outputs.mean(0)
    return net, images, outputs.topk(among, 1).indices.gather(1, torch.randint(among, (count, 1)))[:, 0]


def kernels(net: nn.Module) -> tuple:
    """Ablations of all kernels."""
    return tuple(studies.location(net, "all").ablations)


def some_kernels(net: nn.Module) -> tuple:
    """Ablations of 36 kernels a layer."""
    return tuple(studies.location(net, "6x6").ablations)


def channels(net: nn.Module) -> tuple:
    """Ablations of all output and all input channels."""
    return (*studies.channel(net, "out").ablations, *studies.channel(net, "in").ablations)


@dataclass(frozen=True)
class Family:
    """A kind of network: how one is drawn from a seed, which ablations, and the metric."""

    name: str
    draw: Callable[[int, int], Drawn]
    ablations: Callable[[nn.Module], tuple]
    metric: str = "top1"
    images: int = 500


FAMILIES = (
    Family("small trained CNN", of_digits(cnn), kernels),
    Family("with LWE", excited, kernels),
    Family("untrained", untrained, kernels),
    Family("1,000 classes, top-5", lambda seed, count: untrained(seed, count, 1000, 10), some_kernels, "top5"),
    Family("saturating sigmoid, channels", of_digits(lambda: cnn(Sigmoid)), channels),
    Family("hard gate", of_digits(lambda: cnn(Gate)), kernels),
    Family("one layer behind a gradient of 1e-4", of_digits(lambda: cnn(after={1: Leak()})), kernels),
    Family("activations in steps", of_digits(lambda: cnn(Rounded)), kernels),
    Family("maxout", of_digits(lambda: cnn(Maxout, of=2)), kernels),
    Family("many channels, averaged", of_digits(lambda: cnn(width=32)), channels),
)  # fmt: skip


def flips(results: list[Measured], num_ablations: int, metric: str) -> np.ndarray:
    """Which images' correctness changed, (ablations, images): +1 lost, -1 gained."""
    bit, tables = {"top1": 1, "top5": 2}[metric], []
    for one in results:
        before = one.targets == one.predictions if metric == "top1" else one.top5
        table = np.zeros((num_ablations, len(before)), np.int8)
        of_change = np.repeat(np.arange(num_ablations), one.counts)
        table[of_change, one.positions] = before[one.positions].astype(np.int8) - (one.correct & bit).astype(bool)
        tables.append(table)
    return np.concatenate(tables, 1)


def measured(evaluator: Evaluator, images: Tensor, targets: Tensor, ablations: tuple) -> list[Measured]:
    """Measure shard by shard."""
    return [evaluator.measure(images[low : low + SHARD], targets[low : low + SHARD], ablations, low)
            for low in range(0, len(images), SHARD)]  # fmt: skip


def exactly(family: Family, seed: int, count: int, drawn: Drawn, ablations: tuple, keep: Path | None) -> np.ndarray:
    """The flips of all pairs, from an earlier run where they were kept."""
    file = None if keep is None else keep / f"{family.name.replace(' ', '-')}-{seed}-{count}.npy"
    if file is not None and file.exists():
        return np.load(file)
    evaluator = Evaluator(drawn[0], "exact", batch_size=SHARD)
    found = flips(measured(evaluator, *drawn[1:], ablations), len(ablations), family.metric)
    if file is not None:
        np.save(file, found)
    return found

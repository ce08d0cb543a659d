"""Whether the bounds of screened studies hold in networks of many kinds, those that mislead gradients among them.

    python benchmarks/coverage_families.py                       # all families, an hour of one core or two
    python benchmarks/coverage_families.py --only "hard gate" --seconds 60

Each family is a kind of small network, made here from a seed. A study of it is measured twice: exactly, and screened
at the default; an ablation is inexact where the two differ. Networks are added, seed by seed, until a family has
--wanted inexact ablations, or as soon as --seconds are spent on it. With -o the table is added to a page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from weanalysis.ablation import Evaluator, studies
from weanalysis.ablation.evaluate import Measured, ScreenSettings
from weanalysis.excitation import excite, fold
from weanalysis.results.statistics import hidden_flips, screen_bounds
from weanalysis.results.store import SCREENED
from weanalysis.tasks import find_metric

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


def cnn(
    activation: Callable[[], nn.Module] = nn.ReLU,
    classes: int = 10,
    width: int = 8,
    of: int = 1,
    after: dict[int, nn.Module] | None = None,
) -> nn.Sequential:
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
)


def flips(results: list[Measured], num_ablations: int, metric: str) -> np.ndarray:
    """Which images' correctness changed, (ablations, images): +1 lost, -1 gained."""
    right, tables = find_metric(metric).right, []
    for one in results:
        before = right(one.intact_correct)
        table = np.zeros((num_ablations, len(before)), np.int8)
        of_change = np.repeat(np.arange(num_ablations), one.counts)
        table[of_change, one.positions] = before[one.positions].astype(np.int8) - right(one.correct)
        tables.append(table)
    return np.concatenate(tables, 1)


def measured(evaluator: Evaluator, images: Tensor, targets: Tensor, ablations: tuple) -> list[Measured]:
    """Measure shard by shard."""
    return [
        evaluator.measure(images[low : low + SHARD], targets[low : low + SHARD], ablations, low)
        for low in range(0, len(images), SHARD)
    ]


def measure(family: Family, seed: int, num_images: int) -> pd.DataFrame:
    """Measure one network both ways: one row an ablation."""
    net, images, targets = family.draw(seed, num_images)
    ablations = family.ablations(net)
    screened = Evaluator(net, "screened", screen=ScreenSettings(family.metric))
    both = [measured(one, images, targets, ablations) for one in (Evaluator(net, "exact", batch_size=SHARD), screened)]
    true, reported = (flips(results, len(ablations), family.metric) for results in both)
    screen = {name: sum(getattr(one.screen, name) for one in both[1]) for name in SCREENED}  # type: ignore[union-attr]
    hidden = hidden_flips(screen, [ablation.layer for ablation in ablations])
    low, high = screen_bounds((reported > 0).sum(1), (reported < 0).sum(1), num_images, hidden)
    distrusted = {layer for one in both[1] for layer in one.screen.about["distrusted"]}  # type: ignore[union-attr]
    return pd.DataFrame(
        {
            "seed": seed,
            "true": true.sum(1, dtype=int) / num_images,
            "found": reported.sum(1, dtype=int) / num_images,
            "low": low,
            "high": high,
            "flips": np.abs(true).sum(1, dtype=int),
            "missed": (true != reported).sum(1),
            "pairs": num_images,
            "distrusted": [ablation.layer in distrusted for ablation in ablations],
            **screen,
        }
    )


def line_of(name: str, table: pd.DataFrame) -> str:
    """A family's row of the table."""
    error = (table["true"] - table["found"]).abs()
    wrong = error > 1e-9
    inside = (table["low"] <= table["true"] + 1e-9) & (table["true"] <= table["high"] + 1e-9)
    computed = table["num_evaluated"].sum() / table["pairs"].sum()
    cells = (
        name,
        f"{table['seed'].nunique()}",
        f"{len(table):,}",
        f"{computed:.1%}",
        f"{table['missed'].sum():,} of {table['flips'].sum():,}",
        f"{100 * error.max():.2f}, {100 * error.mean():.4f}",
        f"{100 * (table['high'] - table['low']).median() / 2:.2f}",
        f"{wrong.sum()}, {(wrong & inside).sum()}",
        f"{table['distrusted'].sum():,}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| family | networks | ablations | pairs computed | flips missed | largest, mean error of D, points | "
    "half width of the bounds, median | inexact ablations, within their bounds | in layers computed on all images |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Measure every family, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families whose name contains this")
    parser.add_argument("--wanted", type=int, default=40, help="inexact ablations of each family")
    parser.add_argument("--seconds", type=float, default=600, help="of each family at the most, but for one network")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--raw", type=Path, metavar="FILE.csv", help="also write one row an ablation")
    parser.add_argument("-o", type=Path, metavar="PAGE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines, raw = [HEAD], []
    print(HEAD, flush=True)
    for family in (one for one in FAMILIES if given.only in one.name):
        began, tables, seed = time.perf_counter(), [], given.first_seed
        while not tables or time.perf_counter() - began < given.seconds:
            tables.append(measure(family, seed, given.images))
            seed += 1
            if sum((one["true"] != one["found"]).sum() for one in tables) >= given.wanted:
                break
        raw.append(pd.concat(tables).assign(family=family.name))
        lines.append(line_of(family.name, raw[-1]))
        print(lines[-1], flush=True)
        if given.raw:
            pd.concat(raw).to_csv(given.raw, index=False)
    if given.o is not None:
        given.o.write_text((given.o.read_text() + "\n" if given.o.exists() else "") + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How many times faster exact and screened evaluation are than naive on the same work, in one run, and how they agree.

    python benchmarks/evaluation.py                # a ResNet-20 trained here on digits (half a minute); needs nothing
    python benchmarks/evaluation.py --weights net.th --data imagefolder:DIR --mean R,G,B --std R,G,B --images 2000
    python benchmarks/evaluation.py -o docs/speed.md --title "ResNet-20 on digits"

Naive: zero the weight, run the whole network over images in memory, restore; usual memory format, float32, batches of
250, one process with all cores. It is measured on the first --naive-images and scaled, since its cost is linear in
images. Exact and screened: shards of 250 images over one process a core, one thread each, as a study runs them; the
pilot of a screened shard counts, starting the processes does not. On a GPU (--device cuda) all is one process. The
rounds alternate. With -o the tables are added to a page. Where exact evaluation would take too long, --exact-rounds 0
leaves it out, and with it all that is held against it; `coverage.py` finds the errors with less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor

from weanalysis.ablation import Evaluator, studies
from weanalysis.ablation.evaluate import Measured, Mode, ScreenSettings
from weanalysis.ablation.schedule import StopRequest, Task, Work, measure_all, open_executor
from weanalysis.cli.options import parse_triple
from weanalysis.devices import DTYPES, find_devices
from weanalysis.loading import load_data, load_model
from weanalysis.results.statistics import hidden_flips, screen_bounds
from weanalysis.results.store import SCREENED

SHARD = 250


class OnFile:
    """Images and targets that every process maps into its memory, served as a data set serves its batches."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, folder: Path):
        self.images, self.targets = folder / "images.npy", targets
        np.save(self.images, images.numpy())

    def batch(self, start: int, stop: int, num_threads: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images [start, stop) and their targets."""
        return torch.from_numpy(np.load(self.images, mmap_mode="r")[start:stop].copy()), self.targets[start:stop]


def flips(results: Sequence[Measured], num_ablations: int) -> np.ndarray:
    """Which images' top-1 correctness changed, (ablations, images): +1 lost, -1 gained."""
    tables = []
    for one in results:
        before = one.targets == one.predictions
        table = np.zeros((num_ablations, len(before)), np.int8)
        of_change = np.repeat(np.arange(num_ablations), one.counts)
        table[of_change, one.positions] = before[one.positions].astype(np.int8) - (one.correct & 1)
        tables.append(table)
    return np.concatenate(tables, 1)


def same(first: Measured, second: Measured) -> int:
    """How many pairs of an image and an ablation two results tell differently."""

    def changes_of(one: Measured) -> set[tuple[int, int, int, int]]:
        of_change = np.repeat(np.arange(len(one.counts)), one.counts)
        columns = (of_change, one.positions, one.classes, one.correct)
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len({pair[:2] for pair in changes_of(first) ^ changes_of(second)})


@dataclass
class Way:
    """One way to evaluate, and what was measured of it."""

    name: str
    mode: Mode
    max_error: float = 0.1
    seconds: list[float] = field(default_factory=list)
    results: list[Measured] = field(default_factory=list)


class Bench:
    """A network, images and ablations; naive and the other ways are run over them in turn."""

    def __init__(self, given: argparse.Namespace):
        self.device, self.dtype = find_devices(given.device)[0], given.dtype
        self.jobs = (given.jobs or joblib.cpu_count(only_physical_cores=True)) if self.device == "cpu" else 1
        self.model = load_model(given.model, given.weights, None, given.data)
        data = load_data(
            given.data,
            parse_triple("mean", given.mean),
            parse_triple("std", given.std),
            None,
            given.images,
            0,
            self.model,
        )
        self.images, self.targets = data.batch(0, len(data))
        self._folder = tempfile.TemporaryDirectory()
        self._data = OnFile(self.images, self.targets, Path(self._folder.name))
        self.naive_images = min(given.naive_images, len(self.images))

    @property
    def on_gpu(self) -> str:
        """Which GPU, and in what arithmetic the fast ways compute there."""
        if self.device == "cpu":
            return ""
        return f" on one {torch.cuda.get_device_name(self.device)}, exact and screened in {self.dtype}"

    def naive(self, ablations: Any, every: int = 1, first: int = 0) -> tuple[float, Measured]:
        """Seconds of the whole work, scaled from the first images and every so many-th ablation; what came out."""
        torch.set_num_threads(joblib.cpu_count(only_physical_cores=True))
        evaluator = Evaluator(self.model.net, "naive", self.device, batch_size=SHARD)
        evaluator.measure(self.images[:SHARD], self.targets[:SHARD], ablations[:1])
        some = ablations[first % every :: every]
        began = time.perf_counter()
        measured = evaluator.measure(self.images[: self.naive_images], self.targets[: self.naive_images], some)
        # The intact pass is one more.
        share = (len(some) + 1) / (len(ablations) + 1) * self.naive_images / len(self.images)
        return (time.perf_counter() - began) / share, measured

    def run(self, way: Way, ablations: Any, num_images: int | None = None, warm: Any = None) -> float:
        """Seconds of a way over all shards, by a study's own processes, warmed up with `warm` or what is usual."""
        batch_size = 50 if self.device == "cpu" else SHARD
        screen = ScreenSettings("top1", way.max_error)
        work = Work(
            f"{way.name} {id(way)}",
            self.model.net,
            None,
            None,
            self._data,
            way.mode,
            self.dtype,
            batch_size,
            (self.device,),
            Path(),
            screen,
        )
        evaluator = None
        if self.device == "cpu":
            # Processes of its own for each way: joblib replaces one whose memory grows much after its first task.
            get_reusable_executor().shutdown()
        else:
            evaluator = Evaluator(
                self.model.net, way.mode, self.device, DTYPES[self.dtype], batch_size, screen, self.dtype == "tf32"
            )

        def measure(spans: Iterable[tuple[int, int]], some: Any) -> list[tuple[Task, Measured]]:
            tasks = [Task(low, high, tuple(range(len(some))), some) for low, high in spans]
            with open_executor(work, self.jobs, evaluator=evaluator) as executor:
                return list(measure_all(executor, tasks, StopRequest()))

        # The first tasks are whole shards, so that the processes' memory has grown by then; that of exact evaluation
        # does not depend on how many ablations there are.
        usual = ablations if way.mode == "screened" else ablations[::20]
        measure([(0, min(SHARD, len(self.images)))] * self.jobs, warm or usual)
        shards = [(low, min(low + SHARD, len(self.images))) for low in range(0, num_images or len(self.images), SHARD)]
        began = time.perf_counter()
        results = measure(shards, ablations)
        seconds = time.perf_counter() - began
        way.results = [measured for _, measured in sorted(results, key=lambda pair: pair[0].start)]
        return seconds


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the smallest and largest of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def start_up(*words: str) -> str:
    """Seconds that a command takes, from five runs."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "weanalysis", *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return spread(seconds, 2)


def main() -> None:
    """Print the tables, and add them to a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int)
    parser.add_argument("--naive-images", type=int, default=250)
    parser.add_argument(
        "--naive-every",
        type=int,
        default=1,
        help="naive takes every so many-th ablation, others in each round: more and shorter rounds",
    )
    parser.add_argument("--grid", default="5x5")
    parser.add_argument("--max-errors", default="0.1,0.4", help="of the screened ways, in points")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--exact-rounds", type=int, default=2, help="exact is run in the first so many rounds")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of exact and screened")
    parser.add_argument("--costs", action="store_true", help="also against images, ablations and depth")
    parser.add_argument("--title", default="")
    parser.add_argument("-o", type=Path, metavar="PAGE")
    given = parser.parse_args()
    bench = Bench(given)
    study = studies.location(bench.model.net, given.grid)
    ablations = study.ablations
    ways = [Way("exact", "exact")]
    ways += [Way(f"screened, --max-error {float(e):g}", "screened", float(e)) for e in given.max_errors.split(",")]
    naive_seconds: list[float] = []
    for number in range(given.rounds):
        seconds, naive = bench.naive(ablations, given.naive_every, number)
        naive_seconds.append(seconds)
        for way in ways[number >= given.exact_rounds :]:
            way.seconds.append(bench.run(way, ablations))
            print(f"{way.name}: {way.seconds[-1]:.1f} s, naive {seconds:.1f} s", file=sys.stderr, flush=True)
    num_images, count = len(bench.images), len(ablations)
    exact = ways[0]
    if not exact.results:
        ways.remove(exact)
    true = flips(exact.results, count) if exact.results else None
    lines = [
        f"## {given.title or bench.model.name}",
        "",
        f"{bench.model.name} ({Path(bench.model.weights).name}), {given.data.split(':')[0]}, {num_images:,} images, "
        f"{count:,} kernels ({given.grid} grids), {given.rounds} rounds. {date.today()}, {machine()}, "
        f"torch {torch.__version__}, {bench.jobs} processes{bench.on_gpu}.",
        "",
        f"Naive: {spread(naive_seconds)} s, from {bench.naive_images:,} images"
        + (f" and every {given.naive_every}th ablation." if given.naive_every > 1 else ".")
        + ("" if true is None else f" {np.abs(true).sum():,} of {true.size:,} pairs flip."),
        "",
        "| | seconds | times naive | pairs computed | largest, mean error of D, points | flips missed | "
        "inexact ablations, within their bounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in ways:
        ratios = [slow / fast for slow, fast in zip(naive_seconds, way.seconds, strict=False)]
        row = [way.name, spread(way.seconds), spread(ratios), "100 %", "", "", ""]
        screens = [one.screen for one in way.results if one.screen is not None]
        sums = {name: sum(getattr(screen, name) for screen in screens) for name in SCREENED}
        if screens:
            row[3] = f"{sums['num_evaluated'].sum() / (num_images * count):.2%}"
        if true is not None:
            measured = flips(way.results, count)
            error = 100 * np.abs((true - measured).sum(1, dtype=int)) / num_images
            missed = np.count_nonzero(true - measured) / max(1, np.count_nonzero(true))
            row[4:6] = [f"{error.max():.2f}, {error.mean():.4f}", f"{missed:.1%}"]
            if screens:
                hidden = hidden_flips(sums, [ablation.layer for ablation in ablations])
                low, high = screen_bounds((measured > 0).sum(1), (measured < 0).sum(1), num_images, hidden)
                difference = true.sum(1, dtype=int) / num_images
                inside = (low <= difference + 1e-12) & (difference <= high + 1e-12)
                row[6] = f"{(error > 0).sum()}, {inside[error > 0].sum()}"
        lines.append(f"| {' | '.join(row)} |")
    if exact.results and bench.naive_images == SHARD and given.naive_every == 1:
        first = exact.results[0]
        differing = same(naive, first)
        lines += [
            "",
            f"Exact and naive differ in {differing} of {SHARD * count:,} answers; {first.num_rechecked:,} "
            f"near ties were decided the naive way; the largest difference of logits was "
            f"{first.largest_difference:.1e}.",
        ]
    print("\n".join(lines), flush=True)
    if given.costs:
        more = [
            "",
            *costs(bench, study),
            "",
            f"Start-up: `weanalysis --help` {start_up('--help')} s, "
            f"`weanalysis list` {start_up('list')} s (median, smallest and largest of five).",
        ]
        print("\n".join(more))
        lines += more
    text = "\n".join(lines) + "\n"
    if given.o is not None:
        given.o.write_text((given.o.read_text() + "\n" if given.o.exists() else "") + text)


def costs(bench: Bench, study: Any) -> list[str]:
    """Seconds of exact and screened evaluation against the number of images, of ablations, and depth."""
    ways = (Way("exact", "exact"), Way("screened", "screened"))
    lines = ["| what | exact, s | screened, s |", "| --- | --- | --- |"]
    sizes = [size for size in (250, 500, 1000, 2000) if size <= len(bench.images)]
    small = [a for a in study.ablations if a.layer == study.ablations[len(study.ablations) // 2].layer]
    for size in sizes:
        seconds = [bench.run(way, small, size, small[:5]) for way in ways]
        lines.append(
            f"| {size:,} images, {len(small)} ablations of {small[0].layer} | {seconds[0]:.2f} | {seconds[1]:.2f} |"
        )
    few = min(500, len(bench.images))
    for number in (10, 100, 1000):
        grid = studies.location(bench.model.net, "all", layers=small[0].layer).ablations[:number]
        seconds = [bench.run(way, grid, few, small[:5]) for way in ways]
        lines.append(
            f"| {len(grid):,} ablations of {small[0].layer}, {few} images | {seconds[0]:.2f} | {seconds[1]:.2f} |"
        )
    names = list(dict.fromkeys(a.layer for a in study.ablations))
    for name in (names[0], names[len(names) // 2], names[-1]):
        some = [a for a in study.ablations if a.layer == name]
        seconds = [bench.run(way, some, few, some[:5]) for way in ways]
        lines.append(f"| depth: {len(some)} ablations of {name}, {few} images | {seconds[0]:.2f} | {seconds[1]:.2f} |")
    return lines


def machine() -> str:
    """The processor's name and the number of cores."""
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        return f"{names[0]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

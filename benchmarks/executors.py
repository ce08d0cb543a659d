"""What a cluster's executor costs: the same study by joblib's two processes and by Dask's workers, in turn.

    python benchmarks/executors.py --rounds 9

Schedulers and workers are processes of this machine, on loopback. Round by round the study is measured by two
processes (`--jobs 2`), by two workers and by four, each into a new cache, in an order that changes. How long they take
to start, and the first study of each, which brings network and images there, are told apart. Prints medians of wall
time and of CPU seconds (of all processes), and how these compare with those of joblib in the same round: wall time says
what a user waits, CPU seconds hang less on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: a process has one thread, as a worker has.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import psutil
import torch

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.data import load_data
from weanalysis.models import Model, build

CHECKOUT = Path(__file__).resolve().parents[1]
JOBLIB, WAYS = "joblib, 2 processes", {"joblib, 2 processes": 2, "Dask, 2 workers": 2, "Dask, 4 workers": 4}


class Hosts:
    """A scheduler and its workers for each way that has some."""

    def __init__(self, folder: Path):
        self._folder, self._processes = folder, list[subprocess.Popen[bytes]]()

    def start(self, name: str, num_workers: int) -> tuple[str, float]:
        """Start them; return the scheduler's file, and the seconds until the last worker has joined."""
        from distributed import Client

        file, began = self._folder / f"{name}.json", time.perf_counter()
        self._dask("scheduler", file, "--port", "0")
        while not file.is_file():
            time.sleep(0.05)
        for _ in range(num_workers):
            self._dask("worker", file, "--no-nanny", "--nthreads", "1", "--memory-limit", "0")
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(num_workers, timeout=300)
        return str(file), time.perf_counter() - began

    def _dask(self, what: str, file: Path, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        log = self._folder / "log.txt"
        with open(log, "ab") as out:
            self._processes.append(
                subprocess.Popen(
                    [*command, "--host", "127.0.0.1", "--no-dashboard", *options],
                    env=environment,
                    stdout=out,
                    stderr=out,
                    cwd=self._folder,
                )
            )

    def close(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.kill()
            process.wait()


def network(seed: int) -> Model:
    """A ResNet-20 that uses several classes; each round has its own, so that no process has it from the one before."""
    torch.manual_seed(seed)
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    net = build(architecture).eval()
    with torch.no_grad():
        net.fc.bias -= net(torch.randn(64, 3, 32, 32)).mean(0)
    return Model("resnet20", net, architecture, "random", 10)


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it has started and are there."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def measured(model: Model, grid: str, num_images: int, how: dict[str, object]) -> tuple[float, float, pd.DataFrame]:
    """Run the study once; wall seconds, CPU seconds, and its table."""
    data = load_data("digits", image_size=32, num_images=num_images)
    with tempfile.TemporaryDirectory() as root:
        cpu, began = cpu_seconds(), time.perf_counter()
        table = ablate(model, data, "location", grid=grid, shard_size=100, cache=Cache(Path(root)), **how)
        return time.perf_counter() - began, cpu_seconds() - cpu, table


def rounds(number: int, order: list[str]) -> Iterator[list[str]]:
    """The ways, each once a round, beginning with another one each time."""
    for one in range(number):
        yield order[one % len(order) :] + order[: one % len(order)]


def main(words: list[str] | None = None) -> int:
    """Run rounds, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--grid", default="3x3")
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args(words)
    wall, cpu = defaultdict(list), defaultdict(list)
    loads = [os.getloadavg()[1]]
    with tempfile.TemporaryDirectory() as root:
        hosts = Hosts(Path(root))
        try:
            how: dict[str, dict[str, object]] = {JOBLIB: {"jobs": 2}}
            for way, num_workers in WAYS.items():
                if way != JOBLIB:
                    file, seconds = hosts.start(f"hosts-{num_workers}", num_workers)
                    how[way] = {"scheduler": file, "scheduler_wait": 60.0}
                    print(f"{way}: {seconds:.1f} s until they have joined")
            for number, order in enumerate([list(WAYS), *rounds(given.rounds, list(WAYS))]):
                model, tables = network(number), {}
                for way in order:
                    seconds, busy, tables[way] = measured(model, given.grid, given.images, how[way])
                    pd.testing.assert_frame_equal(tables[way], tables[order[0]])
                    if number == 0:
                        print(f"{way}: {seconds:.1f} s for the first study", flush=True)
                        continue
                    wall[way].append(seconds)
                    cpu[way].append(busy)
                    loads.append(os.getloadavg()[1])
                    print(f"{way}: {seconds:.1f} s, CPU {busy:.1f} s", file=sys.stderr, flush=True)
        finally:
            hosts.close()
    print(f"{given.rounds} rounds in turn, {len(tables[JOBLIB])} ablations, {given.images} images; all tables equal")
    print(f"{os.cpu_count()} cores, load average of 5 minutes {min(loads):.1f} to {max(loads):.1f}")
    for way in WAYS:
        ratios = [[one / base for one, base in zip(of[way], of[JOBLIB], strict=True)] for of in (wall, cpu)]
        words_of = ", ".join(
            f"{name} {statistics.median(of[way]):.1f} s ({statistics.median(ratio):.3f} of joblib's, "
            f"{min(ratio):.3f} to {max(ratio):.3f})"
            for name, of, ratio in zip(("wall", "CPU"), (wall, cpu), ratios, strict=True)
        )
        print(f"{way}: {words_of}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

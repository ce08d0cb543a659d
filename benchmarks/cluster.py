"""What a cluster costs: a study by two Dask workers and by two processes of loky, and what the one writer can take.

    python benchmarks/cluster.py --minutes 2

The two take turns, so that other load of the machine falls on both; each of them has its processes started and sent the
network before time is taken. Blocks are written as a study's tasks would be, each in a transaction of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import LocalCluster
from joblib.externals.loky.backend.reduction import dumps

from weanalysis.ablation import make_study
from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.schedule import StopRequest, Task, Work, cut, measure_all, open_executor
from weanalysis.cache import Cache
from weanalysis.data import load_data
from weanalysis.models import build
from weanalysis.results.store import Writer

ARCHITECTURE = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}


def blocks_per_second(folder: Path, measured: Measured, task: Task, number: int = 300) -> float:
    """How many blocks of so many ablations and images one process writes in a second."""
    with Writer.open(folder / "results.sqlite") as writer:
        context = writer.context({"what": "benchmark"})
        labels: dict[str, Any] = {"num_weights": 1}
        plan = [(f"ablation {place}", labels) for place in range(len(task.places))]
        study = writer.begin_study(context, "benchmark", "location", "benchmark", "top1", 250, plan, {})
        ids, images = np.arange(1, len(plan) + 1), np.arange(measured.stop - measured.start)
        began = time.perf_counter()
        for done in range(number):
            writer.write(context, ids, images, measured, study, done, number)
        return number / (time.perf_counter() - began)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--shard", type=int, default=50)
    given = parser.parse_args()
    torch.manual_seed(0)
    net, images = build(ARCHITECTURE).eval(), load_data("digits")
    study = make_study("location", net, grid="5x5")
    with tempfile.TemporaryDirectory() as root, ExitStack() as on_exit:
        work = Work("benchmark", net, None, None, images, "exact", "float32", 50, ("cpu",), Cache(Path(root)))
        num_ablations = len(study.ablations)
        tasks = cut(range(num_ablations), [1.0] * num_ablations, 0, given.shard, 0.02, study.ablations, "exact")
        hosts = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
        address = on_exit.enter_context(hosts).scheduler_address
        ways = {
            "loky": on_exit.enter_context(open_executor(work, 2)),
            "Dask": on_exit.enter_context(open_executor(work, scheduler=address)),
        }

        def run(way: str) -> tuple[float, list[tuple[Task, Measured]]]:
            began = time.perf_counter()
            results = list(measure_all(ways[way], tasks, StopRequest()))
            return time.perf_counter() - began, results

        for way in ways:
            run(way)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        deadline = time.monotonic() + 60 * given.minutes
        while time.monotonic() < deadline or not seconds["Dask"]:
            for way in ways:
                seconds[way].append(run(way)[0])
        _, results = run("loky")
        task, measured = results[0]
        medians = {way: statistics.median(runs) for way, runs in seconds.items()}
        each = f"{len(task.places)} ablations and {given.shard} images"
        print(f"{len(tasks)} tasks of {each}; {len(seconds['loky'])} runs each")
        for way, median in medians.items():
            print(f"{way}: {median:.2f} s ({min(seconds[way]):.2f} to {max(seconds[way]):.2f})")
        ratio = statistics.median(dask / loky for dask, loky in zip(seconds["Dask"], seconds["loky"], strict=True))
        more = 1000 * (medians["Dask"] - medians["loky"]) / len(tasks)
        print(f"Dask takes {100 * (ratio - 1):+.1f} % (median of pairs), {2 * more:+.1f} ms a task and worker")
        print(f"bytes: {len(bytes(dumps(('key', task)))):,} a task, {len(bytes(dumps(measured))):,} what comes back")
        print(f"the writer takes {blocks_per_second(Path(root), measured, task):,.0f} blocks a second")


if __name__ == "__main__":
    main()

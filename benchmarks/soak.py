"""Kill whatever takes part in a study, again and again; at the end nothing may be lost, doubled or different.

    python -m benchmarks.soak --minutes 10

Rounds follow one another: a study is run by a scheduler's workers, by processes of this machine, and so on in turn. Now
and then the study itself, a worker, or the scheduler is killed (SIGKILL) or halted for a while (SIGSTOP), and started
again at once, as a copy of this process, which has imported what they need. When a round's study is complete, its
table is compared with an undisturbed one's. Exit status 1 where one of them is not, or not the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.context import ForkProcess
from pathlib import Path

# Before torch is imported: a process of one thread can be copied.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import psutil
import torch
from distributed.cli import dask_scheduler, dask_worker

from weanalysis import cli
from weanalysis.ablation.schedule import cluster, processes
from weanalysis.models import build, save_checkpoint
from weanalysis.results import Store

# What a copy would have to import itself, else.
PRELOADED = (cluster, processes)
PROGRAMS = {"scheduler": dask_scheduler.main, "worker": dask_worker.main, "study": cli.main}

# How often processes are disturbed, beside workers: these begin at once, and those have to import torch.
SELDOMER = 2

# How long the last study may take once nothing disturbs it any more, in seconds.
LONGEST_END = 900

# A pair of an ablation and a shard, as the results file has it.
Pair = tuple[int, int, int, int]


def start(program: str, words: list[str], folder: Path, first: Callable[[], None] = lambda: None) -> ForkProcess:
    """Start a copy of this process that is a program, after it did something `first`; its prints go into the folder."""
    assert threading.active_count() == 1, "a process of several threads cannot be copied"
    process = ForkProcess(target=_become, args=(program, words, folder, first))
    process.start()
    return process


def _become(program: str, words: list[str], folder: Path, first: Callable[[], None]) -> None:
    first()
    log = os.open(folder / f"{program}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(file, number)
    os.chdir(folder)
    sys.argv = ["weanalysis" if program == "study" else f"dask {program}", *words]
    status = 0
    try:
        PROGRAMS[program]()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # else a copy waits for idle processes of its own, which end with it


class Round:
    """One study that is disturbed until it is complete, with pauses `between` (shortest and longest, in seconds)."""

    def __init__(
        self, folder: Path, study: list[str], by_workers: bool, between: tuple[float, float], chance: random.Random
    ):
        self._folder, self._by_workers, self._chance = folder, by_workers, chance
        self._between = between if by_workers else (SELDOMER * between[0], SELDOMER * between[1])
        self._file = folder / "scheduler.json"
        self._how = ["--scheduler", str(self._file), "--scheduler-wait", "300"] if by_workers else ["--jobs", "2"]
        self._study = ["ablate", *study, *self._how, "--quiet", "--cache", str(folder)]
        self._running: dict[str, ForkProcess] = {}
        self.blows: Counter[str] = Counter()
        self.kept: set[Pair] = set()
        self.num_lost = 0

    @property
    def results(self) -> Path:
        """The results file of the study."""
        return self._folder / "results.sqlite"

    @property
    def given_up(self) -> list[str]:
        """The errors with which the study ended by itself, such as that a task cost three workers their lives."""
        printed = (self._folder / "study.txt").read_text(encoding="utf-8", errors="replace")
        return [line for line in printed.splitlines() if line.startswith("error: ")]

    def run(self, deadline: float) -> bool:
        """Disturb the study until it is complete, or the time is over; return whether it is."""
        try:
            while time.monotonic() < deadline:
                self._start_missing()
                if self._ended(min(self._chance.uniform(*self._between), max(0.1, deadline - time.monotonic()))):
                    return True
                self._look()
                self._strike()
            ends = time.monotonic() + LONGEST_END
            while time.monotonic() < ends:  # undisturbed; what the last blow hit is started again
                self._start_missing()
                if self._ended(self._between[0]):
                    return True
            return False
        finally:
            for process in self._running.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        child.kill()
                process.kill()
                process.join()

    def _ended(self, seconds: float) -> bool:
        """Wait for the study, though not for longer; return whether it is complete."""
        self._running["study"].join(seconds)
        return self._running["study"].exitcode == 0

    def _start_missing(self) -> None:
        programs = {"study": self._study}
        if self._by_workers:
            words = ["--no-dashboard", "--scheduler-file", str(self._file), "--host", "127.0.0.1"]
            worker = [*words, "--no-nanny", "--nthreads", "1", "--death-timeout", "60"]
            programs = {"scheduler": [*words, "--port", "0"], "worker 1": worker, "worker 2": worker, **programs}
        for name, words in programs.items():
            if name not in self._running or not self._running[name].is_alive():
                if name == "scheduler":
                    self._file.unlink(missing_ok=True)
                self._running[name] = start(name.split()[0], words, self._folder)

    def _strike(self) -> None:
        """Kill or halt one of those who take part, its children too where a child is drawn."""
        victims = {name: process.pid for name, process in self._running.items() if process.is_alive()}
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            children = psutil.Process(victims["study"]).children(recursive=True) if not self._by_workers else []
            victims |= {f"process {one}": child.pid for one, child in enumerate(children)}
        if not victims:
            return
        name = self._chance.choice(sorted(victims))
        is_halted = self._chance.random() < 0.25
        self.blows[("halted " if is_halted else "killed ") + name.split()[0]] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[name], signal.SIGSTOP if is_halted else signal.SIGKILL)
            if is_halted:
                time.sleep(self._chance.uniform(*self._between))
                os.kill(victims[name], signal.SIGCONT)

    def _look(self) -> None:
        """Count what was kept before and is there no more."""
        there = set(pairs(self.results))
        self.num_lost += len(self.kept - there)
        self.kept |= there


def pairs(results: Path) -> Iterator[Pair]:
    """Every pair of an ablation and a shard, as often as it is kept."""
    if not results.is_file():
        return
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(f"{results.as_uri()}?mode=ro", uri=True)) as db:
        for context, start, stop, ids in db.execute("SELECT context_id, start, stop, ablation_ids FROM blocks"):
            yield from ((context, start, stop, int(one)) for one in np.frombuffer(ids, np.int32))


def table_of(results: Path) -> pd.DataFrame:
    """The table of the only study."""
    with Store.open(results) as store:
        return store.table(int(store.studies()["id"].iloc[0]))


def num_different(table: pd.DataFrame, expected: pd.DataFrame) -> int:
    """How many rows of a study's table are not what was expected."""
    same = [table[name].eq(expected[name]) | (table[name].isna() & expected[name].isna()) for name in expected]
    return int((~pd.concat(same, axis=1).all(axis=1)).sum())


def prepare(folder: Path, grid: str, image_size: int = 32) -> tuple[list[str], pd.DataFrame]:
    """A network that uses several classes, the words of its study, and the table of the undisturbed study."""
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    torch.manual_seed(0)
    net = build(architecture).eval()
    with torch.no_grad():
        net.fc.bias -= net(torch.randn(64, 3, image_size, image_size)).mean(0)
    save_checkpoint(folder / "net.safetensors", net, architecture, {})
    study = ["--model", str(folder / "net.safetensors"), "--data", "digits", "--images", "80", "--grid", grid]
    study += ["--shard-size", "10", "--evaluate", "naive", "--layers", "layer3*", "--image-size", str(image_size)]
    alone = start("study", ["ablate", *study, "--jobs", "1", "--quiet", "--cache", str(folder)], folder)
    alone.join()
    if alone.exitcode != 0:
        raise SystemExit((folder / "study.txt").read_text(encoding="utf-8"))
    return study, table_of(folder / "results.sqlite")


def main(words: list[str] | None = None) -> int:
    """Run rounds, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--by", choices=["workers", "processes", "both"], default="both", help="in turn, where both")
    parser.add_argument("--between", type=float, nargs=2, default=(2.0, 8.0), help="pauses: shortest, longest, seconds")
    parser.add_argument("--grid", default="3x3", help="how long a round is")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    chance, blows, sums = random.Random(given.seed), Counter[str](), Counter[str]()
    given_up: list[str] = []
    ways = {"workers": [True], "processes": [False], "both": [True, False]}[given.by]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "undisturbed"
        folder.mkdir()
        study, expected = prepare(folder, given.grid, given.image_size)
        deadline = time.monotonic() + 60 * given.minutes
        while time.monotonic() < deadline or not sums["rounds"]:
            folder = Path(root) / f"round-{sums['rounds']}"
            folder.mkdir()
            one = Round(folder, study, ways[sums["rounds"] % len(ways)], tuple(given.between), chance)
            if not one.run(deadline):
                sums["unfinished"] += 1
            kept = Counter(pairs(one.results))
            sums["lost"] += one.num_lost + len(one.kept - kept.keys())
            sums["doubled"] += sum(number - 1 for number in kept.values())
            if one.results.is_file():
                sums["different"] += num_different(table_of(one.results), expected)
            sums["shards"] += len({pair[:3] for pair in kept})
            blows += one.blows
            given_up += one.given_up
            sums["rounds"] += 1
    print(
        f"{sums['rounds']} studies of {len(expected)} rows by {given.by} in {given.minutes:g} minutes, {blows.total()} "
        f"blows: " + ", ".join(f"{name} {number}" for name, number in sorted(blows.items()))
    )
    wrong = {name: sums[name] for name in ("unfinished", "lost", "doubled", "different")}
    print(
        f"{sums['shards']} shards of {sums['rounds']} studies; "
        + ", ".join(f"{name}: {number}" for name, number in wrong.items())
    )
    for line, number in Counter(given_up).items():
        print(f"{number} times a study ended by itself, and was started again: {line}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())

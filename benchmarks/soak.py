"""Kill whatever takes part in a study, again and again; at the end nothing may be lost, doubled or different.

    python benchmarks/soak.py --minutes 10

Rounds follow one another: a study is run by a scheduler's workers, by processes of this machine, and so on in turn. Now
and then the study itself, a worker, or the scheduler is killed (SIGKILL) or halted for a while (SIGSTOP), and started
again. When a round's study is complete, its table is compared with an undisturbed one's. Exit status 1 where not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(CHECKOUT),
    "OMP_NUM_THREADS": "1",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3",
}

# How long one waits between two blows, and how long something is halted: seconds.
BETWEEN, HALTED = (8.0, 25.0), (1.0, 5.0)

# A pair of an ablation and a shard, as the results file has it.
Pair = tuple[int, int, int, int]


class Round:
    """One study that is disturbed until it is complete."""

    def __init__(self, folder: Path, study: list[str], by_cluster: bool, chance: random.Random):
        self._folder, self._by_cluster, self._chance = folder, by_cluster, chance
        self._file, self._log = folder / "scheduler.json", folder / "log.txt"
        how = ["--scheduler", str(self._file), "--scheduler-wait", "300"] if by_cluster else ["--jobs", "2"]
        self._command = ["-m", "weanalysis", "ablate", *study, *how, "--quiet", "--cache", str(folder)]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.blows: Counter[str] = Counter()
        self.kept: set[Pair] = set()
        self.num_lost = 0

    @property
    def results(self) -> Path:
        """The results file of the study."""
        return self._folder / "results.sqlite"

    def run(self, deadline: float) -> bool:
        """Disturb the study until it is complete, or the time is over; return whether it is."""
        try:
            while time.monotonic() < deadline:
                self._start_missing()
                pause = min(self._chance.uniform(*BETWEEN), max(0.1, deadline - time.monotonic()))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if self._running["study"].wait(pause) == 0:
                        return True
                    del self._running["study"]  # it was killed, or gave up a task that cost three workers their lives
                self._look()
                self._strike()
            self._start_missing()
            return self._running["study"].wait(600) == 0  # undisturbed to the end
        finally:
            for process in self._running.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        child.kill()
                process.kill()
                process.wait()

    def _start_missing(self) -> None:
        commands = {"study": self._command}
        if self._by_cluster:
            dask = {what: ["-m", f"distributed.cli.dask_{what}", "--no-dashboard"] for what in ("scheduler", "worker")}
            file = ["--scheduler-file", str(self._file), "--host", "127.0.0.1"]
            worker = [*dask["worker"], *file, "--no-nanny", "--nthreads", "1", "--death-timeout", "60"]
            commands = {
                "scheduler": [*dask["scheduler"], *file, "--port", "0"],
                "worker 1": worker,
                "worker 2": worker,
                **commands,
            }
        with open(self._log, "ab") as log:
            for what, command in commands.items():
                if what not in self._running or self._running[what].poll() is not None:
                    if what == "scheduler":
                        self._file.unlink(missing_ok=True)
                    self._running[what] = subprocess.Popen(
                        [sys.executable, *command], env=ENVIRONMENT, stdout=log, stderr=log, cwd=self._folder
                    )

    def _strike(self) -> None:
        """Kill or halt one of those who take part, its children too where a child is drawn."""
        victims = {what: process.pid for what, process in self._running.items() if process.poll() is None}
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            children = psutil.Process(victims["study"]).children(recursive=True) if not self._by_cluster else []
            victims |= {f"process {one}": child.pid for one, child in enumerate(children)}
        if not victims:
            return
        what = self._chance.choice(sorted(victims))
        halted = self._chance.random() < 0.25
        self.blows[("halted " if halted else "killed ") + what.split()[0]] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[what], signal.SIGSTOP if halted else signal.SIGKILL)
            if halted:
                time.sleep(self._chance.uniform(*HALTED))
                os.kill(victims[what], signal.SIGCONT)

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
    from weanalysis.results import Store

    with Store.open(results) as store:
        return store.table(int(store.studies()["id"].iloc[0]))


def prepare(folder: Path, grid: str) -> tuple[list[str], pd.DataFrame]:
    """A network that uses several classes, the words of its study, and the table of the undisturbed study."""
    import torch

    from weanalysis.models import build, save_checkpoint

    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    torch.manual_seed(0)
    net = build(architecture).eval()
    with torch.no_grad():
        net.fc.bias -= net(torch.randn(64, 3, 32, 32)).mean(0)
    save_checkpoint(folder / "net.safetensors", net, architecture, {})
    study = ["--model", str(folder / "net.safetensors"), "--data", "digits", "--images", "80", "--grid", grid]
    study += ["--shard-size", "10", "--evaluate", "naive", "--layers", "layer3*"]
    command = [sys.executable, "-m", "weanalysis", "ablate", *study, "--jobs", "1", "--quiet", "--cache", str(folder)]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return study, table_of(folder / "results.sqlite")


def main(words: list[str] | None = None) -> int:
    """Run rounds, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--grid", default="3x3", help="how long a round is")
    parser.add_argument("--seed", type=int, default=0, help="odd: processes before workers")
    given = parser.parse_args(words)
    chance, blows, sums = random.Random(given.seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "undisturbed"
        folder.mkdir()
        study, expected = prepare(folder, given.grid)
        deadline = time.monotonic() + 60 * given.minutes
        while time.monotonic() < deadline or not sums["rounds"]:
            folder = Path(root) / f"round-{sums['rounds']}"
            folder.mkdir()
            one = Round(folder, study, (sums["rounds"] + given.seed) % 2 == 0, chance)
            if not one.run(deadline):
                print((folder / "log.txt").read_text()[-2000:])
                sums["unfinished"] += 1
            kept = Counter(pairs(one.results))
            sums["lost"] += one.num_lost + len(one.kept - kept.keys())
            sums["doubled"] += sum(number - 1 for number in kept.values())
            if one.results.is_file():
                table = table_of(one.results)
                same = [
                    table[name].eq(expected[name]) | (table[name].isna() & expected[name].isna()) for name in expected
                ]
                sums["different"] += int((~pd.concat(same, axis=1).all(axis=1)).sum())
            blows += one.blows
            sums["rounds"] += 1
    print(
        f"{sums['rounds']} rounds of {len(expected)} rows in {given.minutes:g} minutes; "
        + ", ".join(f"{what}: {number}" for what, number in sorted(blows.items()))
    )
    wrong = {what: sums[what] for what in ("unfinished", "lost", "doubled", "different")}
    print(", ".join(f"{what}: {number}" for what, number in wrong.items()))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())

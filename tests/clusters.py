"""A Dask scheduler and workers of this machine, and images that do harm to the processes that read them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from processes import CHECKOUT, wait_until
from small_networks import Images

from weanalysis.ablation.behaviour import NUM_PROBES

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")]),
    "OMP_NUM_THREADS": "1",
}


# Imports what a worker needs once, and is then a scheduler or a worker in as many processes as it is asked for: a line
# each of a name, a file for what they print, and their options.
FORKS = """
import importlib, json, os, signal, sys, threading
import distributed.cli.dask_scheduler, distributed.cli.dask_worker, weanalysis.ablation.schedule, weanalysis.models
assert threading.active_count() == 1, "a process of several threads cannot be forked"
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    what, log, *options = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        importlib.import_module(f"distributed.cli.dask_{what}").main(options)
    print(pid, flush=True)
"""


class DaskHosts:
    """A scheduler, by the file that says its address, and workers; all of them end with the tests."""

    def __init__(self, folder: Path):
        self.file = folder / "scheduler.json"
        self.scheduler: psutil.Process | None = None
        self.workers: list[psutil.Process] = []
        self._folder = folder
        self._forks: subprocess.Popen | None = None

    def start_scheduler(self) -> None:
        """Start a scheduler, which has another address than the one before."""
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--port", "0")
        wait_until(lambda: self.file.is_file() and self.file.read_text().rstrip().endswith("}"))

    def start_workers(self, number: int) -> None:
        """Have so many more workers join."""
        for _ in range(number):
            self.workers.append(self._start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0"))

    def end_halted(self) -> None:
        """End the workers that were halted, so that nobody sends them a task."""
        for process in self.workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    process.kill()

    def close(self) -> None:
        """End all of them."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._forks is not None:
            self._forks.communicate()

    def _start(self, what: str, *options: str) -> psutil.Process:
        if self._forks is None:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", FORKS]
            self._forks = subprocess.Popen(
                command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True, cwd=self._folder
            )
        words = [what, str(self._folder / f"{what}.log"), "--scheduler-file", str(self.file), "--host", "127.0.0.1"]
        print(json.dumps([*words, "--no-dashboard", *options]), file=self._forks.stdin, flush=True)
        return psutil.Process(int(self._forks.stdout.readline()))


class Slow(Images):
    """Images each of which takes so many seconds to read, but for the process that made them."""

    def __init__(self, seconds: float):
        super().__init__()
        self.parent, self.seconds = os.getpid(), seconds

    def __getitem__(self, index: int):
        time.sleep(0 if os.getpid() == self.parent else self.seconds)
        return super().__getitem__(index)


HARMFUL = NUM_PROBES  # the first image that is not read before a process begins with a task


class Harmful(Images):
    """Images one of which does harm to the process that reads it for a study, one signal of `harms` a time.

    The process that made them comes to no harm. `ballast` is what they carry along, in bytes.
    """

    def __init__(self, folder: Path, harms: Sequence[signal.Signals] = (), ballast: int = 2**20):
        super().__init__()
        self.parent, self.folder, self.harms, self.ballast = os.getpid(), folder, tuple(harms), bytes(ballast)

    def __getitem__(self, index: int):
        if index == HARMFUL and os.getpid() != self.parent:
            for place, harm in enumerate(self.harms):
                with contextlib.suppress(FileExistsError):
                    (self.folder / f"harm-{place}").mkdir()
                    os.kill(os.getpid(), harm)
                    break
        return super().__getitem__(index)

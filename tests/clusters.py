"""A Dask scheduler and workers of this machine, and images that do harm to the processes that read them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import CHECKOUT, wait_until
from small_networks import Images

from weanalysis.ablation.behaviour import NUM_PROBES

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")]),
    "OMP_NUM_THREADS": "1",
    # So that each death of a worker is told, and none counted by the scheduler alone.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
}


class DaskHosts:
    """A scheduler, by the file that says its address, and workers; all of them end with the tests."""

    def __init__(self, folder: Path):
        self.file = folder / "scheduler.json"
        self.scheduler: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen] = []
        self._folder = folder

    def start_scheduler(self) -> None:
        """Start a scheduler, which has another address than the one before."""
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--port", "0")
        wait_until(lambda: self.file.is_file() and self.file.read_text().rstrip().endswith("}"))

    def start_workers(self, number: int) -> None:
        """Have so many more workers join."""
        for _ in range(number):
            self.workers.append(self._start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0"))

    def close(self) -> None:
        """End all of them."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()

    def _start(self, what: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self.file)]
        with open(self._folder / f"{what}.log", "ab") as log:
            return subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--no-dashboard", *options],
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )


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

"""Workers of a Dask scheduler as jobs of Slurm: the script that starts them, and handing it in."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from weanalysis.errors import DeviceError, one_line

# A worker leaves by itself so long before its allocation ends, so that its task goes to another one and no death of a
# worker is counted: at most a tenth of the allocation.
_LEAVES_BEFORE_SECONDS = 60

# How long a worker looks for the scheduler, and sbatch may take to answer.
_LOOKS_SECONDS, _ANSWER_SECONDS = 600, 60

_NAME = re.compile(r"[\w.,+@-]{1,100}", re.ASCII)
_MEMORY = re.compile(r"[1-9]\d*[KMGT]?", re.ASCII)
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})", re.ASCII)


@dataclass(frozen=True)
class Allocation:
    """What is asked of Slurm: so many workers, each a job of an array, with so much of a machine for so long.

    `time` is in Slurm's own words, such as "4:00:00" or "2-12"; `memory` is that of a worker, such as "8G". Raises
    DeviceError for what Slurm would not take, or would take for something else.
    """

    workers: int
    time: str
    scheduler_file: Path
    cpus: int = 1
    gpus: int = 0
    memory: str | None = None
    partition: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        for flag, number, least in (("workers", self.workers, 1), ("cpus-per-worker", self.cpus, 1)):
            if number < least:
                raise DeviceError(f"--{flag} {number} is not allowed: give {least} or more")
        if self.gpus not in (0, 1):
            raise DeviceError(f"--gpus-per-worker {self.gpus} is not allowed: a worker measures on one; give 0 or 1")
        for flag, text, form, example in (
            ("memory-per-worker", self.memory, _MEMORY, "8G"),
            ("partition", self.partition, _NAME, "gpu"),
            ("account", self.account, _NAME, "lab"),
        ):
            if text is not None and not form.fullmatch(text):
                raise DeviceError(f"--{flag} {text!r} is not allowed: give something like {example}")
        if not str(self.scheduler_file).isprintable():
            raise DeviceError(f"--scheduler-file {str(self.scheduler_file)!r} cannot stand in a script: rename it")
        if self.seconds < 60:
            raise DeviceError(f"--time {self.time} is not allowed: give a minute or more")

    @property
    def seconds(self) -> int:
        """How long the allocation lasts."""
        match = _TIME.fullmatch(self.time)
        if match is None:
            raise DeviceError(
                f"--time {self.time!r} is no time: give H:MM:SS, D-HH:MM:SS, or minutes, as Slurm reads them"
            )
        parts = [int(part) for part in match["rest"].split(":")]
        if match["days"] is not None:  # D-H, D-H:M or D-H:M:S
            units = [3600, 60, 1]
            return 86400 * int(match["days"]) + sum(n * unit for n, unit in zip(parts, units, strict=False))
        units = {1: [60], 2: [60, 1], 3: [3600, 60, 1]}[len(parts)]  # M, M:S or H:M:S
        return sum(n * unit for n, unit in zip(parts, units, strict=True))

    def script(self) -> str:
        """Return the script for sbatch, which starts this Python's `dask worker` on the machines that Slurm chooses."""
        asked = {
            "job-name": "weanalysis",
            "array": f"0-{self.workers - 1}",
            "ntasks": 1,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "mem": self.memory,
            "partition": self.partition,
            "account": self.account,
        }
        lifetime = self.seconds - min(_LEAVES_BEFORE_SECONDS, self.seconds // 10)
        worker = [
            *(sys.executable, "-m", "distributed.cli.dask_worker"),
            *("--scheduler-file", str(self.scheduler_file.expanduser().absolute())),
            *("--nworkers", "1", "--nthreads", str(self.cpus), "--no-dashboard"),
            *("--lifetime", f"{lifetime}s", "--death-timeout", f"{_LOOKS_SECONDS}s"),
        ]
        return "\n".join(
            [
                "#!/bin/bash",
                *(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None),
                "",
                "# One worker for the scheduler whose address is in that file; where studies say --scheduler FILE.",
                f"export OMP_NUM_THREADS={self.cpus}",
                f'exec {shlex.join(worker)} --local-directory "${{TMPDIR:-/tmp}}"',
                "",
            ]
        )


def submit(script: str) -> str:
    """Hand a script to sbatch, and return what it says, such as "Submitted batch job 12"; raise DeviceError."""
    try:
        done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except FileNotFoundError as error:
        raise DeviceError(
            "this machine has no sbatch: run the command where jobs are handed in, or leave --submit out and take the "
            "printed script there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"sbatch has not answered for {_ANSWER_SECONDS} s: look with squeue whether it was taken"
        ) from error
    if done.returncode:
        said = one_line(done.stderr or done.stdout, 300)
        raise DeviceError(f"sbatch refuses the script ({said}): change what is asked of it, see sinfo and sacctmgr")
    return one_line(done.stdout.strip())

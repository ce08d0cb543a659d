"""Runs inputs in a process of their own, and counts how each ended: read, refused, or in a way that none may end.

A reader may read a file or refuse it with a WeanalysisError. Anything else is a fault: another error, more than
SECONDS, more than MEMORY beyond what the process had, a process that dies, or an act that only code from the file could
do. Each kind of input has a module with `prepare`, and `main` as what it runs:

    python -m benchmarks.fuzz.checkpoints --count 10000
    python -m benchmarks.fuzz.checkpoints --seed 3 --only 417     # one input again, here, with its traceback

Input n of a seed is always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weanalysis.errors import WeanalysisError

SECONDS = 20.0
MEMORY = 2 * 2**30
ROOT = Path(__file__).resolve().parents[2]
# What Python reports to audit hooks and no reader here does while it reads.
_ACTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "pickle.find_class",
    "ctypes.",
    "webbrowser.",
    "socket.connect",
)
# What those do besides that write what they read.
_WRITING = ("os.mkdir", "os.remove", "os.rename", "os.chmod", "shutil.")

# Writes an input of a number and a seed into a folder; returns what kind it is of, and what reads it.
Prepare = Callable[[int, int, Path], tuple[str, Callable[[], object]]]


@dataclass
class Outcomes:
    """How many inputs ended how ("picture: read"); `faults` has the number of each that ended as none may, and how."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_mib: float = 0.0

    def __str__(self) -> str:
        lines = [f"{number:7,} {outcome}" for outcome, number in sorted(self.counts.items())]
        lines.append(
            f"slowest {self.slowest_s:.2f} s, most memory {self.largest_mib:.0f} MiB, {len(self.faults)} faults"
        )
        return "\n".join([*lines, *(f"input {number}: {fault}" for number, fault in self.faults[:20])])


def run_bounded(module: str, count: int, seed: int) -> Outcomes:
    """Let `module` (run as a program by `serve`) examine `count` inputs, begun anew behind each that kills it."""
    outcomes = Outcomes()
    start = 0
    while start < count:
        start = _run_process(module, start, count, seed, outcomes)
    return outcomes


def main(
    module: str, prepare: Prepare, words: str | None, warm_up: Callable[[], object], writing: bool = False
) -> None:
    """Run one kind of inputs from the command line, `writing` where reading changes files; exit with 1 for faults."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one input, read in this process")
    parser.add_argument("--serve", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is None and given.only is None:
        began = time.monotonic()
        outcomes = run_bounded(module, given.count, given.seed)
        print(f"{given.count:,} inputs in {time.monotonic() - began:,.0f} s, seed {given.seed}\n{outcomes}")
        sys.exit(bool(outcomes.faults))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "input"
        start, count, seed = given.serve or (given.only, given.only + 1, given.seed)

        def examine(number: int) -> tuple[str, Callable[[], object]]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return prepare(number, seed, folder)

        if given.serve is None:
            examine(start)[1]()
        else:
            warm_up()
            serve(examine, start, count, () if writing else _WRITING)


def _run_process(module: str, start: int, count: int, seed: int, outcomes: Outcomes) -> int:
    """Examine inputs from `start` on until one kills the process; return the first that is not examined."""
    command = [sys.executable, "-m", module, "--serve", str(start), str(count), str(seed)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout is not None
    done = start
    with process:
        while True:
            # The first answer waits for imports.
            ready, _, _ = select.select([process.stdout], [], [], 10 * SECONDS if done == start else 2 * SECONDS)
            line = process.stdout.readline() if ready else ""
            if not line:
                break
            _count(outcomes, done, *json.loads(line))
            done += 1
        process.kill()
    if process.returncode > 0:
        raise RuntimeError(f"the process of {module} ended by itself with status {process.returncode}")
    if done < count:
        kind = "hung" if process.returncode == -signal.SIGKILL else f"died by signal {-process.returncode}"
        _count(outcomes, done, "input", kind, "", SECONDS, 0)
        done += 1
    return done


def _count(
    outcomes: Outcomes, number: int, kind: str, ending: str, what: str, seconds: float, mebibytes: float
) -> None:
    outcomes.counts[f"{kind}: {ending}"] += 1
    outcomes.slowest_s = max(outcomes.slowest_s, seconds)
    outcomes.largest_mib = max(outcomes.largest_mib, mebibytes)
    if ending not in ("read", "refused"):
        outcomes.faults.append((number, f"{kind}: {ending}: {what}"))


def serve(
    examine: Callable[[int], tuple[str, Callable[[], object]]],
    start: int,
    count: int,
    unseen: tuple[str, ...] = _WRITING,
) -> None:
    """Examine inputs in this process, and print a line of JSON for each: its kind, how it ended, why, seconds, MiB."""
    acts: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple) -> None:
        if watching and event.startswith(_ACTS + unseen):
            acts.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(watch)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)  # what libraries say of damaged files
    before = _resident()
    most = _status("VmSize") + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(start, count):
        kind, read = examine(number)
        _forget_peak()
        watching, began = True, time.perf_counter()
        ending, what = _ending(read)
        watching, seconds = False, time.perf_counter() - began
        grown = _peak() - before
        if acts:
            ending, what = "ran code", acts[0]
            acts.clear()
        elif grown > MEMORY:
            ending, what = "took memory", f"{grown / 2**30:.1f} GiB"
        elif seconds > SECONDS:
            ending, what = "took long", f"{seconds:.0f} s"
        print(json.dumps([kind, ending, what, seconds, grown / 2**20]), file=out)


def _ending(read: Any) -> tuple[str, str]:
    try:
        read()
    except WeanalysisError as error:
        line = str(error)
        if line.isprintable() and len(line) < 20_000:
            return "refused", ""
        return "refused in no line", ascii(line)[:200]
    except BaseException as error:  # a panic of a library in Rust is no Exception
        place = traceback.extract_tb(error.__traceback__)[-1]
        return type(error).__name__, f"{' '.join(str(error).split())[:200]} ({place.filename}:{place.lineno})"
    return "read", ""


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")

"""Runs inputs in a process of their own, and counts how each ended: read, refused, or in a way that none may end.

A reader may read a file or refuse it with a WeanalysisError. Anything else is a fault: another error, more than
SECONDS, more than MEMORY beyond what the process had, a process that dies, or an act that only code from the file could
do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
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
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.chmod",
    "shutil.",
    "ctypes.",
    "webbrowser.",
    "socket.connect",
)


@dataclass
class Outcomes:
    """How many inputs ended how; `faults` has the number of each that ended as none may, and how."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_mib: float = 0.0

    def describe(self) -> dict[str, Any]:
        return {
            **self.counts,
            "faults": self.faults[:20],
            "slowest_s": round(self.slowest_s, 2),
            "largest_mib": round(self.largest_mib),
        }


def run_bounded(module: str, count: int, seed: int) -> Outcomes:
    """Let `module` (run as a program by `serve`) examine `count` inputs, begun anew behind each that kills it."""
    outcomes = Outcomes()
    start = 0
    while start < count:
        start = _run_process(module, start, count, seed, outcomes)
    return outcomes


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
            kind, what, seconds, mebibytes = json.loads(line)
            _count(outcomes, done, kind, what, seconds, mebibytes)
            done += 1
        process.kill()
    if process.returncode > 0:
        raise RuntimeError(f"the process of {module} ended by itself with status {process.returncode}")
    if done < count:
        kind = "hung" if process.returncode == -signal.SIGKILL else f"died by signal {-process.returncode}"
        _count(outcomes, done, kind, "", SECONDS, 0)
        done += 1
    return done


def _count(outcomes: Outcomes, number: int, kind: str, what: str, seconds: float, mebibytes: float) -> None:
    outcomes.counts[kind] += 1
    outcomes.slowest_s = max(outcomes.slowest_s, seconds)
    outcomes.largest_mib = max(outcomes.largest_mib, mebibytes)
    if kind not in ("read", "refused"):
        outcomes.faults.append((number, f"{kind}: {what}"))


def serve(examine: Callable[[int], object], start: int, count: int) -> None:
    """Examine inputs in this process, and print a line of JSON for each: how it ended, why, seconds, MiB."""
    acts: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple) -> None:
        if watching and event.startswith(_ACTS):
            acts.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(watch)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    before = _resident()
    for number in range(start, count):
        prepared = examine(number)
        _forget_peak()
        watching, began = True, time.perf_counter()
        kind, what = _ending(prepared)
        watching, seconds = False, time.perf_counter() - began
        grown = _peak() - before
        if acts:
            kind, what = "ran code", acts[0]
            acts.clear()
        elif grown > MEMORY:
            kind, what = "took memory", f"{grown / 2**30:.1f} GiB"
        elif seconds > SECONDS:
            kind, what = "took long", f"{seconds:.0f} s"
        print(json.dumps([kind, what, seconds, grown / 2**20]), file=out)


def _ending(read: Any) -> tuple[str, str]:
    try:
        read()
    except WeanalysisError as error:
        line = str(error)
        if line.isprintable() and len(line) < 20_000:
            return "refused", ""
        return "refused in no line", ascii(line)[:200]
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return type(error).__name__, " ".join(str(error).split())[:200]
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

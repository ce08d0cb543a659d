"""Jobs: the command line itself, started from the dashboard, in processes that outlive it.

A job is a row in jobs.sqlite and a process of its own session that runs one `weanalysis` command. Closing the browser
or stopping the dashboard harms none; killing the process loses no more than the shard in hand, as in a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.errors import StoreError, one_line

COMMANDS = ("ablate", "compare", "demo", "prune", "report", "saliency", "train")
# Those that, given again, go on where they were stopped; the others begin anew.
RESUMABLE = ("ablate", "demo", "train")

ACTIVE = "running"
STATES = (ACTIVE, "finished", "failed", "cancelled", "lost")

BEAT_SECONDS = 1.0
_SECONDS_TO_BEGIN = 60.0  # how long a job may have no process yet: Python starts slowly on a busy machine
_SAME_START_SECONDS = 2.0  # two clocks' difference; a number of a process is not given out again so fast
_LOG_BYTES = 100_000
_LAST_MOMENT = 253_402_300_800.0  # the end of the year 9999, beyond which calendars fail

# What a terminal obeys instead of showing it; no option needs any.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# `Cache.ready` writes and removes a file named after this process; two threads would take it from each other.
_PROBING = threading.Lock()

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, command TEXT NOT NULL, state TEXT NOT NULL, "
    "cancel INTEGER NOT NULL DEFAULT 0, pid INTEGER, process_started REAL, created REAL NOT NULL, "
    "heartbeat REAL NOT NULL, ended REAL)",
    f"CREATE UNIQUE INDEX IF NOT EXISTS one_active_job_a_command ON jobs(command) WHERE state = '{ACTIVE}'",
)


@dataclass(frozen=True)
class Job:
    """A command that was started: the arguments of `weanalysis`, its state, its times (seconds since 1970)."""

    id: int
    command: tuple[str, ...]
    state: str
    cancel: bool
    pid: int | None
    process_started: float | None
    created: float
    heartbeat: float
    ended: float | None

    @property
    def active(self) -> bool:
        return self.state == ACTIVE


class Jobs:
    """The jobs of a cache; any number of dashboards may use it at once."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def start(self, command: Sequence[str]) -> Job:
        """Start `weanalysis` with the arguments `command` in a process of its own, and return the job.

        Raises StoreError for a command that is no job, for words with line breaks or other control characters, and
        where the same command is running already.
        """
        command = [str(word) for word in command]
        if not command or command[0] not in COMMANDS:
            raise StoreError(f"{' '.join(command[:1]) or 'nothing'} is no job; choose from {', '.join(COMMANDS)}")
        if broken := next((word for word in command if _CONTROL.search(word)), None):
            raise StoreError(f"{broken[:80]!r} holds a line break or another control character; leave it out")
        with _PROBING:
            self.cache.ready()
        self.all()  # a job whose process is gone must not keep its command
        now = time.time()
        try:
            with self._database() as db:
                job_id = db.execute(
                    "INSERT INTO jobs (command, state, created, heartbeat) VALUES (?, ?, ?, ?)",
                    (json.dumps(command), ACTIVE, now, now),
                ).lastrowid
        except StoreError as error:
            running = next((job for job in self.all() if job.active and list(job.command) == command), None)
            if running is None or not isinstance(error.__cause__, sqlite3.IntegrityError):
                raise
            raise StoreError(f"this very command is running already, as job {running.id}; watch that one") from None
        assert job_id is not None
        try:
            process = self._spawn(job_id)
        except OSError as error:
            self._end(job_id, "failed")
            raise StoreError(f"the job could not be started ({error.strerror or error})") from error
        with self._database() as db:
            started = _started(process.pid) or now
            db.execute("UPDATE jobs SET pid = ?, process_started = ? WHERE id = ?", (process.pid, started, job_id))
        # Whoever starts a process must hear of its end, or it stays in the system's list as a zombie.
        threading.Thread(target=process.wait, daemon=True).start()
        return self.get(job_id)

    def all(self) -> list[Job]:
        """Return all jobs that can be read, the newest first; one whose process was killed is "lost" from then on."""
        jobs, _ = self._read()
        gone = [job for job in jobs if job.active and not _is_alive(job)]
        if not gone:
            return jobs
        for job in gone:
            self._end(job.id, "lost")
        return self._read()[0]

    def unreadable(self) -> list[str]:
        """Return a line for each job whose row cannot be read; `all` leaves it out."""
        return self._read()[1]

    def get(self, job_id: int) -> Job:
        """Return a job; raise StoreError where there is none of that number."""
        matching = [job for job in self.all() if job.id == job_id]
        if not matching:
            raise StoreError(f"there is no job {job_id} in {self.cache.jobs}")
        return matching[0]

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop; it finishes the shard or step in hand, as with Ctrl-C."""
        with self._database() as db:
            db.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state = ?", (job_id, ACTIVE))

    def kill(self, job_id: int) -> None:
        """End a job and all of its processes at once; what it has written is kept."""
        job = self.get(job_id)
        if job.active and job.pid is not None and _is_alive(job):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        if job.active:
            self._end(job_id, "cancelled")

    def log(self, job_id: int) -> str:
        """Return the end of what a job has written, without the codes that colour a terminal."""
        try:
            with open(self._log_file(job_id), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")

    def _spawn(self, job_id: int) -> subprocess.Popen[bytes]:
        log = self._log_file(job_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        package = str(Path(__file__).resolve().parents[1])
        environment = {
            **os.environ,
            ENVIRONMENT_VARIABLE: str(self.cache.root),
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "120",
        }
        command = [sys.executable, "-m", "weanalysis.jobs", str(self.cache.root), str(job_id)]
        with open(log, "wb") as output:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log_file(self, job_id: int) -> Path:
        return self.cache.job_log(job_id)

    def _read(self) -> tuple[list[Job], list[str]]:
        if not self.cache.jobs.is_file():
            return [], []
        with self._database() as db:
            db.text_factory = lambda raw: raw.decode(errors="backslashreplace")
            rows = db.execute(
                "SELECT id, command, state, cancel, pid, process_started, created, heartbeat, ended FROM jobs "
                "ORDER BY id DESC"
            ).fetchall()
        jobs, problems = [], []
        for row in rows:
            try:
                jobs.append(_job_of(row))
            except (TypeError, ValueError, RecursionError):
                problems.append(f"job {row[0]} in {self.cache.jobs} cannot be read; it is left out")
        return jobs, problems

    def _beat(self, job_id: int) -> bool:
        """Note that a job lives; return whether it is to stop."""
        with self._database() as db:
            db.execute("UPDATE jobs SET heartbeat = ? WHERE id = ?", (time.time(), job_id))
            row = db.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
            return bool(row and row[0])

    def _end(self, job_id: int, state: str) -> None:
        with self._database() as db:
            db.execute(
                "UPDATE jobs SET state = ?, ended = ? WHERE id = ? AND state = ?", (state, time.time(), job_id, ACTIVE)
            )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction on jobs.sqlite."""
        try:
            db = sqlite3.connect(self.cache.jobs, timeout=30, isolation_level=None)
            try:
                db.execute("BEGIN IMMEDIATE")  # one after the other, from the first look to the last change
                for statement in _SCHEMA:
                    db.execute(statement)
                yield db
                db.execute("COMMIT")
            finally:
                db.close()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # its own words about a damaged file may hold its bytes
            raise StoreError(
                f"{self.cache.jobs} cannot be used ({one_line(error, 200)}); move it away, or choose another cache "
                "with --cache DIR"
            ) from error


def _job_of(row: tuple[Any, ...]) -> Job:
    """Make a job of its row; raise ValueError or TypeError where the row is not as `Jobs` writes it."""
    number, command, state, cancel, pid, *times = row
    words = json.loads(command) if isinstance(command, str) else None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError("no command")
    if state not in STATES:
        raise ValueError("no state of a job")
    if pid is not None and not (isinstance(pid, int) and 0 < pid < 2**31):
        raise ValueError("no number of a process")
    process_started, created, heartbeat, ended = (None if moment is None else float(moment) for moment in times)
    for moment in (process_started, created, heartbeat, ended):
        if moment is not None and not 0 <= moment < _LAST_MOMENT:
            raise ValueError("no moment")
    if created is None or heartbeat is None:
        raise ValueError("no beginning")
    return Job(int(number), tuple(words), state, bool(cancel), pid, process_started, created, heartbeat, ended)


def progress(log: str) -> tuple[float, str]:
    """Return the share done (NaN if unknown) and the words of the last line of progress in a job's log.

    Without a terminal, commands write a line now and then that begins with the share in percent.
    """
    for line in reversed(log.splitlines()):
        if match := re.match(r"\s*(\d{1,3})%\s+(.*)", line):
            return min(int(match[1]), 100) / 100, match[2].strip()
    return float("nan"), ""


def complaint(log: str) -> str:
    """Return the line in which a command said why it failed, or nothing."""
    lines = [line for line in log.splitlines() if line.lower().startswith("error:")]
    return lines[-1].partition(":")[2].strip() if lines else ""


def result_of(log: str) -> tuple[str, str] | None:
    """Return what a finished command made, from what it printed last, and its number, name or path.

    It is a "study" (number), a "run" (name), "maps" of saliency (name of their file) or a "report" (path).

    >>> result_of("Kept as study 3. Next:")
    ('study', '3')
    >>> result_of("resnet20-digits-8049132b: top-1 99.03 % after 10 epochs of the recipe digits (best …")
    ('run', 'resnet20-digits-8049132b')
    >>> result_of("The report is in /cache/reports/study-3.html (0.3 MiB); any browser opens it.")
    ('report', '/cache/reports/study-3.html')
    """
    if studies := re.findall(r"^Kept as study (\d+)\b", log, re.M):
        return "study", studies[-1]
    if runs := re.findall(r"^(\S+): .* epochs of the recipe ", log, re.M):
        return "run", runs[-1]
    if maps := re.findall(r"^Kept as (.+\.safetensors)\. Next:", log, re.M):
        return "maps", Path(maps[-1]).stem
    if pages := re.findall(r"^The report is in (.+) \([\d.]+ MiB\)", log, re.M):
        return "report", pages[-1]
    return None


def _is_alive(job: Job) -> bool:
    """Tell whether the process of an active job is there, and still that process and not a later one of its number."""
    if job.pid is None or job.process_started is None:
        return time.time() - job.created < _SECONDS_TO_BEGIN
    started = _started(job.pid)
    return started is not None and abs(started - job.process_started) < _SAME_START_SECONDS


def _started(pid: int) -> float | None:
    """Return when a living process began, None where it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _attend(jobs: Jobs, job_id: int, over: threading.Event) -> None:
    """Tell that the job lives until it is `over`, and turn a wish to cancel it into one Ctrl-C."""
    asked = False
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(StoreError):
            if jobs._beat(job_id) and not asked:
                asked = True
                os.kill(os.getpid(), signal.SIGINT)


def _run(root: str, job_id: int) -> None:
    """Be the process of a job: run its command as the command line would, and record how it ended."""
    from weanalysis.cli import main

    jobs = Jobs(Cache(Path(root)))
    job = jobs.get(job_id)
    sys.argv = ["weanalysis", *job.command]
    print("$ weanalysis", *job.command, flush=True)
    over = threading.Event()
    threading.Thread(target=_attend, args=(jobs, job_id, over), daemon=True).start()
    status: int | str | None = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        over.set()
        cancelled = jobs.get(job_id).cancel
        jobs._end(job_id, "finished" if status in (0, None) else "cancelled" if cancelled else "failed")
    sys.exit(status)


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))

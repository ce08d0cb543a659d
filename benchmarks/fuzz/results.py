"""What a cache holds, damaged at random: every reader gives a result or one clear line, in bounded time and memory.

Real small files are mutated: metrics as CSV, TensorBoard's event files, a results file and a file of jobs. Half of the
databases and events are damaged in their bytes, as a bad disk does; the other half in their values, with checksums and
pages that are right, as a program or an attacker does.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "app"), str(CHECKOUT / "tests")]

from benchmarks.fuzz.bounded import Outcomes, main, run_bounded  # noqa: E402
from weanalysis.cache import Cache  # noqa: E402
from weanalysis.errors import WeanalysisError  # noqa: E402

# What parsers stumble over, put in here and there.
_TOKENS = [
    b",",
    b"\n",
    b"\r",
    b'"',
    b"'",
    b"%",
    b"/",
    b"-",
    b"nan",
    b"inf",
    b"1e999",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"null",
    b"9" * 60,
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":',
    b"true",
    b"epoch",
    b"step",
    b"val_",
    b"\\ud800",
    b"\xed\xb3\xbf",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"," * 3000,
    b"\n" * 1000,
    b"-1",
    b"0x10",
    b"1_000",
]
_VALUES: list[Any] = [
    None,
    0,
    1,
    -1,
    7,
    2**31,
    2**53,
    2**63 - 1,
    -(2**63),
    0.5,
    -1.5,
    1e300,
    float("inf"),
    "",
    "x",
    "-1",
    "top1",
    "running",
    "exact",
    "screened",
    "\x00",
    "é\ud7ff",
    "a" * 10_000,
    b"",
    b"\x00",
    b"\xff" * 7,
    b"\x00" * 4096,
    "[]",
    "{}",
    "[1]",
    '{"a": 1}',
    "[" * 20_000,
    '{"shard_size": 1}',
    '{"shard_size": -3}',
    '{"options": {"until_ci": "x"}}',
    "9" * 6000,
    '{"stopping": "until-ci 1", "options": {"until_ci": 1}}',
    '{"evaluate": "screened", "screen": {"metric": "top1"}}',
]


# The files that are mutated -------------------------------------------------------------------------------------------


@cache
def originals() -> dict[str, bytes]:
    """Make one small file of each kind, as the programs themselves write it."""
    from made_studies import location_plan, magnitude_plan, write_run, write_study
    from torch.utils.tensorboard import SummaryWriter

    from weanalysis.jobs import Jobs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = (write_run(folder, "run", epochs=4) / "metrics.csv").read_bytes()
        with SummaryWriter(str(folder / "board")) as writer:
            for step in range(4):
                writer.add_scalar("loss", 1 / (step + 1), step)
                writer.add_scalar("top1", step, step, new_style=True)
                writer.add_text("words", "text", step)
        (events,) = (folder / "board").iterdir()
        store = folder / "results.sqlite"
        write_study(store, "location", location_plan([("conv1", 3, 3), ("conv2", 2, 3)]), "a study", 300)
        write_study(store, "magnitude", magnitude_plan(["conv1"])[::10], "another", 300, num_shards=1, state="running")
        screened = {"evaluate": "screened", "screen": {"metric": "top1", "max_error": 0.1}}
        write_study(store, "location", location_plan([("conv1", 3, 3)]), "screened", 300, **screened)
        with contextlib.closing(sqlite3.connect(store)) as db, db:
            db.execute(
                "INSERT INTO screens SELECT b.id, zeroblob(5 * length(ablation_ids)), '{}' FROM blocks b "
                "JOIN studies s ON s.context_id = b.context_id WHERE s.name = 'screened'"
            )
        jobs = Jobs(Cache(folder))
        with jobs._database() as db:
            for state in ("finished", "failed", "running"):
                db.execute(
                    "INSERT INTO jobs (command, state, created, heartbeat, pid, process_started) "
                    "VALUES (?, ?, 1.7e9, 1.7e9, 1, 1.0)",
                    (json.dumps(["ablate", "--name", state]), state),
                )
        _settle(store), _settle(jobs.cache.jobs)
        return {
            "metrics": metrics,
            "events": events.read_bytes(),
            "store": store.read_bytes(),
            "jobs": jobs.cache.jobs.read_bytes(),
        }


def _settle(path: Path) -> None:
    """Put all of a database into its one file."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("VACUUM")
    db.close()


# Damage ------------------------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, replace, insert, remove, repeat and cut off bytes, in a few places."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(len(changed) + 1)
        length = min(rng.choice([1, 2, 4, 16, 100]), len(changed) - place)
        match rng.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + length] = rng.randbytes(length)
            case 2:
                changed[place:place] = rng.choice(_TOKENS)
            case 3:
                token = rng.choice(_TOKENS)
                changed[place : place + len(token)] = token
            case 4:
                del changed[place : place + length]
            case 5:
                changed[place:place] = changed[place : place + length] * rng.choice([1, 2, 50])
            case _:
                if rng.random() < 0.3:
                    del changed[place:]
    return bytes(changed)


def damaged_events(content: bytes, rng: random.Random) -> bytes:
    """Damage what the records of an event file hold, with checksums that are right."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    records, place = [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        records.append(content[place + 12 : place + 12 + length])
        place += 16 + length
    chosen = rng.randrange(len(records))
    records[chosen] = damaged(records[chosen], rng)
    written = io.BytesIO()
    for record in records:
        size = struct.pack("<Q", rng.choice([len(record)] * 50 + [2**62]))
        written.write(size + struct.pack("<I", masked_crc32c(size)) + record + struct.pack("<I", masked_crc32c(record)))
    return written.getvalue()


def damaged_values(path: Path, rng: random.Random) -> None:
    """Put odd values into a few cells of a database, or damage what they hold."""
    db = sqlite3.connect(path)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for _ in range(rng.choice([1, 1, 2, 5])):
        table = rng.choice(tables)
        column = rng.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
        rows = db.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
        if not rows:
            continue
        (before,) = rng.choice(rows)
        after = rng.choice(_VALUES)
        if isinstance(before, bytes) and rng.random() < 0.6:
            after = damaged(before, rng)
        elif isinstance(before, str) and rng.random() < 0.6:
            after = damaged(before.encode(), rng).decode(errors="replace")
        try:
            with db:
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} IS ?", (after, before))
        except (sqlite3.Error, OverflowError):
            continue  # the file itself refuses it
    db.close()


# Readers ----------------------------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> None:
    """Read metrics as another program's CSV, and as a run's own, as the dashboard and `list runs` do."""
    import curves

    from weanalysis.training import list_runs

    assert len(list_runs(Cache(folder))) == 1
    (run,) = curves.find_curves(Cache(folder))
    if run.problem:
        raise WeanalysisError(run.problem)


def read_events(folder: Path) -> None:
    """Read a folder of TensorBoard's."""
    import curves

    curves.read_events(folder)


def read_store(folder: Path) -> None:
    """Read all that a results file tells of every study; what one refuses must not keep the others from being read."""
    from weanalysis.results import Store, export_table, find_improvements
    from weanalysis.results.store import Writer

    refused: WeanalysisError | None = None

    def attempt(read: Callable[[], Any]) -> None:
        nonlocal refused
        try:
            read()
        except WeanalysisError as error:
            refused = error

    with Store.open(folder / "results.sqlite") as store:
        listed = store.studies()
        for line in store.unreadable().values():
            refused = WeanalysisError(line)
        attempt(lambda: store.find("a study"))
        for number in listed["id"].tolist():
            attempt(lambda: export_table(store.table(number), folder / "x.json", store.describe(number)))  # noqa: B023
            attempt(lambda: store.all_changes(number))  # noqa: B023
            attempt(lambda: (store.intact(number), store.changes(number, 0)))  # noqa: B023
            attempt(lambda: store.compare(number, 0, 1))  # noqa: B023
            attempt(lambda: store.agreement(number))  # noqa: B023
        for number in listed["id"][(listed["kind"] == "location") & (listed["evaluate"] == "exact")].tolist():
            attempt(lambda: find_improvements(store, number))  # noqa: B023
    with Writer.open(folder / "results.sqlite") as writer:
        attempt(lambda: writer.context({"new": 1}))
    if refused:
        raise refused


def read_jobs(folder: Path) -> None:
    """List the jobs, as the dashboard does."""
    from weanalysis.jobs import Jobs

    jobs = Jobs(Cache(folder))
    all_jobs = jobs.all()
    for job in all_jobs:
        jobs.log(job.id)
        datetime.fromtimestamp(job.created)
    for line in jobs.unreadable():
        raise WeanalysisError(line)


# By kind: the file's name, what reads its folder, and how often it comes.
KINDS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "metrics": ("metrics.csv", read_metrics, 3),
    "events": ("events.out.tfevents.1", read_events, 3),
    "store": ("results.sqlite", read_store, 4),
    "jobs": ("jobs.sqlite", read_jobs, 2),
}


def prepare(number: int, seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """Write input `number` of a seed into a folder; return its kind, and what reads it."""
    kinds = [kind for kind, (_, _, often) in KINDS.items() for _ in range(often)]
    kind = kinds[number % len(kinds)]
    rng = random.Random(f"{seed}-{number}")
    path, content = folder / KINDS[kind][0], originals()[kind]
    by_value = rng.random() < 0.5
    if kind in ("store", "jobs") and by_value:
        path.write_bytes(content)
        damaged_values(path, rng)
    else:
        path.write_bytes((damaged_events if kind == "events" and by_value else damaged)(content, rng))
    if kind == "metrics":
        (folder / "runs" / "run").mkdir(parents=True)
        (folder / "runs" / "run" / "recipe.json").write_text(
            json.dumps({"created": "2026", "recipe": {"model": "m", "data": "d"}})
        )
        shutil.copy(path, folder / "runs" / "run")
    return kind, partial(KINDS[kind][1], folder)


def run(count: int, seed: int) -> Outcomes:
    """Examine `count` damaged caches and return how many ended how: "store: read", "jobs: refused" ..."""
    return run_bounded("benchmarks.fuzz.results", count, seed)


def _warm_up() -> None:
    originals()
    for warm in ("curves", "weanalysis.results.statistics", "weanalysis.training", "pyarrow", "scipy.stats"):
        __import__(warm)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (name, read, _) in KINDS.items():
            (Path(folder) / kind).mkdir()
            (Path(folder) / kind / name).write_bytes(originals()[kind])
            with contextlib.suppress(Exception):
                read(Path(folder) / kind)


if __name__ == "__main__":
    main("benchmarks.fuzz.results", prepare, __doc__, _warm_up, writing=True)

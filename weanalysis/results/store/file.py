"""The results file itself: opened for reading or for writing, brought up to date, closed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

from weanalysis.cache import older_version_of, temporary_of
from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.schema import APPLICATION_ID, DELETED, LABELS, SCHEMA_VERSION, TABLES, TITLES
from weanalysis.results.store.sums import SUMS

# SQLite's own words about a damaged file may hold its bytes.
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open a results file of this version or an older one, which lacks what came later; raise StoreError."""
    if not path.is_file():
        raise StoreError(f"there are no results at {path} yet; run `weanalysis ablate` first, or give --cache DIR")
    with _openable(path) as opened:
        db = opened(_readonly(path))
        _version_of(db)
        return db


def connect_damaged(path: Path) -> sqlite3.Connection:
    """Open a results file to read whatever can be read of it, also one that was cut off; raise StoreError."""
    if not path.is_file():
        raise StoreError(f"there are no results at {path} yet; give another --cache DIR")
    with _openable(path) as opened:
        db = opened(_readonly(path))
        db.execute("PRAGMA writable_schema=ON")  # else a file that is shorter than it says is not read at all
        _version_of(db)
        return db


def connect(path: Path, say: Callable[[str], None]) -> sqlite3.Connection:
    """Open a results file to write in it, or make it; one of an older version is kept beside it, then migrated.

    Raises StoreError where that cannot be.
    """
    with _openable(path) as opened:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = opened(sqlite3.connect(path, timeout=30))
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("PRAGMA journal_mode=WAL")
            with _locked(db):
                _make_tables(db)
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA synchronous=NORMAL")
        db.row_factory = sqlite3.Row
        if _version_of(db) < SCHEMA_VERSION:
            _migrate(db, path, say)
        db.execute(SUMS)
        db.execute(TITLES)
        db.execute(DELETED)
        return db


@contextmanager
def _openable(path: Path) -> Iterator[Callable[[sqlite3.Connection], sqlite3.Connection]]:
    """Turn what fails within into a StoreError, and close a connection that was opened by then."""
    with ExitStack() as on_failure:

        def opened(db: sqlite3.Connection) -> sqlite3.Connection:
            on_failure.callback(db.close)
            return db

        try:
            yield opened
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be opened as a results file ({one_line(error, 200)}); "
                "move it away, or choose another cache with --cache DIR"
            ) from error
        on_failure.pop_all()


def _readonly(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    db.row_factory = sqlite3.Row
    return db


@contextmanager
def _locked(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction that also changes tables, while no other process writes: all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield


def _version_of(db: sqlite3.Connection) -> int:
    """Which version's tables a file has; raise sqlite3.DatabaseError for one that is not ours, or newer."""
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != APPLICATION_ID or not 1 <= version <= SCHEMA_VERSION:
        raise sqlite3.DatabaseError("it is another program's database, or another version's")
    return int(version)


def _make_tables(db: sqlite3.Connection) -> None:
    """Add the tables and the labels that a file lacks."""
    for statement in TABLES:
        db.execute(statement)
    there = {row[1] for row in db.execute("PRAGMA table_info(plans)")}
    for label in LABELS:
        if label.name not in there:
            db.execute(f"ALTER TABLE plans ADD COLUMN {label.name} {label.sql}")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _migrate(db: sqlite3.Connection, path: Path, say: Callable[[str], None]) -> None:
    """Bring a file of an older version up to date, once there is a copy of it as it was."""
    with _locked(db):
        version = _version_of(db)
        if version == SCHEMA_VERSION:  # another process was faster
            return
        copy = older_version_of(path, version)
        _copy(path, copy)
        _make_tables(db)
    say(f"{path.name} is of an older version ({version}): all results are kept in it, and as it was it is {copy}")


def _copy(path: Path, copy: Path) -> None:
    """Copy a database into one file, which is there as a whole or not at all."""
    part = temporary_of(copy)
    try:
        with closing(_readonly(path)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


class ResultsFile:
    """One SQLite file that was opened; use it as a context manager or close it."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._db, self.path = connection, path

    def close(self) -> None:
        """Let go of the file.

        >>> store.close()
        >>> store.studies()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        weanalysis.errors.StoreError: cache/results.sqlite cannot be read ...
        """
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, query: str, *values: Any) -> Iterator[Any]:
        """The rows that a query finds, one by one; raise StoreError where the file cannot be read."""
        try:
            yield from self._db.execute(query, values)
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path} cannot be read ({one_line(error, 200)}); if it is damaged, move it away, or "
                "choose another cache with --cache DIR"
            ) from error

    def _row(self, query: str, *values: Any) -> Any:
        """The first row that a query finds, None without one; raise StoreError where the file cannot be read."""
        return next(self._rows(query, *values), None)

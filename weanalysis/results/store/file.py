"""The results file itself: opened, written in whole steps, closed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.schema import ALL_TABLES, APPLICATION_ID, SCHEMA_VERSION

# SQLite's own words about a damaged file may hold its bytes.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)


class ResultsFile:
    """One SQLite file; use it as a context manager or close it."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._db, self.path = connection, path

    @classmethod
    def open(cls, path: str | Path, readonly: bool = False) -> Self:
        """Open or make the file; raise StoreError where it is missing (readonly), unwritable or no such database."""
        path = Path(path)
        if readonly and not path.is_file():
            raise StoreError(f"there are no results at {path} yet; run `weanalysis ablate` first, or give --cache DIR")
        try:
            if readonly:
                db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(path, timeout=30)
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    db.execute("PRAGMA journal_mode=WAL")
                    db.executescript(
                        f"BEGIN IMMEDIATE;{ALL_TABLES};"
                        f"PRAGMA application_id={APPLICATION_ID};"
                        f"PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
                    )
                db.execute("PRAGMA synchronous=NORMAL")
            db.row_factory = sqlite3.Row
            found = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
            older = {(APPLICATION_ID, version) for version in range(1, SCHEMA_VERSION)}
            if found in older and not readonly:
                db.executescript(f"BEGIN IMMEDIATE;{ALL_TABLES};PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
            # A file of an older version can be read as it is: it lacks what came later.
            elif found not in {(APPLICATION_ID, SCHEMA_VERSION), *older}:
                raise sqlite3.DatabaseError("it is another program's database, or another version's")
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be opened as a results file ({one_line(error, 200)}); "
                "move it away, or choose another cache with --cache DIR"
            ) from error
        return cls(db, path)

    def _has(self, name: str) -> bool:
        """Whether the file has a table: an older one, opened for reading, may lack it."""
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, query: str, *values: Any) -> Iterator[Any]:
        """The rows that a query finds, one by one; raise StoreError where the file cannot be read."""
        try:
            yield from self._db.execute(query, values)
        except _UNREADABLE as error:
            raise StoreError(
                f"{self.path} cannot be read ({one_line(error, 200)}); if it is damaged, move it away, or "
                "choose another cache with --cache DIR"
            ) from error

    def _row(self, query: str, *values: Any) -> Any:
        """The first row that a query finds, None without one; raise StoreError where the file cannot be read."""
        return next(self._rows(query, *values), None)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        try:
            with self._db:
                yield self._db
        except _UNREADABLE as error:
            raise StoreError(
                f"{self.path} cannot be written ({one_line(error, 200)}); nothing of this step was kept, "
                "what was kept before is intact"
            ) from error

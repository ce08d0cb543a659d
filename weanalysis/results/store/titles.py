"""What a reader calls a study and notes about it: beside what was measured, which none of this changes."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from weanalysis.cache import storable
from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.file import UNREADABLE, connect
from weanalysis.results.store.schema import LONGEST_NAME

LONGEST_NOTE = 2_000

# What a terminal obeys instead of showing it; a note may have several lines.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def entitle(path: Path, study_id: int, title: str | None = None, note: str | None = None) -> None:
    """Call a study `title` from now on, and keep a `note` beside it; what is None stays, what is empty is taken away.

    A study without a title goes by the name that it was measured under, by which it is found in any case. Raises
    StoreError where there is no such study, and for a title or a note that no table can show.
    """
    title = None if title is None else _checked(title.strip(), "name", LONGEST_NAME)
    note = None if note is None else _checked(note.replace("\r\n", "\n").strip(), "note", LONGEST_NOTE)
    if title is not None and (title.isdecimal() or "\n" in title):
        raise StoreError(
            f"{one_line(title, 60)!r} is not allowed as a study's name: numbers stand for studies already, and a "
            "name is a single line; add a word"
        )
    if not path.is_file():
        raise StoreError(f"there are no results at {path} yet; give another --cache DIR")
    with closing(connect(path, lambda line: None)) as db:
        try:
            with db:
                if db.execute("SELECT 1 FROM studies WHERE id = ?", (study_id,)).fetchone() is None:
                    raise StoreError(f"no study {study_id} in {path}")
                db.execute("INSERT OR IGNORE INTO titles VALUES (?, NULL, NULL)", (study_id,))
                for column, text in (("title", title), ("note", note)):
                    if text is not None:
                        db.execute(f"UPDATE titles SET {column} = ? WHERE study_id = ?", (text or None, study_id))
        except UNREADABLE as error:
            raise StoreError(
                f"{path} cannot be written ({one_line(error, 200)}); the study's name is as it was"
            ) from error


def _checked(text: str, what: str, longest: int) -> str:
    if _CONTROL.search(text):
        raise StoreError(f"the {what} {one_line(text, 60)!r} holds a control character; leave it out")
    if len(text) > longest:
        raise StoreError(f"a {what} of {len(text):,} characters is too long: {longest:,} at most")
    return str(storable(text))


def copy_title(source: sqlite3.Connection, study_id: int, db: sqlite3.Connection, new_id: int) -> None:
    """Take over what another file says of a study; a file of before says nothing."""
    if source.execute("SELECT 1 FROM sqlite_master WHERE name = 'titles'").fetchone() is None:
        return
    row = source.execute("SELECT title, note FROM titles WHERE study_id = ?", (study_id,)).fetchone()
    if row is not None:
        db.execute("INSERT OR IGNORE INTO titles VALUES (?, ?, ?)", (new_id, *row))

"""Keeping a results file in order: is it sound, what of it is, without some studies, smaller, with another's."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weanalysis.cache import Cache, temporary_of
from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.file import UNREADABLE, connect, connect_damaged, connect_readonly
from weanalysis.results.store.reader import Reader
from weanalysis.results.store.schema import SCHEMA_VERSION, content_key
from weanalysis.results.store.sums import block_sum, shard_sum, sum_block, sum_shard
from weanalysis.results.store.titles import copy_title
from weanalysis.results.store.writer import Writer, cut_block, next_number

# What stands beside a block, by its number.
_BESIDE_BLOCK = ("checks", "screens", "block_values", "block_pixels")
_BESIDE_SHARD = ("intact_values", "intact_pixels")
# In which order rows are saved, so that what they name is there.
_TABLES = ("contexts", "ablations", "studies", "plans", "shards", *_BESIDE_SHARD, "blocks", *_BESIDE_BLOCK)
_BESIDE_ALL = ("sums", "titles", "deleted")


@dataclass(frozen=True)
class Health:
    """What is wrong with a results file: SQLite's `problems`, and blocks and shards that are not what was written.

    `num_blocks` are there; of `num_unsummed`, which an older version wrote, nobody knows what they were.
    """

    problems: tuple[str, ...]
    num_blocks: int
    bad_blocks: tuple[int, ...]
    bad_shards: tuple[tuple[int, int, int], ...]
    num_unsummed: int

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.problems or self.bad_blocks or self.bad_shards)


def examine(path: Path) -> Health:
    """Read all of a results file and compare it with its checksums; raise StoreError where it cannot even be opened."""
    with closing(connect_damaged(path)) as db:
        try:
            problems = [one_line(row[0], 200) for row in db.execute("PRAGMA integrity_check(20)")]
        except UNREADABLE as error:
            problems = [one_line(error, 200)]
        blocks = [row["id"] for row in _readable(db, "blocks")]
        shards = [(row["context_id"], row["start"], row["stop"]) for row in _readable(db, "shards")]
        sums = {tuple(row)[:-1]: row["crc"] for row in _readable(db, "sums")}
        keys = [("block", 0, 0, 0, block) for block in blocks]
        return Health(
            problems=tuple(line for line in problems if line != "ok"),
            num_blocks=len(blocks),
            bad_blocks=tuple(key[-1] for key in keys if _differs(sums.get(key), block_sum, db, key[-1])),
            bad_shards=tuple(one for one in shards if _differs(sums.get(("shard", *one, 0)), shard_sum, db, one)),
            num_unsummed=sum(key not in sums for key in keys),
        )


def _differs(
    kept: int | None, summed: Callable[[sqlite3.Connection, Any], int], db: sqlite3.Connection, of: Any
) -> bool:
    """Whether something is no longer what its checksum was made of."""
    try:
        return kept is not None and summed(db, of) != kept
    except UNREADABLE:
        return True


def _readable(db: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """The rows of a table that can be read: from its beginning to the first that cannot, and from its end."""
    seen = set()
    key = [row["name"] for row in _rows(db, f"PRAGMA table_info({table})") if row["pk"]] or ["rowid"]
    for order in ("", " DESC"):
        for row in _rows(db, f"SELECT * FROM {table} ORDER BY " + ", ".join(f"{name}{order}" for name in key)):
            if (place := tuple(row[name] for name in key)) not in seen:
                seen.add(place)
                yield row
            elif order:
                break  # where those from the beginning ended


def _rows(db: sqlite3.Connection, query: str) -> Iterator[sqlite3.Row]:
    """Rows until one cannot be read."""
    with suppress(*UNREADABLE):
        yield from db.execute(query)


def save_sound(path: Path, target: Path) -> tuple[int, int]:
    """Write what is sound of a results file into a new one; return how many blocks that is, and how many are lost.

    A block is what some ablations changed on a shard: what is lost of it is measured again by the same command. Raises
    StoreError where the target is there already, or nothing can be read.
    """
    if target.exists():
        raise StoreError(f"{target} is there already: name a file that is not")
    health = examine(path)
    part = temporary_of(target)
    try:
        with closing(connect_damaged(path)) as source, closing(connect(part, lambda line: None)) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            with db:
                num_saved = _save(source, db, health)
            db.execute("PRAGMA synchronous=FULL")
        os.replace(part, target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{target} cannot be written ({one_line(error, 200)})") from error
    finally:
        part.unlink(missing_ok=True)
    with closing(connect_damaged(path)) as source:
        highest = next(_rows(source, "SELECT max(id) FROM blocks"), [0])[0] or 0
    num_lost = max(health.num_blocks, min(int(highest), 2 * health.num_blocks + 100)) - num_saved
    return num_saved, max(0, num_lost)


def _save(source: sqlite3.Connection, db: sqlite3.Connection, health: Health) -> int:
    """Copy the rows that can be read, but those that are not what was written; return how many blocks."""
    for table in (*_TABLES, *_BESIDE_ALL):
        for row in _readable(source, table):
            marks = ", ".join("?" * len(row))
            with suppress(sqlite3.IntegrityError):  # a damaged key may be there twice
                db.execute(f"INSERT INTO {table} ({', '.join(row.keys())}) VALUES ({marks})", tuple(row))
    for shard in health.bad_shards:
        for table in ("shards", *_BESIDE_SHARD, "sums"):
            db.execute(f"DELETE FROM {table} WHERE context_id = ? AND start = ? AND stop = ?", shard)
    # A block says what changed from what the intact network says of its shard, and is nothing without that.
    orphans = "SELECT id FROM blocks b WHERE NOT EXISTS (SELECT 1 FROM shards s WHERE s.context_id = b.context_id "
    orphans += "AND s.start = b.start AND s.stop = b.stop)"
    unsound = {*health.bad_blocks, *(row[0] for row in db.execute(orphans).fetchall())}
    if health.problems and health.num_unsummed < health.num_blocks:  # checksums were lost, of nobody knows which blocks
        summed = "SELECT block_id FROM sums WHERE what = 'block'"
        unsound |= {row[0] for row in db.execute(f"SELECT id FROM blocks WHERE id NOT IN ({summed})").fetchall()}
    for block in unsound:
        drop_block(db, block)
    for table in (*_BESIDE_BLOCK, "sums"):
        db.execute(f"DELETE FROM {table} WHERE block_id NOT IN (SELECT id FROM blocks UNION SELECT 0)")
    return int(db.execute("SELECT count(*) FROM blocks").fetchone()[0])


def drop_block(db: sqlite3.Connection, block: int) -> None:
    """Take a block out of a file, with all that stands beside it."""
    for table in (*_BESIDE_BLOCK, "sums"):
        db.execute(f"DELETE FROM {table} WHERE block_id = ?", (block,))
    db.execute("DELETE FROM blocks WHERE id = ?", (block,))


def compact(path: Path) -> tuple[int, int]:
    """Give back the room of what was deleted; return the bytes before and after. Raises StoreError."""
    before = path.stat().st_size if path.is_file() else 0
    with closing(connect(path, lambda line: None)) as db:
        try:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreError(
                f"{path} cannot be made smaller now ({one_line(error, 200)}): wait until no study runs, and see that "
                "the disk has room for a copy"
            ) from error
    return before, path.stat().st_size


def keys_of(path: Path, studies: Collection[int]) -> dict[int, str]:
    """What the locks of studies are called by: the key of each, from what it depends on and what it asks."""
    query = "SELECT s.key, c.settings FROM studies s JOIN contexts c ON c.id = s.context_id WHERE s.id = ?"
    with closing(connect_readonly(path)) as db:
        keys = {}
        for study in studies:
            row = db.execute(query, (study,)).fetchone()
            if row is None:
                raise StoreError(f"no study {study} in {path}")
            key, settings = row
            about = json.loads(settings)
            context = {name: value for name, value in about.items() if not name.endswith("_version")}
            keys[study] = content_key([context, key.partition(":")[2]])
        return keys


def delete_studies(cache: Cache, studies: Mapping[int, str]) -> int:
    """Take studies, names by number, out of a cache's results; return how many blocks were measured for them alone.

    Raises StoreError where another process is at one of them.
    """
    keys = keys_of(cache.results, list(studies)) if studies else {}
    with cache.hold({f"study-{keys[number]}": f"the study {name!r}" for number, name in studies.items()}):
        return _delete(cache.results, list(studies)) if studies else 0


def _delete(path: Path, studies: Collection[int]) -> int:
    with closing(connect(path, lambda line: None)) as db, Writer(db, path) as writer:
        num_blocks = _count(db, "blocks")
        contexts = {db.execute("SELECT context_id FROM studies WHERE id = ?", (one,)).fetchone()[0] for one in studies}
        with db:
            for table, column in (("plans", "study_id"), ("titles", "study_id"), ("studies", "id")):
                db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(one,) for one in studies])
            db.executemany("INSERT OR IGNORE INTO deleted VALUES (?)", [(one,) for one in studies])
        for context in contexts:
            needed = (
                "SELECT DISTINCT p.ablation_id FROM plans p JOIN studies s ON s.id = p.study_id WHERE s.context_id = ?"
            )
            left = {row[0] for row in db.execute(needed, (context,))}
            everything = {row[0] for row in db.execute("SELECT id FROM ablations")}
            writer.forget(context, np.array(sorted(everything - left), np.int32))
            if not left:
                with db:
                    for table in ("shards", *_BESIDE_SHARD, "sums"):
                        db.execute(f"DELETE FROM {table} WHERE context_id = ?", (context,))
                    db.execute("DELETE FROM contexts WHERE id = ?", (context,))
        return num_blocks - _count(db, "blocks")


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# Another file's ------------------------------------------------------------------------------------------------------


def merge(path: Path, other: Path, say: Callable[[str], None]) -> int:
    """Add to a results file what another one has beyond it; return how many blocks that was.

    A study that both have becomes one: what either measured is in it. Shards of which the intact networks do not say
    the same are left out, which is said. Raises StoreError for a file that is damaged, or an older version's.
    """
    if path.resolve() == other.resolve():
        raise StoreError(f"{other} is the results file itself: name another cache")
    if not examine(other).is_sound:
        raise StoreError(f"{other} is damaged: `weanalysis cache salvage` saves what is sound, which can be added then")
    with (
        closing(connect_readonly(other)) as source,
        closing(connect(path, say)) as db,
        Reader(connect_readonly(path), path) as reader,
    ):
        if source.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
            raise StoreError(f"{other} is of an older version: run any study with --cache there to bring it up to date")
        try:
            return _Merge(source, db, reader, say).run()
        except UNREADABLE as error:
            raise StoreError(
                f"{other} cannot be added to {path} ({one_line(error, 200)}); what was there is intact"
            ) from error


class _Merge:
    """One file's rows on their way into another. Call `run` once."""

    def __init__(self, source: sqlite3.Connection, db: sqlite3.Connection, reader: Reader, say: Callable[[str], None]):
        self._source, self._db, self._reader, self._say = source, db, reader, say
        with db:
            self._ablations = self._same("ablations")
            self._contexts = self._same("contexts")

    def _same(self, table: str) -> dict[int, int]:
        """Add the rows of a table that are known by their key; return which number here is which there."""
        numbers = {}
        for row in self._source.execute(f"SELECT * FROM {table}"):
            columns = [name for name in row.keys() if name != "id"]  # noqa: SIM118
            marks = ", ".join("?" * len(columns))
            self._db.execute(
                f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})",
                [row[name] for name in columns],
            )
            numbers[row["id"]] = self._db.execute(f"SELECT id FROM {table} WHERE key = ?", (row["key"],)).fetchone()[0]
        return numbers

    def run(self) -> int:
        """Add everything; return how many blocks were new."""
        with self._db:
            for row in self._source.execute("SELECT * FROM studies").fetchall():
                self._add_study(row)
        refused = [shard for shard in self._shards() if not self._add_shard(shard)]
        if refused:
            self._say(
                f"{len(refused)} shards are left out, of which the intact network says something else there: see that "
                "both were measured with the same versions"
            )
        num_added = 0
        for row in self._source.execute("SELECT * FROM blocks ORDER BY id").fetchall():
            if (row["context_id"], row["start"], row["stop"]) not in refused:
                num_added += self._add_block(row)
        return num_added

    def _add_study(self, row: sqlite3.Row) -> None:
        context = self._contexts[row["context_id"]]
        key = f"{context}:{row['key'].partition(':')[2]}"
        if self._db.execute("SELECT 1 FROM studies WHERE key = ?", (key,)).fetchone():
            return
        study = self._insert("studies", {**dict(row), "id": next_number(self._db), "key": key, "context_id": context})
        copy_title(self._source, row["id"], self._db, study)
        for plan in self._source.execute("SELECT * FROM plans WHERE study_id = ?", (row["id"],)):
            self._insert(
                "plans", {**dict(plan), "study_id": study, "ablation_id": self._ablations[plan["ablation_id"]]}
            )

    def _shards(self) -> list[tuple[int, int, int]]:
        return [tuple(row) for row in self._source.execute("SELECT context_id, start, stop FROM shards")]

    def _add_shard(self, shard: tuple[int, int, int]) -> bool:
        """Add what the intact network says of a shard; False where something else is known of it."""
        where, own = "context_id = ? AND start = ? AND stop = ?", (self._contexts[shard[0]], *shard[1:])
        (theirs,) = self._source.execute(f"SELECT predictions FROM shards WHERE {where}", shard).fetchone()
        ours = self._db.execute(f"SELECT predictions FROM shards WHERE {where}", own).fetchone()
        if ours is not None and ours[0] != theirs:
            return False
        with self._db:
            before = self._db.total_changes
            for table in ("shards", *_BESIDE_SHARD):
                for row in self._source.execute(f"SELECT * FROM {table} WHERE {where}", shard):
                    self._insert(table, {**dict(row), "context_id": own[0]}, "OR IGNORE")
            if self._db.total_changes > before:
                sum_shard(self._db, own)
        return True

    def _add_block(self, row: sqlite3.Row) -> bool:
        """Add a block, or those of its ablations that are not known here; False where all are."""
        context, block = self._contexts[row["context_id"]], row["id"]
        theirs = np.frombuffer(row["ablation_ids"], np.int32)
        ids = np.array([self._ablations[int(one)] for one in theirs], np.int32)
        query = "SELECT statistic FROM block_values WHERE block_id = ?"
        statistics = ["correct", *(one[0] for one in self._source.execute(query, (block,)))]
        known = [np.isin(ids, self._reader.done(context, row["start"], row["stop"], one)) for one in statistics]
        keep = ~np.logical_and.reduce(known)
        if not keep.any():
            return False
        span = {"first_ablation": int(ids.min()), "last_ablation": int(ids.max())}
        with self._db:
            added = self._insert(
                "blocks", {**dict(row), **span, "id": None, "context_id": context, "ablation_ids": ids.tobytes()}
            )
            for table in _BESIDE_BLOCK:
                for beside in self._source.execute(f"SELECT * FROM {table} WHERE block_id = ?", (block,)):
                    self._insert(table, {**dict(beside), "block_id": added})
            if not keep.all():
                cut_block(self._db, added, ids, keep)
            sum_block(self._db, added)
        return True

    def _insert(self, table: str, values: dict[str, Any], how: str = "") -> int:
        marks = ", ".join("?" * len(values))
        done = self._db.execute(
            f"INSERT {how} INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
        )
        return int(done.lastrowid or 0)

"""What was measured, in one SQLite file: by context, ablation and shard of images, never done twice, never mixed.

One process writes a study's results; any number read them, also while it writes (write-ahead log).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from weanalysis.errors import StoreError

if TYPE_CHECKING:
    from weanalysis.results.statistics import Comparison, StoppingRule

# Marks the file as ours, and which tables it has; another program's database is never written to.
_APPLICATION_ID, _SCHEMA_VERSION = 0x57654131, 2

# What is kept of a screened block, (5, A): see `ablation.evaluate.Screen`.
_SCREENED = ("num_evaluated", "may_lose", "may_gain", "num_missed", "num_expected")

# Part of every context: results of another engine version are never reused.
ENGINE_VERSION = 3

# The columns of a study's table, in the order that users rely on.
COLUMNS = (
    "study", "layer", "depth", "selection", "out_channel", "in_channel", "percentile", "fraction", "draw",
    "num_weights", "metric", "intact", "ablated", "drop", "drop_low", "drop_high", "p_value", "q_value",
    "num_images", "num_flipped", "num_evaluated", "evaluate", "screen_low", "screen_high",
)  # fmt: skip

# A metric is one bit of an image's correctness, so that every one can be recomputed from what is kept.
METRICS = {"top1": 1, "top5": 2}

_LABELS = (
    "layer", "depth", "selection", "out_channel", "in_channel", "percentile", "fraction", "draw", "num_weights"
)  # fmt: skip

# The columns in which changed images are told.
_CHANGED = ("image_id", "target", "before", "after", "correct_before", "correct_after")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contexts (
  id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, settings TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS ablations (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS studies (
  id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, context_id INTEGER NOT NULL REFERENCES contexts(id),
  name TEXT NOT NULL, kind TEXT NOT NULL, metric TEXT NOT NULL, about TEXT NOT NULL, state TEXT NOT NULL,
  num_images INTEGER NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL, seconds REAL NOT NULL,
  created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS plans (
  study_id INTEGER NOT NULL REFERENCES studies(id), position INTEGER NOT NULL, ablation_id INTEGER NOT NULL,
  layer TEXT, depth INTEGER, selection TEXT, out_channel INTEGER, in_channel INTEGER, percentile REAL,
  fraction REAL, draw INTEGER, num_weights INTEGER, PRIMARY KEY (study_id, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (
  context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, image_ids BLOB NOT NULL,
  targets BLOB NOT NULL, predictions BLOB NOT NULL, correct BLOB NOT NULL,
  PRIMARY KEY (context_id, start, stop)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
  id INTEGER PRIMARY KEY, context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
  first_ablation INTEGER NOT NULL, last_ablation INTEGER NOT NULL, ablation_ids BLOB NOT NULL,
  counts BLOB NOT NULL, positions BLOB NOT NULL, classes BLOB NOT NULL, correct BLOB NOT NULL,
  seconds REAL NOT NULL, largest_difference REAL NOT NULL, num_rechecked INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS blocks_by_shard ON blocks(context_id, start, stop);
"""

# Since version 2: how the blocks of a screened study were screened.
_SCREENS = """
CREATE TABLE IF NOT EXISTS screens (
  block_id INTEGER PRIMARY KEY REFERENCES blocks(id), numbers BLOB NOT NULL, about TEXT NOT NULL);
"""


class Changes(Protocol):
    """What the engine hands over for one shard and some ablations; see `ablation.evaluate.Measured`."""

    start: int
    stop: int
    targets: np.ndarray
    predictions: np.ndarray
    top5: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    largest_difference: float
    num_rechecked: int
    seconds: float
    screen: Any


@dataclass(frozen=True)
class Block:
    """The changes of some ablations in one shard, as they lie in the file."""

    id: int
    start: int
    stop: int
    ablation_ids: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    correct: np.ndarray

    def changes_of(self, ablation_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Places in the shard, new classes and new correctness under one ablation; None if it is not here."""
        (places,) = np.nonzero(self.ablation_ids == ablation_id)
        if not len(places):
            return None
        ends = np.cumsum(self.counts)
        span = slice(int(ends[places[0]] - self.counts[places[0]]), int(ends[places[0]]))
        return self.positions[span], self.classes[span], self.correct[span]


def _changed(
    intact: sqlite3.Row, places: np.ndarray, classes: np.ndarray, correct: np.ndarray, bit: int
) -> pd.DataFrame:  # fmt: skip
    """The images at these places of a shard, what the network said of them before and after, and if that was right."""
    before = np.frombuffer(intact["correct"], np.uint8)[places]
    values = (np.frombuffer(intact["image_ids"], np.int32)[places], np.frombuffer(intact["targets"], np.int32)[places],
              np.frombuffer(intact["predictions"], np.int32)[places], classes,
              (before & bit).astype(bool), (correct & bit).astype(bool))  # fmt: skip
    return pd.DataFrame(dict(zip(_CHANGED, values, strict=True)))


def content_key(description: Any) -> str:
    """A hash of any JSON description, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def shards_of(num_images: int, shard_size: int) -> list[tuple[int, int]]:
    """Cut images 0 … num_images−1 into (start, stop) ranges; the last may be shorter."""
    return [(start, min(start + shard_size, num_images)) for start in range(0, num_images, shard_size)]


class Store:
    """The results file of a cache. Open it with `Store.open`; use it as a context manager or close it."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._db, self.path = connection, path
        self._replayed: dict[int, tuple[float, np.ndarray]] = {}

    @classmethod
    def open(cls, path: str | Path, readonly: bool = False) -> Store:
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
                    db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA};{_SCREENS};PRAGMA application_id={_APPLICATION_ID};"
                                     f"PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")  # fmt: skip
                db.execute("PRAGMA synchronous=NORMAL")
            db.row_factory = sqlite3.Row
            found = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
            if found == (_APPLICATION_ID, 1) and not readonly:
                db.executescript(f"BEGIN IMMEDIATE;{_SCREENS};PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")
            # A file of version 1 can be read as it is: nothing in it was screened.
            elif found not in {(_APPLICATION_ID, _SCHEMA_VERSION), (_APPLICATION_ID, 1)}:
                raise sqlite3.DatabaseError("it is another program's database, or another version's")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be opened as a results file ({error}); "
                             "move it away, or choose another cache with --cache DIR") from error
        return cls(db, path)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        try:
            with self._db:
                yield self._db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be written ({error}); nothing of this step was kept, "
                             "what was kept before is intact") from error

    # ---- what a running study writes

    def context(self, settings: Mapping[str, Any]) -> int:
        """Return the id of what results depend on (network, weights, images, evaluation …), new or known."""
        settings = {**settings, "engine_version": ENGINE_VERSION}
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO contexts (key, settings, created) VALUES (?, ?, ?)",
                       (content_key(settings), json.dumps(settings, sort_keys=True), time.time()))
        return int(db.execute("SELECT id FROM contexts WHERE key = ?", (content_key(settings),)).fetchone()[0])

    def begin_study(
        self, context_id: int, key: str, kind: str, name: str, metric: str, num_images: int,
        plan: Sequence[tuple[str, Mapping[str, Any]]], about: Mapping[str, Any],
    ) -> int:  # fmt: skip
        """Record a study and its plan, rows of (ablation key, labels); a known one is taken up again.

        `key` names the question (study and options); with the context it makes the study, whatever the number
        of images, so that more images extend it.
        """
        now, full_key = time.time(), f"{context_id}:{key}"
        with self._writing() as db:
            db.execute(
                "INSERT INTO studies (key, context_id, name, kind, metric, about, state, num_images, done, total, "
                "seconds, created, updated) VALUES (?, ?, ?, ?, ?, ?, 'running', ?, 0, 0, 0, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET name = excluded.name, metric = excluded.metric, "
                "about = excluded.about, state = 'running', num_images = excluded.num_images, "
                "updated = excluded.updated",
                (full_key, context_id, name, kind, metric, json.dumps(about), num_images, now, now),
            )
            study_id = int(db.execute("SELECT id FROM studies WHERE key = ?", (full_key,)).fetchone()[0])
            if db.execute("SELECT 1 FROM plans WHERE study_id = ?", (study_id,)).fetchone() is None:
                db.executemany("INSERT OR IGNORE INTO ablations (key) VALUES (?)", ((row[0],) for row in plan))
                db.executemany(
                    "INSERT INTO plans SELECT ?, ?, id, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM ablations WHERE key = ?",
                    ((study_id, position, *(labels.get(label) for label in _LABELS), ablation_key)
                     for position, (ablation_key, labels) in enumerate(plan)),
                )
        return study_id

    def ablation_ids(self, study_id: int) -> np.ndarray:
        """The ids of a study's ablations, in the order of its plan."""
        rows = self._db.execute("SELECT ablation_id FROM plans WHERE study_id = ? ORDER BY position", (study_id,))
        return np.array([row[0] for row in rows], np.int64)

    def done(self, context_id: int, start: int, stop: int) -> np.ndarray:
        """The ids of the ablations that were measured on this shard, sorted."""
        rows = self._db.execute(
            "SELECT ablation_ids FROM blocks WHERE context_id = ? AND start = ? AND stop = ?", (context_id, start, stop)
        )
        return np.unique(np.concatenate([np.empty(0, np.int32), *(np.frombuffer(row[0], np.int32) for row in rows)]))

    def write(
        self, context_id: int, ablation_ids: np.ndarray, image_ids: np.ndarray, measured: Changes,
        study_id: int, done: int, total: int,
    ) -> None:  # fmt: skip
        """Keep what some ablations changed in one shard, and the study's progress, in one transaction."""
        ids = np.ascontiguousarray(ablation_ids, np.int32)
        assert len(np.unique(ids)) == len(ids), "an ablation counts once"
        intact = (measured.targets == measured.predictions).astype(np.uint8) + 2 * measured.top5.astype(np.uint8)
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
                (context_id, measured.start, measured.stop, np.asarray(image_ids, np.int32).tobytes(),
                 measured.targets.astype(np.int32).tobytes(), measured.predictions.astype(np.int32).tobytes(),
                 intact.tobytes()),
            )
            block = db.execute(
                "INSERT INTO blocks (context_id, start, stop, first_ablation, last_ablation, ablation_ids, counts, "
                "positions, classes, correct, seconds, largest_difference, num_rechecked) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (context_id, measured.start, measured.stop, int(ids.min()), int(ids.max()), ids.tobytes(),
                 measured.counts.astype(np.int32).tobytes(), measured.positions.astype(np.int32).tobytes(),
                 measured.classes.astype(np.int32).tobytes(), measured.correct.astype(np.uint8).tobytes(),
                 measured.seconds, measured.largest_difference, measured.num_rechecked),
            ).lastrowid
            if measured.screen is not None:
                numbers = np.array([getattr(measured.screen, name) for name in _SCREENED], np.float32)
                db.execute("INSERT INTO screens VALUES (?, ?, ?)",
                           (block, numbers.tobytes(), json.dumps(measured.screen.about)))
            db.execute("UPDATE studies SET done = ?, total = ?, seconds = seconds + ?, updated = ? WHERE id = ?",
                       (done, total, measured.seconds, time.time(), study_id))

    def set_state(self, study_id: int, state: str, done: int, total: int) -> None:
        """Record that a study is running, complete, stopped or failed, and how many of its steps are done."""
        with self._writing() as db:
            db.execute("UPDATE studies SET state = ?, done = ?, total = ?, updated = ? WHERE id = ?",
                       (state, done, total, time.time(), study_id))

    # ---- what everyone reads

    def studies(self) -> pd.DataFrame:
        """One row a study, the last changed first: id, name, kind, model, weights, data, metric, state, done …

        `stopping` names the rule that ended its ablations early ("until-ci 0.5"), and is None where there was none.
        """
        rows = self._db.execute(
            "SELECT s.*, c.settings FROM studies s JOIN contexts c ON c.id = s.context_id ORDER BY s.updated DESC"
        ).fetchall()
        columns = ["id", "name", "kind", "model", "weights", "data", "metric", "evaluate", "state", "num_images",
                   "done", "total", "seconds", "created", "updated", "weights_hash", "command", "stopping"]  # fmt: skip
        table = []
        for row in rows:
            merged = {**json.loads(row["settings"]), **json.loads(row["about"]), **dict(row)}
            table.append({column: merged.get(column) for column in columns})
        return pd.DataFrame(table, columns=columns)

    def find(self, study: str | int) -> int:
        """Find a study by its number, its name or the beginning of its name; raise StoreError if not exactly one."""
        studies = self.studies()
        text = str(study)
        if text.isdecimal() and int(text) in set(studies["id"]):
            return int(text)
        for matches in (studies[studies["name"] == text], studies[studies["name"].str.startswith(text)]):
            if len(matches) == 1:
                return int(matches["id"].iloc[0])
            if len(matches) > 1:
                offer = ", ".join(f"{row.id} ({row.name_})" for row in
                                  matches.rename(columns={"name": "name_"}).itertuples())
                raise StoreError(f"{len(matches)} studies match {text!r}: {offer}; give the number")
        first = studies[:8]
        known = ", ".join(f"{i} ({n})" for i, n in zip(first["id"], first["name"], strict=True)) or "none yet"
        raise StoreError(f"no study {text!r} in {self.path}; there are: {known}")

    def describe(self, study_id: int) -> dict[str, Any]:
        """Everything about a study but its results: settings of its context, options, layers, what was skipped."""
        row = self._db.execute(
            "SELECT s.*, c.settings FROM studies s JOIN contexts c ON c.id = s.context_id WHERE s.id = ?", (study_id,)
        ).fetchone()
        if row is None:
            raise StoreError(f"no study {study_id} in {self.path}")
        described = {**json.loads(row["settings"]), **json.loads(row["about"]), **dict(row)}
        return {name: value for name, value in described.items() if name not in ("settings", "about", "key")}

    def _shards(self, study_id: int) -> tuple[int, list[tuple[int, int]]]:
        about = self.describe(study_id)
        return int(about["context_id"]), shards_of(int(about["num_images"]), int(about["shard_size"]))

    def _blocks(self, context_id: int, shard: tuple[int, int], first: int, last: int) -> Iterator[Block]:
        for row in self._db.execute(
            "SELECT * FROM blocks WHERE context_id = ? AND start = ? AND stop = ? AND last_ablation >= ? "
            "AND first_ablation <= ? ORDER BY id", (context_id, *shard, first, last)
        ):
            yield Block(row["id"], row["start"], row["stop"], np.frombuffer(row["ablation_ids"], np.int32),
                        np.frombuffer(row["counts"], np.int32), np.frombuffer(row["positions"], np.int32),
                        np.frombuffer(row["classes"], np.int32), np.frombuffer(row["correct"], np.uint8))

    def _intact(self, context_id: int, shard: tuple[int, int]) -> sqlite3.Row | None:
        return self._db.execute(
            "SELECT * FROM shards WHERE context_id = ? AND start = ? AND stop = ?", (context_id, *shard)
        ).fetchone()

    def table(self, study_id: int, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
        """The study's table, one row an ablation, with the contract's columns (`COLUMNS`), as far as it has come.

        A row's numbers are over the images measured for it so far (`num_images`); with none they are NaN. A study with
        a stopping rule has anytime-valid intervals and p-values, and no image beyond where its rule stopped the row.
        Raises StoreError for an unknown metric.
        """
        # Imported here: scipy's half second is not for `weanalysis list`.
        from weanalysis.results.statistics import drop_table, stopped_table

        about = self.describe(study_id)
        metric = self._metric(about, metric)
        table = pd.read_sql_query(
            f"SELECT {', '.join(_LABELS)} FROM plans WHERE study_id = ? ORDER BY position",
            self._db, params=[study_id],
        )  # fmt: skip
        for column, values in self.counts(study_id, metric).items():
            table[column] = values
        table = (stopped_table if self.stopping_rule(study_id) else drop_table)(table, confidence)
        table["num_flipped"] = table["lost"] + table["gained"]
        table.insert(0, "study", about["kind"])
        table["metric"], table["evaluate"] = metric, about["evaluate"]
        table["num_evaluated"] = table["num_images"]
        table["screen_low"] = table["screen_high"] = table["drop"]
        if about["evaluate"] == "screened":
            self._add_screen(table, study_id, confidence)
        for column in ("depth", "out_channel", "in_channel", "percentile", "fraction", "draw"):
            table[column] = table[column].astype(float)
        return table[list(COLUMNS)]

    def counts(self, study_id: int, metric: str, half: int | None = None) -> dict[str, np.ndarray]:
        """Count, for each ablation of a study, images measured (num_images), right when intact, lost and gained.

        `half` 0 or 1 counts every other image alone, in the order they were served: a choice made on one half can be
        confirmed on the other, and more images leave both halves what they were.
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        limits = self._num_shards(study_id)
        sums = {name: np.zeros(len(place), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        context_id, shards = self._shards(study_id)
        for number, shard in enumerate(shards):
            counted = self._count(context_id, shard, ids, metric, half)
            for name, sum_ in sums.items():
                sum_ += counted[name][place] * (True if limits is None else number < limits)
        return sums

    @staticmethod
    def _metric(about: Mapping[str, Any], metric: str | None) -> str:
        """The metric asked for, or the study's own; raise StoreError for one that is unknown or was not screened."""
        metric = metric or str(about["metric"])
        if metric not in METRICS:
            raise StoreError(f"metric {metric!r} is unknown: choose from {', '.join(METRICS)}")
        if about["evaluate"] == "screened" and metric != about["screen"]["metric"]:
            raise StoreError(f"study {about['id']} was screened for {about['screen']['metric']}, so that changes of "
                             f"{metric} were left out; run it with --metric {metric}, or with --evaluate exact")
        return metric

    def _add_screen(self, table: pd.DataFrame, study_id: int, confidence: float) -> None:
        """Put how many images were computed, and the bounds of D on all of them, into a screened study's table."""
        from weanalysis.results.statistics import screen_bounds

        counted = self.screen_counts(study_id)
        low, high = screen_bounds(
            table["lost"], table["gained"], table["num_images"], counted["may_lose"], counted["may_gain"],
            counted["num_missed"], counted["num_expected"], confidence,
        )  # fmt: skip
        table["num_evaluated"] = counted["num_evaluated"].astype(np.int64)
        table["screen_low"], table["screen_high"] = 100 * low, 100 * high

    def screen_counts(self, study_id: int) -> dict[str, np.ndarray]:
        """Sum, for each ablation of a screened study, what is kept of its screening: see `ablation.evaluate.Screen`."""
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        sums = np.zeros((len(_SCREENED), len(ids)))
        context_id, shards = self._shards(study_id)
        for shard in shards:
            for block, index in self._first_blocks(context_id, shard, ids):
                row = self._db.execute("SELECT numbers FROM screens WHERE block_id = ?", (block.id,)).fetchone()
                numbers = np.frombuffer(row[0], np.float32).reshape(len(_SCREENED), -1)
                sums[:, index[index >= 0]] += numbers[:, index >= 0]
        return dict(zip(_SCREENED, sums[:, place], strict=True))

    def shard_counts(self, study_id: int, shard: tuple[int, int], metric: str) -> dict[str, np.ndarray]:
        """The same as `counts`, of one shard (start, stop) alone and whatever a stopping rule leaves out."""
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        counted = self._count(int(self.describe(study_id)["context_id"]), shard, ids, metric)
        return {name: values[place] for name, values in counted.items()}

    def _count(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, metric: str, half: int | None = None
    ) -> dict[str, np.ndarray]:
        """Count for the ablations `ids`, sorted and different, what changed in one shard; 0 where not measured."""
        bit = METRICS[metric]
        counted = {name: np.zeros(len(ids), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        row = self._intact(context_id, shard)
        if row is None:
            return counted
        before = (np.frombuffer(row["correct"], np.uint8) & bit).astype(bool)
        chosen = np.ones(len(before), bool) if half is None else np.arange(*shard) % 2 == half
        for block, index in self._first_blocks(context_id, shard, ids):
            counted["num_images"][index[index >= 0]] = int(chosen.sum())
            counted["num_correct"][index[index >= 0]] = int(before[chosen].sum())
            of_change = np.where(chosen[block.positions], np.repeat(index, block.counts), -1)
            was, now = before[block.positions], (block.correct & bit).astype(bool)
            for name, changed in (("lost", was & ~now), ("gained", ~was & now)):
                counted[name] += np.bincount(of_change[changed & (of_change >= 0)], minlength=len(ids))
        return counted

    def _first_blocks(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """For each block of a shard: which of `ids`, sorted and different, its ablations are, -1 for none.

        Two studies may have measured the same ablation at the same time: the first one counts.
        """
        seen = np.zeros(len(ids), bool)
        for block in self._blocks(context_id, shard, int(ids[0]), int(ids[-1])):
            index = np.minimum(np.searchsorted(ids, block.ablation_ids), len(ids) - 1)
            wanted = (ids[index] == block.ablation_ids) & ~seen[index]
            seen[index[wanted]] = True
            yield block, np.where(wanted, index, -1)

    def stopping_rule(self, study_id: int) -> StoppingRule | None:
        """The rule by which a study's ablations stop before its last image; None where they do not."""
        about = self.describe(study_id)
        if not about.get("stopping"):
            return None
        from weanalysis.results.statistics import StoppingRule

        return StoppingRule.of(about["options"])

    def _num_shards(self, study_id: int) -> np.ndarray | None:
        """How many shards, from the first on, count for each row of a study with a stopping rule; None without one."""
        rule = self.stopping_rule(study_id)
        if rule is None:
            return None
        from weanalysis.results.statistics import Replay

        about = self.describe(study_id)
        if (known := self._replayed.get(study_id)) is not None and known[0] == about["updated"]:
            return known[1]
        replay = Replay(rule, len(self.ablation_ids(study_id)))
        for shard in self._shards(study_id)[1]:
            counted = self.shard_counts(study_id, shard, about["metric"])
            if not replay.add(counted["lost"], counted["gained"], counted["num_images"]):
                break
        self._replayed[study_id] = about["updated"], replay.num_shards
        return replay.num_shards

    def intact(self, study_id: int) -> pd.DataFrame:
        """One row an image measured so far: image_id, target, prediction, top1, top5 of the intact network."""
        context_id, shards = self._shards(study_id)
        frames = []
        for shard in shards:
            row = self._intact(context_id, shard)
            if row is not None:
                correct = np.frombuffer(row["correct"], np.uint8)
                frames.append(pd.DataFrame({
                    "image_id": np.frombuffer(row["image_ids"], np.int32),
                    "target": np.frombuffer(row["targets"], np.int32),
                    "prediction": np.frombuffer(row["predictions"], np.int32),
                    "top1": (correct & 1).astype(bool), "top5": (correct & 2).astype(bool),
                }))
        columns = ["image_id", "target", "prediction", "top1", "top5"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def changes(self, study_id: int, position: int, metric: str | None = None) -> pd.DataFrame:
        """The images that the ablation at `position` of the study's table changed.

        Columns image_id, target, before, after (predicted classes), correct_before, correct_after (in the
        metric). Images whose class changed from one wrong answer to another are included.
        """
        bit = METRICS[self._metric(self.describe(study_id), metric)]
        frames = [_changed(intact, *found, bit) for intact, found in self._shards_of_ablation(study_id, position)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_CHANGED))

    def all_changes(self, study_id: int, metric: str | None = None) -> pd.DataFrame:
        """The images that each ablation of a study changed, in one pass over the file: `changes` for every position.

        Columns as there, and position; a row an ablation and image.
        """
        bit = METRICS[self._metric(self.describe(study_id), metric)]
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        plan = pd.DataFrame({"ablation": place, "position": np.arange(len(place))})
        limits = self._num_shards(study_id)
        context_id, shards = self._shards(study_id)
        frames = []
        for number, shard in enumerate(shards):
            intact = self._intact(context_id, shard)
            if intact is None:
                continue
            counting = plan if limits is None else plan[number < limits]
            for block, index in self._first_blocks(context_id, shard, ids):
                changed = _changed(intact, block.positions, block.classes, block.correct, bit)
                frames.append(changed.assign(ablation=np.repeat(index, block.counts)).merge(counting, on="ablation"))
        columns = ["position", *_CHANGED]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def correctness(self, study_id: int, position: int, metric: str | None = None) -> pd.Series:
        """Whether each image measured under an ablation is right with it (bool), by image_id."""
        bit = METRICS[self._metric(self.describe(study_id), metric)]
        pieces = []
        for intact, (places, _, correct) in self._shards_of_ablation(study_id, position):
            right = np.frombuffer(intact["correct"], np.uint8).copy()
            right[places] = correct
            pieces.append(pd.Series((right & bit).astype(bool), np.frombuffer(intact["image_ids"], np.int32)))
        return pd.concat(pieces) if pieces else pd.Series(dtype=bool)

    def _shards_of_ablation(
        self, study_id: int, position: int
    ) -> Iterator[tuple[sqlite3.Row, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """For each shard measured under an ablation: the intact row, and places, classes and correctness it changed."""
        row = self._db.execute(
            "SELECT ablation_id FROM plans WHERE study_id = ? AND position = ?", (study_id, int(position))
        ).fetchone()
        if row is None:
            raise StoreError(f"study {study_id} has no ablation {position}")
        context_id, shards = self._shards(study_id)
        limits = self._num_shards(study_id)
        for shard in shards if limits is None else shards[: limits[position]]:
            intact = self._intact(context_id, shard)
            for block in self._blocks(context_id, shard, row[0], row[0]):
                found = block.changes_of(row[0])
                if found is not None and intact is not None:
                    yield intact, found
                    break

    def compare(self, study_id: int, first: int, second: int, metric: str | None = None) -> Comparison:
        """Compare two ablations of a study, by their positions, on the images measured under both.

        The difference is D of the second minus D of the first, in percentage points, with a paired interval and
        McNemar's exact test. Raises StudyError where they have no image in common.
        """
        from weanalysis.results.statistics import compare_correctness

        one, other = self.correctness(study_id, first, metric), self.correctness(study_id, second, metric)
        return compare_correctness(one.index, one.to_numpy(), other.index, other.to_numpy())

    def agreement(self, study_id: int) -> dict[str, float]:
        """How far the fast evaluation was from the naive one: largest difference of logits, images decided naively."""
        context_id, _ = self._shards(study_id)
        row = self._db.execute(
            "SELECT max(largest_difference), sum(num_rechecked) FROM blocks WHERE context_id = ?", (context_id,)
        ).fetchone()
        return {"largest_difference": np.nan if row[0] is None else float(row[0]), "num_rechecked": int(row[1] or 0)}

"""The results file as the one process writes it that runs a study, each step as a whole or not at all."""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from weanalysis.cache import storable
from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.file import UNREADABLE, ResultsFile, connect
from weanalysis.results.store.pixels import intact_pixels, packed
from weanalysis.results.store.schema import (
    LABELS,
    LONGEST_NAME,
    LONGEST_TEXT,
    SCREENED,
    content_key,
    kept_as,
    with_versions,
)
from weanalysis.results.store.sums import sum_block, sum_shard

# How many intact answers of a shard may differ from those kept of it: near ties, which rounding decides.
_FEW_TIES, _SHARE_OF_TIES = 2, 0.02


class Changes(Protocol):
    """What the engine hands over for one shard and some ablations; see `ablation.evaluate.Measured`."""

    start: int
    stop: int
    targets: np.ndarray
    predictions: np.ndarray
    intact_correct: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    largest_difference: float
    num_rechecked: int
    num_checked: int
    num_differed: int
    seconds: float
    distrusted: dict[str, str]
    screen: Any
    values: Any
    pixels: Any


class Writer(ResultsFile):
    """A results file, opened for writing: made where there is none, brought up to date where it is an older version's.

    It tells nothing of what it holds: that is what `results.Store` is for, which may be open at the same time.

    What the engine does before it measures the first of two filters:

    >>> writer = Writer.open("results.sqlite")
    >>> context = writer.context({"model": "mine", "weights_hash": "a1b2", "data": "digits"})
    >>> rows = [(f"conv1[{k};*]", {"layer": "conv1", "selection": "filter", "num_weights": 27}) for k in (0, 1)]
    >>> study = writer.begin_study(context, "filters of conv1", "channel", "mine", "top1", 500, rows, {})
    >>> context, study
    (1, 1)
    """

    @classmethod
    def open(cls, path: str | Path, say: Callable[[str], None] = lambda line: None) -> Self:
        """Open or make the file; raise StoreError where it cannot be written, or is another program's.

        A file of an older version is kept beside it, as `results.sqlite.v3`, before it is brought up to date in place;
        `say` is called with a line about that.
        """
        return cls(connect(Path(path), say), Path(path))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        try:
            with self._db:
                yield self._db
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path} cannot be written ({one_line(error, 200)}); nothing of this step was kept, "
                "what was kept before is intact"
            ) from error

    def context(self, settings: Mapping[str, Any]) -> int:
        """Return the id of what results depend on (network, weights, images, evaluation …), new or known."""
        settings = with_versions(settings)
        with self._writing() as db:
            db.execute(
                "INSERT INTO contexts (key, settings, created) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET settings = excluded.settings",
                (content_key(settings), json.dumps(storable(settings), sort_keys=True), time.time()),
            )
        return int(db.execute("SELECT id FROM contexts WHERE key = ?", (content_key(settings),)).fetchone()[0])

    def begin_study(
        self,
        context_id: int,
        key: str,
        kind: str,
        name: str,
        metric: str,
        num_images: int,
        plan: Sequence[tuple[str, Mapping[str, Any]]],
        about: Mapping[str, Any],
    ) -> int:
        """Record a study and its plan, rows of (ablation key, labels); a known one is taken up again.

        `key` names the question (study and options); with the context it makes the study, whatever the number
        of images, so that more images extend it.
        """
        now, full_key = time.time(), f"{context_id}:{key}"
        name, about = storable(name, LONGEST_NAME), storable(about, LONGEST_TEXT)
        with self._writing() as db:
            db.execute(
                "INSERT INTO studies (id, key, context_id, name, kind, metric, about, state, num_images, done, total, "
                "seconds, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, 0, 0, 0, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET name = excluded.name, metric = excluded.metric, "
                "about = excluded.about, state = 'running', num_images = excluded.num_images, "
                "updated = excluded.updated",
                (
                    next_number(db),
                    full_key,
                    context_id,
                    name,
                    kind,
                    metric,
                    json.dumps(about),
                    num_images,
                    now,
                    now,
                ),
            )
            study_id = int(db.execute("SELECT id FROM studies WHERE key = ?", (full_key,)).fetchone()[0])
            if db.execute("SELECT 1 FROM plans WHERE study_id = ?", (study_id,)).fetchone() is None:
                db.executemany("INSERT OR IGNORE INTO ablations (key) VALUES (?)", ((row[0],) for row in plan))
                names = [label.name for label in LABELS]
                db.executemany(
                    f"INSERT INTO plans (study_id, position, ablation_id, {', '.join(names)}) "
                    f"SELECT ?, ?, id{', ?' * len(names)} FROM ablations WHERE key = ?",
                    (
                        (study_id, position, *(labels.get(name) for name in names), ablation_key)
                        for position, (ablation_key, labels) in enumerate(plan)
                    ),
                )
        return study_id

    def write(
        self,
        context_id: int,
        ablation_ids: np.ndarray,
        image_ids: np.ndarray,
        measured: Changes,
        study_id: int,
        done: int,
        total: int,
        most_kept: int | None = None,
    ) -> None:
        """Keep what some ablations changed in one shard, and the study's progress, in one transaction.

        Of numbers of each image, such as the loss, the changes of at most `most_kept` images are kept for each
        ablation, of those that changed most (None: of all). Raises StoreError where the intact network answers
        otherwise than when the shard was first measured.
        """
        ids = np.ascontiguousarray(ablation_ids, np.int32)
        assert len(np.unique(ids)) == len(ids), "an ablation counts once"
        self._check_intact(context_id, measured)
        with self._writing() as db:
            before = db.total_changes
            self._write_intact(db, context_id, image_ids, measured)
            if db.total_changes > before:
                sum_shard(db, (context_id, measured.start, measured.stop))
            block = self._write_block(db, context_id, ids, measured)
            for statistic, values in measured.values.items():
                db.execute(
                    "INSERT INTO block_values VALUES (?, ?, ?, ?, ?, ?)",
                    (block, kept_as(statistic), *encode_values(values.changes, most_kept)),
                )
            if measured.pixels is not None:
                parts = (packed(measured.pixels.positions), packed(measured.pixels.changes))
                counts = measured.pixels.counts.astype(np.int32).tobytes()
                db.execute("INSERT INTO block_pixels VALUES (?, ?, ?, ?)", (block, counts, *parts))
            if measured.screen is not None:
                screened = np.array([getattr(measured.screen, name) for name in SCREENED], np.float32)
                db.execute(
                    "INSERT INTO screens VALUES (?, ?, ?)",
                    (block, screened.tobytes(), json.dumps(measured.screen.about)),
                )
            sum_block(db, block)
            db.execute(
                "UPDATE studies SET done = ?, total = ?, seconds = seconds + ?, updated = ? WHERE id = ?",
                (done, total, measured.seconds, time.time(), study_id),
            )

    @staticmethod
    def _write_intact(db: sqlite3.Connection, context_id: int, image_ids: np.ndarray, measured: Changes) -> None:
        """Keep what the intact network says of a shard, unless it is there."""
        shard = context_id, measured.start, measured.stop
        columns = (image_ids, measured.targets, measured.predictions)
        db.execute(
            "INSERT OR IGNORE INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*shard, *(np.asarray(one, np.int32).tobytes() for one in columns), measured.intact_correct.tobytes()),
        )
        for statistic, values in measured.values.items():
            db.execute(
                "INSERT OR IGNORE INTO intact_values VALUES (?, ?, ?, ?, ?)",
                (*shard, kept_as(statistic), values.intact.astype(np.float32).tobytes()),
            )
        if measured.pixels is not None:
            intact = measured.pixels.intact
            db.execute(
                "INSERT OR IGNORE INTO intact_pixels VALUES (?, ?, ?, ?, ?)",
                (*shard, intact.shape[2], packed(intact)),
            )

    @staticmethod
    def _write_block(db: sqlite3.Connection, context_id: int, ids: np.ndarray, measured: Changes) -> int:
        """Keep which images some ablations changed, and how that was checked; return the block's id."""
        block = db.execute(
            "INSERT INTO blocks (context_id, start, stop, first_ablation, last_ablation, ablation_ids, counts, "
            "positions, classes, correct, seconds, largest_difference, num_rechecked) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                context_id,
                measured.start,
                measured.stop,
                int(ids.min()),
                int(ids.max()),
                ids.tobytes(),
                *(one.astype(np.int32).tobytes() for one in (measured.counts, measured.positions, measured.classes)),
                measured.correct.astype(np.uint8).tobytes(),
                measured.seconds,
                measured.largest_difference,
                measured.num_rechecked,
            ),
        ).lastrowid
        db.execute(
            "INSERT INTO checks VALUES (?, ?, ?, ?)",
            (block, measured.num_checked, measured.num_differed, json.dumps(measured.distrusted)),
        )
        assert block is not None
        return block

    def _check_intact(self, context_id: int, measured: Changes) -> None:
        """Raise StoreError for intact answers that are not those kept of the shard, but for what rounding may flip.

        What is kept are changes from the intact answers, so that these must be the same ones. Near ties may fall
        otherwise in another batch or on another processor: a few images of a shard.
        """
        row = self._db.execute(
            "SELECT predictions FROM shards WHERE context_id = ? AND start = ? AND stop = ?",
            (context_id, measured.start, measured.stop),
        ).fetchone()
        if row is None:
            return
        known = np.frombuffer(row[0], np.int32)
        num_other, num_answers = int((known != measured.predictions).sum()), len(known)
        if measured.pixels is not None:
            num_other, num_answers = self._pixels_apart(context_id, measured)
        if num_other > max(_FEW_TIES, _SHARE_OF_TIES * num_answers):
            raise StoreError(
                f"on images {measured.start} to {measured.stop - 1} the intact network answers "
                f"{num_other} otherwise than when they were first measured: something has changed that "
                "the study's key does not tell; what was kept is intact: choose another --cache"
            )

    def _pixels_apart(self, context_id: int, measured: Changes) -> tuple[int, int]:
        """By how many pixels at least the intact answers differ from those kept of the shard, and of how many."""
        key = (context_id, measured.start, measured.stop)
        row = self._row("SELECT * FROM intact_pixels WHERE context_id = ? AND start = ? AND stop = ?", *key)
        intact = measured.pixels.intact
        if row is None:
            return 0, 1
        known = intact_pixels(row, len(intact), f"the pixels of images {measured.start} to {measured.stop}")
        if known.shape != intact.shape:
            return int(intact[:, 0].sum()), int(intact[:, 0].sum())
        # A pixel that changes is one less of a class and one more of another.
        return int(np.abs(known[:, 2] - intact[:, 2]).sum()) // 2, int(intact[:, 0].sum())

    def forget(self, context_id: int, ablation_ids: np.ndarray) -> int:
        """Drop what was measured of some ablations, so that it is measured again; return in how many shards it was."""
        num_dropped = 0
        with self._writing() as db:
            query = "SELECT id, ablation_ids FROM blocks WHERE context_id = ?"
            for block, raw in db.execute(query, (context_id,)).fetchall():
                ids = np.frombuffer(raw, np.int32)
                keep = ~np.isin(ids, ablation_ids)
                if keep.all():
                    continue
                num_dropped += 1
                if keep.any():
                    cut_block(db, block, ids, keep)
                    sum_block(db, block)
                else:
                    for table in ("screens", "checks", "block_values", "block_pixels", "sums"):
                        db.execute(f"DELETE FROM {table} WHERE block_id = ?", (block,))
                    db.execute("DELETE FROM blocks WHERE id = ?", (block,))
        return num_dropped

    def annotate(self, study_id: int, more: Mapping[str, Any]) -> None:
        """Add to what is said about a study."""
        with self._writing() as db:
            about = json.loads(db.execute("SELECT about FROM studies WHERE id = ?", (study_id,)).fetchone()[0])
            db.execute("UPDATE studies SET about = ? WHERE id = ?", (json.dumps({**about, **more}), study_id))

    def set_state(self, study_id: int, state: str, done: int, total: int) -> None:
        """Record that a study is running, complete, stopped or failed, and how many of its steps are done."""
        with self._writing() as db:
            db.execute(
                "UPDATE studies SET state = ?, done = ?, total = ?, updated = ? WHERE id = ?",
                (state, done, total, time.time(), study_id),
            )


def next_number(db: sqlite3.Connection) -> int:
    """Return the number of the next study in a file: one that none has, and none that was deleted had."""
    query = "SELECT 1 + coalesce(max(id), 0) FROM (SELECT id FROM studies UNION ALL SELECT study_id FROM deleted)"
    return int(db.execute(query).fetchone()[0])


def cut_block(db: sqlite3.Connection, block: int, ids: np.ndarray, keep: np.ndarray) -> None:
    """Cut a block down to those of its ablations `ids` (A,) that are to be kept, which are some: `keep` (A,) bools."""
    row = db.execute("SELECT counts, positions, classes, correct FROM blocks WHERE id = ?", (block,)).fetchone()
    counts = np.frombuffer(row[0], np.int32)
    of_change = np.repeat(keep, counts)
    changes = [np.frombuffer(raw, kind) for raw, kind in zip(row[1:], (np.int32, np.int32, np.uint8), strict=True)]
    db.execute(
        "UPDATE blocks SET first_ablation = ?, last_ablation = ?, ablation_ids = ?, counts = ?, positions = ?, "
        "classes = ?, correct = ? WHERE id = ?",
        (
            int(ids[keep].min()),
            int(ids[keep].max()),
            ids[keep].tobytes(),
            counts[keep].tobytes(),
            *(values[of_change].tobytes() for values in changes),
            block,
        ),
    )
    screen = db.execute("SELECT numbers FROM screens WHERE block_id = ?", (block,)).fetchone()
    if screen is not None:
        screened = np.frombuffer(screen[0], np.float32).reshape(-1, len(ids))[:, keep]
        db.execute("UPDATE screens SET numbers = ? WHERE block_id = ?", (screened.tobytes(), block))
    row = db.execute("SELECT counts, positions, changes FROM block_pixels WHERE block_id = ?", (block,)).fetchone()
    counts = np.frombuffer(b"" if row is None else row[0], np.int32)
    if len(counts):
        of_change = np.repeat(keep, counts)
        pixels = [np.frombuffer(zlib.decompress(raw), np.int32) for raw in row[1:]]
        pixels = [each.reshape(len(of_change), len(each) // max(1, len(of_change))) for each in pixels]
        db.execute(
            "UPDATE block_pixels SET counts = ?, positions = ?, changes = ? WHERE block_id = ?",
            (counts[keep].tobytes(), *(packed(each[of_change]) for each in pixels), block),
        )
    query = "SELECT statistic, moments, num_kept, positions, changes FROM block_values WHERE block_id = ?"
    for statistic, moments, num_kept, *of_images in db.execute(query, (block,)).fetchall():
        left = [
            np.frombuffer(moments, np.float64).reshape(2, -1)[:, keep].tobytes(),
            *(
                np.frombuffer(raw, kind).reshape(-1, num_kept)[keep].tobytes() if raw else b""
                for raw, kind in zip(of_images, (np.int32, np.float16), strict=True)
            ),
        ]
        db.execute(
            "UPDATE block_values SET moments = ?, positions = ?, changes = ? WHERE block_id = ? AND statistic = ?",
            (*left, block, statistic),
        )


def encode_values(changes: np.ndarray, most_kept: int | None) -> tuple[bytes, int, bytes, bytes]:
    """Return how changes (A, N) are kept: moments, the number of images of each ablation, their places and changes."""
    exact = changes.astype(np.float64)
    moments = np.stack([exact.sum(1), (exact**2).sum(1)])
    num_images = changes.shape[1]
    kept = num_images if most_kept is None else min(most_kept, num_images)
    positions = np.empty((len(changes), 0), np.int32)
    if kept < num_images:
        # What is no number counts as the largest change.
        size = np.nan_to_num(np.abs(changes), nan=np.inf)
        positions = np.sort(np.argpartition(-size, max(kept - 1, 0), axis=1)[:, :kept], axis=1).astype(np.int32)
        changes = np.take_along_axis(changes, positions, axis=1)
    with np.errstate(over="ignore"):  # beyond 65,504 nats a change is infinite
        return moments.tobytes(), kept, positions.tobytes(), changes.astype(np.float16).tobytes()

"""The studies of a results file: what a running one writes, and which there are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from weanalysis.cache import storable
from weanalysis.errors import StoreError
from weanalysis.results.store.checked import MEND, described, numbers
from weanalysis.results.store.file import ResultsFile
from weanalysis.results.store.schema import ENGINE_VERSION, LABELS, SCREENED, content_key

# How many intact answers of a shard may differ from those kept of it: near ties, which rounding decides.
_FEW_TIES, _SHARE_OF_TIES = 2, 0.02

# A name is read in tables; what else a study says of itself is shown as a whole.
_LONGEST_NAME, _LONGEST_TEXT = 200, 10_000


class Changes(Protocol):
    """What the engine hands over for one shard and some ablations; see `ablation.evaluate.Measured`."""

    start: int
    stop: int
    targets: np.ndarray
    predictions: np.ndarray
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

    @property
    def intact_correct(self) -> np.ndarray:
        """The bits of correctness of the intact network's answers, (N,) uint8."""


class Studies(ResultsFile):
    """A results file as the process that runs a study sees it."""

    def context(self, settings: Mapping[str, Any]) -> int:
        """Return the id of what results depend on (network, weights, images, evaluation …), new or known."""
        settings = {**settings, "engine_version": ENGINE_VERSION}
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
        name, about = storable(name, _LONGEST_NAME), storable(about, _LONGEST_TEXT)
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
                    (
                        (study_id, position, *(labels.get(label) for label in LABELS), ablation_key)
                        for position, (ablation_key, labels) in enumerate(plan)
                    ),
                )
        return study_id

    def ablation_ids(self, study_id: int) -> np.ndarray:
        """The ids of a study's ablations, in the order of its plan."""
        rows = self._rows("SELECT ablation_id FROM plans WHERE study_id = ? ORDER BY position", study_id)
        try:
            ids = np.array([row[0] for row in rows])
        except ValueError:
            ids = np.empty(0)
        if ids.dtype.kind != "i":
            raise StoreError(f"study {study_id} in {self.path} has no plan that can be read; {MEND}")
        return ids.astype(np.int64, copy=False)

    def done(self, context_id: int, start: int, stop: int, statistic: str = "correct") -> np.ndarray:
        """The ids of the ablations of which this shard has a statistic, sorted; older blocks lack some."""
        query, key = "SELECT ablation_ids FROM blocks", (context_id, start, stop)
        if statistic == "correct":
            rows = self._rows(f"{query} WHERE context_id = ? AND start = ? AND stop = ?", *key)
        elif self._has("block_values"):
            query += " JOIN block_values ON block_id = id"
            rows = self._rows(
                f"{query} WHERE context_id = ? AND start = ? AND stop = ? AND statistic = ?", *key, statistic
            )
        else:
            rows = iter(())
        ids = [numbers(row[0], np.int32, f"a block of images {start} to {stop}") for row in rows]
        return np.unique(np.concatenate([np.empty(0, np.int32), *ids]))

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
            db.execute(
                "INSERT OR IGNORE INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    context_id,
                    measured.start,
                    measured.stop,
                    np.asarray(image_ids, np.int32).tobytes(),
                    measured.targets.astype(np.int32).tobytes(),
                    measured.predictions.astype(np.int32).tobytes(),
                    measured.intact_correct.tobytes(),
                ),
            )
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
                    measured.counts.astype(np.int32).tobytes(),
                    measured.positions.astype(np.int32).tobytes(),
                    measured.classes.astype(np.int32).tobytes(),
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
            for statistic, values in measured.values.items():
                db.execute(
                    "INSERT OR IGNORE INTO intact_values VALUES (?, ?, ?, ?, ?)",
                    (context_id, measured.start, measured.stop, statistic, values.intact.astype(np.float32).tobytes()),
                )
                db.execute(
                    "INSERT INTO block_values VALUES (?, ?, ?, ?, ?, ?)",
                    (block, statistic, *encode_values(values.changes, most_kept)),
                )
            if measured.screen is not None:
                numbers = np.array([getattr(measured.screen, name) for name in SCREENED], np.float32)
                db.execute(
                    "INSERT INTO screens VALUES (?, ?, ?)",
                    (block, numbers.tobytes(), json.dumps(measured.screen.about)),
                )
            db.execute(
                "UPDATE studies SET done = ?, total = ?, seconds = seconds + ?, updated = ? WHERE id = ?",
                (done, total, measured.seconds, time.time(), study_id),
            )

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
        num_other = int((known != measured.predictions).sum())
        if num_other > max(_FEW_TIES, _SHARE_OF_TIES * len(known)):
            raise StoreError(
                f"on images {measured.start} to {measured.stop - 1} the intact network answers "
                f"{num_other} otherwise than when they were first measured: something has changed that "
                "the study's key does not tell; what was kept is intact: choose another --cache"
            )

    def forget(self, context_id: int, ablation_ids: np.ndarray) -> int:
        """Drop what was measured of some ablations, so that it is measured again; return in how many shards it was."""
        num_dropped = 0
        with self._writing() as db:
            rows = db.execute(
                "SELECT id, ablation_ids, counts, positions, classes, correct FROM blocks WHERE context_id = ?",
                (context_id,),
            ).fetchall()
            for row in rows:
                ids, counts = np.frombuffer(row[1], np.int32), np.frombuffer(row[2], np.int32)
                keep = ~np.isin(ids, ablation_ids)
                if keep.all():
                    continue
                num_dropped += 1
                if not keep.any():
                    for table in ("screens", "checks", "block_values"):
                        db.execute(f"DELETE FROM {table} WHERE block_id = ?", (row[0],))
                    db.execute("DELETE FROM blocks WHERE id = ?", (row[0],))
                    continue
                of_change = np.repeat(keep, counts)
                changes = (
                    np.frombuffer(row[3], np.int32),
                    np.frombuffer(row[4], np.int32),
                    np.frombuffer(row[5], np.uint8),
                )
                db.execute(
                    "UPDATE blocks SET first_ablation = ?, last_ablation = ?, ablation_ids = ?, counts = ?, "
                    "positions = ?, classes = ?, correct = ? WHERE id = ?",
                    (
                        int(ids[keep].min()),
                        int(ids[keep].max()),
                        ids[keep].tobytes(),
                        counts[keep].tobytes(),
                        *(values[of_change].tobytes() for values in changes),
                        row[0],
                    ),
                )
                screen = db.execute("SELECT numbers FROM screens WHERE block_id = ?", (row[0],)).fetchone()
                if screen is not None:
                    numbers = np.frombuffer(screen[0], np.float32).reshape(-1, len(ids))[:, keep]
                    db.execute("UPDATE screens SET numbers = ? WHERE block_id = ?", (numbers.tobytes(), row[0]))
                for values in db.execute(
                    "SELECT statistic, moments, num_kept, positions, changes FROM block_values WHERE block_id = ?",
                    (row[0],),
                ).fetchall():
                    statistic, moments, num_kept = values[:3]
                    left = (
                        np.frombuffer(moments, np.float64).reshape(2, -1)[:, keep].tobytes(),
                        *(
                            np.frombuffer(raw, kind).reshape(-1, num_kept)[keep].tobytes() if raw else b""
                            for raw, kind in ((values[3], np.int32), (values[4], np.float16))
                        ),
                    )
                    db.execute(
                        "UPDATE block_values SET moments = ?, positions = ?, changes = ? "
                        "WHERE block_id = ? AND statistic = ?",
                        (*left, row[0], statistic),
                    )
        return num_dropped

    def outdated(self, name: str | None = None) -> list[tuple[int, str]]:
        """The studies (id, name) of an older engine, whose answers are not used again; those of one name if given."""
        return [
            (number, shown)
            for number, shown, about in self._described()
            if isinstance(about, dict) and about.get("engine_version") != ENGINE_VERSION and name in (None, shown)
        ]

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

    def studies(self) -> pd.DataFrame:
        """One row a study, the last changed first: id, name, kind, model, weights, data, metric, state, done …

        `stopping` names the rule that ended its ablations early ("until-ci 0.5"), and is None where there was none.
        `outdated`: an older engine measured it, whose answers could be wrong for some networks and are not used again.
        """
        columns = [
            "id",
            "name",
            "kind",
            "model",
            "weights",
            "data",
            "metric",
            "evaluate",
            "state",
            "num_images",
            "done",
            "total",
            "seconds",
            "created",
            "updated",
            "weights_hash",
            "command",
            "stopping",
            "outdated",
        ]
        found = [about for _, _, about in self._described() if isinstance(about, dict)]
        for about in found:
            about["outdated"] = about.get("engine_version") != ENGINE_VERSION
        return pd.DataFrame([[about.get(column) for column in columns] for about in found], columns=columns)

    def unreadable(self) -> dict[int, str]:
        """The studies that `studies` leaves out since what they say of themselves cannot be read: id, and a line."""
        return {number: str(error) for number, _, error in self._described() if isinstance(error, StoreError)}

    def _described(self, study_id: int | None = None) -> Iterator[tuple[int, str, dict[str, Any] | StoreError]]:
        """The id and name of each study, or of one, with what is known of it, or a line why that cannot be read."""
        where = "" if study_id is None else "WHERE s.id = ?"
        # A study whose context is gone is none that could be shown, but one to name.
        query = (
            "SELECT s.*, c.settings FROM studies s LEFT JOIN contexts c ON c.id = s.context_id "
            f"{where} ORDER BY s.updated DESC"
        )
        # Text that is no UTF-8 is read too: one such row would hide all others.
        self._db.text_factory = lambda raw: raw.decode(errors="backslashreplace")
        try:
            rows = list(self._rows(query, *([] if study_id is None else [study_id])))
        finally:
            self._db.text_factory = str
        for row in rows:
            name = storable(str(row["name"]), _LONGEST_NAME)
            try:
                yield row["id"], name, described(row)
            except StoreError as error:
                line = f"study {row['id']} ({name}) in {self.path} cannot be read: {error}; {MEND}"
                yield row["id"], name, StoreError(line)

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
                offer = ", ".join(
                    f"{row.id} ({row.name_})" for row in matches.rename(columns={"name": "name_"}).itertuples()
                )
                raise StoreError(f"{len(matches)} studies match {text!r}: {offer}; give the number")
        for number, name, about in self._described():
            if isinstance(about, StoreError) and text in (str(number), name):
                raise about
        first = studies[:8]
        known = ", ".join(f"{i} ({n})" for i, n in zip(first["id"], first["name"], strict=True)) or "none yet"
        raise StoreError(f"no study {text!r} in {self.path}; there are: {known}")

    def describe(self, study_id: int) -> dict[str, Any]:
        """Everything about a study but its results: settings of its context, options, layers, what was skipped."""
        found = next(self._described(study_id), None)
        if found is None:
            raise StoreError(f"no study {study_id} in {self.path}")
        if isinstance(found[2], StoreError):
            raise found[2]
        return found[2]


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

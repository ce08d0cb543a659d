"""The results file as everyone reads it: which studies there are, and what lies there of each, checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from weanalysis.cache import storable
from weanalysis.errors import StoreError, one_line
from weanalysis.results.store.checked import (
    MEND,
    REPEATED,
    Block,
    BlockValues,
    Intact,
    described,
    joined_repeats,
    json_object,
    numbers,
    screen_numbers,
)
from weanalysis.results.store.file import ResultsFile, connect_readonly
from weanalysis.results.store.pixels import BlockPixels, intact_pixels
from weanalysis.results.store.schema import LABELS, LONGEST_NAME, SCREENED, is_outdated, kept_as

# The statistic that is kept as counts.
PIXELS = "pixels"


class Reader(ResultsFile):
    """A results file, opened for reading: nothing in it can be changed. What follows from it is `results.Store`.

    >>> from torch import nn, rand
    >>> from weanalysis import ablate
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = [(rand(3, 4, 4), k % 4) for k in range(8)]
    >>> table = ablate(net, images, "channel", side="out", name="filters", cache="cache")
    >>> reader = Reader.open("cache/results.sqlite")
    >>> reader.studies()[["id", "name", "kind", "state"]].values.tolist()
    [[1, 'filters', 'channel', 'complete']]
    """

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the file; raise StoreError where there is none, or another program's or another version's.

        >>> Reader.open("no-such-file.sqlite")
        Traceback (most recent call last):
            ...
        weanalysis.errors.StoreError: there are no results at no-such-file.sqlite yet; run `weanalysis ablate` first, or
        give --cache DIR
        """
        return cls(connect_readonly(Path(path)), Path(path))

    def _has(self, table: str) -> bool:
        """Whether the file has a table, which an older one may lack."""
        return self._row("SELECT 1 FROM sqlite_master WHERE name = ?", table) is not None

    # Studies ----------------------------------------------------------------------------------------------------------

    def studies(self) -> pd.DataFrame:
        """One row a study, the last changed first: id, name, kind, model, weights, data, metric, state, done …

        `name` is what it is called now, which may not be what it was `measured_as`, `note` what its reader noted.
        `stopping` names the rule that ended its ablations early ("until-ci 0.5"), and is None where there was none.
        `outdated`: an older engine measured it, whose answers could be wrong for some networks and are not used again.

        >>> reader.studies()[["name", "metric", "num_images", "done", "total"]].values.tolist()
        [['filters', 'top1', 8, 4, 4]]
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
            "measured_as",
            "note",
        ]
        described = [about for _, _, about in self._described() if isinstance(about, dict)]
        for about in described:
            about["outdated"] = is_outdated(about)
        table = pd.DataFrame([[about.get(column) for column in columns] for about in described], columns=columns)
        # A column of text would make NaN, which is true, of the None of a study that lacks it.
        texts = [column for column in columns if any(isinstance(about.get(column), str) for about in described)]
        return table.astype(dict.fromkeys(texts, object)).where(table.notna() | ~table.columns.isin(texts), None)

    def unreadable(self) -> dict[int, str]:
        """The studies that `studies` leaves out since what they say of themselves cannot be read: id, and a line.

        >>> reader.unreadable()
        {}
        """
        return {number: str(error) for number, _, error in self._described() if isinstance(error, StoreError)}

    def _described(self, study_id: int | None = None) -> Iterator[tuple[int, str, dict[str, Any] | StoreError]]:
        """The id and name of each study, or of one, with what is known of it, or a line why that cannot be read."""
        where = "" if study_id is None else "WHERE s.id = ?"
        # A study whose context is gone is none that could be shown, but one to name.
        said = ", t.title, t.note" if (has_titles := self._has("titles")) else ", NULL AS title, NULL AS note"
        titles = "LEFT JOIN titles t ON t.study_id = s.id " if has_titles else ""
        query = (
            f"SELECT s.*, c.settings{said} FROM studies s LEFT JOIN contexts c ON c.id = s.context_id {titles}"
            f"{where} ORDER BY s.updated DESC"
        )
        # Text that is no UTF-8 is read too: one such row would hide all others.
        self._db.text_factory = lambda raw: raw.decode(errors="backslashreplace")
        try:
            rows = list(self._rows(query, *([] if study_id is None else [study_id])))
        finally:
            self._db.text_factory = str
        for row in rows:
            name = storable(str(row["name"]), LONGEST_NAME)
            try:
                yield row["id"], name, described(row)
            except StoreError as error:
                line = f"study {row['id']} ({name}) in {self.path} cannot be read: {error}; {MEND}"
                yield row["id"], name, StoreError(line)

    def find(self, study: str | int) -> int:
        """Find a study by its number, its name or the beginning of its name; raise StoreError if not exactly one.

        What was renamed is found by the name that it was measured under too.

        >>> reader.find("filters"), reader.find("fil"), reader.find("1")
        (1, 1, 1)
        >>> reader.find("kernels")
        Traceback (most recent call last):
            ...
        weanalysis.errors.StoreError: no study 'kernels' in cache/results.sqlite; there are: 1 (filters)
        """
        studies = self.studies()
        text = str(study)
        if text.isdecimal() and int(text) in set(studies["id"]):
            return int(text)
        now, first = studies["name"].astype(str), studies["measured_as"].astype(str)
        exact, begins = (now == text) | (first == text), now.str.startswith(text) | first.str.startswith(text)
        for matches in (studies[exact], studies[begins]):
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
        """Everything about a study but its results: settings of its context, options, layers, what was skipped.

        Raises StoreError where there is no such study, or it cannot be read.

        >>> about = reader.describe(1)
        >>> about["kind"], about["options"], about["evaluate"]
        ('channel', {'side': 'out', 'grid': 'all'}, 'exact')
        """
        described = next(self._described(study_id), None)
        if described is None:
            raise StoreError(f"no study {study_id} in {self.path}")
        if isinstance(described[2], StoreError):
            raise described[2]
        return described[2]

    def own_metrics(self, context_id: int, key: str) -> list[dict[str, Any]]:
        """What is said of the metrics of a caller's own in which the study of a question has been measured.

        >>> reader.own_metrics(1, "no such question")
        []
        """
        row = self._row("SELECT id FROM studies WHERE key = ?", f"{context_id}:{key}")
        return [] if row is None else list(self.describe(row[0]).get("own_metrics") or [])

    def repeated(self, context_id: int, key: str | None = None) -> dict[str, Any]:
        """What came of measuring some answers of a context twice (of one question, if given); empty where none were.

        Raises StoreError where that is damaged.

        >>> reader.repeated(1)["num_differed"], reader.repeated(1, "no such question")
        (0, {})
        """
        mine = f"{context_id}:{key}"
        rows = self._rows("SELECT key, about FROM studies WHERE context_id = ?", context_id)
        abouts = [json_object(row, "about") for row in rows if key is None or row["key"] == mine]
        return joined_repeats(one["repeated"] for one in abouts if "repeated" in one)

    def outdated(self, name: str | None = None) -> list[tuple[int, str]]:
        """The studies (id, name) of an older engine, whose answers are not used again; those of one name if given.

        >>> reader.outdated()
        []
        """
        return [
            (number, shown)
            for number, shown, about in self._described()
            if isinstance(about, dict) and is_outdated(about) and name in (None, shown)
        ]

    def ablation_ids(self, study_id: int) -> np.ndarray:
        """The ids of a study's ablations (A,), in the order of its plan; raise StoreError where that cannot be read.

        >>> reader.ablation_ids(1).tolist()
        [1, 2, 3, 4]
        """
        rows = self._rows("SELECT ablation_id FROM plans WHERE study_id = ? ORDER BY position", study_id)
        try:
            ids = np.array([row[0] for row in rows])
        except ValueError:
            ids = np.empty(0)
        if ids.dtype.kind != "i":
            raise StoreError(f"study {study_id} in {self.path} has no plan that can be read; {MEND}")
        return ids.astype(np.int64, copy=False)

    def labels(self, study_id: int) -> pd.DataFrame:
        """What the rows of a study's plan are called; numbers as float where any of them can be missing.

        Raises StoreError where that cannot be read.

        >>> reader.labels(1)[["layer", "selection", "out_channel", "num_weights"]].values.tolist()[0]
        ['0', 'filter', 0.0, 27]
        """
        names = [label.name for label in LABELS]
        there = {row["name"] for row in self._rows("PRAGMA table_info(plans)")}  # an older file may lack some
        columns = ", ".join(name if name in there else f"NULL AS {name}" for name in names)
        rows = self._rows(f"SELECT {columns} FROM plans WHERE study_id = ? ORDER BY position", study_id)
        table = pd.DataFrame.from_records([tuple(row) for row in rows], columns=names, coerce_float=True)
        try:
            for label in LABELS:
                if label.sql != "TEXT":
                    column = table[label.name]
                    table[label.name] = pd.to_numeric(column) if label.always else column.astype(float)
            texts = [table[label.name] for label in LABELS if label.sql == "TEXT"]
            if not {pd.api.types.infer_dtype(column, skipna=True) for column in texts} <= {"string", "empty"}:
                raise ValueError("a name that is no text")
        except (TypeError, ValueError) as error:
            why = one_line(error, 80)
            raise StoreError(f"the plan of study {study_id} in {self.path} is damaged ({why}); {MEND}") from error
        return table

    # What was measured ------------------------------------------------------------------------------------------------

    def done(self, context_id: int, start: int, stop: int, statistic: str = "correct") -> np.ndarray:
        """The ids (K,) of the ablations of which this shard has a statistic, sorted; older blocks lack some.

        >>> context = reader.describe(1)["context_id"]
        >>> reader.done(context, 0, 8).tolist(), reader.done(context, 8, 16).tolist()
        ([1, 2, 3, 4], [])
        """
        query, key = "SELECT ablation_ids FROM blocks", (context_id, start, stop)
        if statistic == "correct":
            rows = self._rows(f"{query} WHERE context_id = ? AND start = ? AND stop = ?", *key)
        elif statistic == PIXELS and self._has("block_pixels"):
            query += " JOIN block_pixels ON block_id = id"
            rows = self._rows(f"{query} WHERE context_id = ? AND start = ? AND stop = ?", *key)
        elif self._has("block_values"):
            query += " JOIN block_values ON block_id = id"
            rows = self._rows(
                f"{query} WHERE context_id = ? AND start = ? AND stop = ? AND statistic = ?", *key, kept_as(statistic)
            )
        else:
            rows = iter(())
        ids = [numbers(row[0], np.int32, f"a block of images {start} to {stop}") for row in rows]
        return np.unique(np.concatenate([np.empty(0, np.int32), *ids]))

    def screens(self, study_id: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]]:
        """For each block of a screened study: where its ablations stand in the plan, what is kept of each, about it.

        What is kept is (K,) each, see `ablation.evaluate.decisions.Screen`; what an older version did not keep is 0.
        Raises StoreError for a study that is not screened.

        >>> table = ablate(net, images, "channel", side="out", evaluate="screened", cache="screened")
        >>> places, numbers, about = next(Reader.open("screened/results.sqlite").screens(1))
        >>> places.tolist(), numbers["num_left"].tolist()
        ([0, 1, 2, 3], [0.0, 0.0, 0.0, 0.0])
        """
        if (evaluate := self.describe(study_id)["evaluate"]) != "screened":
            raise StoreError(f"study {study_id} in {self.path} is {evaluate}: only of screened ones it is kept how")
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        context_id, shards = self._shards(study_id)
        for shard in shards.values():
            for block, index in self._first_blocks(context_id, shard, ids):
                row = self._row("SELECT numbers, about FROM screens WHERE block_id = ?", block.id)
                kept = np.zeros((len(SCREENED), len(ids)))
                kept[:, index[index >= 0]] = screen_numbers(row and row[0], block)[:, index >= 0]
                here = np.isin(place, index[index >= 0])
                about = json_object(row, "about")
                yield np.nonzero(here)[0], dict(zip(SCREENED, kept[:, place[here]], strict=True)), about

    def agreement(self, study_id: int) -> dict[str, Any]:
        """How far the fast evaluation was from the naive one, in all that was measured of the study's network.

        `largest_difference` of logits, `num_rechecked` images decided naively, `num_checked` answers of `num_answers`
        that were drawn by lot and computed the naive way too, of which `num_differed` did and were measured again, and
        the `distrusted` layers, measured the naive way alone, each with the reason. `repeated` is what came of the
        answers that were measured once more by the process that runs the study, the naive way and in batches of another
        size: `num_answers` of them, of which `num_ties` were others within rounding and `num_differed` beyond it, and
        their `largest_difference` of logits; NaN where that is not recorded. Raises StoreError where the file is
        damaged.

        >>> reader.agreement(1)["num_differed"], reader.agreement(1)["distrusted"]
        (0, {})
        """
        context_id, _ = self._shards(study_id)
        row = self._row(
            "SELECT max(largest_difference), sum(num_rechecked), "
            "sum((stop - start) * length(ablation_ids) / 4) FROM blocks WHERE context_id = ?",
            context_id,
        )
        largest, rechecked, answers = row if row is not None else (None, None, None)
        query = "SELECT c.* FROM checks c JOIN blocks b ON b.id = c.block_id WHERE b.context_id = ?"
        checks = list(self._rows(query, context_id)) if self._has("checks") else []
        counts = [rechecked, answers, *(row[name] for row in checks for name in ("num_checked", "num_differed"))]
        if not isinstance(largest, float | int | None) or not all(isinstance(one, int | None) for one in counts):
            raise StoreError(f"the blocks of study {study_id} in {self.path} are damaged; {MEND}")
        distrusted: dict[str, str] = {}
        for row in checks:
            distrusted |= json_object(row, "distrusted")
        return {
            "largest_difference": np.nan if largest is None else float(largest),
            "num_rechecked": rechecked or 0,
            "num_answers": answers or 0,
            "num_checked": sum(row["num_checked"] for row in checks),
            "num_differed": sum(row["num_differed"] for row in checks),
            "distrusted": distrusted,
            "repeated": {**dict.fromkeys(REPEATED, np.nan), **self.repeated(context_id)},
        }

    def _shards(self, study_id: int) -> tuple[int, dict[int, tuple[int, int]]]:
        """The context of a study, and of its shards those that were measured under anything, by number, in order."""
        about = self.describe(study_id)
        context_id, size, num_images = int(about["context_id"]), int(about["shard_size"]), int(about["num_images"])
        rows = self._rows(
            "SELECT start, stop FROM shards WHERE context_id = ? AND start >= 0 AND start < ? ORDER BY start",
            context_id,
            num_images,
        )
        return context_id, {
            start // size: (start, stop)
            for start, stop in rows
            if isinstance(start, int) and start % size == 0 and stop == min(start + size, num_images)
        }

    def _blocks(
        self, context_id: int, shard: tuple[int, int], first: int, last: int, statistic: str = "correct"
    ) -> Iterator[Block]:
        having = "" if statistic == "correct" else "AND id IN (SELECT block_id FROM block_values WHERE statistic = ?) "
        having = "AND id IN (SELECT block_id FROM block_pixels) " if statistic == PIXELS else having
        return map(
            Block.of,
            self._rows(
                "SELECT * FROM blocks WHERE context_id = ? AND start = ? AND stop = ? AND last_ablation >= ? "
                f"AND first_ablation <= ? {having}ORDER BY id",
                context_id,
                *shard,
                first,
                last,
                *([kept_as(statistic)] if "?" in having else []),
            ),
        )

    def _intact(self, context_id: int, shard: tuple[int, int]) -> Intact | None:
        row = self._row("SELECT * FROM shards WHERE context_id = ? AND start = ? AND stop = ?", context_id, *shard)
        return None if row is None else Intact.of(row)

    def _first_blocks(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, statistic: str = "correct"
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """For each block of a shard that has a statistic: which of `ids`, sorted and different, its ablations are.

        -1 stands for none. Two studies may have measured the same ablation at the same time: the first one counts.
        """
        seen = np.zeros(len(ids), bool)
        for block in self._blocks(context_id, shard, int(ids[0]), int(ids[-1]), statistic):
            index = np.minimum(np.searchsorted(ids, block.ablation_ids), len(ids) - 1)
            wanted = (ids[index] == block.ablation_ids) & ~seen[index]
            seen[index[wanted]] = True
            yield block, np.where(wanted, index, -1)

    def _valued_blocks(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, statistic: str
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray, BlockValues]]:
        """For each block of a shard that has a statistic: which of `ids` its ablations are, intact numbers, changes."""
        if not self._has("block_values"):
            return
        name = kept_as(statistic)
        row = self._row(
            "SELECT numbers FROM intact_values WHERE context_id = ? AND start = ? AND stop = ? AND statistic = ?",
            context_id,
            *shard,
            name,
        )
        if row is None:
            return
        intact = numbers(row[0], np.float32, f"the {statistic} of images {shard[0]} to {shard[1]}", shard[1] - shard[0])
        for block, index in self._first_blocks(context_id, shard, ids, statistic):
            stored = self._row("SELECT * FROM block_values WHERE block_id = ? AND statistic = ?", block.id, name)
            yield block, index, intact, BlockValues.of(stored, block)

    def _intact_pixels(self, context_id: int, shard: tuple[int, int]) -> np.ndarray | None:
        """How many pixels of each image of a shard are of each class, (N, 3, C); None where that is not kept."""
        if not self._has("intact_pixels"):
            return None
        key = (context_id, *shard)
        row = self._row("SELECT * FROM intact_pixels WHERE context_id = ? AND start = ? AND stop = ?", *key)
        what = f"the pixels of images {shard[0]} to {shard[1]}"
        return None if row is None else intact_pixels(row, shard[1] - shard[0], what)

    def _pixel_blocks(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray, BlockPixels]]:
        """For each block of a shard that has pixels: which of `ids` its ablations are, intact counts, changes."""
        intact = self._intact_pixels(context_id, shard)
        if intact is None:
            return
        for block, index in self._first_blocks(context_id, shard, ids, PIXELS):
            stored = self._row("SELECT * FROM block_pixels WHERE block_id = ?", block.id)
            yield block, index, intact, BlockPixels.of(stored, block, intact.shape[2])

"""What lies in a results file, checked as it is read: a row that is not as we write it is a StoreError, and no more."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weanalysis.cache import one_line, storable
from weanalysis.errors import StoreError
from weanalysis.results.store.schema import SCREENED
from weanalysis.tasks import METRICS

# So many of the numbers in SCREENED were kept at first.
_FIRST_SCREENED = 5

MEND = "the same command as before writes it anew, and keeps what was measured"


def numbers(raw: object, dtype: type[np.generic], what: str, length: int | None = None) -> np.ndarray:
    """Return the array that lies in a cell as bytes; raise StoreError for another length, or anything else."""
    whole = isinstance(raw, bytes) and len(raw) % np.dtype(dtype).itemsize == 0
    found = np.frombuffer(raw, dtype) if whole else None  # type: ignore[call-overload]
    if found is None or (length is not None and len(found) != length):
        raise StoreError(f"{what} is damaged: its bytes are not the numbers that were written")
    return found


@dataclass(frozen=True)
class Intact:
    """What the intact network answered on one shard: an entry an image; the bits of `correct` are the metrics."""

    image_ids: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, row: sqlite3.Row) -> Intact:
        """Check a row of `shards`; raise StoreError where its columns are not of the shard's length."""
        what, length = f"the shard of images {row['start']} to {row['stop']}", row["stop"] - row["start"]
        ids, targets, predictions = (
            numbers(row[name], np.int32, what, length) for name in ("image_ids", "targets", "predictions")
        )
        return cls(ids, targets, predictions, numbers(row["correct"], np.uint8, what, length))


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

    @classmethod
    def of(cls, row: sqlite3.Row) -> Block:
        """Check a row of `blocks`; raise StoreError where its columns do not go together, or point elsewhere."""
        what = f"block {row['id']} of images {row['start']} to {row['stop']}"
        ids = numbers(row["ablation_ids"], np.int32, what)
        counts = numbers(row["counts"], np.int32, what, len(ids))
        # Summed as unsigned, a negative count is more than any block has.
        changes = int(counts.view(np.uint32).sum(dtype=np.int64))
        positions = numbers(row["positions"], np.int32, what, changes)
        if changes and int(positions.view(np.uint32).max()) >= row["stop"] - row["start"]:
            raise StoreError(f"{what} is damaged: it names images that the shard does not have")
        return cls(
            row["id"],
            row["start"],
            row["stop"],
            ids,
            counts,
            positions,
            numbers(row["classes"], np.int32, what, changes),
            numbers(row["correct"], np.uint8, what, changes),
        )

    def changes_of(self, ablation_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Places in the shard, new classes and new correctness under one ablation; None if it is not here."""
        (places,) = np.nonzero(self.ablation_ids == ablation_id)
        if not len(places):
            return None
        ends = np.cumsum(self.counts)
        span = slice(int(ends[places[0]] - self.counts[places[0]]), int(ends[places[0]]))
        return self.positions[span], self.classes[span], self.correct[span]


@dataclass(frozen=True)
class BlockValues:
    """What is kept of a number of each image, such as its loss, for a block's ablations.

    `sums` and `squares` (A,) are over all images of the shard. `changes` (A, K) are those of the images at `positions`
    (A, K), those that changed most; of all images where `positions` is None.
    """

    sums: np.ndarray
    squares: np.ndarray
    positions: np.ndarray | None
    changes: np.ndarray

    @classmethod
    def of(cls, row: sqlite3.Row, block: Block) -> BlockValues:
        """Check a row of `block_values`; raise StoreError where its columns do not go together, or point elsewhere."""
        what, count = f"the {one_line(row['statistic'], 20)} of block {block.id}", len(block.ablation_ids)
        kept, num_images = row["num_kept"], block.stop - block.start
        if not _is_count(kept) or kept > num_images:
            raise StoreError(f"{what} is damaged: it keeps more images than the shard has")
        moments = numbers(row["moments"], np.float64, what, 2 * count).reshape(2, count)
        changes = numbers(row["changes"], np.float16, what, count * kept).reshape(count, kept)
        if kept == num_images:
            return cls(moments[0], moments[1], None, changes)
        positions = numbers(row["positions"], np.int32, what, count * kept).reshape(count, kept)
        if positions.size and int(positions.view(np.uint32).max()) >= num_images:
            raise StoreError(f"{what} is damaged: it names images that the shard does not have")
        return cls(moments[0], moments[1], positions, changes)


def screen_numbers(raw: object, block: Block) -> np.ndarray:
    """Return how a block was screened, (len(SCREENED), ablations); raise StoreError for other sizes, or none.

    What an older version did not keep is 0.
    """
    what, width = f"the screening of block {block.id}", len(block.ablation_ids)
    found = numbers(raw, np.float32, what)
    if len(found) not in (_FIRST_SCREENED * width, len(SCREENED) * width):
        raise StoreError(f"{what} is damaged: its bytes are not the numbers that were written")
    whole = np.zeros((len(SCREENED), width), np.float32)
    whole[: len(found) // width] = found.reshape(-1, width)
    return whole


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 1e11


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _is_description(value: object) -> bool:
    return isinstance(value, dict)


def _or_none(test: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or test(value)


# What must be there for a study to be shown at all; what else its descriptions hold, its readers look up with care.
_FIELDS: dict[str, Callable[[object], bool]] = {
    "id": _is_count,
    "context_id": _is_count,
    "num_images": _is_count,
    "done": _is_count,
    "total": _is_count,
    "seconds": _is_time,
    "created": _is_time,
    "updated": _is_time,
    "name": _is_text,
    "kind": _is_text,
    "state": _is_text,
    "evaluate": _is_text,
    "weights_hash": _is_text,
    "metric": lambda value: isinstance(value, str) and value in METRICS,
    "shard_size": lambda value: _is_count(value) and value != 0,
    "model": _or_none(_is_text),
    "weights": _or_none(_is_text),
    "data": _or_none(_is_text),
    "command": _or_none(_is_text),
    "checkpoint": _or_none(_is_text),
    "excitation": _or_none(_is_text),
    "stopping": _or_none(_is_text),
    "evaluation_note": _or_none(_is_text),
    "fingerprint": _or_none(_is_text),
    "dtype": _or_none(_is_text),
    "options": _or_none(_is_description),
    "versions": _or_none(_is_description),
    "transform": _or_none(_is_description),
    "architecture": _or_none(_is_description),
    "layers": _or_none(_is_list_of_text),
    "classes": _or_none(_is_list_of_text),
    "notes": _or_none(_is_list_of_text),
    "skipped": _or_none(
        lambda value: isinstance(value, list) and all(_is_list_of_text(pair) and len(pair) == 2 for pair in value)
    ),
}


def described(row: sqlite3.Row) -> dict[str, Any]:
    """Merge a study's row with what it and its context say of themselves; raise StoreError for what is not readable.

    Text is `storable`: rows of an older version may hold some that cannot be printed.
    """
    found = {**json_object(row, "settings"), **json_object(row, "about"), **dict(row)}
    for name in ("settings", "about", "key"):
        del found[name]
    found["name"] = storable(found["name"])
    wrong = next((name for name, test in _FIELDS.items() if not test(found.get(name))), None)
    if wrong is None and found["evaluate"] == "screened":
        screen = found.get("screen")
        wrong = None if isinstance(screen, Mapping) and screen.get("metric") in list(METRICS) else "screen"
    if wrong is not None:
        value = one_line(found.get(wrong), 60)
        raise StoreError(f"its {wrong.replace('_', ' ')} is no value that a study has: {value!r}")
    return found


def json_object(row: sqlite3.Row, column: str) -> dict[str, Any]:
    text = row[column]
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"its {column} are no JSON ({one_line(error, 80)})") from error
    if not isinstance(found, dict):
        raise StoreError(f"its {column} are missing, or no description")
    return storable(found) if "\\u" in text else found

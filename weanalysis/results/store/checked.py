"""What lies in a results file, checked as it is read: a row that is not as we write it is a StoreError, and no more."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from weanalysis.cache import storable
from weanalysis.errors import StoreError, StudyError, one_line
from weanalysis.results.store.schema import SCREENED
from weanalysis.tasks import IOU_OF_CLASS, METRICS, own_metric_of

# So many of the numbers in SCREENED were kept at first.
_FIRST_SCREENED = 5

MEND = "the same command as before writes it anew, and keeps what was measured"


def numbers(raw: object, dtype: type[np.generic], what: str, length: int | None = None) -> np.ndarray:
    """Return the array that lies in a cell as bytes; raise StoreError for another length, or anything else."""
    whole = isinstance(raw, bytes) and len(raw) % np.dtype(dtype).itemsize == 0
    array = np.frombuffer(raw, dtype) if whole else None  # type: ignore[call-overload]
    if array is None or (length is not None and len(array) != length):
        raise StoreError(f"{what} is damaged: its bytes are not the numbers that were written")
    return array


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
        if not isinstance(kept, int) or not 0 <= kept <= num_images:
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
    array = numbers(raw, np.float32, what)
    if len(array) not in (_FIRST_SCREENED * width, len(SCREENED) * width):
        raise StoreError(f"{what} is damaged: its bytes are not the numbers that were written")
    whole = np.zeros((len(SCREENED), width), np.float32)
    whole[: len(array) // width] = array.reshape(-1, width)
    return whole


def _is_count(value: int) -> bool:
    return 0 <= value < 2**53


def _is_time(value: float) -> bool:
    return 0 <= value < 1e11


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_COUNTS = ("id", "context_id", "num_images", "done", "total", "shard_size")
_TIMES = ("seconds", "created", "updated")
_TEXTS = ("name", "kind", "state", "evaluate", "weights_hash", "metric")
_TEXTS_OR_NONE = (
    "model",
    "weights",
    "data",
    "command",
    "checkpoint",
    "excitation",
    "stopping",
    "evaluation_note",
    "fingerprint",
    "dtype",
    "note",
)
_DESCRIPTIONS = ("options", "versions", "transform", "architecture")
_LISTS = ("layers", "classes", "notes", "skipped")
# What must be there for a study to be shown at all; what else its descriptions hold, its readers look up with care.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_COUNTS, (int,)),
    **dict.fromkeys(_TIMES, (int, float)),
    **dict.fromkeys(_TEXTS, (str,)),
    **dict.fromkeys(_TEXTS_OR_NONE, (str, type(None))),
    **dict.fromkeys(_DESCRIPTIONS, (dict, type(None))),
    **dict.fromkeys(_LISTS, (list, type(None))),
}
_VALUES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(_TIMES, _is_time),
    **dict.fromkeys(("layers", "classes", "notes"), lambda value: value is None or _is_list_of_text(value)),
    "shard_size": lambda value: 0 < value < 2**53,
    "skipped": lambda value: value is None or all(_is_list_of_text(pair) and len(pair) == 2 for pair in value),
}


@cache
def _wrong_type(types: tuple[type, ...]) -> str | None:
    return next((name for name, kind in zip(_TYPES, types, strict=True) if kind not in _TYPES[name]), None)


def described(row: sqlite3.Row) -> dict[str, Any]:
    """Merge a study's row with what it and its context say of themselves; raise StoreError for what is not readable.

    Text is `storable`: rows of an older version may hold some that cannot be printed.
    """
    return dict(_described(row))


# The dashboard reads all studies anew with every click, and hardly any of them has changed since.
@lru_cache(maxsize=512)
def _described(row: sqlite3.Row) -> dict[str, Any]:
    about = {**json_object(row, "settings"), **json_object(row, "about"), **dict(row)}
    for name in ("settings", "about", "key"):
        del about[name]
    about["measured_as"] = storable(about["name"])
    about["name"] = storable(about.pop("title") or about["name"])
    about["note"] = storable(about["note"])
    wrong = _wrong_type(tuple(map(type, map(about.get, _TYPES))))
    wrong = wrong or next((name for name, test in _VALUES.items() if not test(about.get(name))), None)
    wrong = wrong or _wrong_metric(about)
    if wrong is None and about["evaluate"] == "screened":
        screen = about.get("screen")
        wrong = None if isinstance(screen, Mapping) and screen.get("metric") in list(METRICS) else "screen"
    if wrong is not None:
        value = one_line(about.get(wrong), 60)
        raise StoreError(f"its {wrong.replace('_', ' ')} is no value that a study has: {value!r}")
    return about


def _wrong_metric(about: Mapping[str, Any]) -> str | None:
    """Which of a study's metrics cannot be read; those of its caller's own are known from then on."""
    own = about.get("own_metrics") or []
    try:
        names = [own_metric_of(one).name for one in own] if isinstance(own, list) else None
    except StudyError:
        names = None
    if names is None:
        return "own_metrics"
    known = about["metric"] in METRICS or about["metric"] in names or about["metric"].startswith(IOU_OF_CLASS)
    return None if known else "metric"


def json_object(row: sqlite3.Row, column: str) -> dict[str, Any]:
    text = row[column]
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"its {column} are no JSON ({one_line(error, 80)})") from error
    if not isinstance(content, dict):
        raise StoreError(f"its {column} are missing, or no description")
    return storable(content) if "\\u" in text else content


# What is kept of the answers of a study that were measured once more, and how two such numbers are one.
REPEATED: dict[str, Callable[[Iterable[Any]], Any]] = {
    "num_answers": sum,
    "num_ties": sum,
    "num_differed": sum,
    "largest_difference": max,
}


def joined_repeats(parts: Iterable[object]) -> dict[str, Any]:
    """Put together what studies say of answers that were measured twice; raise StoreError for what is no number.

    >>> one = {"num_answers": 8, "num_ties": 0, "num_differed": 0, "largest_difference": 1e-6}
    >>> joined_repeats([one, {**one, "largest_difference": 2e-6}])["num_answers"], joined_repeats([])
    (16, {})
    """
    known: list[dict[str, Any]] = []
    for one in parts:
        if not isinstance(one, dict) or not all(
            isinstance(one.get(name), int | float) and 0 <= one[name] < np.inf for name in REPEATED
        ):
            raise StoreError(f"what is said of answers that were measured twice is damaged; {MEND}")
        known.append(one)
    return {name: join(one[name] for one in known) for name, join in REPEATED.items()} if known else {}

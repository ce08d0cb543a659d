"""What is counted of the changes kept, shard by shard, for any metric and any part of the images."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weanalysis.errors import StoreError
from weanalysis.results.store.checked import Block, BlockValues, Intact, json_object, screen_numbers
from weanalysis.results.store.checked import numbers as checked_numbers
from weanalysis.results.store.schema import SCREENED
from weanalysis.results.store.studies import Studies
from weanalysis.tasks import COUNTING, find_metric
from weanalysis.tasks.aggregates import Answers

if TYPE_CHECKING:
    from weanalysis.results.statistics import StoppingRule

# So many answers, of ablations and images, are laid out at once.
_MOST_ANSWERS = 2**21


class Counts(Studies):
    """A results file as numbers: how many images each ablation of a study lost and gained."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        super().__init__(connection, path)
        self._replayed: dict[int, tuple[float, np.ndarray]] = {}

    def counts(self, study_id: int, metric: str, half: int | None = None) -> dict[str, np.ndarray]:
        """Count, for each ablation of a study, images measured (num_images), right when intact, lost and gained.

        `half` 0 or 1 counts every other image alone, in the order they were served: a choice made on one half can be
        confirmed on the other, and more images leave both halves what they were.
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        limits = self._num_shards(study_id)
        sums = {name: np.zeros(len(place), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        context_id, shards = self._shards(study_id)
        for number, shard in shards.items():
            counted = self._count(context_id, shard, ids, metric, half)
            for name, sum_ in sums.items():
                sum_ += counted[name][place] * (True if limits is None else number < limits)
        return sums

    def moments(self, study_id: int, statistic: str) -> dict[str, np.ndarray]:
        """Sum a number of each image over those of which every ablation has it, an entry an ablation.

        num_images; `intact`, the sum when intact; `change` and `squares`, the sums of its changes and their squares.
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        sums = {name: np.zeros(len(ids)) for name in ("num_images", "intact", "change", "squares")}
        context_id, shards = self._shards(study_id)
        for shard in shards.values():
            for _, index, intact, values in self._valued_blocks(context_id, shard, ids, statistic):
                here = index >= 0
                found = (len(intact), intact.sum(dtype=np.float64), values.sums[here], values.squares[here])
                for name, each in zip(sums, found, strict=True):
                    sums[name][index[here]] += each
        return {name: values[place] for name, values in sums.items()}

    def value_changes(self, study_id: int, position: int, statistic: str) -> dict[str, np.ndarray]:
        """The images whose number an ablation changed, as far as these are kept: image_id, before, after, (K,) each."""
        ids = self.ablation_ids(study_id)[[position]]
        context_id, shards = self._shards(study_id)
        found: dict[str, list[np.ndarray]] = {"image_id": [], "before": [], "after": []}
        for shard in shards.values():
            for block, index, before, values in self._valued_blocks(context_id, shard, ids, statistic):
                (row,) = np.nonzero(index >= 0)
                for one in row[:1]:
                    intact = self._intact(context_id, shard)
                    assert intact is not None and block.stop == shard[1]
                    places = np.arange(len(before)) if values.positions is None else values.positions[one]
                    found["image_id"].append(intact.image_ids[places])
                    found["before"].append(before[places])
                    found["after"].append(before[places] + values.changes[one].astype(np.float32))
        return {name: np.concatenate([np.empty(0), *parts]) for name, parts in found.items()}

    def answers(self, study_id: int, statistic: str) -> Iterator[tuple[np.ndarray, Answers, Answers]]:
        """All answers of a study, some ablations at a time, each with those of the same images when intact.

        Yields their positions in the plan (A,), what the intact network answers (1, N), and the ablated ones (A, N): a
        part has ablations that were measured on the same shards. `statistic` "confidence" brings each answer's along.
        Raises StoreError where that is not kept of every image.
        """
        if not self.keeps_all(study_id, statistic):
            raise StoreError(
                f"study {study_id} is so large that it keeps the {statistic} of those images alone that changed most, "
                "and this needs all: run fewer images or ablations, or choose another metric"
            )
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        context_id, shards = self._shards(study_id)
        has = np.array([np.isin(ids, self.done(context_id, *shard, statistic)) for shard in shards.values()])
        if not has.size:
            return
        patterns, of_id = np.unique(has, axis=1, return_inverse=True)
        for number in range(patterns.shape[1]):
            measured = [shard for shard, there in zip(shards.values(), patterns[:, number], strict=True) if there]
            (members,) = np.nonzero(of_id.ravel() == number)
            at_once = max(1, _MOST_ANSWERS // max(1, sum(stop - start for start, stop in measured)))
            for low in range(0, len(members) if measured else 0, at_once):
                some = members[low : low + at_once]
                parts = [self._answers_of(context_id, shard, ids[some], statistic) for shard in measured]
                before, after = map(_joined, zip(*parts, strict=True))
                (rows,) = np.nonzero(np.isin(place, some))
                of_row = np.searchsorted(some, place[rows])
                yield rows, before, Answers(after.targets, *(each[of_row] for each in after.numbers))

    def keeps_all(self, study_id: int, statistic: str) -> bool:
        """Whether, of each number that a study keeps of a statistic, it keeps that of every image."""
        ids = np.unique(self.ablation_ids(study_id))
        context_id, shards = self._shards(study_id)
        return statistic == "correct" or all(
            values.positions is None or not (index >= 0).any()
            for shard in shards.values()
            for _, index, _, values in self._valued_blocks(context_id, shard, ids, statistic)
        )

    def _answers_of(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, statistic: str
    ) -> tuple[Answers, Answers]:
        """Of one shard: the intact answers (1, N), and those under the ablations `ids` (A, N)."""
        intact = self._intact(context_id, shard)
        assert intact is not None
        predictions = np.repeat(intact.predictions[None], len(ids), 0)
        if statistic == "correct":
            for block, index in self._first_blocks(context_id, shard, ids):
                _put_changes(predictions, block, index)
            return Answers(intact.targets, intact.predictions[None]), Answers(intact.targets, predictions)
        confidence = np.empty(predictions.shape, np.float32)
        for block, index, before, values in self._valued_blocks(context_id, shard, ids, statistic):
            _put_changes(predictions, block, index)
            here = index >= 0
            confidence[index[here]] = before + values.changes[here].astype(np.float32)
        first = Answers(intact.targets, intact.predictions[None], before[None])
        # A change in half precision may lead beyond 1.
        return first, Answers(intact.targets, predictions, np.clip(confidence, 0, 1))

    def _valued_blocks(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, statistic: str
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray, BlockValues]]:
        """For each block of a shard that has a statistic: which of `ids` its ablations are, intact numbers, changes."""
        if not self._has("block_values"):
            return
        key = (context_id, *shard, statistic)
        row = self._row(
            "SELECT numbers FROM intact_values WHERE context_id = ? AND start = ? AND stop = ? AND statistic = ?", *key
        )
        if row is None:
            return
        intact = checked_numbers(
            row[0], np.float32, f"the {statistic} of images {shard[0]} to {shard[1]}", shard[1] - shard[0]
        )
        for block, index in self._first_blocks(context_id, shard, ids, statistic):
            found = self._row("SELECT * FROM block_values WHERE block_id = ? AND statistic = ?", block.id, statistic)
            yield block, index, intact, BlockValues.of(found, block)

    def screens(self, study_id: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]]:
        """For each block of a screened study: where its ablations stand in the plan, what is kept of each, about it.

        See `ablation.evaluate.Screen`; what an older version did not keep is 0.
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        context_id, shards = self._shards(study_id)
        for shard in shards.values():
            for block, index in self._first_blocks(context_id, shard, ids):
                row = self._row("SELECT numbers, about FROM screens WHERE block_id = ?", block.id)
                numbers = np.zeros((len(SCREENED), len(ids)))
                numbers[:, index[index >= 0]] = screen_numbers(row and row[0], block)[:, index >= 0]
                here = np.isin(place, index[index >= 0])
                about = json_object(row, "about")
                yield np.nonzero(here)[0], dict(zip(SCREENED, numbers[:, place[here]], strict=True)), about

    def screen_counts(self, study_id: int) -> dict[str, np.ndarray]:
        """Sum, for each ablation of a screened study, what is kept of its screening: see `ablation.evaluate.Screen`."""
        sums = {name: np.zeros(len(self.ablation_ids(study_id))) for name in SCREENED}
        for places, numbers, _ in self.screens(study_id):
            for name, sum_ in sums.items():
                sum_[places] += numbers[name]
        return sums

    def shard_counts(self, study_id: int, shard: tuple[int, int], metric: str) -> dict[str, np.ndarray]:
        """The same as `counts`, of one shard (start, stop) alone and whatever a stopping rule leaves out."""
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        counted = self._count(int(self.describe(study_id)["context_id"]), shard, ids, metric)
        return {name: values[place] for name, values in counted.items()}

    def _count(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, metric: str, half: int | None = None
    ) -> dict[str, np.ndarray]:
        """Count for the ablations `ids`, sorted and different, what changed in one shard; 0 where not measured."""
        right = find_metric(metric, COUNTING).right
        counted = {name: np.zeros(len(ids), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        intact = self._intact(context_id, shard)
        if intact is None:
            return counted
        before = right(intact.correct)
        chosen = np.ones(len(before), bool) if half is None else np.arange(*shard) % 2 == half
        for block, index in self._first_blocks(context_id, shard, ids):
            counted["num_images"][index[index >= 0]] = int(chosen.sum())
            counted["num_correct"][index[index >= 0]] = int(before[chosen].sum())
            of_change = np.where(chosen[block.positions], np.repeat(index, block.counts), -1)
            was, now = before[block.positions], right(block.correct)
            for name, changed in (("lost", was & ~now), ("gained", ~was & now)):
                counted[name] += np.bincount(of_change[changed & (of_change >= 0)], minlength=len(ids))
        return counted

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
        for place, (number, shard) in enumerate(self._shards(study_id)[1].items()):
            if number != place:  # a shard before it was not measured yet
                break
            counted = self.shard_counts(study_id, shard, about["metric"])
            if not replay.add(counted["lost"], counted["gained"], counted["num_images"]):
                break
        self._replayed[study_id] = about["updated"], replay.num_shards
        return replay.num_shards

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
        return map(
            Block.of,
            self._rows(
                "SELECT * FROM blocks WHERE context_id = ? AND start = ? AND stop = ? AND last_ablation >= ? "
                f"AND first_ablation <= ? {having}ORDER BY id",
                context_id,
                *shard,
                first,
                last,
                *([statistic] if having else []),
            ),
        )

    def _intact(self, context_id: int, shard: tuple[int, int]) -> Intact | None:
        row = self._row("SELECT * FROM shards WHERE context_id = ? AND start = ? AND stop = ?", context_id, *shard)
        return None if row is None else Intact.of(row)


def _put_changes(predictions: np.ndarray, block: Block, index: np.ndarray) -> None:
    """Put a block's new classes into those of the ablations that `index` names (−1: none)."""
    row = np.repeat(index, block.counts)
    predictions[row[row >= 0], block.positions[row >= 0]] = block.classes[row >= 0]


def _joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several shards, one after another."""
    numbers = (np.concatenate(each, axis=1) for each in zip(*(part.numbers for part in parts), strict=True))
    return Answers(np.concatenate([part.targets for part in parts]), *numbers)

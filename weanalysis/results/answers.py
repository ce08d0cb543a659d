"""All answers of a study, for metrics that follow from no single image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from weanalysis.errors import StoreError
from weanalysis.results.pixels import PixelAnswers, classes_of
from weanalysis.results.store.checked import Block
from weanalysis.tasks.aggregates import Answers
from weanalysis.tasks.pixels import PixelCounts

# So many answers, of ablations and images, are laid out at once.
_MOST_ANSWERS = 2**21


class AllAnswers(PixelAnswers):
    """A results file as what each network answered on each image."""

    def answers(self, study_id: int, statistic: str) -> Iterator[tuple[np.ndarray, Any, Any]]:
        """All answers of a study, some ablations at a time, each with those of the same images when intact.

        Yields their positions in the plan (A,), what the intact network answers (1, N), and the ablated ones (A, N): a
        part has ablations that were measured on the same shards. They are `Answers`, or of the statistic "pixels"
        `PixelCounts`. A `statistic` that is a number of each image, such as "confidence", comes along as the answers'
        confidence.
        Raises StoreError where that is not kept of every image.

        >>> positions, before, after = next(store.answers(1, "correct"))
        >>> positions.tolist(), before.predictions[0, :3].tolist(), after.predictions[:, :3].tolist()
        ([0, 1, 2], [0, 1, 2], [[1, 1, 2], [0, 0, 2], [0, 1, 0]])
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
        classes = classes_of(self.describe(study_id))
        width = 2 * max(1, len(classes)) if statistic == "pixels" else 1
        patterns, of_id = np.unique(has, axis=1, return_inverse=True)
        for number in range(patterns.shape[1]):
            measured = [shard for shard, there in zip(shards.values(), patterns[:, number], strict=True) if there]
            (members,) = np.nonzero(of_id.ravel() == number)
            at_once = max(1, _MOST_ANSWERS // max(1, sum(stop - start for start, stop in measured) * width))
            for low in range(0, len(members) if measured else 0, at_once):
                some = members[low : low + at_once]
                parts: list[tuple[Any, Any]] = [
                    self._pixels_of(context_id, shard, ids[some], classes)
                    if statistic == "pixels"
                    else self._answers_of(context_id, shard, ids[some], statistic)
                    for shard in measured
                ]
                kind = PixelCounts if statistic == "pixels" else Answers
                before, after = (kind.joined(each) for each in zip(*parts, strict=True))
                (rows,) = np.nonzero(np.isin(place, some))
                yield rows, before, after.of_networks(np.searchsorted(some, place[rows]))

    def keeps_all(self, study_id: int, statistic: str) -> bool:
        """Whether, of each number that a study keeps of a statistic, it keeps that of every image.

        >>> store.keeps_all(1, "loss")
        True
        """
        ids = np.unique(self.ablation_ids(study_id))
        context_id, shards = self._shards(study_id)
        return statistic in ("correct", "pixels") or all(
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
        # A change of a probability in half precision may lead beyond 1.
        numbers = np.clip(confidence, 0, 1) if statistic == "confidence" else confidence
        return first, Answers(intact.targets, predictions, numbers)


def _put_changes(predictions: np.ndarray, block: Block, index: np.ndarray) -> None:
    """Put a block's new classes into those of the ablations that `index` names (−1: none)."""
    row = np.repeat(index, block.counts)
    predictions[row[row >= 0], block.positions[row >= 0]] = block.classes[row >= 0]

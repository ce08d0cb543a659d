"""What is decided of an image, and what a list of ablations changes among the images of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from weanalysis.ablation.evaluate.repeats import Sample
from weanalysis.results.store import SCREENED
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.numbers import OutputTask


@dataclass
class Screen:
    """What the images that were not computed could hide, by ablation: all (A,).

    `num_evaluated` images were computed; among the others `may_lose` right answers and `may_gain` wrong ones can be
    expected to have flipped unseen. Of the computed ones that were predicted not to flip, `num_missed` did, where
    `num_expected` were expected to. `num_left` of those that were not computed can change at all. Of all that were
    left `lot_drawn` were drawn by lot and computed after all: `lot_lost` right ones and `lot_gained` wrong ones of
    these flipped, where `lot_expected` were expected to. `about` says how the shard was screened; its "distrusted" are
    the layers of which the lot showed more flips than can be, so that they were computed on all images.
    """

    num_evaluated: np.ndarray
    may_lose: np.ndarray
    may_gain: np.ndarray
    num_missed: np.ndarray
    num_expected: np.ndarray
    num_left: np.ndarray
    lot_drawn: np.ndarray
    lot_lost: np.ndarray
    lot_gained: np.ndarray
    lot_expected: np.ndarray
    about: dict[str, Any]


@dataclass
class Measured:
    """What a list of ablations changed among the images `start` … `stop`−1 of a data set's served order.

    Intact, per image: `targets`, `predictions`, and `intact_correct`, the bits of correctness (`tasks.Metric.bit`).
    `counts[a]` images changed under ablation a; their places in the shard, new classes and new correctness
    follow one another in `positions`, `classes`, `correct`, ablation by ablation.
    An image counts as changed if its class or its top-5 correctness did. Of the answers, `num_checked` were computed
    the naive way too, and `num_differed` of these were wrong before they were measured again; `distrusted` are the
    layers that were measured the naive way alone, each with the reason. `values` has the numbers of each statistic that
    is one (`tasks.STATISTICS`); it is empty where not every image was computed. `pixels` is there where images have a
    class in each pixel. `batch_size` images were run at once at the end: fewer than asked for where memory was short.
    `sample` are some of the answers, to be measured once more.

    Two images, both answered right; of two ablations the second turns image 1, of class 1, into a 0:

    >>> two = np.array([0, 1], np.int32)
    >>> measured = Measured(0, 2, two, two, np.array([1, 1], np.uint8), counts=np.array([0, 1], np.int32),
    ...     positions=np.array([1]), classes=np.array([0]), correct=np.array([0]))
    >>> np.split(measured.positions, np.cumsum(measured.counts)[:-1])
    [array([], dtype=int64), array([1])]
    """

    start: int
    stop: int
    targets: np.ndarray
    predictions: np.ndarray
    intact_correct: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    largest_difference: float = 0.0
    num_rechecked: int = 0
    num_checked: int = 0
    num_differed: int = 0
    seconds: float = 0.0
    distrusted: dict[str, str] = field(default_factory=dict)
    screen: Screen | None = None
    values: dict[str, Values] = field(default_factory=dict)
    pixels: PixelChanges | None = None
    batch_size: int = 0
    sample: Sample | None = None


@dataclass(frozen=True)
class PixelChanges:
    """How many pixels of each image of a shard are of each class, and which of these counts each ablation changed.

    `intact` (N, 3, C): in truth, right, and predicted. `counts[a]` images changed under ablation a; their places in the
    shard, and the changes of how many are right and predicted, follow one another in `positions` (M,) and `changes`
    (M, 2, C), ablation by ablation.
    """

    intact: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    changes: np.ndarray

    @classmethod
    def of(cls, intact: np.ndarray, by_ablation: Sequence[tuple[np.ndarray, np.ndarray]]) -> PixelChanges:
        """Put together what was found of each ablation: places and changes."""
        positions = [np.empty(0, np.int32), *(places for places, _ in by_ablation)]
        changes = [np.empty((0, 2, intact.shape[2]), np.int32), *(each for _, each in by_ablation)]
        counts = np.array([len(places) for places, _ in by_ablation], np.int32)
        return cls(intact, counts, np.concatenate(positions).astype(np.int32), np.concatenate(changes))

    def of_ablations(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Places and changes of each ablation."""
        ends = np.cumsum(self.counts)
        spans = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        return [(self.positions[span], self.changes[span]) for span in spans]


@dataclass(frozen=True)
class Values:
    """A number of each image of a shard, intact (N,), and its change under each ablation, (A, N); float32."""

    intact: np.ndarray
    changes: np.ndarray


@dataclass
class Decisions:
    """Per image: the class (−1: NaN), bits of correctness, if it is near; and its numbers, by statistic: (N,) each.

    `pixels` (N, 3, C) is there where each pixel has a class; see `PixelChanges`.

    >>> import torch
    >>> outputs, targets = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1])
    >>> decisions = Decisions.of(outputs, targets)
    >>> decisions.predictions.tolist(), {name: values.shape for name, values in decisions.values.items()}
    ([0, 2], {'loss': torch.Size([2]), 'confidence': torch.Size([2])})
    >>> decisions.differs(Decisions.of(outputs * torch.tensor([[1.0], [-1.0]]), targets)).tolist()
    [False, True]
    """

    predictions: Tensor
    correct: Tensor
    near: Tensor
    values: dict[str, Tensor]
    pixels: Tensor | None = None

    @staticmethod
    def of(outputs: Tensor, targets: Tensor, tolerance: float = 0.0, task: OutputTask | None = None) -> Decisions:
        """Decide from outputs (N, classes), and tell which images hang on less than the tolerance."""
        task = task or Classification()
        predictions, correct = task.answers(outputs, targets)
        near, values = task.near(outputs, tolerance), task.statistics(outputs, targets)
        return Decisions(predictions, correct, near, values, task.pixels(outputs, targets))

    def differs(self, other: Decisions) -> Tensor:
        """Of which images something else was decided, (N,) bools."""
        differs = (self.predictions != other.predictions) | (self.correct != other.correct)
        if self.pixels is not None and other.pixels is not None:
            differs |= (self.pixels != other.pixels).flatten(1).any(1)
        return differs

    def replace(self, rows: Tensor, others: Decisions) -> None:
        """Put other decisions in the place of some rows."""
        self.predictions[rows], self.correct[rows] = others.predictions, others.correct
        for name, values in self.values.items():
            values[rows] = others.values[name]
        if self.pixels is not None and others.pixels is not None:
            self.pixels[rows] = others.pixels

    def of_rows(self, rows: Tensor) -> Decisions:
        """What was decided of some images."""
        values = {name: each[rows] for name, each in self.values.items()}
        pixels = None if self.pixels is None else self.pixels[rows]
        return Decisions(self.predictions[rows], self.correct[rows], self.near[rows], values, pixels)


Change = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Batch:
    """What the ablations changed in one batch: per ablation, the places, new classes and new correctness; new numbers.

    `values` has the intact numbers (N,) of each statistic, and `new_values` the same for each ablation: none where not
    all images were computed. `pixels` (N, 3, C) are the intact counts, `pixel_changes` the places of images whose
    counts each ablation changed, and by how much (see `PixelChanges`).
    """

    targets: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    new_values: list[dict[str, np.ndarray]] = field(default_factory=list)
    num_rechecked: int = 0
    pixels: np.ndarray | None = None
    pixel_changes: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, targets: Tensor, intact: Decisions) -> Batch:
        return cls(
            targets.cpu().numpy(),
            intact.predictions.cpu().numpy(),
            intact.correct.cpu().numpy(),
            _as_arrays(intact.values),
            pixels=None if intact.pixels is None else intact.pixels.cpu().numpy(),
        )

    def add(self, decisions: Decisions, num_rechecked: int = 0) -> None:
        """Add what the next ablation changed; `num_rechecked` of its images were decided the naive way."""
        predictions, correct = decisions.predictions.cpu().numpy(), decisions.correct.cpu().numpy()
        (places,) = np.nonzero((predictions != self.predictions) | (correct != self.correct))
        self.changes.append((places, predictions[places], correct[places]))
        self.new_values.append(_as_arrays(decisions.values))
        self.num_rechecked += num_rechecked
        if self.pixels is not None and decisions.pixels is not None:
            changes = decisions.pixels.cpu().numpy()[:, 1:] - self.pixels[:, 1:]
            (changed,) = np.nonzero(changes.any((1, 2)))
            self.pixel_changes.append((changed, changes[changed]))


def _as_arrays(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: each.cpu().numpy() for name, each in values.items()}


def merge_batches(batches: Sequence[Batch], start: int) -> Measured:
    """Put the batches of a shard together, ablation by ablation."""
    sizes = [len(batch.targets) for batch in batches]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    num_ablations = len(batches[0].changes)
    ordered = [
        (places + offset, classes, correct)
        for a in range(num_ablations)
        for offset, (places, classes, correct) in zip(offsets, (b.changes[a] for b in batches), strict=True)
    ]
    counts = np.array([sum(len(batch.changes[a][0]) for batch in batches) for a in range(num_ablations)], np.int32)

    def joined(column: int, kind: type) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *(row[column] for row in ordered)]).astype(kind)

    intact = np.concatenate([batch.correct for batch in batches])
    return Measured(
        start=start,
        stop=start + sum(sizes),
        targets=np.concatenate([batch.targets for batch in batches]).astype(np.int32),
        predictions=np.concatenate([batch.predictions for batch in batches]).astype(np.int32),
        intact_correct=intact.astype(np.uint8),
        counts=counts,
        positions=joined(0, np.int32),
        classes=joined(1, np.int32),
        correct=joined(2, np.uint8),
        num_rechecked=sum(batch.num_rechecked for batch in batches),
        values=_values(batches),
        pixels=_pixel_changes(batches, offsets),
    )


def _pixel_changes(batches: Sequence[Batch], offsets: np.ndarray) -> PixelChanges | None:
    """The counts of a shard's batches and how they change; None where pixels have no class."""
    intact = [batch.pixels for batch in batches if batch.pixels is not None]
    if len(intact) < len(batches):
        return None
    by_ablation = []
    for of_batches in zip(*(batch.pixel_changes for batch in batches), strict=True):
        places = [places + offset for (places, _), offset in zip(of_batches, offsets, strict=True)]
        by_ablation.append((np.concatenate(places), np.concatenate([changes for _, changes in of_batches])))
    return PixelChanges.of(np.concatenate(intact), by_ablation)


def _values(batches: Sequence[Batch]) -> dict[str, Values]:
    """The numbers of a shard's batches and how they change; nothing where not every ablation has its own."""
    if any(len(batch.new_values) < len(batch.changes) for batch in batches):
        return {}
    kept = {}
    for name in batches[0].values:
        intact = np.concatenate([batch.values[name] for batch in batches])
        rows = [[new[name] for new in batch.new_values] for batch in batches]
        new = np.concatenate([np.stack([*each, b.values[name]])[:-1] for each, b in zip(rows, batches, strict=True)], 1)
        with np.errstate(invalid="ignore"):  # a loss that is infinite before and after
            kept[name] = Values(intact, new - intact)
    return kept


def merge_ablations(parts: Sequence[tuple[Sequence[int], Measured]], screened: bool) -> Measured:
    """Join measurements of one shard: each with the places of its ablations in the whole list.

    With `screened` the whole has a screen, in which the ablations of parts without one are computed on all images.
    """
    first, num_ablations = parts[0][1], sum(len(places) for places, _ in parts)
    changes: list[Change] = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))] * num_ablations
    for places, part in parts:
        ends = np.cumsum(part.counts)
        for place, count, end in zip(places, part.counts, ends, strict=True):
            span = slice(end - count, end)
            changes[place] = (part.positions[span], part.classes[span], part.correct[span])
    num_rechecked = sum(part.num_rechecked for _, part in parts)
    shard = Batch(first.targets, first.predictions, first.intact_correct, changes=changes, num_rechecked=num_rechecked)
    return replace(
        merge_batches([shard], first.start),
        screen=_merged_screen(parts, num_ablations) if screened else None,
        values=_merged_values(parts, num_ablations),
    )


def _merged_screen(parts: Sequence[tuple[Sequence[int], Measured]], num_ablations: int) -> Screen:
    """What all parts could hide: the ablations of a part without a screen were computed on all images."""
    first = parts[0][1]
    numbers = {name: np.zeros(num_ablations) for name in SCREENED}
    numbers["num_evaluated"][:] = first.stop - first.start
    about: dict[str, Any] = {}
    for places, part in parts:
        if part.screen is not None:
            about = part.screen.about
            for name in SCREENED:
                numbers[name][list(places)] = getattr(part.screen, name)
    return Screen(**numbers, about=about)


def _merged_values(parts: Sequence[tuple[Sequence[int], Measured]], num_ablations: int) -> dict[str, Values]:
    """The numbers that every part has of each image and how they change."""
    first, merged = parts[0][1], {}
    for name, values in first.values.items():
        if all(name in part.values for _, part in parts):
            changes = np.empty((num_ablations, first.stop - first.start), np.float32)
            for places, part in parts:
                changes[list(places)] = part.values[name].changes
            merged[name] = Values(values.intact, changes)
    return merged

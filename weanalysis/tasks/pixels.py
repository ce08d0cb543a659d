"""Metrics of segmentations: each follows from how many pixels of each class every image has, predicts and gets right.

IoU of a class = right / (true + predicted − right), over the pixels of all images together, void ones left out: M.
Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 111 (2015), section 4.2. What an image contributes
is its influence, as in `aggregates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weanalysis.errors import StudyError
from weanalysis.tasks.aggregates import Linearized

Counts = NDArray[np.integer]

# The label of pixels that have no class: they count in no metric and in no loss. It is that of PASCAL VOC's masks.
VOID = 255

# In so many images a class must occur for an interval to be right: `benchmarks/metric_intervals.py` shows what holds.
FEWEST_WITH_CLASS = 10

# As if one more image changed by so many points (`results.statistics.linear_change`): in the IoU of one of its classes,
# which is a part of that in the mean of several; and in the accuracy of all of its pixels.
_ONE_IMAGE, _ONE_IMAGE_OF_ALL = 5.0, 0.1


@dataclass(frozen=True)
class PixelCounts:
    """Of the pixels of N images that have a true class: how many have each of C classes, in truth and by A networks.

    `true` (N, C); `right` and `predicted` (A, N, C). `classes` are the names of the classes.
    """

    true: Counts
    right: Counts
    predicted: Counts
    classes: tuple[str, ...] = ()

    def of_networks(self, rows: Sequence[int] | Counts) -> PixelCounts:
        """Those of some networks, in this order."""
        return PixelCounts(self.true, self.right[rows], self.predicted[rows], self.classes)

    def of_images(self, places: Counts) -> PixelCounts:
        """Those of some images, in this order, also where one comes twice."""
        return PixelCounts(self.true[places], self.right[:, places], self.predicted[:, places], self.classes)

    def __len__(self) -> int:
        return len(self.true)

    def changed_from(self, intact: PixelCounts) -> NDArray[np.bool_]:
        """In which images each network's counts are not those of one `intact` network, (A, N)."""
        return (self.right != intact.right).any(2) | (self.predicted != intact.predicted).any(2)

    @classmethod
    def joined(cls, parts: Sequence[PixelCounts]) -> PixelCounts:
        """Those of several lots of images, one after another."""
        right, predicted = (np.concatenate([getattr(one, name) for one in parts], 1) for name in ("right", "predicted"))
        return cls(np.concatenate([one.true for one in parts]), right, predicted, parts[0].classes)


def class_ious(counts: PixelCounts) -> NDArray[np.float64]:
    """The IoU of each class in percent, (A, C); NaN for a class that no pixel has in truth or prediction.

    >>> class_ious(PixelCounts(np.array([[3, 1]]), np.array([[[2, 1]]]), np.array([[[2, 2]]]))).round(1)
    array([[66.7, 50. ]])
    """
    right = counts.right.sum(1, dtype=np.float64)
    union = counts.true.sum(0, dtype=np.float64) + counts.predicted.sum(1, dtype=np.float64) - right
    return 100 * np.divide(right, union, out=np.full(right.shape, np.nan), where=union > 0)


def mean_iou(counts: PixelCounts) -> Linearized:
    """The mean IoU in percent, over the classes that occur in truth: the same ones before and after an ablation.

    A class that is predicted where no image has it takes from the IoU of the true ones alone. Its linearization is
    sound where every class that occurs is in 10 images.

    >>> mean_iou(PixelCounts(np.array([[3, 1]]), np.array([[[2, 1]]]), np.array([[[2, 2]]]))).values.round(1)
    array([58.3])
    """
    return _mean_over(counts, np.asarray(counts.true.any(0)))


@dataclass(frozen=True)
class IouOfClass:
    """The IoU of one class in percent, by its name. NaN where no image has it."""

    of_class: str

    def __call__(self, counts: PixelCounts) -> Linearized:
        """Tell it of the networks; raise StudyError where the classes have no such name."""
        if self.of_class not in counts.classes:
            raise StudyError(f"no class is called {self.of_class!r}: choose from {', '.join(counts.classes)}")
        chosen = np.arange(counts.true.shape[1]) == counts.classes.index(self.of_class)
        return _mean_over(counts, chosen & counts.true.any(0))


def pixel_accuracy(counts: PixelCounts) -> Linearized:
    """The share of pixels that are right, in percent, over all images together.

    >>> pixel_accuracy(PixelCounts(np.array([[3, 1]]), np.array([[[2, 1]]]), np.array([[[2, 2]]]))).values
    array([75.])
    """
    size = counts.true.sum(1, dtype=np.float64)
    right = counts.right.sum(2, dtype=np.float64)
    total = max(float(size.sum()), 1.0)
    share = right.sum(1) / total if size.any() else np.full(len(right), np.nan)
    influence = 100 * len(size) / total * (right - share[:, None] * size)
    is_sound = np.full(len(right), (size > 0).sum() >= FEWEST_WITH_CLASS)
    return Linearized(100 * share, influence, is_sound, _ONE_IMAGE_OF_ALL)


def _mean_over(counts: PixelCounts, chosen: NDArray[np.bool_]) -> Linearized:
    """The mean IoU over some classes, (C,) bools, each of which occurs in truth."""
    num_networks, num_images = counts.right.shape[:2]
    if not chosen.any():
        nothing = np.full(num_networks, np.nan)
        return Linearized(nothing, np.zeros((num_networks, num_images)), np.zeros(num_networks, bool))
    true, right, predicted = (each[..., chosen] for each in (counts.true, counts.right, counts.predicted))
    total_right = right.sum(1, dtype=np.float64)
    union = true.sum(0, dtype=np.float64) + predicted.sum(1, dtype=np.float64) - total_right
    iou = total_right / union
    slope = 100 * num_images / (chosen.sum() * union)
    # right − iou · (true + predicted − right) of each image and class, times the slope, summed over the classes.
    influence = (
        np.matmul(right, ((1 + iou) * slope)[:, :, None])[:, :, 0]
        - np.matmul(predicted, (iou * slope)[:, :, None])[:, :, 0]
        - (iou * slope) @ true.T
    )
    is_sound = (true > 0).sum(0).min() >= FEWEST_WITH_CLASS
    return Linearized(100 * iou.mean(1), influence, np.full(num_networks, is_sound), _ONE_IMAGE / int(chosen.sum()))

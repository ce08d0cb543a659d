"""Metrics that are no mean over images: each is a function of sums, with what every image contributes to its value.

The contribution of an image is its influence: by how much the value would move, to first order, if the image weighed
more. Influences of one network sum to 0, and their standard deviation over the square root of the number of images is
the value's standard error (the delta method, or infinitesimal jackknife; B. Efron and R. J. Tibshirani, An Introduction
to the Bootstrap (1993), section 22.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Guo et al. take 15 bins of equal width.
NUM_BINS = 15

# Where an interval is right: the images of the rarest class, also as a share of the number of classes; and the share
# of a calibration error that chance may add. `benchmarks/metric_intervals.py` shows what they keep to.
FEWEST_OF_A_CLASS, SHARE_OF_CLASSES, MOST_BY_CHANCE = 10, 0.2, 0.25

# As if one more image had turned from right to wrong or back, by 100 points; see `results.statistics.linear_change`.
ONE_IMAGE = 100.0

# The mean size of a standard normal number.
_MEAN_SIZE = np.sqrt(2 / np.pi)


@dataclass(frozen=True)
class Answers:
    """What A networks answered on the same N images.

    `targets` (N,) are class indices, `predictions` (A, N) too (−1 for none); `confidence` (A, N) is the probability of
    the predicted class, None where it is not needed.
    """

    targets: NDArray[np.integer]
    predictions: NDArray[np.integer]
    confidence: NDArray[np.floating] | None = None

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each answer is right, (A, N)."""
        return self.predictions == self.targets

    @property
    def numbers(self) -> tuple[NDArray, ...]:
        """What there is of each answer, (A, N) each."""
        return (self.predictions,) if self.confidence is None else (self.predictions, self.confidence)

    def __len__(self) -> int:
        return len(self.targets)

    def changed_from(self, intact: Answers) -> NDArray[np.bool_]:
        """Which of each network's answers are not those of one `intact` network, (A, N)."""
        return self.predictions != intact.predictions

    def of_networks(self, rows: Sequence[int] | NDArray[np.integer]) -> Answers:
        """Those of some networks, in this order."""
        return Answers(self.targets, *(each[rows] for each in self.numbers))

    def of_images(self, places: NDArray[np.integer]) -> Answers:
        """Those to some images, in this order, also where one comes twice."""
        return Answers(self.targets[places], *(each[:, places] for each in self.numbers))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those to several lots of images, one after another."""
        numbers = (np.concatenate(each, axis=1) for each in zip(*(part.numbers for part in parts), strict=True))
        return cls(np.concatenate([part.targets for part in parts]), *numbers)


@dataclass(frozen=True)
class Linearized:
    """The values of A networks (A,), the influence of each image on them (A, N), and where that may be built upon (A,).

    `is_sound` is false where an interval from influences would miss the true value more often than it says.
    `one_image` is what is added for a change that happened not to be seen.
    """

    values: Floats
    influence: Floats
    is_sound: NDArray[np.bool_]
    one_image: float = ONE_IMAGE


# From `Answers`, or of a segmentation `pixels.PixelCounts`.
Aggregate = Callable[[Any], Linearized]


def macro_f1(answers: Answers) -> Linearized:
    """The mean over classes of F1 = 2 hits / (targets + predictions), in percent.

    The classes are those that occur among the targets, so that it is the same mean before and after an ablation. With
    few images a class it is biased, the more so the more classes there are: its linearization is sound where every
    class has 10 images, and a fifth as many as there are classes.

    >>> f1 = macro_f1(Answers(np.array([0, 0, 1, 1]), np.array([[0, 1, 1, 1]])))
    >>> f1.values.round(2), f1.is_sound
    (array([73.33]), array([False]))
    """
    classes, target, sizes = np.unique(answers.targets, return_inverse=True, return_counts=True)
    (num_networks, num_images), num_classes = answers.predictions.shape, len(classes)
    place = np.minimum(np.searchsorted(classes, answers.predictions), num_classes - 1)
    place = np.where(classes[place] == answers.predictions, place, num_classes)  # one more, for all other classes
    right = place == target
    row = np.arange(num_networks)[:, None]

    def count(of: NDArray[np.integer], weights: NDArray[np.bool_] | None = None) -> Floats:
        """How many images of each network stand at each class, (A, C + 1)."""
        flat = (row * (num_classes + 1) + of).ravel()
        counted = np.bincount(flat, None if weights is None else weights.ravel(), num_networks * (num_classes + 1))
        return counted.reshape(num_networks, num_classes + 1).astype(np.float64)

    of_targets = np.broadcast_to(target, place.shape)
    hits, both = count(of_targets, right), count(of_targets) + count(place)
    f1 = 2 * hits / np.maximum(both, 1)
    value = 100 * f1[:, :-1].mean(1)
    slope = 100 * num_images / (num_classes * np.maximum(both, 1))
    slope[:, -1] = 0
    influence = slope[row, of_targets] * (2 * right - f1[row, of_targets]) - (slope * f1)[row, place]
    is_sound = sizes.min() >= max(FEWEST_OF_A_CLASS, num_classes * SHARE_OF_CLASSES)
    return Linearized(value, influence, np.full(num_networks, is_sound))


def calibration_error(answers: Answers) -> Linearized:
    """The expected calibration error (ECE) in percent: the mean over images of |accuracy − confidence| of their bin.

    ECE = sum over bins of |sum over its images of (confidence − right)| / N, with 15 bins of equal width of the
    confidence, each without its lower end: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern
    Neural Networks, ICML 2017, section 2. NaN where a confidence is. Chance makes it larger, since what a bin deviates
    by counts whichever way: the linearization is sound where, of the value, chance adds about a quarter at most (so
    it is not for a network that is calibrated).

    >>> answers = Answers(np.array([0, 0]), np.array([[0, 1]]), np.array([[0.9, 0.7]]))
    >>> calibration_error(answers).values.round(2)
    array([40.])
    """
    assert answers.confidence is not None
    confidence = answers.confidence.astype(np.float64)
    num_networks, num_images = confidence.shape
    known = np.nan_to_num(confidence)
    place = np.clip(np.ceil(known * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    place += np.arange(num_networks)[:, None] * NUM_BINS
    gap = 100 * (confidence - answers.right) / num_images

    def sums_of(numbers: Floats) -> Floats:
        """The sums over the images of each bin, (A, bins)."""
        flat = np.bincount(place.ravel(), numbers.ravel(), num_networks * NUM_BINS)
        return flat.reshape(num_networks, NUM_BINS).astype(np.float64)

    sums = sums_of(gap)
    values = np.abs(sums).sum(1)
    error = np.sqrt(np.maximum(sums_of(gap**2) - sums**2 / num_images, 1e-12))
    by_chance = (_MEAN_SIZE * error * np.exp(-((sums / error) ** 2) / 4)).sum(1)
    influence = num_images * np.sign(sums).ravel()[place] * gap - values[:, None]
    return Linearized(values, influence, by_chance <= MOST_BY_CHANCE * values)

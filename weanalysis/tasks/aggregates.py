"""Metrics that are no mean over images: each is a function of sums, with what every image contributes to its value.

The contribution of an image is its influence: by how much the value would move, to first order, if the image weighed
more. Influences of one network sum to 0, and their standard deviation over the square root of the number of images is
the value's standard error (the delta method, or infinitesimal jackknife; B. Efron and R. J. Tibshirani, An Introduction
to the Bootstrap (1993), section 22.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Guo et al. take 15 bins of equal width.
NUM_BINS = 15


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


# From the answers of A networks on N images to the value of each (A,), and the influence of each image (A, N).
Aggregate = Callable[[Answers], tuple[Floats, Floats]]


def macro_f1(answers: Answers) -> tuple[Floats, Floats]:
    """The mean over classes of F1 = 2 hits / (targets + predictions), in percent.

    The classes are those that occur among the targets, so that it is the same mean before and after an ablation.

    >>> import numpy as np
    >>> value, influence = macro_f1(Answers(np.array([0, 0, 1, 1]), np.array([[0, 1, 1, 1]])))
    >>> value.round(2), abs(influence.sum()) < 1e-9
    (array([73.33]), np.True_)
    """
    classes, target = np.unique(answers.targets, return_inverse=True)
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
    return value, influence


def calibration_error(answers: Answers) -> tuple[Floats, Floats]:
    """The expected calibration error (ECE) in percent: the mean over images of |accuracy − confidence| of their bin.

    ECE = sum over bins of |sum over its images of (confidence − right)| / N, with 15 bins of equal width of the
    confidence, each without its lower end: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern
    Neural Networks, ICML 2017, section 2. NaN where a confidence is.

    >>> import numpy as np
    >>> answers = Answers(np.array([0, 0]), np.array([[0, 1]]), np.array([[0.9, 0.7]]))
    >>> calibration_error(answers)[0].round(2)
    array([40.])
    """
    assert answers.confidence is not None
    confidence = answers.confidence.astype(np.float64)
    num_networks, num_images = confidence.shape
    known = np.nan_to_num(confidence)
    place = np.clip(np.ceil(known * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    place += np.arange(num_networks)[:, None] * NUM_BINS
    gap = confidence - answers.right
    sums = np.bincount(place.ravel(), gap.ravel(), num_networks * NUM_BINS)
    value = 100 * np.abs(sums).reshape(num_networks, NUM_BINS).sum(1) / num_images
    return value, 100 * np.sign(sums)[place] * gap - value[:, None]

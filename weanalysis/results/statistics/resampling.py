"""Intervals for what is not a proportion: a mean loss, mean IoU, the mean over several seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from weanalysis.results.statistics.paired import Floats

_CHUNK_NUMBERS = 4_000_000


class Estimate(NamedTuple):
    """A value, its interval, and the p-value for 0 where there is one; NaN where there is none."""

    value: float
    low: float
    high: float
    p_value: float = np.nan


def stratified_bootstrap(
    values: ArrayLike,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    strata: ArrayLike | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return a statistic of per-image numbers with a percentile bootstrap interval over images.

    `values` is (num_images, columns): losses, or the counts that mean IoU is made of, of one network or of two side by
    side for a paired difference. `statistic` takes sums over images, (..., columns), and returns (...). `strata` (such
    as the target of each image) keeps every stratum's number of images in all resamples. Source: B. Efron and
    R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    The interval is NaN below two images; resamples without a value are left out. Raises ValueError for other shapes.
    """
    values = np.asarray(values, dtype=np.float64)
    labels = np.zeros(len(values), dtype=np.int64) if strata is None else np.asarray(strata)
    if values.ndim != 2 or labels.shape != (len(values),):
        raise ValueError(f"values must be (images, columns) with one stratum an image, not {values.shape}")
    value = float(statistic(values.sum(axis=0)))
    if len(values) < 2:
        return Estimate(value, np.nan, np.nan)
    sums = np.zeros((num_resamples, values.shape[1]))
    for label in np.unique(labels):
        # Images with equal numbers are drawn together: most images of an ablation did not change at all.
        rows, counts = np.unique(values[labels == label], axis=0, return_counts=True)
        chunk = max(1, _CHUNK_NUMBERS // len(rows))
        for start in range(0, num_resamples, chunk):
            part = sums[start : start + chunk]
            part += rng.multinomial(counts.sum(), counts / counts.sum(), size=len(part)) @ rows
    low, high = np.nanquantile(statistic(sums), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def iou_counts(confusion: ArrayLike) -> Floats:
    """Turn confusion counts (..., classes, classes), target by prediction, into (..., 3 * classes) for `mean_iou`."""
    confusion = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.concatenate([hits, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-1)


def mean_iou(counts: Floats) -> Floats:
    """Return the mean IoU, a fraction, of sums of `iou_counts` (..., 3 * classes) over the classes that occur."""
    hits, targets, predictions = np.split(np.asarray(counts, dtype=np.float64), 3, axis=-1)
    union = targets + predictions - hits
    occurs = union > 0
    total = np.divide(hits, union, out=np.zeros_like(hits), where=occurs).sum(axis=-1)
    num_classes = occurs.sum(axis=-1)
    return np.divide(total, num_classes, out=np.full_like(total, np.nan), where=num_classes > 0)


def mean_of_runs(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return the mean over runs (seeds) with Student's t interval; NaN for the interval of a single run.

    >>> mean = mean_of_runs([70.0, 71.0, 72.0])
    >>> mean.value, round(mean.low, 2), round(mean.high, 2)
    (71.0, 68.52, 73.48)
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else np.nan, np.nan, np.nan)
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(confidence)
    return Estimate(float(values.mean()), float(low), float(high), float(test.pvalue))


def compare_runs(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return mean(second) - mean(first) over runs (seeds) with Welch's t interval and test.

    One value a run, each side at least two for an interval, else NaN. Source: B. L. Welch, Biometrika 34 (1947) 28-35.

    >>> apart = compare_runs([70.0, 71.0, 72.0], [73.0, 74.0, 75.0])
    >>> apart.value, round(apart.low, 2), round(apart.high, 2), round(apart.p_value, 3)
    (3.0, 0.73, 5.27, 0.021)
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(first), len(second)) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    difference = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2 or np.ptp(first) + np.ptp(second) == 0:
        return Estimate(difference, np.nan, np.nan)
    test = stats.ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(confidence)
    return Estimate(difference, float(low), float(high), float(test.pvalue))

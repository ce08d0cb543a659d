"""The mean over several runs (seeds), and the difference of two such means."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Estimate(NamedTuple):
    """A value, its interval, and the p-value for 0 where there is one; NaN where there is none.

    >>> mean_of_runs([90.0, 91.0, 92.0]).value
    91.0
    >>> Estimate(1.5, 0.5, 2.5)
    Estimate(value=1.5, low=0.5, high=2.5, p_value=nan)
    """

    value: float
    low: float
    high: float
    p_value: float = np.nan


def mean_of_runs(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return the mean over runs (seeds) with Student's t interval; NaN for that of a single run, or of equal ones.

    >>> mean = mean_of_runs([70.0, 71.0, 72.0])
    >>> mean.value, round(mean.low, 2), round(mean.high, 2)
    (71.0, 68.52, 73.48)
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
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
    with warnings.catch_warnings():
        # Equal values on one side alone are no loss of precision: its variance is 0, and that of the other counts.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test = stats.ttest_ind(second, first, equal_var=False)
        low, high = test.confidence_interval(confidence)
    return Estimate(difference, float(low), float(high), float(test.pvalue))

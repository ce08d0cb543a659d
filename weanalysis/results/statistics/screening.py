"""What images that were not computed could hide: bounds of D on these very images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from weanalysis.results.statistics.paired import Floats, checked_counts

# Where fewer hidden flips than this are expected, one is the most that there can be.
_LEAST_MEAN = 1e-9

# How much one ablation may differ from the law of all: the shape of a gamma distribution, kept within these bounds.
_LEAST_SHAPE, _MOST_SHAPE = 0.25, 20.0


def screen_bounds(
    lost: ArrayLike,
    gained: ArrayLike,
    num_images: ArrayLike,
    may_lose: ArrayLike,
    may_gain: ArrayLike,
    num_missed: ArrayLike,
    num_expected: ArrayLike,
    confidence: float = 0.95,
) -> tuple[Floats, Floats]:
    """Return bounds (low, high) of the exact D of screened ablations on the images measured, as fractions; (A,) each.

    `lost` and `gained` count the flips that were computed, `may_lose` and `may_gain` those to be expected among the
    images that were not. `num_missed` computed images flipped against their prediction where `num_expected` were
    expected to: so much more or less often than the common law is this ablation missed. Its rate is taken as gamma
    distributed over the ablations, with the shape that the spread of `num_missed` shows; what is hidden is then
    negative binomial (A. Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.6). Most ablations hide nothing, so
    that bounds which hold for 95 % of all could fail wherever something is hidden: these are for the ablations that
    do hide a flip, and reach one image at least where any could be hidden. They say nothing of other images; NaN where
    num_images is 0.
    """
    first, second, total = checked_counts(lost, gained, num_images)
    up, down, missed, expected = (
        np.broadcast_to(np.asarray(x, np.float64), total.shape) for x in (may_lose, may_gain, num_missed, num_expected)
    )
    overall = (missed.sum() + 1) / (expected.sum() + 1)
    expected = expected * overall
    spread = ((missed - expected) ** 2 - missed).sum() / max(float((expected**2).sum()), 1e-9)
    prior = float(np.clip(1 / spread, _LEAST_SHAPE, _MOST_SHAPE)) if spread > 0 else _MOST_SHAPE
    shape = missed + prior
    rate = overall * shape / (expected + prior)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(total > 0, (first - second) / total, np.nan)
        low = difference - _most_hidden(down * rate, shape, confidence) / total
        high = difference + _most_hidden(up * rate, shape, confidence) / total
    return np.maximum(low, -1), np.minimum(high, 1)


def _most_hidden(mean: Floats, shape: Floats, confidence: float) -> Floats:
    """The quantile of a negative binomial count, given that it is not 0; 0 where its mean is."""
    # In the upper tail, which does not round to 0 where the count is hardly ever more than that.
    some = -np.expm1(shape * np.log1p(-mean / (shape + mean)))
    with np.errstate(invalid="ignore"):
        quantile = stats.nbinom.isf(some * (1 - confidence) / 2, shape, shape / (shape + mean))
    # A mean too small for the distribution's own numbers hides one flip at the very most.
    return np.where(mean > 0, np.maximum(np.where(mean > _LEAST_MEAN, quantile, 1), 1), 0.0)

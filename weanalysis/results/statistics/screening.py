"""What images that were not computed could hide: bounds of D on these very images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from weanalysis.results.statistics.paired import Floats, checked_counts, mcnemar_exact

# Where fewer hidden flips than this are expected, one is the most that there can be.
_LEAST_MEAN = 1e-9

# How much one ablation may differ from the law of all: the shape of a gamma distribution, kept within these bounds.
_LEAST_SHAPE, _MOST_SHAPE = 0.25, 20.0

# What is hidden lies beyond the errors that were computed. There the law's tail is a power, with an exponent of some 3,
# of risk in the ablation's own unit of error, which few errors tell. Where that unit is wrong by a third, either way,
# all chances of an ablation are wrong by a factor of e, at once. Such a rate, log-normal, has a standard deviation of
# 1.4 times its mean, as a gamma distribution of this shape has.
_MOST_SHAPE_BEYOND = 0.5

# So many flips in all pairs drawn by lot are taken as seen before any was.
_LOT_PRIOR = 0.5


@dataclass(frozen=True)
class Hidden:
    """How many flips the images that were not computed may hide of each ablation: negative binomial counts, (A,) each.

    `up` and `down` are the means of the right answers that were lost and of the wrong ones that were gained, with the
    shapes `up_shape` and `down_shape`.
    """

    up: Floats
    up_shape: Floats
    down: Floats
    down_shape: Floats


def hidden_flips(screen: Mapping[str, ArrayLike], layers: ArrayLike) -> Hidden:
    """Return what screened ablations may hide, from what is kept of their screening, (A,) each (`Screen`).

    Two sources are added up. The law of errors expects `may_lose` and `may_gain`. `num_missed` computed images flipped
    against their prediction where `num_expected` were expected to: so much more or less often than the common law is
    this ablation missed. Its rate is taken as gamma distributed over the ablations, with the shape that the spread of
    `num_missed` shows, and is less sure of pairs beyond those that were computed. And the lot: of the pairs that were
    left in each of `layers` (A,), `lot_drawn` were drawn and computed, and more of them flipped than `lot_expected`, or
    none: the rate of flips that no prediction tells of is gamma distributed given these, pooled over the ablations of a
    layer, with half a flip in all drawn pairs of all layers to begin with (Jeffreys' prior). So both counts are
    negative binomial (A. Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.6), and their
    sum is taken as one with its mean and variance.

    Two kernels of one layer; what was predicted not to flip did not, and 90 images of each can change at all:

    >>> screen = {"may_lose": [0.5, 0.0], "may_gain": [0.1, 0.0], "num_missed": [0, 0], "num_expected": [1, 1]}
    >>> screen |= {"num_left": [90, 90], "lot_drawn": [30, 30], "lot_lost": [0, 0], "lot_gained": [0, 0]}
    >>> hidden = hidden_flips(screen | {"lot_expected": [0, 0]}, ["conv1", "conv1"])
    >>> bool(hidden.up[0] > hidden.up[1] > 0)
    True
    """
    counts = {name: np.asarray(values, np.float64) for name, values in screen.items()}
    missed, expected = counts["num_missed"], counts["num_expected"]
    overall = (missed.sum() + 1) / (expected.sum() + 1)
    expected = expected * overall
    spread = ((missed - expected) ** 2 - missed).sum() / max(float((expected**2).sum()), 1e-9)
    prior = float(np.clip(1 / spread, _LEAST_SHAPE, _MOST_SHAPE)) if spread > 0 else _MOST_SHAPE
    rate = overall * (missed + prior) / (expected + prior)
    shape = np.minimum(missed + prior, _MOST_SHAPE_BEYOND)
    place = np.unique(np.asarray(layers).astype(str), return_inverse=True)[1].reshape(-1)
    drawn, should = (np.bincount(place, counts[name]) for name in ("lot_drawn", "lot_expected"))
    sides: list[Floats] = []
    for law, flipped in (("may_lose", "lot_lost"), ("may_gain", "lot_gained")):
        seen = np.bincount(place, counts[flipped])
        beyond = np.maximum(seen - should, 0) * (seen > 0)
        to_begin_with = drawn.sum() * _LOT_PRIOR / (_LOT_PRIOR + beyond.sum())
        rates = (_LOT_PRIOR + beyond) / np.maximum(drawn + to_begin_with, 1)
        of_layer = np.where(drawn + to_begin_with > 0, rates, 0.0)
        sides += _sum_of(counts[law] * rate, shape, counts["num_left"] * of_layer[place], (_LOT_PRIOR + beyond)[place])
    return Hidden(*sides)


def _sum_of(mean: Floats, shape: Floats, other: Floats, other_shape: Floats) -> tuple[Floats, Floats]:
    """The mean of the sum of two negative binomial counts, and the shape that gives it its variance."""
    both = mean + other
    beyond = mean**2 / shape + other**2 / other_shape
    return both, np.divide(both**2, beyond, where=beyond > 0, out=np.full(both.shape, _MOST_SHAPE))


def screen_bounds(
    lost: ArrayLike, gained: ArrayLike, num_images: ArrayLike, hidden: Hidden, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Return bounds (low, high) of the exact D of screened ablations on the images measured, as fractions; (A,) each.

    `lost` and `gained` count the flips that were computed. Most ablations hide nothing, so that bounds which hold for
    95 % of all could fail wherever something is hidden: these are for the ablations that do hide a flip, and reach one
    image at least where any could be hidden. They say nothing of other images; NaN where num_images is 0.

    Four flips were computed among 100 images; half a lost one more is expected, and no gained one:

    >>> hidden = Hidden(*(np.array([value]) for value in (0.5, 4.0, 0.0, 4.0)))
    >>> low, high = screen_bounds([4], [0], [100], hidden)
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.04], [0.07])
    """
    first, second, total = checked_counts(lost, gained, num_images)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(total > 0, (first - second) / total, np.nan)
        low = difference - _most_hidden(hidden.down, hidden.down_shape, confidence) / total
        high = difference + _most_hidden(hidden.up, hidden.up_shape, confidence) / total
    return np.maximum(low, -1), np.minimum(high, 1)


def mcnemar_of_screened(lost: ArrayLike, gained: ArrayLike, hidden: Hidden) -> Floats:
    """Return the two-sided p-value of McNemar's exact test of screened ablations, with what may be hidden against them.

    (A,) each. It is the mean over all numbers of hidden flips that would make D smaller, each as likely as `hidden`
    has it; 1 where D would be 0 or turn around.

    Eight lost images are told from chance; where two gained ones may be hidden, less so:

    >>> nothing, some = (Hidden(*(np.array([x]) for x in (0.0, 4.0, down, 4.0))) for down in (0.0, 2.0))
    >>> [float(mcnemar_of_screened([8], [0], hidden)[0].round(3)) for hidden in (nothing, some)]
    [0.008, 0.166]
    """
    first, second, _ = checked_counts(lost, gained, np.inf)
    more, fewer = np.maximum(first, second), np.minimum(first, second)
    mean, shape = (
        np.where(first >= second, *sides) for sides in ((hidden.down, hidden.up), (hidden.down_shape, hidden.up_shape))
    )
    p_value, spent = np.zeros(mean.shape), np.zeros(mean.shape)
    for count in range(int((more - fewer).max(initial=0))):
        open_ = (fewer + count < more) & (spent < 1 - 1e-12)
        if not open_.any():
            break
        with np.errstate(invalid="ignore"):
            chance = stats.nbinom.pmf(count, shape[open_], shape[open_] / (shape[open_] + mean[open_]))
        chance = np.where(mean[open_] > 0, chance, float(count == 0))
        p_value[open_] += chance * mcnemar_exact(more[open_], fewer[open_] + count)
        spent[open_] += chance
    return np.minimum(1.0, p_value + np.maximum(1 - spent, 0))


def most_by_lot(flipped: ArrayLike, weight: ArrayLike, confidence: float = 0.95) -> Floats:
    """Return how many flips are hidden at most, by counting alone, where `flipped` of the pairs drawn by lot did.

    `weight` is how many pairs are left for each one drawn; of several strata, the largest. The number of flips seen is
    a sum of independent chances, so that Poisson's bound holds for it (W. Hoeffding, Annals of Mathematical Statistics
    27 (1956) 713-721), whatever the network, and however the flips lie over the strata. Infinite where none was drawn.

    None of the pairs flipped that were drawn, one in ten of those that are left:

    >>> float(most_by_lot(0, 10.0).round(1))
    30.0
    """
    weight = np.asarray(weight, np.float64)
    return np.where(weight > 0, stats.gamma.ppf(confidence, np.asarray(flipped, np.float64) + 1) * weight, 0.0)


def _most_hidden(mean: Floats, shape: Floats, confidence: float) -> Floats:
    """The quantile of a negative binomial count, given that it is not 0; 0 where its mean is."""
    # In the upper tail, which does not round to 0 where the count is hardly ever more than that.
    some = -np.expm1(shape * np.log1p(-mean / (shape + mean)))
    with np.errstate(invalid="ignore"):
        quantile = stats.nbinom.isf(some * (1 - confidence) / 2, shape, shape / (shape + mean))
    # A mean too small for the distribution's own numbers hides one flip at the very most.
    return np.where(mean > 0, np.maximum(np.where(mean > _LEAST_MEAN, quantile, 1), 1), 0.0)

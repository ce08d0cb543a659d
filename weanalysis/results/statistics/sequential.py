"""Intervals and p-values that stay valid when a study is looked at after every shard and stopped at will."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from weanalysis.results.statistics.paired import Floats, checked_counts, distinct

# A bet's size that pays best against a wrong D is about 3 / sqrt(changed images): these serve from 10 to 30,000.
_BETS = np.geomspace(0.02, 0.9, 12)


def sequential_interval(
    lost: ArrayLike, gained: ArrayLike, num_images: ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Return (low, high) for D from the counts so far, valid at all numbers of images at once, as fractions.

    With the stated confidence *every* interval of a study holds D, however often it is looked at and whenever it is
    stopped, so `--until-ci` may stop an ablation at the first shard with a narrow enough one. The arguments are the
    cumulative counts after some shards and broadcast; NaN where num_images is 0 or a count is missing. Raises
    ValueError for counts that cannot be and for a confidence outside (0, 1).

    A confidence sequence by betting: a gambler who doubts a value of D and stakes a share of the purse on each image
    multiplies the purse by 1 - bet * (change - D) / (1 - D), which is 1 on average where D is right, so that the purse
    ever reaches 2 / alpha with probability alpha / 2 at most (Ville's inequality). The purse here is the mean over a
    fixed set of bets, which needs no order within a shard and no history: I. Waudby-Smith and A. Ramdas, Estimating
    means of bounded random variables by betting, J. R. Stat. Soc. B 86 (2024) 1-27; F. Orabona and K.-S. Jun, Tight
    concentrations and confidence sequences from the regret of universal portfolio, IEEE Trans. Inf. Theory 70 (2024).
    It is 1.6 to 1.8 times as wide as an interval for one look.

    >>> [round(float(bound), 3) for bound in sequential_interval(5, 0, 100)]
    [-0.029, 0.157]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    first, second, total = checked_counts(lost, gained, num_images)
    low, high = np.full(total.shape, np.nan), np.full(total.shape, np.nan)
    known = (total > 0) & ~np.isnan(first + second)
    (first, second, total), which = distinct(first[known], second[known], total[known])
    threshold = np.log(2 / (1 - confidence))
    high[known] = _betting_bound(first, second, total, threshold)[which]
    low[known] = -_betting_bound(second, first, total, threshold)[which]
    return low, high


def sequential_p_value(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Return a p-value for D = 0 from the counts so far, valid at whatever moment a study is stopped.

    One over the purse of `sequential_interval`'s gambler against D = 0, the mean over bets on either side. NaN for
    NaN; 1 where no image changed. Raises ValueError for negative or fractional counts.

    >>> round(float(sequential_p_value(5, 0)), 3)
    0.368
    """
    first, second, _ = checked_counts(lost, gained, np.inf)
    bets = np.concatenate([_BETS, -_BETS])
    log_purse = first[..., None] * np.log1p(bets) + second[..., None] * np.log1p(-bets)
    return np.minimum(1.0, np.exp(-special.logsumexp(log_purse, axis=-1, b=1 / len(bets))))


def _betting_bound(first: Floats, second: Floats, total: Floats, threshold: float) -> Floats:
    """Return the smallest D above the estimate that the gambler has refuted, by bisection: the purse grows in D."""
    low = (first - second) / total
    high = np.minimum(1, low + 5 * (np.sqrt(first + second) + 5) / total)
    high = np.where(_log_purse(first, second, total, high) >= threshold, high, 1)
    for _ in range(32):
        middle = (low + high) / 2
        refuted = _log_purse(first, second, total, middle) >= threshold
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def _log_purse(first: Floats, second: Floats, total: Floats, difference: Floats) -> Floats:
    """Return the logarithm of the gambler's purse against each D, the mean over the bets."""
    difference = np.minimum(difference, 1 - 1e-12)[:, None]  # at D = 1 a stake has no size
    same = (total - first - second)[:, None] * np.log1p(_BETS * difference / (1 - difference))
    gained = second[:, None] * np.log1p(_BETS * (1 + difference) / (1 - difference))
    log_purses = first[:, None] * np.log1p(-_BETS) + gained + same
    largest = log_purses.max(axis=1)
    return largest + np.log(np.exp(log_purses - largest[:, None]).mean(axis=1))

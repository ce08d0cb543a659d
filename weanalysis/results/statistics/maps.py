"""What the map of a layer shows: agreement of two rankings, overlap of the top, and the spread of D."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, stats

from weanalysis.results.statistics.paired import Floats, two_sided_z
from weanalysis.results.statistics.resampling import Estimate

_CHUNK_NUMBERS = 4_000_000


def rank_agreement(
    first: ArrayLike, second: ArrayLike, method: Literal["spearman", "kendall"] = "spearman", confidence: float = 0.95
) -> Estimate:
    """Return the rank correlation of two lists (Spearman's rho, or Kendall's tau-b) with its interval and p-value.

    Pairs with a NaN are left out; all NaN with fewer than 5 pairs or where one list is constant. The interval is
    normal after Fisher's z, with variance (1 + rho^2 / 2) / (n - 3) or 0.437 / (n - 4): D. G. Bonett and T. A. Wright,
    Psychometrika 65 (2000) 23-28. In full agreement it starts from the nearest order that is not. The places are the
    sample here; the images' own noise makes the correlation of the true values larger than the one that is seen.
    """
    one, other = _known_pairs(first, second)
    num = len(one)
    if num < 5 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    if method == "spearman":
        result = stats.spearmanr(one, other)
        nearest = 1 - 12 / (num * (num**2 - 1))
    elif method == "kendall":
        result = stats.kendalltau(one, other)
        nearest = 1 - 4 / (num * (num - 1))
    else:
        raise ValueError(f"method must be spearman or kendall, not {method!r}")
    value = float(np.clip(result.statistic, -1, 1))
    inner = float(np.clip(value, -nearest, nearest))
    variance = (1 + inner**2 / 2) / (num - 3) if method == "spearman" else 0.437 / (num - 4)
    reach = two_sided_z(confidence) * np.sqrt(variance)
    low, high = np.tanh(np.arctanh(inner) - reach), np.tanh(np.arctanh(inner) + reach)
    return Estimate(value, min(value, float(low)), max(value, float(high)), float(result.pvalue))


class Overlap(NamedTuple):
    """The share of the top k that two lists have in common, the share by chance, and how rare that much is."""

    share: float
    chance: float
    p_value: float


def top_overlap(first: ArrayLike, second: ArrayLike, k: int) -> Overlap:
    """Return how much of the k largest of two lists is the same, beside the level that random lists have.

    Pairs with a NaN are left out. Ties at the edge of the top k count with the share of them that fits, so that many
    equal values agree no better than chance. The p-value is the hypergeometric chance of at least that overlap
    (rounded down). Raises ValueError unless 1 <= k <= the number of pairs.
    """
    one, other = _known_pairs(first, second)
    num = len(one)
    if not 1 <= k <= num:
        raise ValueError(f"k must lie between 1 and the {num} pairs, not {k}")
    common = float(_top_share(one, k) @ _top_share(other, k))
    p_value = float(stats.hypergeom.sf(np.floor(common + 1e-9) - 1, num, k, k))
    return Overlap(common / k, k / num, p_value)


def spread_of_drop(
    changes: sparse.csr_array, rng: np.random.Generator, num_resamples: int = 1000, confidence: float = 0.95
) -> Estimate:
    """Return the standard deviation of D over the places of a layer, in percentage points, free of sampling noise.

    `changes` is the (image, place) matrix that `change_matrix` makes. A finite number of images makes even equal places
    differ. The variance over places that this alone gives is known without bias from the images themselves (the
    variance over places of each image's changes, over the number of images), and is taken off the variance that is
    seen; where it is the larger, the spread is 0. The places are the sample: the interval is a bootstrap-t of the
    logarithm of the variance that is seen, studentized by the jackknife (B. Efron and R. J. Tibshirani, An Introduction
    to the Bootstrap (1993), section 12.5), less the same noise. At 25 places a 95 % interval holds the true spread in
    94 % of samples of normal D and in 90 % of exponential D; fewer where single places stand out more.
    NaN below three places or two images; NaN for the interval where the places are too few, or too many of them equal,
    for one. That early layers vary more
    (the paper's Fig. 2) is then a matter of `rank_agreement(depth, spread)` over the layers.
    """
    num_images, num_places = changes.shape
    if num_places < 3 or num_images < 2:
        return Estimate(np.nan, np.nan, np.nan)
    drop = np.asarray(changes.sum(axis=0, dtype=np.int64)) / num_images
    seen = float(drop.var(ddof=1))
    net = np.asarray(changes.sum(axis=1, dtype=np.int64), dtype=np.float64)
    within = (np.count_nonzero(changes.data) - float(net @ net) / num_places) / (num_places - 1)  # over all images
    noise = (within / num_images - seen) / (num_images - 1)
    centre, error = _log_variance(drop[None])
    if np.isnan(error).any():
        return Estimate(100 * float(np.sqrt(max(seen - noise, 0))), np.nan, np.nan)
    ratios = np.empty(num_resamples)
    chunk = max(1, _CHUNK_NUMBERS // num_places)
    for start in range(0, num_resamples, chunk):
        part = ratios[start : start + chunk]
        logs, errors = _log_variance(drop[rng.integers(num_places, size=(len(part), num_places))])
        part[:] = np.divide(logs - centre, errors, out=np.full_like(logs, np.nan), where=errors > 0)
    bounds = np.full(2, np.nan)
    if not np.isnan(ratios).all():
        upper, lower = np.nanquantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
        with np.errstate(over="ignore"):
            bounds = np.exp(centre - np.array([lower, upper]) * error)
    if not np.isfinite(bounds).all():
        bounds[:] = np.nan
    variances = np.array([seen, *bounds]) - noise
    return Estimate(*(float(x) for x in 100 * np.sqrt(np.maximum(variances, 0))))


def _log_variance(values: Floats) -> tuple[Floats, Floats]:
    """Return the logarithm of each row's variance and its jackknife standard error, NaN where one is 0."""
    size = values.shape[1]
    squares = (values - values.mean(axis=1, keepdims=True)) ** 2
    total = squares.sum(axis=1, keepdims=True)
    left = total - squares * size / (size - 1)  # the sum of squares without each value
    positive = left > 1e-12 * total
    logs = np.log(left / (size - 2), out=np.full_like(left, np.nan), where=positive)
    error = np.sqrt((size - 1) * logs.var(axis=1))
    usable = np.isfinite(error)
    centre = np.log(total[:, 0] / (size - 1), out=np.full(len(values), np.nan), where=usable)
    return centre, np.where(usable, error, np.nan)


def _known_pairs(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = ~np.isnan(one) & ~np.isnan(other)
    return one[known], other[known]


def _top_share(values: Floats, k: int) -> Floats:
    edge = np.partition(values, -k)[-k]
    above, at_edge = values > edge, values == edge
    return above + at_edge * ((k - above.sum()) / at_edge.sum())

"""Which pairs of an image and an ablation to compute, and what the others could hide: numbers only, no network.

A prediction says that a margin m becomes m' = m + change. Its error is measured in units of the prediction's size
(`ErrorLaws`); how often it exceeds r units in the direction that crosses 0 is the chance of a flip that is missed at
risk r = |m'| / size. The law is learned from pairs that were computed. So is how much larger or smaller the errors of a
layer, an ablation or an image are than those of all (`units`), so that the same law holds for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from weanalysis.ablation.evaluate.lot import draw

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

# Shares of the wanted largest error: what may be expected of the mean ablation, and of each one.
MEAN_SHARE, EACH_SHARE = 1 / 4, 1.0

# The pilot: all predicted flips; of the others the riskiest, this share of all pairs, and no fewer than so many; so
# many by lot, as many of each layer; and so many in each octave of risk, from these on, and beyond the last.
PILOT_SHARE, _BY_LOT = 0.0015, 120
LEAST_PILOT = 100
_OCTAVES, _IN_EACH_OCTAVE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), 10

# An ablation is missed more or less often than the law says; this many expected misses of its own outweigh the law.
PRIOR = 2.0

# The tail of the law is a power law through its largest errors: this share of them, and at least so many.
_TAIL_SHARE, _TAIL_COUNT = 0.05, 20

# A group's own unit of errors: by this quantile, with so many errors of all groups beside its own; no less than a
# third, since where most predictions are exact, those that are not say what the errors are.
_UNIT_QUANTILE, _UNIT_PRIOR, _LEAST_UNIT = 0.8, 8, 1 / 3

# How far a margin is expected to go when another one of the same label goes by 1: half the variance is the label's.
_SHARED = 0.5

# So that no error is measured in units that it was used for, they are learned anew without each of so many parts.
NUM_PARTS = 10


@dataclass(frozen=True)
class ScreenSettings:
    """What is screened for: the metric, and the largest error of D that is wanted, in percentage points.

    >>> ScreenSettings("top5", max_error=0.5)
    ScreenSettings(metric='top5', max_error=0.5)
    """

    metric: str = "top1"
    max_error: float = 0.1


@dataclass(frozen=True)
class ErrorLaw:
    """How often a prediction's error towards 0 exceeds r times its size: as observed, beyond that a power law.

    `errors` is the sorted sample, in units of the size and positive towards 0; from its value `edge` on, where the
    share `share` lies above, the chance falls as (r / edge)^-exponent (B. M. Hill, Annals of Statistics 3 (1975)
    1163-1174).
    """

    errors: Floats
    edge: float
    share: float
    exponent: float

    @classmethod
    def fit(cls, errors: Floats) -> ErrorLaw:
        """Learn the law from a sample (P,); with fewer than some 40 errors it errs on the side of larger ones."""
        errors = np.sort(np.asarray(errors, np.float64))
        count = len(errors)
        num_tail = min(max(_TAIL_COUNT, round(_TAIL_SHARE * count)), count // 2)
        edge = float(errors[count - num_tail - 1]) if num_tail else 0.0
        if num_tail and edge < (usual := float(np.quantile(np.abs(errors), 0.5))):
            # Errors that mostly go the other way: what follows from an edge next to 0 is no tail.
            edge, num_tail = usual, int((errors > usual).sum())
        tail = errors[count - num_tail :]
        if num_tail < 5 or edge <= 0:
            # Hardly any error in the wanted direction: an inverse square law from the largest one seen, or 1.
            return cls(errors, max(float(np.abs(errors).max(initial=0.0)), 1e-6) if count else 1.0, 0.5, 2.0)
        # One sample in hand counts as one more error: a tail must not seem lighter for being short of samples.
        exponent = num_tail / (float(np.log(tail / edge).sum()) + 1 / num_tail)
        return cls(errors, edge, (num_tail + 1) / (count + 1), float(np.clip(exponent, 1.0, 12.0)))

    def exceeds(self, risk: Floats) -> Floats:
        """The chance that a pair at this risk flips although its prediction does not: same shape, 0 to 1."""
        risk = np.asarray(risk, np.float64)
        body = 1 - np.searchsorted(self.errors, np.minimum(risk, self.edge)) / max(1, len(self.errors))
        with np.errstate(divide="ignore", over="ignore"):
            tail = self.share * (np.maximum(risk, self.edge) / self.edge) ** -self.exponent
        return np.where(risk < self.edge, np.maximum(body, self.share), tail)


@dataclass(frozen=True)
class ErrorLaws:
    """The law of errors of margins that are predicted to be positive, and that of the others.

    What a prediction leaves out mostly lowers a margin, since another rival may become the best one: a positive margin
    comes nearer to 0 than predicted more often than a negative one.
    """

    positive: ErrorLaw
    negative: ErrorLaw

    @classmethod
    def fit(cls, errors: Floats, positive: Bools) -> ErrorLaws:
        """Learn both from errors (P,) and whether each is of a margin predicted to be positive (P,)."""
        return cls(ErrorLaw.fit(errors[positive]), ErrorLaw.fit(errors[~positive]))

    def exceeds(self, risk: Floats, positive: Bools) -> Floats:
        """The chance that a pair at this risk flips although its prediction does not: same shape, 0 to 1."""
        chance = np.empty(risk.shape, np.float32)
        # By rows, so that what is computed on the way is small beside the result.
        for row, of_row, is_positive in zip(chance, risk, positive, strict=True):
            row[is_positive] = self.positive.exceeds(of_row[is_positive])
            row[~is_positive] = self.negative.exceeds(of_row[~is_positive])
        return chance


def units(errors: Floats, groups: NDArray[np.integer], num_groups: int) -> Floats:
    """How large the errors of each group are against those of all, (num_groups,); 1 where there are none.

    `errors` and `groups` (P,). By their 80th percentiles; each group has some quantiles of all errors beside its own,
    so that few errors of its own say little, and a dozen that are a thousand times as large say all.
    """
    sizes = np.abs(errors)
    if not sizes.any():
        return np.ones(num_groups)
    of_all = np.quantile(sizes, (np.arange(_UNIT_PRIOR) + 0.5) / _UNIT_PRIOR)
    sizes = np.concatenate([sizes, np.tile(of_all, num_groups)])
    groups = np.concatenate([groups, np.repeat(np.arange(num_groups), _UNIT_PRIOR)])
    # The percentile of each group lies between two of its errors, as np.quantile has it.
    counts, ordered = np.bincount(groups, minlength=num_groups), sizes[np.lexsort((sizes, groups))]
    starts, place = np.cumsum(counts) - counts, _UNIT_QUANTILE * (counts - 1)
    low = starts + place.astype(int)
    high = np.minimum(low + 1, starts + counts - 1)
    own = ordered[low] + (place % 1) * (ordered[high] - ordered[low])
    alone = _UNIT_QUANTILE * (_UNIT_PRIOR - 1)
    usual = of_all[int(alone)] + (alone % 1) * (of_all[int(alone) + 1] - of_all[int(alone)])
    if not usual:
        return np.ones(num_groups)
    return np.where(counts > _UNIT_PRIOR, np.maximum(own / usual, _LEAST_UNIT), 1.0)


Groups = Sequence[tuple[NDArray[np.integer], int]]


def units_in_turn(errors: Floats, groups: Groups) -> list[Floats]:
    """The units of one grouping after the other, each of what those before leave: (num_groups,) each.

    `groups` holds, for each grouping, the group of each error (P,) and the number of groups.
    """
    units_of_each = []
    for members, num_groups in groups:
        units_of_each.append(units(errors, members, num_groups))
        errors = errors / units_of_each[-1][members]
    return units_of_each


def in_units_of_others(errors: Floats, groups: Groups, parts: NDArray[np.integer]) -> Floats:
    """Errors (P,) in units that are learned from other errors: each part (P,), 0 to 9, in those of the nine others.

    In units that it was itself used for, an error is smaller than one that is yet to come.
    """
    result = np.array(errors, np.float64)
    for one in range(NUM_PARTS):
        of_others = parts != one
        units_of_each = units_in_turn(errors[of_others], [(members[of_others], count) for members, count in groups])
        for unit, (members, _) in zip(units_of_each, groups, strict=True):
            result[~of_others] /= unit[members[~of_others]]
    return result


def risks(margins: Floats, change: Floats, size: Floats) -> tuple[Floats, Bools]:
    """Return the risk of each pair (N, A) and whether it is predicted to flip; infinite where nothing changes.

    `margins` (N,), `change` and `size` (N, A). A predicted flip has risk 0: it is always computed.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        after = margins[:, None] + change
        flips = (margins[:, None] > 0) != (after > 0)
        risk = np.where(size > 0, np.abs(after) / size, np.inf)
    unknown = ~np.isfinite(after) | np.isnan(size)  # an overflow: nothing is known of it
    return np.where(flips | unknown, 0.0, risk), flips


def risks_of_others(second: Floats, change: Floats, of_any: Floats) -> tuple[Floats, Floats]:
    """What becomes of the margin to the nearest class that no prediction is made of, and the risk that it crosses 0.

    `second` (N,) is that margin, infinite where there is none; `change` (N, A) what is predicted of the first margin;
    `of_any` (N, A) the size of what may happen to any class. Returns (N, A) each. The label's logit is in both
    margins: where all logits move alike, the second margin is expected to go half as far as the first one.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        after = second[:, None] + _SHARED * change
        risk = np.where((after > 0) == (second[:, None] > 0), np.abs(after) / of_any, 0.0)
    usual = (of_any > 0) & np.isfinite(second)[:, None]
    return after, np.where(usual, np.nan_to_num(risk, nan=0.0, posinf=np.inf), np.inf)


def bands(risk: Floats, positive: Bools) -> NDArray[np.integer]:
    """The octave of risk in which each pair lies, apart for margins predicted to be positive: same shape, 0 to 13."""
    octave = np.searchsorted(_OCTAVES, risk, side="right").astype(np.uint8)
    octave[positive] += len(_OCTAVES) + 1
    return octave


def factors(missed: Bools, expected: Floats, bands: NDArray[np.integer]) -> Floats:
    """How much more often than expected pairs in each band flipped unpredicted: (14,), from pairs computed (P,)."""
    seen, due = (np.bincount(bands, one, 2 * (len(_OCTAVES) + 1)) for one in (missed, expected))
    return (seen + PRIOR) / (due + PRIOR)


def pilot(risk: Floats, layers: NDArray[np.integer], rng: np.random.Generator) -> Bools:
    """Choose which pairs (N, A) to compute first: the riskiest, which would be computed anyway, and some by lot.

    All predicted flips, whose risk is 0, and `PILOT_SHARE` of all pairs beyond them. Of those that are left some are
    drawn in each of the `layers` (A,), and in each octave of risk where the threshold may come to lie: a law learned
    from the riskiest alone would not have to hold there.
    """
    chosen = risk == 0
    chosen |= _least(risk, np.isfinite(risk) & ~chosen, max(LEAST_PILOT, round(PILOT_SHARE * risk.size)))
    chosen |= draw(np.isfinite(risk) & ~chosen, layers, -(-_BY_LOT // len(np.unique(layers))), rng)
    for low, high in pairwise((*_OCTAVES, np.inf)):
        (places,) = np.nonzero(((risk >= low) & (risk < high) & ~chosen).ravel())
        chosen.ravel()[rng.permutation(places)[:_IN_EACH_OCTAVE]] = True
    return chosen


def likeliest(chance: Floats, among: Bools, most: int) -> Bools:
    """Those pairs (N, A) `among` whose chance is largest, about so many of them."""
    return _least(-chance, among, most)


def _least(values: Floats, among: Bools, count: int) -> Bools:
    """Those `among` whose value is smallest: `count` of them, and all that equal the last of these."""
    some = values[among]
    if len(some) <= count:
        return among
    return among & (values <= np.partition(some, count - 1)[count - 1])


def choose(chance: Floats, max_error: float) -> Bools:
    """Choose all pairs (N, A) to compute, so that what is missed stays within a wanted largest error of D, in points.

    `chance` (N, A) is that of a flip that is missed. The likeliest first: until the mean ablation can be expected to be
    wrong by `MEAN_SHARE` of the wanted error, and each single one by `EACH_SHARE` of it.
    """
    num_images, num_ablations = chance.shape
    allowed = max_error / 100 * num_images
    # One limit on the chance for all of them, as high as the mean allows.
    pool = np.sort(chance, axis=None)
    spare = np.searchsorted(np.cumsum(pool, dtype=np.float64), MEAN_SHARE * allowed * num_ablations, side="right")
    chosen = chance >= (pool[spare] if spare < len(pool) else np.inf)
    for one, of_one in zip(chance.T, chosen.T, strict=True):
        # What may be missed of an ablation is the sum of its unlikeliest: as many of them as each one is allowed.
        order = np.argsort(one, kind="stable")
        spare = np.searchsorted(np.cumsum(one[order], dtype=np.float64), EACH_SHARE * allowed, side="right")
        of_one[order[spare:]] = True
    return chosen

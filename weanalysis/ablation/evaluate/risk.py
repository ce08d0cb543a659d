"""Which pairs of an image and an ablation to compute, and what the others could hide: numbers only, no network.

A prediction says that a margin m becomes m' = m + change. Its error is measured in units of the prediction's size
(`ErrorLaw`); how often it exceeds r units in the direction that crosses 0 is the chance of a flip that is missed at
risk r = |m'| / size. The law is learned from pairs that were computed. So is how much larger or smaller the errors of a
layer, an ablation or an image are than those of all (`units`), so that one law holds for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

# Shares of the wanted largest error: what may be expected of the mean ablation, and of each one.
MEAN_SHARE, EACH_SHARE = 1 / 20, 1 / 8

# The pilot: this share of all pairs, the riskiest; this share of the others, at random; and so many in each octave of
# risk, from these on.
PILOT_SHARE, AUDIT_SHARE = 0.008, 0.0005
_OCTAVES, _IN_EACH_OCTAVE = (0.25, 0.5, 1.0, 2.0, 4.0), 20

# An ablation is missed more or less often than the law says; this many expected misses of its own outweigh the law.
PRIOR = 2.0

# The tail of the law is a power law through its largest errors: this share of them, and at least so many.
_TAIL_SHARE, _TAIL_COUNT = 0.05, 20

# A group's own unit of errors: by this quantile, as if so many errors had said that it is 1, and within this factor.
_UNIT_QUANTILE, _UNIT_PRIOR, _MOST_UNIT = 0.8, 8, 3.0

# So that no error is measured in units that it was used for, they are learned anew without each of so many parts.
NUM_PARTS = 10


@dataclass(frozen=True)
class ScreenSettings:
    """What is screened for: the metric, and the largest error of D that is wanted, in percentage points."""

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


def units(errors: Floats, groups: NDArray[np.integer], num_groups: int) -> Floats:
    """How large the errors of each group are against those of all, (num_groups,); 1 where there are none.

    `errors` and `groups` (P,). By their 80th percentiles, drawn towards 1 where a group has few errors, and at most 3
    times more or less.
    """
    sizes, counts = np.abs(errors), np.bincount(groups, minlength=num_groups)
    if not len(sizes) or not (typical := float(np.quantile(sizes, _UNIT_QUANTILE))):
        return np.ones(num_groups)
    ordered = sizes[np.lexsort((sizes, groups))]
    # The percentile of each group lies between two of its errors, as np.quantile has it.
    starts, last = np.cumsum(counts) - counts, np.maximum(counts - 1, 0)
    place = _UNIT_QUANTILE * last
    low = np.minimum(starts + place.astype(int), len(ordered) - 1)
    high = np.minimum(starts + np.minimum(place.astype(int) + 1, last), len(ordered) - 1)
    own = ordered[low] + (place % 1) * (ordered[high] - ordered[low])
    return np.clip(own / typical, 1 / _MOST_UNIT, _MOST_UNIT) ** (counts / (counts + _UNIT_PRIOR))


Groups = Sequence[tuple[NDArray[np.integer], int]]


def units_in_turn(errors: Floats, groups: Groups) -> list[Floats]:
    """The units of one grouping after the other, each of what those before leave: (num_groups,) each.

    `groups` holds, for each grouping, the group of each error (P,) and the number of groups.
    """
    found = []
    for members, num_groups in groups:
        found.append(units(errors, members, num_groups))
        errors = errors / found[-1][members]
    return found


def in_units_of_others(errors: Floats, groups: Groups, parts: NDArray[np.integer]) -> Floats:
    """Errors (P,) in units that are learned from other errors: each part (P,), 0 to 9, in those of the nine others.

    In units that it was itself used for, an error is smaller than one that is yet to come.
    """
    result = np.array(errors, np.float64)
    for one in range(NUM_PARTS):
        told = parts != one
        found = units_in_turn(errors[told], [(members[told], count) for members, count in groups])
        for unit, (members, _) in zip(found, groups, strict=True):
            result[~told] /= unit[members[~told]]
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


def pilot(risk: Floats, rng: np.random.Generator) -> Bools:
    """Choose which pairs (N, A) to compute first: the riskiest, which would be computed anyway, and some by lot.

    `PILOT_SHARE` of all pairs are the riskiest. Of those that are left some are drawn in each octave of risk where the
    threshold may come to lie, and some anywhere: a law learned from the riskiest alone would not have to hold there.
    """
    finite = np.isfinite(risk)
    num_first = min(int(finite.sum()), max(200, round(PILOT_SHARE * risk.size)))
    if num_first == 0:
        return np.zeros(risk.shape, bool)
    edge = np.partition(risk[finite], num_first - 1)[num_first - 1]
    chosen = finite & (risk <= edge)
    chosen |= finite & (rng.random(risk.shape) < AUDIT_SHARE)
    for low in _OCTAVES:
        (places,) = np.nonzero(((risk >= low) & (risk < 2 * low) & ~chosen).ravel())
        chosen.ravel()[rng.permutation(places)[:_IN_EACH_OCTAVE]] = True
    return chosen


def choose(risk: Floats, law: ErrorLaw, factor: Floats, max_error: float) -> Bools:
    """Choose all pairs (N, A) to compute, so that what is missed stays within a wanted largest error of D, in points.

    The riskiest first: until the mean ablation can be expected to be wrong by `MEAN_SHARE` of the wanted error, and
    each single one by `EACH_SHARE` of it. `factor` (A,) is how much more often than the law an ablation is missed.
    """
    num_images, num_ablations = risk.shape
    order = np.argsort(risk, axis=0)
    ordered = np.take_along_axis(risk, order, 0)
    chance = np.minimum(1.0, law.exceeds(ordered) * factor)
    chance[~np.isfinite(ordered)] = 0
    # left[k]: what is expected to be missed of an ablation whose k riskiest images are computed.
    left = np.concatenate([np.cumsum(chance[::-1], axis=0)[::-1], np.zeros((1, num_ablations))])
    allowed = max_error / 100 * num_images
    needed = (left > EACH_SHARE * allowed).sum(0)  # of each ablation, how many of its riskiest images
    # One limit on the chance for all of them, as high as the mean allows.
    pool = np.sort(chance, axis=None)
    spare = np.searchsorted(np.cumsum(pool), MEAN_SHARE * allowed * num_ablations, side="right")
    limit = pool[spare] if spare < len(pool) else np.inf
    needed = np.maximum(needed, (chance >= limit).sum(0))
    chosen = np.zeros(risk.shape, bool)
    np.put_along_axis(chosen, order, np.arange(num_images)[:, None] < needed, 0)
    return chosen

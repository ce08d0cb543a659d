"""How many images a question needs, and whether an improvement found on some images holds on others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from weanalysis.errors import StudyError
from weanalysis.results.statistics.paired import (
    Floats,
    adjust_bh,
    distinct,
    mcnemar_exact,
    paired_difference,
    two_sided_z,
)
from weanalysis.results.statistics.sequential import sequential_p_value

# Beyond so many changed images the normal approximation is as good as the exact law.
_MOST_EXACT = 100_000


def images_needed(
    difference: ArrayLike, discordance: ArrayLike, power: float = 0.8, significance: float = 0.05
) -> Floats:
    """Return how many images McNemar's exact test needs to tell D = `difference` from 0 with the given power.

    Both arguments are fractions and broadcast; `discordance` is the share of images that change, as a pilot shows it,
    and counts as |difference| where it is smaller. NaN where difference is 0 or a value is missing. It is the number at
    which `mcnemar_power` reaches the power, found by bisection from the normal approximation (R. J. Connor, Biometrics
    43 (1987) 207-211), which alone gives a power of 0.765 to 0.794 for 0.80; where more than 100,000 changed images
    are expected the two agree to 0.001, and that formula stands. Raises ValueError for fractions outside [-1, 1] and
    [0, 1].

    >>> int(images_needed(0.01, 0.02))
    1686
    """
    sought, changed = np.broadcast_arrays(
        np.abs(np.asarray(difference, dtype=np.float64)), np.asarray(discordance, dtype=np.float64)
    )
    if np.any(sought > 1) or np.any((changed < 0) | (changed > 1)) or not 0 < power < 1:
        raise ValueError("difference must lie in [-1, 1], discordance in [0, 1] and power in (0, 1): all are fractions")
    changed = np.maximum(changed, sought)
    noise = two_sided_z(1 - significance) * np.sqrt(changed)
    noise = noise + special.ndtri(power) * np.sqrt(changed - sought**2)
    needed = np.ceil(np.divide(noise, sought, out=np.full_like(noise, np.nan), where=sought > 0) ** 2)
    (one, share, about), which = distinct(sought.ravel(), changed.ravel(), needed.ravel())
    exact = np.array(
        [
            _exactly_needed(*row, power, significance) if row[1] * row[2] <= _MOST_EXACT else row[2]
            for row in zip(one.tolist(), share.tolist(), about.tolist(), strict=True)
        ]
    )
    return exact[which].reshape(needed.shape)


def _exactly_needed(difference: float, discordance: float, about: float, power: float, significance: float) -> int:
    """Return the number of images, near `about`, from which the exact test has the power."""
    first = int(about)

    def reaches(num_images: int) -> bool:
        return mcnemar_power(difference, discordance, num_images, significance) >= power

    step = max(1, first // 50)
    low = high = first
    while not reaches(high):
        low, high, step = high, high + step, 2 * step
    step = max(1, first // 50)
    while low > 0 and reaches(low):
        low, high, step = max(0, low - step), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def detectable_difference(discordance: float, num_images: int, power: float = 0.8, significance: float = 0.05) -> float:
    """Return the smallest |D|, a fraction, that McNemar's exact test finds in `num_images` images with the given power.

    `discordance` counts as |D| where it is smaller, as in `images_needed`. NaN where even D = 1 would be missed, or
    without images.

    Of an ablation that changes 2 % of all images, what can be seen in 1,000 images, in points:

    >>> round(100 * detectable_difference(0.02, 1_000), 2)
    1.28
    """

    def reaches(difference: float) -> bool:
        return mcnemar_power(difference, max(difference, discordance), num_images, significance) >= power

    if not num_images > 0 or np.isnan(discordance) or not reaches(1.0):
        return float("nan")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def mcnemar_power(difference: float, discordance: float, num_images: int, significance: float = 0.05) -> float:
    """Return the exact probability that McNemar's exact test finds D = `difference` in `num_images` images.

    Both are fractions, |difference| <= discordance <= 1, else ValueError. The number of changed images is binomial, and
    among them the number lost; all of both are summed over.

    >>> round(mcnemar_power(0.01, 0.02, 500), 3)
    0.241
    """
    if not abs(difference) <= discordance <= 1:
        raise ValueError(f"|difference| <= discordance <= 1 must hold, not {difference} and {discordance}")
    if discordance == 0:
        return 0.0
    mean, far = num_images * discordance, 8 * np.sqrt(num_images * discordance) + 30  # beyond that, less than 1e-12
    changed = np.arange(max(0, int(mean - far)), min(num_images, int(mean + far)) + 1)
    if changed[-1] < len(_few_edges(significance)):
        edge = _few_edges(significance)[changed]
    else:
        edge = _edges(changed, significance)
    share = (discordance + difference) / (2 * discordance)
    rejects = edge >= 0
    lost, of_changed = np.maximum(edge, 0), changed
    powers = np.where(rejects, special.bdtr(lost, of_changed, share) + special.bdtr(lost, of_changed, 1 - share), 0.0)
    return float(stats.binom.pmf(changed, num_images, discordance) @ powers)


def _edges(changed: NDArray[np.int64], significance: float) -> NDArray[np.int64]:
    """Return the most images changed the rarer way with which the exact test rejects; -1 where it never does."""
    quantile = np.asarray(stats.binom.ppf(significance / 2, changed, 0.5))
    return (quantile - (special.bdtr(quantile, changed, 0.5) > significance / 2)).astype(np.int64)


@lru_cache(maxsize=16)
def _few_edges(significance: float) -> NDArray[np.int64]:
    return _edges(np.arange(2000), significance)


def smallest_finding(num_images: int, significance: float = 0.05, stopped: bool = False) -> float:
    """Return the smallest |D|, a fraction, that any outcome in `num_images` images tells from 0 at `significance`.

    That is the share of the fewest images which, all lost and none gained, give such a p-value: McNemar's exact one, or
    with `stopped` the anytime-valid one. NaN where the images are too few for it.

    >>> smallest_finding(100)
    0.06
    """
    # McNemar's p-value is 2 / 2^k at best: the fewest images grow with the logarithm of the level alone.
    lost = np.arange(1, min(num_images, 4096) + 1)
    p_values = (sequential_p_value if stopped else mcnemar_exact)(lost, np.zeros_like(lost))
    (significant,) = np.nonzero(p_values <= significance)
    return float(lost[significant[0]] / num_images) if len(significant) else float("nan")


class ImagePlan(NamedTuple):
    """Images that it takes to tell D = `drop` points from 0: for half of the undecided ablations, and for all."""

    drop: float
    power: float
    num_undecided: int
    median: float
    largest: float


def plan_images(table: pd.DataFrame, drop: float, significance: float = 0.05, power: float = 0.8) -> ImagePlan:
    """Say from a pilot, a study's table, how many images the ablations need that it could not tell from 0.

    Undecided are rows with q_value above `significance`. Each is judged by the share of images that it flipped in the
    pilot, with `images_needed` for one exact test at 5 %; NaN where none is undecided. Of an ablation that flipped no
    image nothing is known but that; it counts as changing just the `drop` points (percentage points) that are sought.

    >>> pilot = pd.DataFrame({"q_value": [0.001, 0.6], "num_images": 500, "num_flipped": [40, 10]})
    >>> plan = plan_images(pilot, drop=0.5)
    >>> plan.num_undecided, plan.median
    (1, 6580.0)
    """
    rows = table[(table["q_value"] > significance) & (table["num_images"] > 0)]
    needed = images_needed(drop / 100, rows["num_flipped"] / rows["num_images"], power)
    if not len(rows):
        return ImagePlan(drop, power, 0, np.nan, np.nan)
    return ImagePlan(drop, power, len(rows), float(np.median(needed)), float(needed.max()))


@dataclass(frozen=True)
class Confirmation:
    """Which ablations improve the network, and how large an improvement the images still allow.

    `table` has a row for each ablation: drop, drop_low and drop_high on the confirming images (percentage points),
    num_flipped and num_images of these, chosen, p_value and q_value (one-sided, NaN where not chosen) and confirmed.
    `largest_missed` is in percentage points: with the stated confidence no ablation that is not confirmed improves the
    network by more.
    """

    table: pd.DataFrame
    largest_missed: float

    @property
    def num_chosen(self) -> int:
        return int(self.table["chosen"].sum())

    @property
    def num_confirmed(self) -> int:
        return int(self.table["confirmed"].sum())


def confirm_improvements(choosing: pd.DataFrame, confirming: pd.DataFrame, significance: float = 0.05) -> Confirmation:
    """Choose ablations that improve the network on one half of the images, and confirm them on the other half.

    Both tables have the columns lost, gained and num_images, a row for each ablation in the same order, counted on
    disjoint images. Chosen is what improves with a one-sided exact McNemar p-value of at most `significance`;
    confirmed is what improves again, by the same test on the other half after Benjamini and Hochberg over the chosen.
    A chosen ablation's D on the half that chose it flatters it (the winner's curse), so the table has the other half's.
    `largest_missed` is the most negative bound of Tango's intervals on all images over the ablations that are not
    confirmed, at a confidence that holds for all of them together (Bonferroni).
    Raises StudyError for tables of different lengths or without images.

    The first ablation gains in both halves, the second in the choosing one alone:

    >>> choosing = pd.DataFrame({"lost": [0, 0], "gained": [12, 9], "num_images": 100})
    >>> confirming = pd.DataFrame({"lost": [1, 4], "gained": [11, 4], "num_images": 100})
    >>> confirmation = confirm_improvements(choosing, confirming)
    >>> confirmation.table[["drop", "chosen", "confirmed"]].values.tolist()
    [[-10.0, True, True], [0.0, True, False]]
    >>> round(confirmation.largest_missed, 1)
    9.3
    """
    if len(choosing) != len(confirming) or len(choosing) == 0:
        raise StudyError(f"the halves must list the same ablations, not {len(choosing)} and {len(confirming)}")
    counts = np.stack(
        [table[["lost", "gained", "num_images"]].to_numpy(np.float64).T for table in (choosing, confirming)]
    )
    (lost, gained, num_images), (lost_again, gained_again, num_again) = counts
    if np.any(num_images == 0) or np.any(num_again == 0):
        raise StudyError("both halves need images: use more images or more shards")
    chosen = _improvement_p_value(lost, gained) <= significance
    p_value = np.where(chosen, _improvement_p_value(lost_again, gained_again), np.nan)
    q_value = adjust_bh(p_value)
    confirmed = q_value <= significance
    difference, low, high = paired_difference(lost_again, gained_again, num_again, 1 - significance)
    all_lost, all_gained, all_images = counts.sum(axis=0)
    _, lowest, _ = paired_difference(all_lost, all_gained, all_images, 1 - 2 * significance / len(choosing))
    missed = -100 * lowest[~confirmed]
    table = pd.DataFrame(
        {
            "drop": 100 * difference,
            "drop_low": 100 * low,
            "drop_high": 100 * high,
            "num_flipped": lost_again + gained_again,
            "num_images": num_again,
            "chosen": chosen,
            "p_value": p_value,
            "q_value": q_value,
            "confirmed": confirmed,
        },
        index=choosing.index,
    )
    return Confirmation(table, float(np.nanmax(missed)) if len(missed) else np.nan)


def _improvement_p_value(lost: Floats, gained: Floats) -> Floats:
    """Return P(at most that many lost of the changed images) with lost and gained equally likely."""
    return np.where(lost + gained > 0, special.bdtr(lost, (lost + gained).astype(np.int64), 0.5), 1.0)

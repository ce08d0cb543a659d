"""D of a study's places as what each image adds to it, for metrics in which no image is just right or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from weanalysis.results.statistics import Comparison, adjust_bh
from weanalysis.results.tables import Store
from weanalysis.tasks import Metric
from weanalysis.tasks.aggregates import Linearized


@dataclass(frozen=True)
class Shifts:
    """D of P places on N images: `drops` (P,), and `moves` (N, P), by how much D would move if an image weighed more.

    `moves` sum to 0 over the images; their spread is that of D. `value` is the intact network's, with `intact` (N,) for
    its images. An interval is given where both are sound (`is_sound` (P,), `intact_is_sound`), and is as wide as if
    what one more image moves had `added` to the sum of squares.
    """

    drops: np.ndarray
    moves: np.ndarray
    is_sound: np.ndarray
    value: float
    intact: np.ndarray
    intact_is_sound: bool
    added: float


def shifts_of(store: Store, study_id: int, metric: Metric, images: np.ndarray, positions: np.ndarray) -> Shifts:
    """Read what each of some images, by id, adds to D of places of a study, by their positions.

    All of these must have been measured on all images of the study. Raises StoreError where not every image's number
    is kept.
    """
    order = pd.Index(store.intact(study_id)["image_id"]).get_indexer(images)
    drops, moves = np.full(len(positions), np.nan), np.zeros((len(images), len(positions)), np.float32)
    is_sound = np.zeros(len(positions), bool)
    value, intact, intact_is_sound, added = np.nan, np.zeros(len(images)), False, 0.0
    for rows, before, after in store.answers(study_id, metric.statistic):
        places = [place for place, one in enumerate(positions) if one in rows]
        if len(after) <= order.max() or not places:
            continue
        of_rows = np.searchsorted(rows, positions[places])
        sides = (before.of_images(order), after.of_networks(of_rows).of_images(order))
        first, second = (_linear(side, metric) for side in sides)
        drops[places] = metric.worse * (second.values - first.values)
        moves[:, places] = metric.worse * (second.influence - first.influence).T
        is_sound[places] = first.is_sound & second.is_sound
        value, intact, intact_is_sound = float(first.values[0]), first.influence[0], bool(first.is_sound[0])
        added = first.one_image**2
    return Shifts(drops, moves, is_sound, value, intact, intact_is_sound, added)


def _linear(answers: Any, metric: Metric) -> Linearized:
    """The value of each network, the influence of each image on it, and whether that may be built upon."""
    if metric.aggregate is not None:
        return metric.aggregate(answers)
    numbers = answers.confidence.astype(np.float64)
    means = numbers.mean(1)
    return Linearized(means, numbers - means[:, None], np.isfinite(means), 0.0)


def compare_shifts(first: Shifts, second: Shifts, confidence: float = 0.95) -> pd.DataFrame:
    """Compare D of the same places in two studies on the same images, a row each, as `compare_maps` does for flips.

    Interval and p-value are Student's, over the images' differences. Raises ValueError for shapes that differ.
    """
    apart = second.moves.astype(np.float64) - first.moves
    difference = second.drops - first.drops
    known = first.is_sound & second.is_sound
    low, high, p_value = _student(difference, apart, known, first.added + second.added, confidence)
    return pd.DataFrame(
        {
            "first": first.drops,
            "second": second.drops,
            "difference": difference,
            "difference_low": low,
            "difference_high": high,
            "p_value": p_value,
            "q_value": adjust_bh(p_value),
            "num_images": len(apart),
        }
    )


def compare_mean_shifts(first: Shifts, second: Shifts) -> Comparison:
    """Compare the mean D over the places: second minus first, with Student's t over the images."""
    apart = (second.moves.mean(1, dtype=np.float64) - first.moves.mean(1, dtype=np.float64))[:, None]
    difference = np.array([second.drops.mean() - first.drops.mean()])
    known = np.array([first.is_sound.all() and second.is_sound.all()])
    low, high, p_value = _student(difference, apart, known, first.added + second.added, 0.95)
    return Comparison(float(difference[0]), float(low[0]), float(high[0]), float(p_value[0]), len(apart))


def compare_intact(first: Shifts, second: Shifts) -> Comparison:
    """Compare the values of the two intact networks: second minus first, whichever way is better."""
    apart = (second.intact - first.intact)[:, None]
    difference = np.array([second.value - first.value])
    known = np.array([first.intact_is_sound and second.intact_is_sound])
    low, high, p_value = _student(difference, apart, known, first.added + second.added, 0.95)
    return Comparison(float(difference[0]), float(low[0]), float(high[0]), float(p_value[0]), len(apart))


def _student(
    difference: np.ndarray, apart: np.ndarray, known: np.ndarray, added: float, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and p-value of differences (P,) from what each image adds to them (N, P); NaN where not `known`."""
    count = len(apart)
    squares = (apart**2).sum(0) + added
    if added == 0:  # of a mean, the variance of a sample
        squares = squares * count / max(count - 1, 1)
    # What rounding leaves of a difference of equal sums is no spread.
    known = known & (count > 1) & (squares > 1e-12)
    error = np.sqrt(np.where(known, squares, np.nan)) / count
    reach = stats.t.ppf((1 + confidence) / 2, max(count - 1, 1)) * error
    p_value = 2 * stats.t.sf(np.abs(difference) / error, max(count - 1, 1))
    return difference - reach, difference + reach, np.where((difference == 0) & ~np.isnan(difference), 1.0, p_value)

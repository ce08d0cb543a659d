"""Comparisons on the same images: of two networks, two ablations, two maps and two layers; second minus first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special, stats

from weanalysis.errors import StudyError
from weanalysis.results.statistics.paired import Continuity, Floats, adjust_bh, mcnemar_exact, paired_difference
from weanalysis.results.statistics.sequential import sequential_interval, sequential_p_value

# Of two intervals that are combined, neither bound is the one towards 0: with these the combination covers 94.5 %.
_EVEN = Continuity(0.3, 0.3, 0.3)


@dataclass(frozen=True)
class Comparison:
    """Second minus first in percentage points, its interval, a p-value for "no difference", and on how many images.

    >>> compare_correctness(range(100), [True] * 100, range(100), [True] * 90 + [False] * 10).difference
    -10.0
    """

    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    num_images: int
    num_left_out: int = 0


def common_images(first: ArrayLike, second: ArrayLike) -> NDArray[np.int64]:
    """Return the sorted ids of the images that both, (num_images,) each, were measured on.

    Raises StudyError where there are none, and where one side names an image twice.

    >>> common_images([3, 1, 2], [2, 5, 3]).tolist()
    [2, 3]
    """
    first, second = np.asarray(first), np.asarray(second)
    for ids in (first, second):
        if len(np.unique(ids)) < len(ids):
            raise StudyError("an image is named twice in one of the two results; pair results of one pass each")
    common = np.intersect1d(first, second, assume_unique=True)
    if len(common) == 0:
        raise StudyError(
            f"the two results have no image in common ({len(first):,} and {len(second):,} images); "
            "measure both on the same data with the same seed"
        )
    return common.astype(np.int64)


def compare_correctness(
    first_ids: ArrayLike,
    first_correct: ArrayLike,
    second_ids: ArrayLike,
    second_correct: ArrayLike,
    confidence: float = 0.95,
    stopped: bool = False,
) -> Comparison:
    """Compare the accuracies of two networks, or of a network before and after, on the images that both have seen.

    The difference is the second's accuracy minus the first's. The ids are (num_images,) whole numbers and correctness
    (num_images,) booleans in the same order; images of one side alone are left out and counted. The interval is
    Tango's, the p-value McNemar's exact one; with `stopped`, where what was seen decided how many images were looked
    at, both are the anytime-valid ones. Raises StudyError where the two have no image in common.

    On four common images the first network has three right and the second one:

    >>> compared = compare_correctness([0, 1, 2, 3], [1, 1, 1, 0], [0, 1, 2, 3, 4], [1, 0, 0, 0, 1])
    >>> compared.difference, compared.num_images, compared.num_left_out, compared.p_value
    (-50.0, 4, 1, 0.5)
    """
    first_ids, second_ids = np.asarray(first_ids), np.asarray(second_ids)
    images = common_images(first_ids, second_ids)
    right = np.asarray(first_correct, dtype=bool)[pd.Index(first_ids).get_indexer(images)]
    also_right = np.asarray(second_correct, dtype=bool)[pd.Index(second_ids).get_indexer(images)]
    lost, gained = int(np.sum(right & ~also_right)), int(np.sum(~right & also_right))
    difference, low, high = paired_difference(gained, lost, len(images), confidence)
    if stopped:
        low, high = sequential_interval(gained, lost, len(images), confidence)
    return Comparison(
        difference=100 * float(difference),
        difference_low=100 * float(low),
        difference_high=100 * float(high),
        p_value=float((sequential_p_value if stopped else mcnemar_exact)(gained, lost)),
        num_images=len(images),
        num_left_out=len(first_ids) + len(second_ids) - 2 * len(images),
    )


def change_matrix(changes: pd.DataFrame, images: ArrayLike, positions: ArrayLike) -> sparse.csr_array:
    """Lay out changed images as a sparse (image, ablation) matrix: 1 correct to wrong, -1 wrong to correct, else 0.

    `changes` has the columns position, image_id, correct_before and correct_after, a row for each image that an
    ablation changed; `images` and `positions` name the matrix's rows and columns, and what they do not name is left
    out. A column's mean is that ablation's D as a fraction. Raises ValueError for a pair that is named twice.

    Ablation 0 loses image 7 and gains image 9; ablation 1 changes nothing:

    >>> changes = pd.DataFrame({"position": [0, 0], "image_id": [7, 9]})
    >>> changes["correct_before"], changes["correct_after"] = [True, False], [False, True]
    >>> change_matrix(changes, images=[7, 8, 9], positions=[0, 1]).toarray()
    array([[ 1,  0],
           [ 0,  0],
           [-1,  0]], dtype=int8)
    """
    images, positions = np.asarray(images), np.asarray(positions)
    row = pd.Index(images).get_indexer(changes["image_id"])
    column = pd.Index(positions).get_indexer(changes["position"])
    change = changes["correct_before"].to_numpy().astype(np.int8) - changes["correct_after"].to_numpy().astype(np.int8)
    kept = (row >= 0) & (column >= 0) & (change != 0)
    matrix = sparse.coo_array((change[kept], (row[kept], column[kept])), shape=(len(images), len(positions))).tocsr()
    if matrix.nnz < np.sum(kept):
        raise ValueError("an image is named twice for one ablation")
    return matrix


def compare_maps(
    first: sparse.csr_array, second: sparse.csr_array, same_network: bool, confidence: float = 0.95
) -> pd.DataFrame:
    """Compare D of the same places in two studies, or of two lists of ablations, on the same images.

    Both matrices are (image, place) as `change_matrix` makes them, with rows and columns in the same order. Returns a
    row for each place: first, second (D in percentage points), difference (D of the second minus that of the first),
    difference_low, difference_high, p_value, q_value (Benjamini and Hochberg over the places) and num_images.

    With `same_network` (two ablations of one intact network) the difference is that of two accuracies: Tango's interval
    and McNemar's exact test. Else an image can count for up to two: the intervals of both D are combined (MOVER, with
    the correlation over images; G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008) 1693-1702), and the p-value
    is that of the exact sign-flip test: under "no difference" either sign of an image's difference is as likely.
    Raises ValueError for shapes that differ, and for `same_network` where the intact networks disagree on an image.

    Two places and four images; the second network needs the second place more:

    >>> first = sparse.csr_array(np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.int8))
    >>> second = sparse.csr_array(np.array([[1, 1], [0, 1], [0, 0], [0, 0]], np.int8))
    >>> compare_maps(first, second, same_network=False)[["first", "second", "difference"]].values.tolist()
    [[25.0, 25.0, 0.0], [0.0, 50.0, 50.0]]
    """
    if first.shape != second.shape:
        raise ValueError(f"maps of different shapes cannot be compared: {first.shape} and {second.shape}")
    num_images = first.shape[0]
    apart = second - first
    by_one, by_two = _signed_counts(apart, 1), _signed_counts(apart, 2)
    first_change, second_change = _signed_counts(first, 1), _signed_counts(second, 1)
    (first_drop, first_low, first_high), (second_drop, second_low, second_high) = (
        paired_difference(*change, num_images, confidence, _EVEN) for change in (first_change, second_change)
    )
    if same_network:
        if np.any(by_two):
            raise ValueError("the two intact networks disagree on an image: compare with same_network=False")
        difference, low, high = paired_difference(*by_one, num_images, confidence)
        p_value = mcnemar_exact(*by_one)
    else:
        difference = second_drop - first_drop
        both = np.asarray(second.multiply(first).sum(axis=0, dtype=np.int64)) / num_images - second_drop * first_drop
        spreads = [
            np.sqrt(np.maximum(sum(counts) / num_images - drop**2, 0))
            for counts, drop in ((second_change, second_drop), (first_change, first_drop))
        ]
        scale = spreads[0] * spreads[1]
        correlation = np.clip(np.divide(both, scale, out=np.zeros_like(both), where=scale > 0), -1, 1)
        low = difference - _combined(second_drop - second_low, first_high - first_drop, correlation)
        high = difference + _combined(second_high - second_drop, first_drop - first_low, correlation)
        p_value = _sign_flip_exact(by_one, by_two)
    return pd.DataFrame(
        {
            "first": 100 * first_drop,
            "second": 100 * second_drop,
            "difference": 100 * difference,
            "difference_low": 100 * np.maximum(low, -2),
            "difference_high": 100 * np.minimum(high, 2),
            "p_value": p_value,
            "q_value": adjust_bh(p_value),
            "num_images": num_images,
        }
    )


def compare_layers(first: sparse.csr_array, second: sparse.csr_array, confidence: float = 0.95) -> Comparison:
    """Compare the mean D of two sets of ablations, such as two layers of one study, on the same images.

    Both matrices are (image, ablation) as `change_matrix` makes them, with rows in the same order. The difference is
    the second's mean D minus the first's. The images are the sample: interval and p-value are those of a t-test on each
    image's difference of mean changes. Where no image tells the two apart the interval is the one that Tango's method
    gives for no changes; where all do by the same, interval and p-value are NaN, since their spread says nothing then.
    Raises ValueError for other rows.

    The mean D of a layer of two filters is 50 points, that of a layer with one filter 0:

    >>> first, second = (sparse.csr_array(np.array(one, np.int8)) for one in ([[1, 1], [0, 0]], [[0], [0]]))
    >>> compare_layers(first, second).difference
    -50.0
    """
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"{first.shape[0]} and {second.shape[0]} images cannot be paired")
    num_images = first.shape[0]
    apart = np.asarray(second.mean(axis=1, dtype=np.float64)) - np.asarray(first.mean(axis=1, dtype=np.float64))
    rounding = 1e-12  # what it leaves of equal differences is no spread
    if np.ptp(apart) > rounding:
        test = stats.ttest_1samp(apart, 0)
        low, high = test.confidence_interval(confidence)
        p_value = float(test.pvalue)
    elif np.abs(apart).max() > rounding:
        low = high = p_value = np.nan
    else:
        _, low, high = paired_difference(0, 0, num_images, confidence)
        p_value = 1.0
    return Comparison(100 * float(apart.mean()), 100 * float(low), 100 * float(high), p_value, num_images)


def _signed_counts(matrix: sparse.csr_array, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count +size and -size in each column."""
    entries = matrix.tocoo()
    column, size_of = entries.coords[1], entries.data
    plus, minus = (np.bincount(column[size_of == signed], minlength=matrix.shape[1]) for signed in (size, -size))
    return plus, minus


def _combined(one: Floats, other: Floats, correlation: Floats) -> Floats:
    return np.sqrt(np.maximum(one**2 + other**2 - 2 * correlation * one * other, 0))


def _sign_flip_exact(by_one: tuple[NDArray[np.int64], ...], by_two: tuple[NDArray[np.int64], ...]) -> Floats:
    """Return P(|sum| >= |observed sum|) with every sign a fair coin, over images apart by one and by two."""
    num_one, num_two = by_one[0] + by_one[1], by_two[0] + by_two[1]
    observed = np.abs(by_one[0] - by_one[1] + 2 * (by_two[0] - by_two[1]))
    one_sided = np.zeros(len(observed))
    for plus in range(int(num_two.max(initial=0)) + 1):
        # The ones must make up for what the twos leave: a sum of n fair signs is s where (n + s) / 2 are plus.
        needed = np.ceil((num_one + observed - 2 * (2 * plus - num_two)) / 2)
        enough = np.where(needed > num_one, 0.0, special.bdtrc(np.clip(needed, 1, num_one) - 1, num_one, 0.5))
        one_sided += stats.binom.pmf(plus, num_two, 0.5) * np.where(needed <= 0, 1.0, enough)
    return np.where(observed == 0, 1.0, np.minimum(2 * one_sided, 1.0))

"""D of a number of each image, such as its loss: the mean change, with Student's t over images."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from weanalysis.results.statistics.changes import Comparison, common_images
from weanalysis.results.statistics.paired import Floats, adjust_bh, two_sided_z


def mean_change(
    num_images: ArrayLike, change: ArrayLike, squares: ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the mean change of each row, Student's interval for it and its p-value for "no change", (rows,) each.

    Reads the number of images, the sum of their changes and that of the squares. NaN without images or where a sum is
    no finite number; the interval is NaN too where fewer than two images changed, or all by the same, since their
    spread says nothing then. The p-value of a row in which nothing changed is 1.

    >>> [float(x.round(3)) for x in mean_change(4, 2.0, 4.0)]
    [0.5, -1.091, 2.091, 0.391]
    """
    two_sided_z(confidence)  # refuses what is no confidence
    count, total, square = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (num_images, change, squares)))
    known = (count > 0) & np.isfinite(total) & np.isfinite(square)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=known)
    with np.errstate(invalid="ignore", divide="ignore"):
        # What rounding leaves of a difference of equal sums is no spread.
        spread = square - count * mean**2
        variance = np.where(spread > 1e-12 * square, spread, 0) / (count - 1)
        error = np.sqrt(np.where(known & (count > 1) & (variance > 0), variance, np.nan) / count)
        reach = stats.t.ppf((1 + confidence) / 2, np.maximum(count - 1, 1)) * error
        p_value = 2 * stats.t.sf(np.abs(mean) / error, np.maximum(count - 1, 1))
    p_value = np.where(known & (square == 0), 1.0, p_value)
    return mean, mean - reach, mean + reach, p_value


def mean_table(moments: pd.DataFrame, worse: int = 1, confidence: float = 0.95) -> pd.DataFrame:
    """Return a copy of `moments` with D of every row, its interval, p- and q-value, and the means intact and ablated.

    Reads the columns num_images, intact (the sum over these), change and squares; `worse` is the sign of a change for
    the worse, so that D is positive there. Adds drop, drop_low, drop_high (Student's t), p_value and q_value (Benjamini
    and Hochberg over all rows), in the metric's own unit. NaN as in `mean_change`.

    One ablation, measured on four images, adds 0.1, 0.3, 0.2 and 0.2 to a loss that was 0.5 on the mean:

    >>> moments = pd.DataFrame({"num_images": [4], "intact": [2.0], "change": [0.8], "squares": [0.18]})
    >>> mean_table(moments)[["intact", "ablated", "drop", "drop_low", "drop_high", "p_value"]].round(3).values.tolist()
    [[0.5, 0.7, 0.2, 0.07, 0.33, 0.016]]
    """
    table = moments.copy()
    count, intact, change, squares = (
        table[name].to_numpy(np.float64, na_value=np.nan) for name in ("num_images", "intact", "change", "squares")
    )
    mean, low, high, p_value = mean_change(count, change, squares, confidence)
    table["intact"] = np.divide(intact, count, out=np.full(len(table), np.nan), where=count > 0)
    table["ablated"] = table["intact"] + mean
    table["drop"] = worse * mean + 0.0
    table["drop_low"], table["drop_high"] = (low, high) if worse > 0 else (-high, -low)
    table["p_value"], table["q_value"] = p_value, adjust_bh(p_value)
    return table


def compare_values(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], confidence: float = 0.95
) -> Comparison:
    """Compare the means of a number of each image, (ids, numbers) a side, on the images that both have: second - first.

    Interval and p-value are Student's, over the images' differences. Raises StudyError where they have none in common.

    >>> compared = compare_values(([0, 1, 2], [1.0, 2.0, 3.0]), ([2, 1, 0, 9], [3.5, 2.5, 1.5, 8.0]))
    >>> compared.difference, compared.num_images, compared.num_left_out
    (0.5, 3, 1)
    """
    ids, values = zip(*((np.asarray(one), np.asarray(each, np.float64)) for one, each in (first, second)), strict=True)
    images = common_images(*ids)
    one, other = (each[pd.Index(these).get_indexer(images)] for these, each in zip(ids, values, strict=True))
    apart = other - one
    difference, low, high, p_value = mean_change(len(images), apart.sum(), (apart**2).sum(), confidence)
    num_left_out = len(ids[0]) + len(ids[1]) - 2 * len(images)
    return Comparison(float(difference), float(low), float(high), float(p_value), len(images), num_left_out)

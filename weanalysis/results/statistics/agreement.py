"""How well cheap scores predict the measured D: rank correlations and the overlap of the top, a layer and overall."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from weanalysis.results.statistics.paired import adjust_bh
from weanalysis.results.statistics.ranking import rank_agreement, top_overlap

# What a score can be held against: the study's own columns.
MeasuredColumn = Literal["drop", "num_flipped", "size"]

# Over which places a row says how a criterion agrees: over all, or over those of one layer.
Scope = Literal["network", "layer"]

_RANKINGS = ("spearman", "kendall")


def agreement_table(
    table: pd.DataFrame,
    criteria: Sequence[str],
    top: float = 0.1,
    confidence: float = 0.95,
    measured: MeasuredColumn = "drop",
    scopes: Collection[Scope] = ("network", "layer"),
) -> pd.DataFrame:
    """Return how each criterion agrees with D, a row for the whole network and one for each layer.

    Of the `scopes` that are not named, no rows are computed. `measured` "num_flipped" takes the number of images that
    turned right or wrong instead of D, "size" D without its sign. Scores have no sign: a unit whose removal loses as
    many images as it gains has D = 0, and yet much depends on it.

    `table` has a row a place, with the columns layer, depth, selection, drop (and num_flipped, where that is asked for)
    and one a criterion; places without D or without a score are left out, and units of different kinds (`selection`)
    are never put in one ranking. The columns are criterion, selection, layer and depth (NaN: the whole network),
    num_places; spearman and kendall (tau-b) with _low, _high (`rank_agreement`) and _p_value; q_value, Benjamini
    and Hochberg's for Spearman over a criterion's layers; top_k, the share `top` of the places (at least one),
    top_overlap, the share of the k most important that both name, top_chance, what random scores would reach, and
    top_p_value (`top_overlap`). Over the network the layers are the sample: intervals leave out one at a time, and
    p-values say whether a score tells places of the same layer apart; within a layer its places are the sample. NaN
    where there are fewer than 5 places (intervals: 3 layers), or where all D or all scores are equal.
    Raises ValueError unless 0 < top < 1.

    Scores in the order of D, but for two neighbours:

    >>> table = pd.DataFrame({"layer": "conv1", "depth": 0, "selection": "out", "drop": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]})
    >>> table["l1"] = [0.1, 0.2, 0.3, 0.4, 0.6, 0.5]
    >>> agreement = agreement_table(table, ["l1"], top=0.3)
    >>> agreement[["num_places", "spearman", "top_k", "top_overlap"]].round(2).values.tolist()
    [[6.0, 0.94, 2.0, 1.0]]
    """
    if not 0 < top < 1:
        raise ValueError(f"top must be a share between 0 and 1, not {top}")
    # A place that no image has been run for has flipped none, which is not a measurement.
    table = table[table["drop"].notna()].assign(size=table["drop"].abs())
    rows = []
    for selection, places in table.sort_values("depth", kind="stable").groupby("selection", sort=False):
        compared: list[tuple[str | None, float, pd.DataFrame]] = [(None, np.nan, places)] * ("network" in scopes)
        if "layer" in scopes and (places["layer"].nunique() > 1 or places["layer"].isna().any()):
            compared += [
                (str(layer), float(own["depth"].iloc[0]), own)
                for layer, own in places.groupby("layer", sort=False)
                if len(own) > 1
            ]
        for criterion in criteria if compared else ():
            agreements = pd.DataFrame(
                [
                    {
                        "criterion": criterion,
                        "selection": selection,
                        "layer": layer,
                        "depth": depth,
                        **_agreement(
                            own[criterion].to_numpy(float),
                            own[measured].to_numpy(float),
                            own["layer"].to_numpy() if layer is None else None,
                            top,
                            confidence,
                        ),
                    }
                    for layer, depth, own in compared
                ]
            )
            of_layer = agreements["layer"].notna()
            agreements["q_value"] = np.nan
            agreements.loc[of_layer, "q_value"] = adjust_bh(agreements.loc[of_layer, "spearman_p_value"])
            rows.append(agreements)
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _agreement(
    scores: np.ndarray, values: np.ndarray, layers: np.ndarray | None, top: float, confidence: float
) -> dict[str, float]:
    num = int((~np.isnan(scores) & ~np.isnan(values)).sum())
    numbers: dict[str, float] = {"num_places": num}
    for method in _RANKINGS:
        value, low, high, p_value = rank_agreement(scores, values, method, confidence, layers)  # type: ignore[arg-type]
        numbers |= {method: value, f"{method}_low": low, f"{method}_high": high, f"{method}_p_value": p_value}
    k = max(1, round(top * num))
    # A top without an order says nothing: as with the correlations, it is missing.
    known = not np.isnan(numbers["spearman"]) and k < num
    share, chance, rare = top_overlap(scores, values, k, layers) if known else (np.nan, np.nan, np.nan)
    return {**numbers, "top_k": k if known else np.nan, "top_overlap": share, "top_chance": chance, "top_p_value": rare}

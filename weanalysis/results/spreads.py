"""How much D varies within each layer, the noise of finitely many images taken off, and whether early ones do more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from weanalysis.results.tables import Store
from weanalysis.tasks import METRICS, find_metric

if TYPE_CHECKING:
    from weanalysis.results.statistics import Estimate

# Beyond that many ablations the spread of each layer, from every image of each, is a matter of minutes.
MOST_FOR_SPREAD = 50_000

_SIGNIFICANCE = 0.05


def changes_by_layer(store: Store, about: Mapping[str, Any], table: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the matrix of changed images of each layer's places, by layer in network order.

    `about` is what the store says of a study, `table` its rows in the metric. Empty where places were not all measured
    on the same images, where D is known within bounds alone, and in a metric that counts no images.
    """
    from weanalysis.results.statistics import change_matrix

    rows = table[table["drop"].notna() & table["layer"].notna()]
    if not find_metric(metric).counts_images:
        return {}  # the spread is told from images that turn right or wrong
    images = store.intact(int(about["id"]))["image_id"].to_numpy()
    same = len(rows) == len(table) and (rows["num_images"] == len(images)).all()
    bounded = ((rows["screen_low"] != rows["drop"]) | (rows["screen_high"] != rows["drop"])).any()
    if about.get("stopping") or bounded or not same or len(rows) > MOST_FOR_SPREAD:
        return {}
    changes = store.all_changes(int(about["id"]), metric)
    return {
        str(layer): change_matrix(changes, images, own.index.to_numpy())
        for layer, own in rows.sort_values("depth", kind="stable").groupby("layer", sort=False)
    }


def spreads_of(changes: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the standard deviation of D in each layer without noise, with its interval (`spread_of_drop`)."""
    from weanalysis.results.statistics import spread_of_drop

    generator = np.random.default_rng(0)
    return {layer: spread_of_drop(of_layer, generator) for layer, of_layer in changes.items()}


def trend_words(trend: Estimate, num_layers: int) -> str:
    """Say whether early or late layers vary more (the paper's Fig. 2), given `trend_of_spread`; empty for NaN."""
    if np.isnan(trend.value):
        return ""
    sure = trend.p_value <= _SIGNIFICANCE
    tells = (
        "Early layers vary more than late ones"
        if sure and trend.value < 0
        else "Late layers vary more than early ones"
        if sure and trend.value > 0
        else "Whether early or late layers vary more cannot be told"
    )
    return (
        f"{tells}: the rank correlation of depth with the variance of D in a layer, noise taken off, is "
        f"{METRICS['top1'].words(trend.value)} over {num_layers:,} layers; p = {trend.p_value:.2g} for layers that all "
        "vary alike, by variances in units of what noise and one common variance give."
    )

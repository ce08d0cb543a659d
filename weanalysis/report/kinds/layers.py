"""What single ablations of a layer show of it: the largest D, how many matter, and how much D varies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weanalysis.figures import points
from weanalysis.report.kinds.study import ReportedStudy
from weanalysis.report.page import Table
from weanalysis.report.words import with_interval
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, interval_words
from weanalysis.results.statistics import change_matrix, selected_intervals, spread_of_drop, trend_of_spread
from weanalysis.tasks import find_metric

# Beyond that many ablations the spread of each layer, from every image of each, is a matter of minutes.
_MOST_FOR_SPREAD = 50_000

_SIGNIFICANCE = 0.05


def changes_by_layer(study: ReportedStudy) -> dict[str, Any]:
    """Return the matrix of changed images of each layer's places, by layer in network order.

    Empty where places were not all measured on the same images.
    """
    rows = study.measured[study.measured["layer"].notna()]
    images = study.store.intact(study.number)["image_id"].to_numpy()
    same = len(rows) == len(study.table) and (rows["num_images"] == len(images)).all()
    if not find_metric(study.metric).counts_images:
        return {}  # the spread is told from images that turn right or wrong
    if study.about.get("stopping") or study.is_screened or not same or len(rows) > _MOST_FOR_SPREAD:
        return {}
    changes = study.store.all_changes(study.number, study.metric)
    return {
        str(layer): change_matrix(changes, images, own.index.to_numpy())
        for layer, own in rows.sort_values("depth", kind="stable").groupby("layer", sort=False)
    }


def spreads_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the spread of D in each layer without the noise of finitely many images."""
    generator = np.random.default_rng(0)
    return {layer: spread_of_drop(of_layer, generator) for layer, of_layer in changes.items()}


def trend_of_spreads(changes: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Say whether early or late layers vary more, in a sentence and in numbers; nothing where it cannot be told."""
    trend = trend_of_spread(list(changes.values()))
    if math.isnan(trend.value):
        return [], {}
    numbers = {"spread_by_depth": trend.value, "spread_by_depth_p_value": trend.p_value}
    sure = trend.p_value <= _SIGNIFICANCE
    tells = (
        "Early layers vary more than late ones"
        if sure and trend.value < 0
        else "Late layers vary more than early ones"
        if sure and trend.value > 0
        else "Whether early or late layers vary more cannot be told"
    )
    return [
        f"{tells}: the rank correlation of depth with the variance of D in a layer, noise taken off, is "
        f"{points(trend.value)} over {len(changes):,} layers; p = {trend.p_value:.2g} for layers that all vary "
        "alike, by variances in units of what noise and one common variance give."
    ], numbers


def by_layer(study: ReportedStudy, spreads: dict[str, Any]) -> Table:
    """List the layers: how many ablations of each matter, its mean and largest D, and its spread where it is known."""
    rows = study.measured[study.measured["layer"].notna()].sort_values("depth", kind="stable")
    words, metric = [], find_metric(study.metric)
    layers = rows.groupby("layer", sort=False)
    # The largest of each layer is chosen by its D.
    tops = selected_intervals(rows.loc[layers["drop"].idxmax()], len(rows), bool(study.about.get("stopping")))
    for (layer, own), (_, top) in zip(layers, tops.iterrows(), strict=True):
        certain = own["q_value"] <= FALSE_DISCOVERY_RATE
        spread = spreads.get(str(layer))
        reach = "" if spread is None or math.isnan(spread.low) else f" [{spread.low:.2f}, {spread.high:.2f}]"
        words.append(
            [
                str(layer),
                f"{len(own):,}",
                f"{(certain & (own['drop'] > 0)).sum():,}",
                f"{(certain & (own['drop'] < 0)).sum():,}",
                metric.words(own["drop"].mean()),
                with_interval(top["drop"], top["selected_low"], top["selected_high"], metric),
                *(
                    []
                    if not spreads
                    else ["–" if spread is None or math.isnan(spread.value) else f"{spread.value:.2f}{reach}"]
                ),
            ]
        )
    spread_column = ["spread, noise off [95 %]"] if spreads else []
    return Table(
        "By layer. Worse and better count ablations that differ from 0 after correction over the whole study. The "
        f"largest D of each: {interval_words(len(tops), len(rows))}.",
        ["layer", "ablations", "worse", "better", "mean D", "largest D [interval]", *spread_column],
        words,
    )

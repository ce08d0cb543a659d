"""What single ablations of a layer show of it: the largest D, how many matter, and how much D varies."""

from __future__ import annotations

import math
from typing import Any

from weanalysis.report.kinds.study import ReportedStudy
from weanalysis.report.page import Table
from weanalysis.report.words import with_interval
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, interval_words
from weanalysis.results.spreads import changes_by_layer, trend_words
from weanalysis.results.statistics import selected_intervals, trend_of_spread
from weanalysis.tasks import find_metric


def changes_of(study: ReportedStudy) -> dict[str, Any]:
    """Return the matrix of changed images of each layer's places (`results.spreads.changes_by_layer`)."""
    return changes_by_layer(study.store, study.about, study.table, study.metric)


def trend_of_spreads(changes: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Say whether early or late layers vary more, in a sentence and in numbers; nothing where it cannot be told."""
    trend = trend_of_spread(list(changes.values()))
    words = trend_words(trend, len(changes))
    return ([words], {"spread_by_depth": trend.value, "spread_by_depth_p_value": trend.p_value}) if words else ([], {})


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

"""Weights by magnitude: whether D goes with the percentile of |w|, in all layers at once or layer by layer."""

from __future__ import annotations

import math
from typing import Any

from weanalysis import figures
from weanalysis.report.kinds.study import Reading, ReportedStudy
from weanalysis.report.page import Picture, Table
from weanalysis.report.words import RATE, correlation, counted, plain_number
from weanalysis.results.findings import FALSE_DISCOVERY_RATE
from weanalysis.results.statistics import adjust_bh, rank_agreement


def read_magnitude(study: ReportedStudy) -> Reading:
    """Draw D against the percentile, and tell whether it rises."""
    rows = study.measured
    by_layer = rows["layer"].notna().any()
    trends = {
        str(layer): rank_agreement(means.index, means)
        for layer, means in (
            (layer, own.groupby("percentile")["drop"].mean())
            for layer, own in rows.assign(layer=rows["layer"].fillna("")).groupby("layer", sort=False)
        )
    }
    options = study.about.get("options") or {}
    width = options.get("percentile_width")
    limits = (
        []
        if width
        else [
            "The weight at one percentile is a single draw among many. Its neighbours in rank can have another D; "
            "--repeats measures them, --percentile-width zeroes them all."
        ]
    )
    return _read_layers(study, trends, limits) if by_layer else _read_curve(study, trends[""], limits)


def _read_curve(study: ReportedStudy, trend: Any, limits: list[str]) -> Reading:
    """Read a magnitude study of all layers at once."""
    picture = Picture(
        "curve",
        figures.magnitude_curve(study.table),
        "D against the percentile b of |w|, from the smallest weight to the largest, with 95 % intervals over images.",
    )
    numbers = {
        "rank_correlation_with_percentile": trend.value,
        "rank_correlation_with_percentile_interval": [trend.low, trend.high],
    }
    words = _sentence_of_trend(trend, study.measured["percentile"].nunique())
    return Reading(words, [picture], [], limits, numbers)


def _read_layers(study: ReportedStudy, trends: dict[str, Any], limits: list[str]) -> Reading:
    """Read a magnitude study of each layer by itself, with the trend of each."""
    rows = study.measured
    q_values = adjust_bh([trend.p_value for trend in trends.values()])
    certain = [q <= FALSE_DISCOVERY_RATE for q in q_values]
    rising = sum(sure and trend.value > 0 for sure, trend in zip(certain, trends.values(), strict=True))
    falling = sum(sure and trend.value < 0 for sure, trend in zip(certain, trends.values(), strict=True))
    table = Table(
        "How D goes with the percentile b in each layer: Spearman's rank correlation over the percentiles.",
        ["layer", "percentiles", "rank correlation [95 %]", "q"],
        [
            [
                layer,
                f"{rows[rows['layer'] == layer]['percentile'].nunique():,}",
                correlation(*trend[:3]),
                plain_number(q),
            ]
            for (layer, trend), q in zip(trends.items(), q_values, strict=True)
        ],
    )
    finding = (
        f"D rises with the percentile b in {rising:,} of {counted(len(trends), 'layer')} and falls in "
        f"{falling:,} (rank correlation, false discovery rate {RATE} over the layers)."
        + (" In the others neither can be told." if rising + falling < len(trends) else "")
    )
    picture = Picture(
        "map",
        figures.magnitude_map(study.table),
        "D by layer, in network order, and percentile b of |w|; of several draws, the mean.",
    )
    return Reading([finding], [picture], [table], limits, {"num_layers_rising": rising, "num_layers_falling": falling})


def _sentence_of_trend(trend: Any, num_percentiles: int) -> list[str]:
    if math.isnan(trend.value):
        return ["Whether D goes with the percentile b cannot be told: percentiles are too few, or all D are equal."]
    tells = (
        "D rises with the percentile b"
        if trend.low > 0
        else "D falls with the percentile b"
        if trend.high < 0
        else "Whether D rises or falls with the percentile b cannot be told"
    )
    return [
        f"{tells}: Spearman's rank correlation is {correlation(*trend[:3])} over {num_percentiles:,} percentiles. "
        "The percentiles are the sample there, not the images."
    ]

"""What the report draws of each kind of study, and concludes from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.figures import points
from weanalysis.kinds import CHANNEL, LOCATION, MAGNITUDE, MULTIPLIER, WHOLE_LAYER
from weanalysis.report.page import Picture, Table
from weanalysis.report.words import RATE, correlation, counted, plain_number, sentence_of, with_interval
from weanalysis.results import Store
from weanalysis.results.contrast import lowest_and_highest, ranked_unit
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, Findings, interval_words
from weanalysis.results.multipliers import load_multipliers
from weanalysis.results.statistics import (
    adjust_bh,
    change_matrix,
    rank_agreement,
    selected_intervals,
    spread_of_drop,
    trend_of_spread,
)
from weanalysis.tasks import find_metric

# Beyond that many ablations the spread of each layer, from every image of each, is a matter of minutes.
_MOST_FOR_SPREAD = 50_000

_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class ReportedStudy:
    """A study as its chapter sees it: settings, table and what the table allows to say."""

    store: Store
    number: int
    about: dict[str, Any]
    metric: str
    table: pd.DataFrame
    findings: Findings
    cache: Cache

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The rows with a D."""
        return self.table[self.table["drop"].notna()]

    @property
    def intact(self) -> float:
        """Accuracy of the intact network in percent, on the most images that any ablation has seen."""
        rows = self.measured
        return float(rows.loc[rows["num_images"].idxmax(), "intact"]) if len(rows) else math.nan

    @property
    def is_whole(self) -> bool:
        return self.about["state"] == "complete"

    @cached_property
    def is_screened(self) -> bool:
        """Whether D on these very images is known only within bounds."""
        rows = self.measured
        return bool(((rows["screen_low"] != rows["drop"]) | (rows["screen_high"] != rows["drop"])).any())


@dataclass(frozen=True)
class Reading:
    """What a kind of study adds to its chapter."""

    findings: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def read(study: ReportedStudy) -> Reading:
    """Return what the study's table says beyond counts."""
    return READERS.get(study.about["kind"], _read_any)(study)


def _distribution(study: ReportedStudy) -> Picture:
    figure = figures.drop_distributions({study.about["name"]: study.table})
    return Picture(
        "distribution",
        figure,
        "Which share of the ablations costs at least a given D. The further right "
        "the curve stays high, the more of the network is needed.",
    )


# Kernels by location ------------------------------------------------------------------------------------------------


def _read_location(study: ReportedStudy) -> Reading:
    changes = _changes(study)
    spreads = _spreads(changes)
    trend, numbers = _trend_of_spread(changes)
    whole = figures.location_mosaic(study.table)
    pictures = [
        Picture(
            "map",
            whole,
            "D of every kernel, a map a layer in network order: rows are output channels, columns "
            "input channels. Red: the network is worse without that kernel; blue: better; grey: not measured.",
        ),
    ]
    if study.findings.num_found:
        certain = figures.location_mosaic(study.table, hide_insignificant=True, limit=whole.data[0].zmax)
        pictures.append(
            Picture(
                "found",
                certain,
                "The same, with only those kernels coloured that differ from 0 after "
                f"correction (q ≤ {FALSE_DISCOVERY_RATE:g}).",
            )
        )
    noise = "The noise of finitely many images is part of it" + ("; the table has it taken off." if spreads else ".")
    pictures += [
        Picture(
            "spread",
            figures.layer_spread(study.table),
            f"D of single kernels, and its standard deviation among the kernels of a layer, by depth. {noise}",
        ),
        _distribution(study),
    ]
    grid = (study.about.get("options") or {}).get("grid")
    limits = [] if grid == "all" else ["Kernels beside the grid were not measured, and may be needed more or less."]
    return Reading(trend, pictures, [_by_layer(study, spreads)], limits, numbers)


def _changes(study: ReportedStudy) -> dict[str, Any]:
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


def _spreads(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the spread of D in each layer without the noise of finitely many images."""
    generator = np.random.default_rng(0)
    return {layer: spread_of_drop(of_layer, generator) for layer, of_layer in changes.items()}


def _trend_of_spread(changes: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
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


def _by_layer(study: ReportedStudy, spreads: dict[str, Any]) -> Table:
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


# Weights by magnitude -----------------------------------------------------------------------------------------------


def _read_magnitude(study: ReportedStudy) -> Reading:
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


# Channels by multiplier ---------------------------------------------------------------------------------------------


def _read_multiplier(study: ReportedStudy) -> Reading:
    rows = study.measured
    unit = ranked_unit(study.about.get("options"))
    findings, numbers = _lowest_and_highest(study, unit)
    pictures = []
    if (rows["layer"].isna() & rows["fraction"].notna()).any():
        pictures.append(
            Picture(
                "curve",
                figures.multiplier_curve(study.table, unit),
                f"More and more {unit}s zeroed "
                "in every layer at once: those of the lowest multiplier first, of the highest first, "
                "and in random orders.",
            )
        )
    if rows["layer"].notna().any():
        pictures.append(
            Picture(
                "layers",
                figures.multiplier_drops(study.table),
                f"Layer by layer: the {unit} of the lowest and of the highest multiplier, with 95 % intervals.",
            )
        )
    if learned := load_multipliers(study.cache, str(study.about.get("weights_hash"))):
        pictures.append(
            Picture(
                "multipliers",
                figures.multiplier_spread(learned),
                "The multipliers m that LWE learned, by layer: all, 90 % and 50 % of them, and their median.",
            )
        )
    limits = [
        f"D_L and D_H are of one {unit} a layer (--channels: of several); the random draws beside them show what any "
        f"{unit} costs.",
        "The paper speaks of channels with a lowest multiplier, where LWE has one for every kernel. Here "
        + (
            "a channel's is the mean over the outputs that read it; --multiplier-of kernel zeroes single kernels."
            if unit == "input channel"
            else "single kernels are ranked; --multiplier-of channel ranks input channels."
        )
        + " That the first convolution is left out is a choice of this program.",
    ]
    return Reading(findings, pictures, [], limits, numbers)


def _lowest_and_highest(study: ReportedStudy, unit: str) -> tuple[list[str], dict[str, Any]]:
    extremes = lowest_and_highest(study.store, study.number, study.metric, study.table)
    if extremes is None or extremes.comparison is None:
        return ["D_L and D_H of all layers at once have not been measured."], {}
    low, high, contrast = extremes.lowest, extremes.highest, extremes.comparison
    tells = (
        f"the {unit}s of high multiplier are needed more"
        if contrast.difference_low > 0
        else f"the {unit}s of low multiplier are needed more"
        if contrast.difference_high < 0
        else "which are needed more cannot be told"
    )
    metric = find_metric(study.metric)
    sentences = [
        f"In every layer at once, zeroing the {unit} of the lowest multiplier costs D_L = "
        f"{sentence_of(low['drop'], low['drop_low'], low['drop_high'], metric)}, that of the highest D_H = "
        f"{sentence_of(high['drop'], high['drop_low'], high['drop_high'], metric)}. On the same images D_H − D_L = "
        f"{sentence_of(contrast.difference, contrast.difference_low, contrast.difference_high, metric)}, "
        f"{metric.test} p = "
        f"{contrast.p_value:.2g}: {tells}."
    ]
    random = extremes.random["drop"].dropna()
    if len(random):
        sentences.append(
            f"One {unit} drawn at random in every layer costs {metric.words(random.min())} to "
            f"{metric.words(random.max())} {metric.unit} ({counted(len(random), 'draw')})."
        )
    return sentences, extremes.summary()


# Channels and layers ------------------------------------------------------------------------------------------------


def _read_units(study: ReportedStudy) -> Reading:
    pictures = [Picture("layers", figures.drop_by_layer(study.table), "D of every ablation, by depth.")]
    rows = study.measured
    if rows["layer"].nunique() == len(rows):
        return Reading(pictures=pictures)
    return Reading(pictures=[*pictures, _distribution(study)], tables=[_by_layer(study, _spreads(_changes(study)))])


def _read_any(study: ReportedStudy) -> Reading:
    return Reading(pictures=[_distribution(study)])


# What is read from a kind of study beyond its counts; one that is not here is shown by counts and distribution.
READERS: dict[str, Callable[[ReportedStudy], Reading]] = {
    LOCATION.name: _read_location,
    MAGNITUDE.name: _read_magnitude,
    MULTIPLIER.name: _read_multiplier,
    CHANNEL.name: _read_units,
    WHOLE_LAYER.name: _read_units,
}

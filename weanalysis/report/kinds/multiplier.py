"""Channels or kernels by LWE's multiplier: D_L, D_H, and random ones beside them."""

from __future__ import annotations

from typing import Any

from weanalysis import figures
from weanalysis.report.kinds.study import Reading, ReportedStudy
from weanalysis.report.page import Picture
from weanalysis.report.words import counted, sentence_of
from weanalysis.results.contrast import lowest_and_highest, ranked_unit
from weanalysis.results.multipliers import load_multipliers
from weanalysis.tasks import find_metric


def read_multiplier(study: ReportedStudy) -> Reading:
    """Tell D_L from D_H, and draw both beside random ones."""
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

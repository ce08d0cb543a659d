"""Whole channels and layers: D by depth."""

from __future__ import annotations

from weanalysis import figures
from weanalysis.report.kinds.layers import by_layer, changes_of
from weanalysis.report.kinds.study import Reading, ReportedStudy, distribution
from weanalysis.report.page import Picture
from weanalysis.results.spreads import spreads_of


def read_units(study: ReportedStudy) -> Reading:
    """Draw D of every channel or layer by depth, and tell the layers of channels apart."""
    pictures = [Picture("layers", figures.drop_by_layer(study.table), "D of every ablation, by depth.")]
    rows = study.measured
    if rows["layer"].nunique() == len(rows):
        return Reading(pictures=pictures)
    return Reading(pictures=[*pictures, distribution(study)], tables=[by_layer(study, spreads_of(changes_of(study)))])

"""Saliency: cheap criteria for every weight, kernel, channel and layer at once, and how well each predicts D."""

from weanalysis.saliency.agreement import scored_study, studies_of
from weanalysis.saliency.criteria import CRITERIA, Criterion
from weanalysis.saliency.measure import MeasuredMaps, parse_criteria, saliency_maps

__all__ = [
    "CRITERIA",
    "Criterion",
    "MeasuredMaps",
    "parse_criteria",
    "saliency_maps",
    "scored_study",
    "studies_of",
]

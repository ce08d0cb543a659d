"""What the report draws of each kind of study, and concludes from it."""

from __future__ import annotations

from collections.abc import Callable

from weanalysis.kinds import CHANNEL, LOCATION, MAGNITUDE, MULTIPLIER, WHOLE_LAYER
from weanalysis.report.kinds.location import read_location
from weanalysis.report.kinds.magnitude import read_magnitude
from weanalysis.report.kinds.multiplier import read_multiplier
from weanalysis.report.kinds.study import Reading, ReportedStudy, distribution
from weanalysis.report.kinds.units import read_units

__all__ = ["READERS", "read"]

# What is read from a kind of study beyond its counts; one that is not here is shown by counts and distribution.
READERS: dict[str, Callable[[ReportedStudy], Reading]] = {
    LOCATION.name: read_location,
    MAGNITUDE.name: read_magnitude,
    MULTIPLIER.name: read_multiplier,
    CHANNEL.name: read_units,
    WHOLE_LAYER.name: read_units,
}


def read(study: ReportedStudy) -> Reading:
    """Return what the study's table says beyond counts."""
    return READERS.get(study.about["kind"], _read_any)(study)


def _read_any(study: ReportedStudy) -> Reading:
    return Reading(pictures=[distribution(study)])

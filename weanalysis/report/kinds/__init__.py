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
    """Return what the study's table says beyond counts.

    >>> from torch import nn, rand
    >>> from weanalysis import Store, ablate
    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.results.findings import find
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> table = ablate(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "channel", side="out", cache="cache")
    >>> with Store.open("cache/results.sqlite") as store:
    ...     study = ReportedStudy(store, 1, store.describe(1), "top1", table, find(table, False), find_cache("cache"))
    ...     [picture.name for picture in read(study).pictures]
    ['layers', 'distribution']
    """
    return READERS.get(study.about["kind"], _read_any)(study)


def _read_any(study: ReportedStudy) -> Reading:
    return Reading(pictures=[distribution(study)])

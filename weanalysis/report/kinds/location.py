"""Kernels by location: maps, and how much D varies by depth."""

from __future__ import annotations

from weanalysis import figures
from weanalysis.report.kinds.layers import by_layer, changes_of, trend_of_spreads
from weanalysis.report.kinds.study import Reading, ReportedStudy, distribution
from weanalysis.report.page import Picture
from weanalysis.results.findings import FALSE_DISCOVERY_RATE
from weanalysis.results.spreads import spreads_of


def read_location(study: ReportedStudy) -> Reading:
    """Draw the maps, and tell whether early layers vary more than late ones."""
    changes = changes_of(study)
    spreads = spreads_of(changes)
    trend, numbers = trend_of_spreads(changes)
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
        certain = figures.location_mosaic(
            study.table, hide_insignificant=True, limit=float(study.table["drop"].abs().max())
        )
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
        distribution(study),
    ]
    grid = (study.about.get("options") or {}).get("grid")
    limits = [] if grid == "all" else ["Kernels beside the grid were not measured, and may be needed more or less."]
    return Reading(trend, pictures, [by_layer(study, spreads)], limits, numbers)

"""The scale that maps are coloured on: linear about 0, logarithmic beyond, so that one flipped image and a third of all
have colours of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from weanalysis.figures.style import SIGNIFICANT_Q
from weanalysis.tasks import Metric

_LEAST_APART = 0.16  # of the bar's half: ticks that are closer would be printed over each other
_SMALLEST_SHARE = 1e-3  # of the largest value: what is smaller has the colour of nothing


@dataclass(frozen=True)
class SymmetricLog:
    """Turns values into places on a scale, sign(x) log10(1 + |x| / `unit`), that ends at the `largest`."""

    unit: float
    largest: float

    @property
    def end(self) -> float:
        """Where on the scale the largest value lies."""
        return math.log10(1 + self.largest / self.unit)

    def places(self, values: pd.Series) -> pd.Series:
        """Return where on the scale the values lie; NaN where they are missing."""
        sizes = np.log10(1 + values.abs().to_numpy(dtype=float) / self.unit)
        return pd.Series(np.sign(values.to_numpy(dtype=float)) * sizes, index=values.index)

    def marks(self, metric: Metric, title: str, signed: bool = True) -> dict[str, Any]:
        """Return the title and the ticks of the colour bar: 0, round values, and the largest."""
        values = self._round_values()
        place = dict(zip(values, self.places(pd.Series(values)).tolist(), strict=True))
        words = [metric.words(value, signed=False) if value == self.largest else f"{value:g}" for value in values]
        signs = (1, -1) if signed else (1,)
        return {
            "title": title,
            "tickvals": [0.0, *(sign * place[value] for sign in signs for value in values)],
            "ticktext": ["0", *(f"{'−' if sign < 0 else ''}{word}" for sign in signs for word in words)],
        }

    def _round_values(self) -> list[float]:
        """Return the largest value, and round ones below it that have room on the bar."""
        first, last = (math.floor(math.log10(value)) for value in (self.unit, self.largest))
        offered = [digit * 10.0**power for power in range(last, first - 1, -1) for digit in (5, 2, 1)]
        chosen, taken = [self.largest], [0.0, self.end]
        for value in sorted(offered, key=lambda one: (not math.log10(one).is_integer(), -one)):
            place = math.log10(1 + value / self.unit)
            if self.unit <= value < self.largest and min(abs(place - one) for one in taken) > _LEAST_APART * self.end:
                chosen.append(value)
                taken.append(place)
        return sorted(chosen)


def scale_of(rows: pd.DataFrame, values: pd.Series, largest: float | None = None) -> SymmetricLog:
    """Return the scale on which `values` of a study's rows are drawn, to the true largest of them, or to `largest`.

    Its unit is one image where a metric counts them, so that a single flip is seen and yet pale.
    """
    sizes = values.abs()
    end = largest if largest is not None else float(sizes.max())
    end = end if end > 0 else 1.0
    num_images = float(rows["num_images"].max())
    counts = rows["num_flipped"].notna().any() and num_images > 0
    usual = float(sizes[sizes > 0].median()) if (sizes > 0).any() else end
    unit = 100 / num_images if counts else usual
    return SymmetricLog(min(max(unit, _SMALLEST_SHARE * end), end), end)


def noise_of(rows: pd.DataFrame) -> float:
    """Return what D is known to: half the width of the usual interval; NaN where no row has one."""
    return float(((rows["drop_high"] - rows["drop_low"]) / 2).astype(float).median())


def marks_of_q(limit: float) -> dict[str, Any]:
    """Return the title and the ticks of a bar of q, which is drawn by its logarithm and the sign of D."""
    logs = [mark for mark in (-np.log10(SIGNIFICANT_Q), 2.0, 3.0, 4.0) if mark <= limit]
    return {
        "title": "q",
        "tickvals": [0, *(sign * mark for sign in (-1, 1) for mark in logs)],
        "ticktext": ["1", *(f"{10**-mark:.4g} {word}" for word in ("better", "worse") for mark in logs)],
        "end": limit if limit > 0 else 1.0,
    }

"""What every comparison ends in: one difference, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first in percentage points, its interval, the p-value for "no difference", on how many images.

    `first` and `second` name the sides; `notes` are lines that a person should read. Missing is NaN.
    """

    first: str
    second: str
    metric: str
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    num_images: int
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return first, second, metric, difference, difference_low, difference_high, p_value and num_images.

        >>> {name: value for name, value in compared.summary().items() if name in ("first", "second", "num_images")}
        {'first': 'brightest', 'second': 'darkest', 'num_images': 12}
        """
        return {
            "first": self.first,
            "second": self.second,
            "metric": self.metric,
            "difference": self.difference,
            "difference_low": self.difference_low,
            "difference_high": self.difference_high,
            "p_value": self.p_value,
            "num_images": self.num_images,
        }

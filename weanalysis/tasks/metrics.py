"""The metrics of which D is the change: what each is called, in what it is counted, and from what it follows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weanalysis.errors import StudyError, unknown_name

# What is kept of each image: whether the answer is right ("correct", a bit a metric, of those that changed), and
# numbers of its own, whose change under every ablation is kept.
STATISTICS = ("correct", "loss", "confidence")

Inference = Literal["proportion", "mean"]


@dataclass(frozen=True)
class Metric:
    """One measure of how well a network does, and how its change is told from chance.

    `label` names it in a sentence, `unit` is what D is counted in and `mark` stands behind a value. With the inference
    "proportion" an image is right or wrong (`bit` of "correct"), D is in percentage points, with Tango's interval and
    McNemar's test; with "mean" an image has a number (`statistic`), D is the mean change, with Student's t over images.
    `worse` is the sign of a change for the worse in the metric itself: D is positive there, whatever it is.
    """

    name: str
    label: str
    unit: str
    mark: str
    statistic: str
    inference: Inference
    worse: Literal[-1, 1]
    bit: int = 0
    guesses: int = 0

    @property
    def test(self) -> str:
        """By which test a D is told from 0."""
        return "exact McNemar" if self.counts_images else "Student's t"

    @property
    def meaning(self) -> str:
        """What D is, in a sentence."""
        if self.counts_images:
            return f"D is the decrease of {self.label} accuracy in percentage points"
        return f"D is the increase of the mean {self.label} in {self.unit}"

    @property
    def decimals(self) -> int:
        """With how many decimals a value or a D is shown."""
        return 2 if self.counts_images else 4

    def words(self, value: float, signed: bool = True) -> str:
        """Word a D or a value in the metric's unit, with a true minus sign; "not measured" where it is missing.

        >>> METRICS["top1"].words(-1.5), METRICS["loss"].words(0.0213)
        ('−1.50', '+0.0213')
        """
        if value != value:
            return "not measured"
        return f"{value:{'+' if signed else ''}.{self.decimals}f}".replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        """Word an interval, or say that there is none.

        >>> METRICS["top1"].interval(-0.5, 1.25)
        '−0.50 to +1.25'
        """
        return "no interval" if low != low or high != high else f"{self.words(low)} to {self.words(high)}"

    @property
    def counts_images(self) -> bool:
        """Whether images are right or wrong in it, so that those that flip can be counted."""
        return self.inference == "proportion"

    def right(self, correct: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether each image is right, from the bits that are kept of it; same shape."""
        return (correct & self.bit).astype(bool)


_ALL = (
    Metric("top1", "top-1", "points", "%", "correct", "proportion", -1, bit=1, guesses=1),
    Metric("top5", "top-5", "points", "%", "correct", "proportion", -1, bit=2, guesses=5),
    Metric("loss", "loss", "nats", "nats", "loss", "mean", 1),
)

# Every metric by its name, in the order in which they are listed.
METRICS: dict[str, Metric] = {}
for _metric in _ALL:
    assert _metric.name not in METRICS and _metric.statistic in STATISTICS
    METRICS[_metric.name] = _metric


def find_metric(name: str, among: Collection[str] | None = None) -> Metric:
    """Return the metric of a name; raise StudyError for one that is unknown, or not `among` what is possible.

    >>> find_metric("loss").unit
    'nats'
    """
    if name not in METRICS or (among is not None and name not in among):
        raise StudyError(unknown_name("metric", name, METRICS if among is None else among))
    return METRICS[name]


# Those in which images are right or wrong.
COUNTING = tuple(metric.name for metric in METRICS.values() if metric.counts_images)

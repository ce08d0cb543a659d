"""Numbers and settings in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from weanalysis.results.findings import FALSE_DISCOVERY_RATE
from weanalysis.tasks import METRICS, Metric
from weanalysis.training import value_word

# Differences of accuracies are in points.
POINTS = METRICS["top1"]

RATE = f"{100 * FALSE_DISCOVERY_RATE:g} %"


# A path of this machine: what lies above its last part tells a reader of the page nothing, and strangers too much.
_FOLDERS = re.compile(r"(?<![\w./])(?<!https:)(?<!http:)/(?!/)[^\s'\",;:<>()\[\]]*/(?=[^\s/])")


def without_folders(text: str) -> str:
    """Return text in which paths of this machine are cut to their last part: "imagefolder:…/photos".

    >>> without_folders("weanalysis ablate --weights /home/me/nets/a.pth --data imagefolder:/data/photos")
    'weanalysis ablate --weights …/a.pth --data imagefolder:…/photos'
    >>> without_folders("1/2, https://example.org/a/b and layer1/x")
    '1/2, https://example.org/a/b and layer1/x'
    """
    return _FOLDERS.sub("…/", text)


def counted(number: int, noun: str) -> str:
    """Word "1 image", "2,000 images"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def with_interval(value: float, low: float, high: float, metric: Metric = POINTS) -> str:
    """Word a D or a difference: "+0.70 [+0.33, +1.20]"; without an interval "+0.70"."""
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return metric.words(value)
    return f"{metric.words(value)} [{metric.words(low)}, {metric.words(high)}]"


def sentence_of(value: float, low: float, high: float, metric: Metric = POINTS) -> str:
    """Word a D or a difference within a sentence, with its interval."""
    return f"{metric.words(value)} {metric.unit} (95 % interval {metric.interval(low, high)})"


def correlation(value: float, low: float, high: float) -> str:
    """Word a rank correlation with its interval; a dash where there is none."""
    return "–" if math.isnan(value) else with_interval(value, low, high)


def plain_number(value: float, form: str = ".2g") -> str:
    """Word a number; a dash where it is missing."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def moment(seconds: float) -> str:
    """Word a point in time, given in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def settings(pairs: Mapping[str, Any]) -> str:
    """Word several settings in a line, those that are not set left out."""
    return ", ".join(f"{name} {value_word(value)}" for name, value in pairs.items() if value is not None)

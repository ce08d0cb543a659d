"""A study as its chapter sees it, and what is read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.report.page import Picture, Table
from weanalysis.results import Store
from weanalysis.results.findings import Findings


@dataclass(frozen=True)
class ReportedStudy:
    """A study as its chapter sees it: settings, table and what the table allows to say."""

    store: Store
    number: int
    about: dict[str, Any]
    metric: str
    table: pd.DataFrame
    findings: Findings
    cache: Cache

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The rows with a D."""
        return self.table[self.table["drop"].notna()]

    @property
    def intact(self) -> float:
        """Accuracy of the intact network in percent, on the most images that any ablation has seen."""
        rows = self.measured
        return float(rows.loc[rows["num_images"].idxmax(), "intact"]) if len(rows) else math.nan

    @property
    def is_whole(self) -> bool:
        return self.about["state"] == "complete"

    @cached_property
    def is_screened(self) -> bool:
        """Whether D on these very images is known only within bounds."""
        rows = self.measured
        return bool(((rows["screen_low"] != rows["drop"]) | (rows["screen_high"] != rows["drop"])).any())


@dataclass(frozen=True)
class Reading:
    """What a kind of study adds to its chapter."""

    findings: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def distribution(study: ReportedStudy) -> Picture:
    """Draw which share of the ablations costs at least a given D."""
    figure = figures.drop_distributions({study.about["name"]: study.table})
    return Picture(
        "distribution",
        figure,
        "Which share of the ablations costs at least a given D. The further right "
        "the curve stays high, the more of the network is needed.",
    )

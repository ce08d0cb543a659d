"""What a study's table allows to say as a whole: how many D differ from 0, and how small a D could have been found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from weanalysis.kinds import named
from weanalysis.tasks import Metric

# Benjamini and Hochberg's share of false findings among those called different from 0.
FALSE_DISCOVERY_RATE = 0.05


def interval_words(num_shown: int, num_compared: int) -> str:
    """Say what the intervals are of rows that are shown for the size of their D (`statistics.selected_intervals`)."""
    if num_shown >= num_compared:
        return "95 % intervals, each of its row by itself"
    return (
        f"{num_shown:,} of {num_compared:,}, with intervals adjusted for that choice (false coverage rate 5 %, "
        "Benjamini and Yekutieli 2005)"
    )


@dataclass(frozen=True)
class Findings:
    """Counts of ablations, and what the images could show; D in percentage points, NaN where it cannot be said.

    In a metric that counts no images, such as the loss, the last three are NaN, and silent is what changes nothing.

    Of `num_ablations`, `num_measured` have a D: `num_worse` and `num_better` differ from 0 at a false discovery rate of
    5 % over the study, `num_silent` flip no image. `fewest_images` and `most_images` were looked at. `smallest_finding`
    is the smallest D that could have been found beside these. `silent_reach` is how far the interval of an ablation
    reaches that flips no image. `detectable` would be found beside these with a power of 80 %, where as many images
    flip as for the median ablation that was not told from 0; NaN for a study whose ablations were stopped early.
    """

    num_ablations: int
    num_measured: int
    num_worse: int
    num_better: int
    num_silent: int
    fewest_images: int
    most_images: int
    smallest_finding: float
    silent_reach: float
    detectable: float

    @property
    def num_found(self) -> int:
        return self.num_worse + self.num_better

    def summary(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def find(table: pd.DataFrame, stopped: bool = False) -> Findings:
    """Sum up a study's table; `stopped` says that a rule ended its ablations early, so that its tests are others."""
    # scipy's half second is not for `weanalysis list`.
    from weanalysis.results.statistics import (
        detectable_difference,
        paired_difference,
        sequential_interval,
        smallest_finding,
    )

    measured = table[table["drop"].notna()]
    significant = measured["q_value"] <= FALSE_DISCOVERY_RATE
    fewest, most = (int(measured["num_images"].agg(which)) if len(measured) else 0 for which in ("min", "max"))
    counts_images = measured["num_flipped"].notna().all()
    high = sequential_interval(0, 0, most)[1] if stopped else paired_difference(0, 0, most)[2]
    undecided = measured[~significant]
    flipped = float(np.median(undecided["num_flipped"] / undecided["num_images"])) if len(undecided) else np.nan
    # Benjamini and Hochberg's bound for one finding more than there are.
    level = FALSE_DISCOVERY_RATE * min(1.0, (int(significant.sum()) + 1) / max(1, len(measured)))
    return Findings(
        num_ablations=len(table),
        num_measured=len(measured),
        num_worse=int((significant & (measured["drop"] > 0)).sum()),
        num_better=int((significant & (measured["drop"] < 0)).sum()),
        num_silent=int(((measured["num_flipped"] if counts_images else measured["drop"]) == 0).sum()),
        fewest_images=fewest,
        most_images=most,
        smallest_finding=100 * smallest_finding(most, level, stopped) if counts_images else np.nan,
        silent_reach=100 * float(high) if counts_images else np.nan,
        detectable=(
            100 * detectable_difference(flipped, most, 0.8, level)
            if counts_images and len(undecided) and not stopped
            else np.nan
        ),
    )


def untested_words(table: pd.DataFrame, metric: Metric) -> str:
    """Say why no D of a study's table is told from chance; empty where some are, or nothing is measured."""
    measured = table[table["drop"].notna()]
    if measured.empty or not metric.needs or measured["p_value"].notna().any():
        return ""
    return f"No D has an interval or a test here: those of {metric.label} hold where {metric.needs}."


def sample_words(num_layers: int) -> str:
    """Say what a rank correlation's interval takes for its sample (`statistics.rank_agreement`)."""
    if num_layers <= 1:
        return "the places are the sample"
    return "the layers are the sample" if num_layers > 2 else "two layers are too few for an interval"


def finding_words(table: pd.DataFrame, metric: Metric, row: str, stopped: bool = False, shown: int = 10) -> str:
    """Say in one line what a study found: how many D differ from 0, where, and the largest with its interval.

    `row` is what a row of the study is called. The interval is adjusted for the choice of the `shown` largest, as those
    in the table of the most important are. Empty where nothing is measured, or no D is told from chance.

    >>> from weanalysis.tasks import find_metric
    >>> columns = {"layer": ["a", "b"], "selection": "layer", "drop": [20.0, 0.0], "num_flipped": [50, 0]}
    >>> table = pd.DataFrame({**columns, "num_images": 250, "p_value": [1e-9, 1.0], "q_value": [2e-9, 1.0]})
    >>> finding_words(table, find_metric("top1"), "layer")
    '1 of 2 layers differs from 0 (q ≤ 0.05), in a; the largest: a, +20.00 [+15.33, +25.40] points'
    """
    measured = table[table["drop"].notna()]
    if measured.empty or untested_words(table, metric):
        return ""
    certain = measured[measured["q_value"] <= FALSE_DISCOVERY_RATE]
    largest = f"the largest: {_largest_words(measured, metric, stopped, shown)}"
    of_all = f"of {len(measured):,} {row}s"
    if certain.empty:
        return f"None {of_all} can be told from 0 (q > {FALSE_DISCOVERY_RATE:g}); {largest}"
    better = int((certain["drop"] < 0).sum())
    hurting = f" ({better:,} of them better zeroed)" if better else ""
    verb = "differs" if len(certain) == 1 else "differ"
    where = f", {_where_words(certain)}" if certain["layer"].notna().all() and len(measured) > 1 else ""
    return f"{len(certain):,} {of_all} {verb} from 0 (q ≤ {FALSE_DISCOVERY_RATE:g}){hurting}{where}; {largest}"


def most_important(table: pd.DataFrame, stopped: bool = False, count: int = 10) -> pd.DataFrame:
    """Return the measured rows of the largest D, with intervals that count with that choice (selected_low, _high)."""
    from weanalysis.results.statistics import selected_intervals  # scipy's half second is not for `weanalysis list`

    measured = table[table["drop"].notna()]
    return selected_intervals(measured.nlargest(count, "drop"), len(measured), stopped)


def _largest_words(measured: pd.DataFrame, metric: Metric, stopped: bool, shown: int) -> str:
    top = next(most_important(measured, stopped, shown).itertuples())
    interval = (metric.words(bound) for bound in (top.selected_low, top.selected_high))
    reach = f" [{', '.join(interval)}]" if top.selected_low == top.selected_low else ""
    return f"{named(top)}, {metric.words(top.drop)}{reach} {metric.unit}"


def _where_words(certain: pd.DataFrame) -> str:
    """Say in which layers the rows are that differ from 0."""
    counts = certain["layer"].value_counts()
    if len(counts) == 1:
        return f"{'all ' if len(certain) > 1 else ''}in {counts.index[0]}"
    if len(certain) == len(counts):
        return f"in {len(counts):,} layers"
    return f"in {len(counts):,} layers, most in {counts.index[0]} ({counts.iloc[0]:,})"


def repeated_words(again: Mapping[str, float]) -> str:
    """Word what came of the answers of a study that were measured twice (see `Store.agreement`).

    >>> repeated_words({"num_answers": 48, "num_ties": 1, "num_differed": 0, "largest_difference": 1.2e-6})
    '48 answers, in batches of two sizes: 0 differ, 1 within rounding; logits by 1.2e-06 at most'
    >>> repeated_words({})
    'not recorded'
    """
    if not again.get("num_answers", 0) > 0:
        return "not recorded"
    return (
        f"{again['num_answers']:,} answers, in batches of two sizes: {again['num_differed']:,} differ, "
        f"{again['num_ties']:,} within rounding; logits by {again['largest_difference']:.2g} at most"
    )

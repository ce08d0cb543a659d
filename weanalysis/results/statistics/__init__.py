"""What the measured changes allow to say: pure functions over counts, per-image changes and tables.

Arrays of counts give fractions; tables, comparisons and spreads are in percentage points. Missing is NaN.
"""

from weanalysis.results.statistics.aggregates import compare_linear, linear_change, linear_columns
from weanalysis.results.statistics.agreement import MeasuredColumn, agreement_table
from weanalysis.results.statistics.chance import chance_note, is_at_chance
from weanalysis.results.statistics.changes import (
    Comparison,
    change_matrix,
    common_images,
    compare_correctness,
    compare_layers,
    compare_maps,
)
from weanalysis.results.statistics.maps import spread_of_drop, trend_of_spread
from weanalysis.results.statistics.means import compare_values, mean_change, mean_table
from weanalysis.results.statistics.paired import (
    NO_CONTINUITY,
    adjust_bh,
    adjust_holm,
    drop_table,
    mcnemar_exact,
    paired_difference,
)
from weanalysis.results.statistics.planning import (
    confirm_improvements,
    detectable_difference,
    images_needed,
    mcnemar_power,
    plan_images,
    smallest_finding,
)
from weanalysis.results.statistics.ranking import rank_agreement, top_overlap
from weanalysis.results.statistics.runs import Estimate, compare_runs, mean_of_runs
from weanalysis.results.statistics.screening import (
    hidden_flips,
    mcnemar_of_screened,
    most_by_lot,
    screen_bounds,
)
from weanalysis.results.statistics.selection import selected_confidence, selected_intervals
from weanalysis.results.statistics.sequential import sequential_interval, sequential_p_value
from weanalysis.results.statistics.stopping import Replay, StoppingRule, stopped_table

__all__ = [
    "NO_CONTINUITY",
    "Comparison",
    "Estimate",
    "MeasuredColumn",
    "Replay",
    "StoppingRule",
    "adjust_bh",
    "adjust_holm",
    "agreement_table",
    "chance_note",
    "change_matrix",
    "common_images",
    "compare_correctness",
    "compare_layers",
    "compare_linear",
    "compare_maps",
    "compare_runs",
    "compare_values",
    "confirm_improvements",
    "detectable_difference",
    "drop_table",
    "hidden_flips",
    "images_needed",
    "is_at_chance",
    "linear_change",
    "linear_columns",
    "mcnemar_exact",
    "mcnemar_of_screened",
    "mcnemar_power",
    "mean_change",
    "mean_of_runs",
    "mean_table",
    "most_by_lot",
    "paired_difference",
    "plan_images",
    "rank_agreement",
    "screen_bounds",
    "selected_confidence",
    "selected_intervals",
    "sequential_interval",
    "sequential_p_value",
    "smallest_finding",
    "spread_of_drop",
    "stopped_table",
    "top_overlap",
    "trend_of_spread",
]

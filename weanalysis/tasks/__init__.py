"""What a network's outputs and targets mean, which numbers are kept of each image, and which metrics follow from them.

Metrics are read without torch; `classification`, `numbers` and `own`, which read outputs, are the modules here that
need it.
"""

from weanalysis.tasks.metrics import (
    COUNTING,
    METRICS,
    NUMBERS,
    STATISTICS,
    Metric,
    described,
    find_metric,
    own_metric_of,
)

__all__ = ["COUNTING", "METRICS", "NUMBERS", "STATISTICS", "Metric", "described", "find_metric", "own_metric_of"]

"""What a network's outputs and targets mean, which numbers are kept of each image, and which metrics follow from them.

Metrics are read without torch; `classification`, `segmentation`, `numbers` and `own`, which read outputs, are the
modules here that need it.
"""

from weanalysis.tasks.metrics import (
    CLASSIFICATION,
    COUNTING,
    IOU_OF_CLASS,
    METRICS,
    NUMBERS,
    SEGMENTATION,
    STATISTICS,
    Metric,
    default_metric,
    described,
    find_metric,
    listed_metrics,
    metrics_of_task,
    own_metric_of,
)

__all__ = [
    "CLASSIFICATION",
    "COUNTING",
    "IOU_OF_CLASS",
    "METRICS",
    "NUMBERS",
    "SEGMENTATION",
    "STATISTICS",
    "Metric",
    "default_metric",
    "described",
    "find_metric",
    "listed_metrics",
    "metrics_of_task",
    "own_metric_of",
]

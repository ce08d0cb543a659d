"""What a network's outputs and targets mean, which numbers are kept of each image, and which metrics follow from them.

Metrics are read without torch; `tasks.classification`, which reads outputs, is the one module here that needs it.
"""

from weanalysis.tasks.metrics import COUNTING, METRICS, STATISTICS, Metric, find_metric

__all__ = ["COUNTING", "METRICS", "STATISTICS", "Metric", "find_metric"]

"""What must be recomputed: a network traced once, and, for a set of layers, what lies downstream of them."""

from weanalysis.ablation.graph.convolved import WeightsUsed
from weanalysis.ablation.graph.growing import select_rows
from weanalysis.ablation.graph.network import Downstream, Graph
from weanalysis.ablation.graph.outline import outline
from weanalysis.ablation.graph.steps import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Convolution,
    Step,
    has_plain_forward,
    has_row_an_image,
    is_plain,
    is_untouched,
    num_bytes,
    versions,
)
from weanalysis.ablation.graph.tracing import Untraceable, convolutions, trace

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "Convolution",
    "Downstream",
    "Graph",
    "Step",
    "Untraceable",
    "WeightsUsed",
    "convolutions",
    "has_plain_forward",
    "has_row_an_image",
    "is_plain",
    "is_untouched",
    "num_bytes",
    "outline",
    "select_rows",
    "trace",
    "versions",
]

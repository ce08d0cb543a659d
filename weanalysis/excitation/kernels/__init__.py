"""Kernels that excite all layers of a network at once, for GPUs on which Triton runs.

A table says of each layer where its tensors lie and how large they are; a list says to each program of a kernel which
part of which layer is its own. So a kernel is started once for all layers, whatever their shapes: LWE takes three
kernels for the excited weights and five for the gradients, MWE two and one. The formulas are those of `_functions`.

    mean, scale     of each output channel;  z = w - mean
    average         of each kernel of z scale
    hidden          ReLU(FC1(average)),  multiplier = sigmoid(FC2(hidden))
    u = z scale multiplier,  excited = u, or with MWE  limit artanh(u / limit)

Programs do not add to what others write, so that the same inputs give the same bits.
"""

from __future__ import annotations

from weanalysis.excitation.kernels.excited import finish, hidden_units, multipliers, statistics
from weanalysis.excitation.kernels.gradients import of_average, of_hidden, of_layers, of_multiplier, of_weight
from weanalysis.excitation.kernels.layout import BLOCK, COLUMNS, TILE, dtype_of

__all__ = [
    "BLOCK",
    "COLUMNS",
    "TILE",
    "dtype_of",
    "finish",
    "hidden_units",
    "multipliers",
    "of_average",
    "of_hidden",
    "of_layers",
    "of_multiplier",
    "of_weight",
    "statistics",
]

"""A use for a ranking: prune the least important kernels or channels, and measure what that costs."""

from weanalysis.pruning.run import CURVE, DROP, Pruned, prune
from weanalysis.pruning.units import choose_lowest

__all__ = ["CURVE", "DROP", "Pruned", "choose_lowest", "prune"]

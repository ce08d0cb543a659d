"""A use for a ranking: prune the least important kernels or channels, and measure what that costs."""

from weanalysis.pruning.run import Pruned, prune

__all__ = ["Pruned", "prune"]

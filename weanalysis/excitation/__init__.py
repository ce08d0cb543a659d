"""Weight Excitation (Quader et al., ECCV 2020) and the reparametrizations it is compared with, for any network."""

from weanalysis.excitation.costs import costs
from weanalysis.excitation.modules import LWE, MWE, WeightStandardization
from weanalysis.excitation.network import KINDS, doubts_of, excitation_of, excite, fold, fold_module, multipliers
from weanalysis.excitation.optimizer import ExcitedOptimizer, can_be_beside

__all__ = [
    "KINDS",
    "LWE",
    "MWE",
    "ExcitedOptimizer",
    "WeightStandardization",
    "can_be_beside",
    "costs",
    "doubts_of",
    "excitation_of",
    "excite",
    "fold",
    "fold_module",
    "multipliers",
]

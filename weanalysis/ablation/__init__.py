"""The ablation engine: what to zero, what must be recomputed, how it is measured, and who measures it."""

from weanalysis.ablation.evaluate import Evaluator
from weanalysis.ablation.execution import Interrupted
from weanalysis.ablation.progress import Status
from weanalysis.ablation.run import ablate
from weanalysis.ablation.settings import check_settings
from weanalysis.ablation.studies import STUDIES, Ablation, Part, Study, make_study

__all__ = [
    "STUDIES",
    "Ablation",
    "Evaluator",
    "Interrupted",
    "Part",
    "Status",
    "Study",
    "ablate",
    "check_settings",
    "make_study",
]

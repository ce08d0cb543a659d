"""What ablations change: exactly, screened, or the naive way that both are held to."""

from weanalysis.ablation.evaluate.decisions import Decisions, Measured
from weanalysis.ablation.evaluate.evaluator import BATCH_SIZE, Evaluator, Mode
from weanalysis.ablation.evaluate.outputs import choose_output, logits_of
from weanalysis.ablation.evaluate.risk import ScreenSettings

__all__ = [
    "BATCH_SIZE",
    "Decisions",
    "Evaluator",
    "Measured",
    "Mode",
    "ScreenSettings",
    "choose_output",
    "logits_of",
]

"""What ablations change: exactly, screened, or the naive way that both are held to."""

from weanalysis.ablation.evaluate.decisions import Decisions, Measured, Screen, Values
from weanalysis.ablation.evaluate.evaluator import KEPT_BYTES, Evaluator, Mode, OutputTask
from weanalysis.ablation.evaluate.outputs import choose_output, logits_of
from weanalysis.ablation.evaluate.risk import ScreenSettings

__all__ = [
    "KEPT_BYTES",
    "Decisions",
    "Evaluator",
    "Measured",
    "Mode",
    "OutputTask",
    "Screen",
    "ScreenSettings",
    "Values",
    "choose_output",
    "logits_of",
]

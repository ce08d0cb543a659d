"""What a training run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """One report of a training run.

    `epoch` counts from 1; `step` counts the optimizer steps done of `num_steps`; `seconds` is the time trained, earlier
    sessions included, and `eta_seconds` what is left at the speed of this session (NaN before its first step). `loss`
    and `top1` (percent) are the running epoch's means on training batches; `val_top1` is that of the last validation;
    of masks there are `miou` and `val_miou` instead. All are NaN until known. `note` is a sentence for the user, on the
    reports that have one.

    >>> report = TrainingProgress("digits-run", epoch=3, num_epochs=10, step=90, num_steps=300, val_top1=91.5)
    >>> f"epoch {report.epoch} of {report.num_epochs}, validation {report.val_top1} %, loss {report.loss}"
    'epoch 3 of 10, validation 91.5 %, loss nan'
    """

    run: str
    epoch: int
    num_epochs: float
    step: int
    num_steps: int
    seconds: float = float("nan")
    eta_seconds: float = float("nan")
    loss: float = float("nan")
    top1: float = float("nan")
    val_top1: float = float("nan")
    miou: float = float("nan")
    val_miou: float = float("nan")
    note: str = ""


ProgressCallback = Callable[[TrainingProgress], None]


def silent(progress: TrainingProgress) -> None:
    """Show nothing."""

"""Training: a recipe goes in, a run folder comes out. What reads runs works without torch, so names load when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weanalysis.training.checkpoints import trained_checkpoint
    from weanalysis.training.groups import differ_in_seed_alone, differing_fields, seed_groups, value_word
    from weanalysis.training.images import AUGMENTATIONS
    from weanalysis.training.loop import train
    from weanalysis.training.optimization import OPTIMIZERS, SCHEDULES
    from weanalysis.training.progress import ProgressCallback, TrainingProgress
    from weanalysis.training.recipe import PRESETS, Recipe
    from weanalysis.training.runs import (
        METRICS,
        Run,
        find_runs,
        list_runs,
        read_metrics,
        score_by_epoch,
        score_of,
        score_words,
        unreadable_runs,
    )

__all__ = [
    "AUGMENTATIONS",
    "METRICS",
    "OPTIMIZERS",
    "PRESETS",
    "SCHEDULES",
    "ProgressCallback",
    "Recipe",
    "Run",
    "TrainingProgress",
    "differ_in_seed_alone",
    "differing_fields",
    "find_runs",
    "list_runs",
    "read_metrics",
    "score_by_epoch",
    "score_of",
    "score_words",
    "seed_groups",
    "train",
    "trained_checkpoint",
    "unreadable_runs",
    "value_word",
]

_SCORES = ("score_by_epoch", "score_of", "score_words")

_MODULES = {
    "checkpoints": ("trained_checkpoint",),
    "groups": ("differ_in_seed_alone", "differing_fields", "seed_groups", "value_word"),
    "images": ("AUGMENTATIONS",),
    "loop": ("train",),
    "optimization": ("OPTIMIZERS", "SCHEDULES"),
    "progress": ("TrainingProgress", "ProgressCallback"),
    "recipe": ("PRESETS", "Recipe"),
    "runs": ("METRICS", "Run", "find_runs", "list_runs", "read_metrics", *_SCORES, "unreadable_runs"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

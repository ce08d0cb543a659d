"""Optimizers, and learning rates that depend on nothing but the step, so that nothing of them has to be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from weanalysis.training.recipe import Recipe

# Where a warm-up begins, as a share of the learning rate it leads to.
_WARMUP_START = 0.04


def _sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def _adamw(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _multistep(recipe: Recipe, step: int, steps_per_epoch: int, num_steps: int) -> float:
    return recipe.gamma ** sum(step >= round(milestone * steps_per_epoch) for milestone in recipe.milestones)


def _cosine(recipe: Recipe, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """Half a cosine over what the warm-up leaves, or warm restarts (Loshchilov and Hutter, ICLR 2017).

    Restarts fall on whole steps. torch's scheduler takes only whole factors between the lengths of cycles, and
    timm's misses restarts by the rounding of a logarithm.
    """
    start = recipe.warmup_epochs
    length = max(recipe.cycle_epochs or num_steps / steps_per_epoch - start, 1 / steps_per_epoch)
    while step >= round((start + length) * steps_per_epoch):
        start, length = start + length, length * recipe.cycle_factor
    first, end = round(start * steps_per_epoch), round((start + length) * steps_per_epoch)
    return (1 + math.cos(math.pi * (step - first) / (end - first))) / 2


def _poly(recipe: Recipe, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """The share of steps that are left after the warm-up, to the power of 0.9 (Chen et al., DeepLabv3, section 4.1)."""
    first = round(recipe.warmup_epochs * steps_per_epoch)
    return max(0.0, 1 - (step - first) / max(1, num_steps - first)) ** 0.9


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
# (recipe, step, steps per epoch, steps of the run) -> share of the recipe's learning rate, after the warm-up.
SCHEDULES: dict[str, Callable[[Recipe, int, int, int], float]] = {
    "multistep": _multistep,
    "cosine": _cosine,
    "poly": _poly,
}


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """Return the learning rate of an optimizer step, counted from 0: a linear warm-up, then the recipe's schedule."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * (_WARMUP_START + (1 - _WARMUP_START) * step / warmup)
    return recipe.learning_rate * SCHEDULES[recipe.schedule](recipe, step, steps_per_epoch, num_steps)

"""The built-in networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache as remember
from typing import Any

import torch
from torch import nn

from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.cifar import CIFAR_NETWORKS
from weanalysis.models.small import cnn1d, cnn3d
from weanalysis.models.source import NetworkSource
from weanalysis.models.tsm import tsm_resnet18, tsm_resnet50

#: name -> builder(num_classes, **options).
BUILTIN: dict[str, Callable[..., nn.Module]] = {
    **CIFAR_NETWORKS,
    "tsm_resnet18": tsm_resnet18,
    "tsm_resnet50": tsm_resnet50,
    "cnn1d": cnn1d,
    "cnn3d": cnn3d,
}


class Builtin(NetworkSource):
    """The networks of this program."""

    def names(self) -> list[str]:
        return list(BUILTIN)

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in BUILTIN:
            raise ModelError(unknown_name("built-in model", name, BUILTIN))
        parameters = inspect.signature(BUILTIN[name]).parameters.values()
        return 10, {one.name: one.default for one in parameters if one.default is not one.empty}

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return BUILTIN[name](num_classes=num_classes, **options)

    def task_of(self, name: str) -> str:
        return "segmentation" if name.startswith("fcn_") else self.task

    def options(self, name: str) -> list[str]:
        return [option for option in inspect.signature(BUILTIN[name]).parameters if option != "num_classes"]

    def num_parameters(self, name: str) -> int | None:
        return _num_parameters(name)


@remember
def _num_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BUILTIN[name](num_classes=10).parameters())

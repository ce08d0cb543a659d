"""A network's convolutions: their order, their shape, and which of them a study takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from weanalysis.ablation.copies import copied
from weanalysis.ablation.graph import Convolution, WeightsUsed, convolutions, has_plain_forward
from weanalysis.ablation.studies.parts import Part
from weanalysis.errors import StudyError, unknown_name

# What torchvision's segmentation networks call the head that only helps to train them.
AUXILIARY = ("aux_classifier",)


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a network: its state-dict name, its depth and the module.

    >>> first, second = find_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)))
    >>> second.name, second.depth, second.kind, second.shape, second.num_weights
    ('1', 1, 'depthwise', (8, 1), 72)
    """

    name: str
    depth: int
    conv: Convolution

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(self.conv.kernel_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(Out, In/groups): how many kernels the weight has on each side."""
        return self.conv.out_channels, self.conv.in_channels // self.conv.groups

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape) * math.prod(self.kernel_size)

    @property
    def kind(self) -> str:
        """What the table's readers call it: pointwise, grouped, depthwise or plain convolution."""
        if self.conv.groups > 1:
            return "depthwise" if self.shape[1] == 1 else f"grouped ({self.conv.groups})"
        return "pointwise" if math.prod(self.kernel_size) == 1 else "plain"

    @property
    def uses_its_weight_as_it_is(self) -> bool:
        """Whether it computes with its weight as it is; a subclass may standardize it first, and zeros with it.

        Judged by what it does alone: it convolves with just that weight, or (if it calls no convolution of torch's)
        twice the weight gives twice the output. One that cannot be called alone is believed, and shown to be right or
        wrong when it is measured.
        """
        if has_plain_forward(self.conv):
            return True
        try:
            return self._convolves_with_its_weight()
        except Exception:  # whatever its own forward raises: it may take more than an input
            return True

    @torch.no_grad()
    def _convolves_with_its_weight(self) -> bool:
        conv: Any = copied(self.conv).cpu().float().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        sides = [4 * side for side in self.kernel_size]
        images = torch.randn(1, conv.in_channels, *sides, generator=generator)
        weight = torch.randn(conv.weight.shape, generator=generator)
        outputs = []
        for factor in (0.0, 1.0, 2.0):
            conv.weight.copy_(factor * weight)
            with WeightsUsed() as used:
                outputs.append(conv(images))
        if used.weights:
            return any(torch.equal(one, conv.weight) for one, _ in used.weights)
        return torch.allclose(outputs[2] - outputs[0], 2 * (outputs[1] - outputs[0]), rtol=1e-3, atol=1e-4)


def find_layers(net: nn.Module) -> list[Layer]:
    """List a network's convolutions in the order of the forward pass (as registered where it cannot be traced).

    >>> [layer.name for layer in find_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)))]
    ['0', '2']
    """
    return [Layer(name, depth, conv) for depth, (name, conv) in enumerate(convolutions(net).items())]


def select_layers(layers: Iterable[Layer], pattern: str | None, skipped: list[tuple[str, str]]) -> list[Layer]:
    """Keep the layers whose name matches one of the comma-separated globs; record the others with the reason."""
    layers = list(layers)
    auxiliary = [layer for layer in layers if layer.name.partition(".")[0] in AUXILIARY]
    skipped += [(layer.name, "of an auxiliary head, which helps to train and gives no answer") for layer in auxiliary]
    layers = [layer for layer in layers if layer not in auxiliary]
    if not layers:
        raise StudyError("the network has no convolution, so there is nothing to ablate; choose a ConvNet")
    own = [layer for layer in layers if not layer.uses_its_weight_as_it_is]
    skipped += [(layer.name, f"{type(layer.conv).__name__} makes its weight in its own forward") for layer in own]
    layers = [layer for layer in layers if layer not in own]
    if not layers:
        raise StudyError(
            f"every convolution of the network is a {type(own[0].conv).__name__}, which makes its weight "
            "in its own forward, so that zeroing the stored one measures nothing; choose another network"
        )
    if pattern is None:
        return layers
    globs = [glob.strip() for glob in pattern.split(",") if glob.strip()]
    kept = [layer for layer in layers if any(fnmatchcase(layer.name, glob) for glob in globs)]
    if not kept:
        names = [layer.name for layer in layers]
        raise StudyError(
            unknown_name(
                "layer",
                pattern,
                names,
                f"Names run from {names[0]} to {names[-1]}; globs such as '{names[-1].split('.')[0]}*' are allowed.",
            )
        )
    chosen = {layer.name for layer in kept}
    skipped += [(layer.name, f"does not match {pattern}") for layer in layers if layer.name not in chosen]
    return kept


def equidistant(count: int, number: int) -> list[int]:
    """Place `number` indices equally over 0 … count−1, ends included: round(linspace(0, count−1, number)).

    >>> equidistant(16, 5)
    [0, 4, 8, 11, 15]
    """
    return [int(index) for index in np.unique(np.round(np.linspace(0, count - 1, min(number, count))).astype(int))]


def input_channel(layer: Layer, channel: int) -> Part:
    """The weights that read input channel `channel` (0 … in_channels−1): in a grouped convolution, its group's only."""
    num_out, num_in = layer.shape
    outs_of_group = num_out // layer.conv.groups
    first = channel // num_in * outs_of_group
    outs = None if layer.conv.groups == 1 else tuple(range(first, first + outs_of_group))
    return Part(layer.name, outs, (channel % num_in,))

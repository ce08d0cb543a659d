"""What odd networks are made of, and how one is entered among them; see the package."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

NUM_IMAGES, NUM_CLASSES = 32, 6

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def images() -> Tensor:
    """Images (32, 3, 8, 8) that differ in their means, with a dead channel 0; pixel [1, 0, 0] tells the last 12."""
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(NUM_IMAGES, 3, 8, 8, generator=generator)
    made = made + 1.5 * torch.randn(NUM_IMAGES, 3, 1, 1, generator=generator)
    made[:, 0] = 0
    made[:20, 1, 0, 0], made[20:, 1, 0, 0] = -3, 3
    return made


def inside(net: nn.Module) -> nn.Module:
    """The network in torch's wrappers, whose names are those that a study goes by."""
    return getattr(net, {"DataParallel": "module", "OptimizedModule": "_orig_mod"}.get(type(net).__name__, ""), net)


@dataclass
class Odd:
    """A kind of network: how one is made, and what is expected of a measurement of it.

    "right": equal to a plain loop, image by image. "refused": one line instead, as nothing true can be said of it.
    "either": that line, or right. `plain` turns a network into one whose `weight`s are those that its forward pass
    uses. `left_out` are layers that a study may leave out with a reason; `again` networks are slow to make.
    """

    name: str
    factory: Callable[[], nn.Module]
    expect: Literal["right", "refused", "either"] = "right"
    plain: Callable[[nn.Module], None] | None = None
    left_out: tuple[str, ...] = ()
    weight_of: Callable[[nn.Module, str], Tensor] | None = None
    again: bool = False
    _scale: tuple[Tensor, Tensor] | None = None

    def make(self) -> nn.Module:
        """Make the same network, in training mode, each time it is called."""
        if self._scale is None:
            self._scale = torch.zeros(NUM_CLASSES), torch.ones(NUM_CLASSES)
            head = _head(self._new())
            logits = run(self._new()) if head is not None else None
            if isinstance(logits, Tensor) and logits.shape == (NUM_IMAGES, NUM_CLASSES):
                self._scale = logits.mean(0), logits.std(0).clamp_min(1e-6)
        net = self._new()
        head, (mean, std) = _head(net), self._scale
        if head is not None:
            with torch.no_grad():
                head.weight /= std[:, None]
                head.bias.copy_((head.bias - mean) / std)
        return net

    def scaled_as(self, other: Odd) -> Odd:
        """Take the last layer's scale, and so all weights, from another network."""
        other.make()
        self._scale = other._scale
        return self

    def _new(self) -> nn.Module:
        _seed()
        return self.factory().train()

    def weight(self, net: nn.Module, layer: str) -> Tensor:
        """The weight that the forward pass of a plain network uses."""
        tensor = self.weight_of(net, layer) if self.weight_of else inside(net).get_submodule(layer).weight
        return tensor.detach()


def _seed() -> None:
    torch.default_generator.manual_seed(0)  # faster than that of all devices
    np.random.seed(0)
    random.seed(0)


def _head(net: nn.Module) -> nn.Linear | None:
    heads = [module for name, module in net.named_modules() if name.split(".")[-1] == "head"]
    return heads[-1] if heads and type(heads[-1]) is nn.Linear else None


@torch.no_grad()
def run(net: nn.Module, given: Tensor | None = None) -> Tensor:
    """The logits (N, classes) of a network in evaluation mode, which it stays in; random ones draw alike."""
    _seed()
    output = net.eval()(images() if given is None else given.clone())
    if isinstance(output, dict):
        output = output["logits"]
    return output[0] if isinstance(output, (tuple, list)) else output


ODD: dict[str, Odd] = {}


def odd(name: str, expect: Literal["right", "refused", "either"] = "right", **facts: Any) -> Callable[[Any], Any]:
    """Enter a class or function that makes a network."""

    def enter(factory: Any) -> Any:
        assert name not in ODD
        ODD[name] = Odd(name, factory, expect, **facts)
        return factory

    return enter


def conv(num_in: int, num_out: int, size: int = 3, kind: Any = nn.Conv2d, **options: Any) -> Any:
    """A convolution that keeps its images' size, with lively weights and no use for its input channel 0."""
    made = kind(num_in, num_out, size, **{"padding": size // 2, **options})
    with torch.no_grad():
        made.weight.normal_(0, 1.5 / math.sqrt(made.weight[0].numel()))
        if num_in == 3:
            made.weight[:, 0] *= 5
        elif made.weight.shape[1] > 1:
            made.weight[:, 0] = 0
    return made


def norm(num: int, kind: Any = nn.BatchNorm2d) -> Any:
    """A batch norm that has seen something."""
    made = kind(num)
    with torch.no_grad():
        made.running_mean.normal_(0, 0.3), made.running_var.uniform_(0.3, 2)
        made.weight.uniform_(0.5, 1.5), made.bias.normal_(0, 0.3)
    return made


class Base(nn.Module):
    """Two convolutions, the mean of each channel, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(4, 4), nn.Linear(4, NUM_CLASSES)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

    def features(self, x):
        return self.second(torch.relu(self.a(x)))

    def second(self, x):
        return torch.relu(self.b(x))


class Three(Base):
    """One convolution more, without a nonlinearity of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.c = conv(4, 4)

    def second(self, x):
        return torch.relu(self.b(x)) + self.c(x)


ODD["nothing odd"] = Odd("nothing odd", Base)

"""Pairs that look alike, print alike and have equal weights, and give other answers."""

from __future__ import annotations

import functools

import torch
from torch import nn

from odd_networks.base import Base, Odd
from odd_networks.states import NotSaved, PlainTensor, Slope


def _closure(sign: float) -> nn.Module:
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: sign * output)
    return net


def _two_forwards(sign: float) -> nn.Module:
    class Net(Base):
        if sign > 0:

            def second(self, x):
                return torch.relu(self.b(x))
        else:

            def second(self, x):
                return torch.relu(-self.b(x))

    return Net()


ALIKE: dict[str, tuple[Odd, Odd]] = {
    name: (Odd(name, functools.partial(make, first)), Odd(name, functools.partial(make, second)))
    for name, make, first, second in (
        ("a number", Slope, 0.01, -0.9),
        ("a buffer that is not saved", NotSaved, 1.0, -1.0),
        ("a tensor that is an attribute", PlainTensor, 1.0, -1.0),
        ("a hook", _closure, 1.0, -1.0),
        ("the forward code", _two_forwards, 1.0, -1.0),
    )
}

"""Nondeterminism."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from odd_networks.base import Base, odd


@odd("dropout without training=", "refused")
class AlwaysDrops(Base):
    def second(self, x):
        return F.dropout(super().second(x))


@odd("dropout that stays in training", "refused")
class DropoutStays(Base):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.drop.train()
        return self

    def second(self, x):
        return self.drop(super().second(x))


@odd("noise of the activation's shape", "refused")
class NoisyActivation(Base):
    def second(self, x):
        return super().second(x + torch.randn_like(x))


@odd("noise of a fixed shape", "refused")
class NoisyConstant(Base):
    """To a tracer it looks like a constant."""

    def second(self, x):
        return super().second(x + torch.randn(1, 4, 1, 1))


@odd("a layer left out at random", "refused")
class LeftOut(Base):
    def second(self, x):
        return super().second(x) if random.random() < 0.5 else x


@odd("numpy's noise", "refused")
class NumpyNoise(Base):
    def second(self, x):
        return super().second(x) * float(np.random.rand())


@odd("noise that comes rarely", "refused")
class RareNoise(Base):
    """The chance that two passes agree is high."""

    def second(self, x):
        y = super().second(x)
        return -y if torch.rand(()) < 0.02 else y


@odd("noise from a generator of its own", "either")
class OwnGenerator(Base):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def second(self, x):
        return super().second(x + torch.randn(1, 4, 1, 1, generator=self.generator))


@odd("noise that is the same each time")
class SeededNoise(Base):
    def second(self, x):
        generator = torch.Generator().manual_seed(3)
        return super().second(x + torch.randn(1, 4, 1, 1, generator=generator))


@odd("random, and decided by none of it", "either")
class UselessNoise(Base):
    def second(self, x):
        return super().second(x) + 0 * torch.rand(1)


@odd("running statistics that move when evaluated", "either")
class MovingStatistics(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, 1, 1))

    def second(self, x):
        self.mean.mul_(0.5).add_(0.5 * x.mean((0, 2, 3)).view(4, 1, 1))
        return super().second(x - self.mean)


@odd("every other call is another", "either")
class EveryOther(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def second(self, x):
        self.calls += 1
        return super().second(x if self.calls % 2 else -x)


@odd("a memory of earlier images", "either")
class Memory(Base):
    def __init__(self):
        super().__init__()
        self.bank = []

    def forward(self, x):
        y = self.features(x).mean((2, 3))
        self.bank = [*self.bank[-3:], y.mean(0)]
        return self.head(y + sum(self.bank))

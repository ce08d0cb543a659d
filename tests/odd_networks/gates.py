"""Gates, and what has no gradient."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from odd_networks.base import Base, Three, odd


@odd("a hard gate")
class HardGate(Base):
    def second(self, x):
        y = self.b(x)
        return (y > 0).float() * x + (y > 0.5).float()


@odd("a straight-through gate")
class StraightThrough(Base):
    def second(self, x):
        y = self.b(x).sigmoid()
        return x * (y.round() + y - y.detach())


@odd("a route by argmax")
class Routed(Three):
    def second(self, x):
        y, z = torch.relu(self.b(x)), torch.relu(self.c(x))
        route = F.one_hot(x[:, 1:3].mean((2, 3)).argmax(1), 2).float()[..., None, None, None]
        return route[:, 0] * y + route[:, 1] * z


@odd("codes looked up in a table")
class Codes(Base):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4)

    def second(self, x):
        return self.table(self.b(x).argmax(1)).permute(0, 3, 1, 2)


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -1e-4 * gradient


@odd("an autograd function of one's own")
class OwnFunction(Base):
    def second(self, x):
        return Round.apply(torch.relu(self.b(x)))


@odd("a gradient that is reversed and small")
class ReversedGradient(Base):
    def second(self, x):
        return torch.relu(Reversed.apply(self.b(x)))


@odd("a gradient in the forward pass")
class GradientInside(Base):
    def second(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = torch.tanh(self.b(x)).pow(2).sum()
            (slope,) = torch.autograd.grad(energy, x)
        return torch.relu(slope + self.b(x).detach())


@odd("inference mode in the forward pass")
class InferenceInside(Base):
    def second(self, x):
        with torch.inference_mode():
            y = self.b(x)
        return torch.relu(y.clone())

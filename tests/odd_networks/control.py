"""Control flow."""

from __future__ import annotations

import torch
from torch import nn

from odd_networks.base import NUM_CLASSES, Base, Three, odd


@odd("a branch on the data")
class BranchOnData(Base):
    def second(self, x):
        y = self.b(x)
        return torch.relu(y) if y.mean() > 0 else torch.tanh(y)


@odd("a loop until it is small", "either")
class LoopUntil(Base):
    def second(self, x):
        y = self.b(x)
        while y.abs().max() > 2:
            y = y / 2
        return torch.relu(y)


@odd("each image leaves early")
class EarlyExit(Base):
    def __init__(self):
        super().__init__()
        self.early = nn.Linear(4, NUM_CLASSES)

    def forward(self, x):
        outputs = []
        for one in x:
            y = torch.relu(self.a(one[None]))
            first = self.early(y.mean((2, 3)))
            outputs.append(first if first.softmax(1).max() > 0.5 else self.head(self.second(y).mean((2, 3))))
        return torch.cat(outputs)


@odd("a branch that asks for gradients")
class BranchOnGrad(Base):
    def second(self, x):
        return torch.tanh(self.b(x)) if torch.is_grad_enabled() else torch.relu(self.b(x))


@odd("a branch that swallows errors")
class BranchOnError(Base):
    def second(self, x):
        try:
            positive = bool(x.mean() > 0)
        except Exception:
            positive = False
        return torch.relu(self.b(x)) if positive else torch.tanh(self.b(x))


@odd("a branch on a weight")
class BranchOnWeight(Base):
    def second(self, x):
        y = self.b(x)
        return torch.relu(y) if float(self.b.weight[-1].abs().sum()) > 0 else torch.tanh(y) - y


@odd("a convolution that is called for some inputs only")
class CalledForSome(Three):
    def second(self, x):
        y = torch.relu(self.b(x))
        return self.c(y) if y.mean() > 0 else y


@odd("a convolution that is never called", left_out=("c",))
class NeverCalled(Three):
    def second(self, x):
        return torch.relu(self.b(x))


@odd("a convolution that is called in training only", left_out=("c",))
class CalledInTraining(Three):
    def second(self, x):
        return self.c(x) if self.training else torch.relu(self.b(x))

"""What a forward pass leaves behind."""

from __future__ import annotations

import collections

import torch
from torch import nn

from odd_networks.base import Base, odd


@odd("an activation kept in a dict")
class KeptInDict(Base):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def second(self, x):
        self.cache["b"] = self.b(x)
        return torch.relu(self.cache["b"])


@odd("an activation kept as an attribute")
class KeptAsAttribute(Base):
    def forward(self, x):
        self.feat = self.features(x).mean((2, 3))
        return self.head(self.feat)


@odd("a list of what was seen")
class KeptInList(Base):
    def __init__(self):
        super().__init__()
        self.history = collections.deque(maxlen=5)

    def second(self, x):
        y = super().second(x)
        self.history.append(y.mean())
        return y


@odd("a number kept of what was seen")
class KeptNumber(Base):
    def second(self, x):
        y = super().second(x)
        self.last = y.mean().item()
        return y


@odd("an activation kept in a submodule, and read by the parent")
class KeptBelow(Base):
    def __init__(self):
        super().__init__()
        self.below = Below(self.b)

    def second(self, x):
        self.below(x)
        return torch.relu(self.below.kept)


class Below(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        self.kept = self.layer(x)


@odd("a buffer that counts")
class CountsInPlace(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def second(self, x):
        self.calls += 1
        return super().second(x)


@odd("an attribute that counts")
class CountsAttribute(Base):
    def __init__(self):
        super().__init__()
        self.calls, self.shapes = 0, set()

    def second(self, x):
        self.calls += 1
        self.shapes.add(x.ndim)
        return super().second(x)


@odd("a running mean that nobody reads")
class UnreadMean(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def second(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return super().second(x)


@odd("a running mean that is replaced")
class ReplacedMean(UnreadMean):
    def second(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        return Base.second(self, x)


@odd("a grid made at the first call")
class LazyGrid(Base):
    def __init__(self):
        super().__init__()
        self.grid = None

    def second(self, x):
        if self.grid is None:
            self.grid = torch.linspace(-1, 1, 8).expand(8, 8)
        return super().second(x + self.grid)


@odd("a mask that __call__ sets")
class SetsInCall(Base):
    def __call__(self, x):
        self.mask = (x[:, 1:2] > 0).float() + 0.5
        return super().__call__(x)

    def second(self, x):
        return super().second(x * self.mask)


@odd("a __call__ that changes the images")
class ChangesInCall(Base):
    def __call__(self, x):
        return super().__call__(x.abs())


@odd("fails when its training mode is looked at late")
class DropsItself(Base):
    """In training its second layer is another one."""

    def second(self, x):
        return torch.tanh(self.b(x)) if self.training else torch.relu(self.b(x))

"""State that is no tensor, or does not copy."""

from __future__ import annotations

import threading

import torch
from torch.nn import functional as F

from odd_networks.base import Base, Three, images, odd
from odd_networks.leftovers import KeptAsAttribute


@odd("a slope that is a number")
class Slope(Base):
    def __init__(self, slope=0.9):
        super().__init__()
        self.slope = slope

    def second(self, x):
        return F.leaky_relu(self.b(x), self.slope)


@odd("a buffer that is not saved")
class NotSaved(Base):
    def __init__(self, sign=1.0):
        super().__init__()
        self.register_buffer("sign", torch.tensor([1, -1, 1, sign])[:, None, None], persistent=False)

    def second(self, x):
        return torch.relu(self.b(x) * self.sign)


@odd("a tensor that is an attribute")
class PlainTensor(Base):
    def __init__(self, sign=1.0):
        super().__init__()
        self.sign = torch.tensor([1, -1, 1, sign])[:, None, None]

    def second(self, x):
        return torch.relu(self.b(x) * self.sign)


@odd("an activation of training kept, with its graph")
class KeptGraph(KeptAsAttribute):
    def __init__(self):
        super().__init__()
        self(images())


@odd("gradients, and frozen parts")
class Frozen(Three):
    def __init__(self):
        super().__init__()
        self.a.requires_grad_(False), self.c.bias.requires_grad_(False)
        self(images()).sum().backward()


@odd("a lock", "either")
class Locked(Base):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def second(self, x):
        with self.lock:
            return super().second(x)


@odd("a generator of numbers", "either")
class NumberGenerator(Base):
    def __init__(self):
        super().__init__()
        self.numbers = (number for number in range(10))


@odd("a copy that is refused", "either")
class NoCopy(Base):
    def __deepcopy__(self, memo):
        raise NotImplementedError("there is one of me")


@odd("a copy that is itself", "either")
class CopyIsItself(Base):
    """Whoever works on the copy works on the network."""

    def __deepcopy__(self, memo):
        return self

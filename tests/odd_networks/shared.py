"""Weights that are used elsewhere."""

from __future__ import annotations

import functools
import types
import weakref

import torch
from torch import nn
from torch.nn import functional as F

from odd_networks.base import Base, Three, conv, norm, odd


@odd("a weight used by a function alone")
class FunctionAlone(Base):
    def second(self, x):
        return torch.relu(F.conv2d(x, self.b.weight, self.b.bias, padding=1))


@odd("a weight used by a function beside its module")
class FunctionBeside(Base):
    def second(self, x):
        return torch.relu(self.b(x)) + torch.relu(F.conv2d(-x, self.b.weight, padding=2, dilation=2))


@odd("a function beside a module, then batch norm")
class FunctionBesideNorm(Base):
    def __init__(self):
        super().__init__()
        self.norm = norm(4)

    def second(self, x):
        return torch.relu(self.norm(self.b(x))) + torch.relu(F.conv2d(-x, self.b.weight, padding=1))


@odd("two modules with one parameter")
class Tied(Three):
    def __init__(self):
        super().__init__()
        self.c.weight = self.b.weight

    def second(self, x):
        return torch.relu(self.c(torch.relu(self.b(x))))


@odd("two modules with one parameter, each with batch norm")
class TiedNorm(Tied):
    def __init__(self):
        super().__init__()
        self.norm_b, self.norm_c = norm(4), norm(4)

    def second(self, x):
        return torch.relu(self.norm_c(self.c(torch.relu(self.norm_b(self.b(x))))))


@odd("two parameters in one memory")
class OneMemory(Tied):
    def __init__(self):
        super().__init__()
        self.c.weight = nn.Parameter(self.b.weight.detach())


@odd("one module under two names")
class TwoNames(Base):
    def __init__(self):
        super().__init__()
        self.other = self.b

    def second(self, x):
        return torch.relu(self.other(torch.relu(self.b(x))))


@odd("a shared parameter of an encoder and a decoder", left_out=("up",))
class Decoder(Base):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.up.weight = self.b.weight

    def second(self, x):
        return torch.relu(self.up(torch.relu(self.b(x))))


@odd("a weight whose norm scales the output")
class ReadByOthers(Base):
    def second(self, x):
        return super().second(x) * self.b.weight.pow(2).sum((1, 2, 3))[:, None, None]


@odd("a weight whose number scales the output")
class ReadAsNumber(Base):
    def second(self, x):
        return torch.relu(self.b(x) - self.b.weight.abs().mean().item() * 3)


@odd("a weight in a list")
class InAList(Base):
    def __init__(self):
        super().__init__()
        self.weights = [self.b.weight]

    def second(self, x):
        return torch.relu(self.b(x) - self.weights[0].abs().mean((1, 2, 3))[:, None, None] * 3)


@odd("the norm of all parameters scales the output")
class NormOfAll(Base):
    def second(self, x):
        return torch.relu(self.b(x) - 0.01 * sum(p.pow(2).sum() for p in self.parameters()))


@odd("a weight read from the state dict")
class FromState(Base):
    def second(self, x):
        return torch.relu(F.conv2d(x, self.state_dict()["b.weight"], padding=1))


@odd("a weight bound by functools.partial")
class Partial(Base):
    def __init__(self):
        super().__init__()
        self.call = functools.partial(F.conv2d, weight=self.b.weight, padding=1)

    def second(self, x):
        return torch.relu(self.call(x))


@odd("a weight used by a linear function")
class ByLinear(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(F.linear(self.features(x).mean((2, 3)), self.b.weight.flatten(1))) * 2)


@odd("a weight used by unfold and einsum")
class ByUnfold(Base):
    def second(self, x):
        columns = F.unfold(x, 3, padding=1)
        y = torch.einsum("of,nfp->nop", self.b.weight.flatten(1), columns)
        return torch.relu(y).unflatten(2, (8, 8)) + self.b(x)


@odd("weights of two modules in one call")
class OneCall(Three):
    def second(self, x):
        weight = torch.cat([self.b.weight, self.c.weight])
        first, second = torch.relu(F.conv2d(x, weight, padding=1)).chunk(2, 1)
        return first - second


@odd("experts whose weights are mixed for each image")
class Experts(Three):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 2)

    def second(self, x):
        share = self.gate(x.mean((2, 3))).softmax(1)
        weight = torch.einsum("ne,eoihw->noihw", share, torch.stack([self.b.weight, self.c.weight]))
        merged = F.conv2d(x.reshape(1, -1, 8, 8), weight.reshape(-1, 4, 3, 3), padding=1, groups=len(x))
        return torch.relu(merged.reshape(len(x), 4, 8, 8))


@odd("kernels made by a convolution")
class MakesKernels(Base):
    def __init__(self):
        super().__init__()
        self.maker = conv(4, 4)
        self.template = nn.Parameter(torch.randn(4, 4, 3, 3))

    def second(self, x):
        return torch.relu(F.conv2d(self.b(x), self.maker(self.template), padding=1))


@odd("a convolution of a constant")
class OfAConstant(Base):
    def __init__(self):
        super().__init__()
        self.position = conv(4, 4)
        self.register_buffer("grid", torch.randn(1, 4, 8, 8))

    def second(self, x):
        return torch.relu(self.b(x) + self.position(self.grid))


@odd("a keyword for the input")
class ByKeyword(Base):
    def second(self, x):
        return torch.relu(self.b(input=x))


@odd("recurrent: one convolution, three times")
class Recurrent(Base):
    def second(self, x):
        state = torch.zeros_like(x)
        for _ in range(3):
            state = torch.tanh(self.b(x + state))
        return state


@odd("a shared convolution at two sizes, with batch norms of their own")
class TwoSizes(Base):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([norm(4), norm(4)])

    def second(self, x):
        small = F.avg_pool2d(x, 2)
        small = torch.relu(self.norms[1](self.b(small)))
        return torch.relu(self.norms[0](self.b(x))) + F.interpolate(small, x.shape[2:])


@odd("a child that reaches for its parent", "either")
class WeakParent(Base):
    """A weak reference is not followed by a copy: the copy's child reads the first network."""

    def __init__(self):
        super().__init__()
        self.child = Child()
        self.child.parent = weakref.ref(self)

    def second(self, x):
        return self.child(x)


class Child(nn.Module):
    def forward(self, x):
        return torch.relu(F.conv2d(x, self.parent().b.weight, padding=1))


@odd("a forward that is a closure over the network", "either")
def _():
    net = Base()
    net.b.forward = lambda x: F.conv2d(x, net.b.weight, net.b.bias, padding=1)
    return net


@odd("a forward that was replaced by a method")
def _():
    net = Base()
    net.b.forward = types.MethodType(lambda self, x: F.conv2d(x, self.weight, padding=1) * 2, net.b)
    return net


@odd("a hook that is a closure over the network", "either")
def _():
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: output + F.conv2d(args[0], net.b.weight, padding=1))
    return net

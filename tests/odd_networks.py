"""Tiny networks of odd kinds, each with what is expected of whoever ablates it: ODD, name -> Odd.

Each has convolutions of a few channels for images of 3x8x8, whose channel 0 is always 0. The weights that read it are
large in the first layer, and 0 in the others: zeroing them is a no-op, and what a careless check takes first.
Everything else is lively: the last layer is scaled so that every class wins on some images.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import random
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from weanalysis.excitation import excite, fold

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


# Weights that are computed --------------------------------------------------------------------------------------------


def _drop_parametrizations(net: nn.Module) -> None:
    for module in list(net.modules()):
        if isinstance(module, CONVOLUTIONS) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _drop_pre_hooks(*layers: str) -> Callable[[nn.Module], None]:
    """Keep what the hooks made of the weight."""

    def plain(net: nn.Module) -> None:
        run(net)
        for layer in layers:
            module = net.get_submodule(layer)
            module._forward_pre_hooks.clear()
            value = module.weight.detach().clone()
            vars(module).pop("weight", None)
            module.register_parameter("weight", nn.Parameter(value))

    return plain


def _both(change: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Base()
        change(net.a), change(net.b)
        return net

    return make


odd("weight norm", plain=_drop_parametrizations)(_both(parametrizations.weight_norm))
odd("weight norm, of old", plain=_drop_pre_hooks("a", "b"))(_both(nn.utils.weight_norm))
odd("spectral norm", plain=_drop_parametrizations)(_both(parametrizations.spectral_norm))
odd("spectral norm, of old", plain=_drop_pre_hooks("a", "b"))(_both(nn.utils.spectral_norm))
odd("orthogonal weights", plain=_drop_parametrizations)(_both(parametrizations.orthogonal))
odd("a pruning mask", plain=_drop_pre_hooks("b"))(
    lambda: _changed(Base(), lambda net: prune.random_unstructured(net.b, "weight", 0.3))
)


def _changed(net: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    change(net)
    return net


class Centered(nn.Module):
    def forward(self, weight):
        return weight - weight.mean((1, 2, 3), keepdim=True)


class Rounded(nn.Module):
    def forward(self, weight):
        return weight + ((4 * weight).round() / 4 - weight).detach()


class Mirrored(nn.Module):
    """Half a filter bank, used twice: every weight stands at two places."""

    def forward(self, weight):
        return torch.cat([weight, weight.flip(-1)])

    def right_inverse(self, weight):
        return weight[: len(weight) // 2]


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + 0.5 * torch.randn_like(weight)


odd("a parametrization of one's own", plain=_drop_parametrizations)(
    _both(lambda module: parametrize.register_parametrization(module, "weight", Centered()))
)
odd("two parametrizations, one after the other", plain=_drop_parametrizations)(
    _both(
        lambda module: (
            parametrizations.weight_norm(module),
            parametrize.register_parametrization(module, "weight", Rounded()),
        )
    )
)
odd("a parametrization that makes two weights of one", plain=_drop_parametrizations)(
    _both(lambda module: parametrize.register_parametrization(module, "weight", Mirrored(), unsafe=True))
)
odd("a random parametrization", "refused")(
    _both(lambda module: parametrize.register_parametrization(module, "weight", Noisy()))
)
odd("a parametrized bias")(_both(lambda module: parametrize.register_parametrization(module, "bias", Rounded())))


@odd("a linear layer with weight norm")
class LinearNorm(Base):
    def __init__(self):
        super().__init__()
        self.middle = parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        return self.head(self.middle(self.features(x).mean((2, 3))))


def _fold_all(net: nn.Module) -> None:
    fold(net)
    _drop_parametrizations(net)


@odd("LWE on one layer, weight norm on another", plain=_fold_all)
def _():
    net = Base()
    excite(net, "lwe", layers="a")
    parametrizations.weight_norm(net.b)
    return net


@odd("LWE on top of weight norm", "either", plain=_drop_parametrizations)
def _():
    net = Base()
    parametrizations.weight_norm(net.b)
    excite(net, "lwe", layers="b")
    return net


class CachesParametrizations(Base):
    """Computes each weight once a forward pass."""

    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.b)

    def second(self, x):
        with parametrize.cached():
            return torch.relu(self.b(torch.relu(self.b(x))))


odd("parametrizations that are cached", plain=_drop_parametrizations)(CachesParametrizations)


def _set_from_raw(module, args):
    module.weight = module.raw * module.gain


class SetByHook(Base):
    def __init__(self):
        super().__init__()
        weight = self.b.weight.detach().clone()
        del self.b.weight
        self.b.raw, self.b.gain = nn.Parameter(weight), 2.0
        self.b.weight = weight * 2
        self.b.register_forward_pre_hook(_set_from_raw)


odd("a hook that sets the weight", plain=_drop_pre_hooks("b"))(SetByHook)


@odd("weights that are views of one flat parameter", plain=_drop_pre_hooks("a", "b"))
class Flat(Base):
    """As in training with sharded parameters: views of a flat one, made by hooks before each call."""

    def __init__(self):
        super().__init__()
        layers = (self.a, self.b)
        flat = nn.Parameter(torch.cat([layer.weight.detach().flatten() for layer in layers]))
        start = 0
        for layer in layers:
            shape, count = layer.weight.shape, layer.weight.numel()
            del layer.weight
            layer.flat, layer.place = flat, (start, start + count, shape)
            _view_of_flat(layer, ())
            layer.register_forward_pre_hook(_view_of_flat)
            start += count


def _view_of_flat(module, args):
    start, stop, shape = module.place
    module.weight = module.flat[start:stop].view(shape)


class Overwrites(Base):
    """Takes its weight from a master copy at every call."""

    def __init__(self):
        super().__init__()
        self.master, self.takes = nn.Parameter(self.b.weight.detach().clone()), True

    def second(self, x):
        if self.takes:
            self.b.weight.data.copy_(self.master)
        return super().second(x)


odd("weights copied from a master at every call", "either", plain=lambda net: setattr(net, "takes", False))(Overwrites)


class Functional(Base):
    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(self.b.weight.detach().clone())

    def second(self, x):
        return torch.relu(torch.func.functional_call(self.b, {"weight": 2 * self.raw}, (x,)))


odd(
    "a functional call with another weight",
    "either",
    left_out=("b",),
    weight_of=lambda net, layer: net.raw if layer == "b" else net.a.weight,
)(Functional)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


def _without_standardization(net: nn.Module) -> None:
    centered = net.b.weight.detach() - net.b.weight.detach().mean((1, 2, 3), keepdim=True)
    plain = nn.Conv2d(4, 4, 3, padding=1)
    plain.weight.data, plain.bias.data = centered, net.b.bias.detach()
    net.b = plain


@odd("weight standardization in a forward of its own", left_out=("b",), plain=_without_standardization)
class OneStandardized(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, kind=Standardized)


class Remembers(nn.Conv2d):
    """Computes with a copy of its weight that it made when it was first called."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.weight.detach().clone()
        return F.conv2d(x, self.kept, self.bias, padding=1)


@odd(
    "a convolution that computes with a copy of its weight",
    "either",
    left_out=("b",),
    plain=run,
    weight_of=lambda net, layer: net.b.kept if layer == "b" else net.a.weight,
)
class OneRemembers(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, kind=Remembers)
        run(self)


class Scaled(nn.Conv2d):
    """A forward of its own, with an argument more."""

    def forward(self, x, scale):
        return scale * F.conv2d(x, self.weight, self.bias, padding=1)


@odd("a convolution with another signature")
class OneScaled(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, kind=Scaled)

    def second(self, x):
        return torch.relu(self.b(x, 0.5))


class AcrossChannels(nn.Conv2d):
    """Linear in its weight, but each output channel depends on all of them."""

    def forward(self, x):
        y = super().forward(x)
        return y - 3 * y.mean(1, keepdim=True)


@odd("a convolution that mixes its output channels")
class OneAcross(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, kind=AcrossChannels)


class Rolled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).roll(1, 1)


@odd("a convolution that moves its output channels")
class OneRolled(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, kind=Rolled)


@odd("a weight that is a buffer")
class BufferWeight(Base):
    def __init__(self):
        super().__init__()
        weight = self.b.weight.detach()
        del self.b.weight
        self.b.register_buffer("weight", weight)


@odd("a weight that is a plain attribute")
class AttributeWeight(Base):
    def __init__(self):
        super().__init__()
        weight = self.b.weight.detach()
        del self.b.weight
        self.b.weight = weight


@odd("a weight that is one kernel, expanded")
class Expanded(Base):
    def __init__(self):
        super().__init__()
        self.b.weight = nn.Parameter(torch.randn(1, 4, 3, 3).expand(4, 4, 3, 3).clone())
        self.c = conv(4, 4)
        self.c.weight = nn.Parameter(self.c.weight.detach().mean().expand(4, 4, 3, 3).contiguous())

    def second(self, x):
        return torch.relu(self.b(x)) + self.c(x)


class Tagged(Tensor):
    """A tensor class that counts what is done with it, and does just that."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        return super().__torch_function__(function, kinds, args, kwargs or {})


@odd("a parameter of another tensor class", "either")
class TaggedWeight(Base):
    def __init__(self):
        super().__init__()
        self.b.weight = nn.Parameter(self.b.weight.detach().as_subclass(Tagged))

    def second(self, x):
        return torch.relu(self.b(x)).as_subclass(Tensor)


# Weights that are used elsewhere --------------------------------------------------------------------------------------


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


# In place, and into given memory --------------------------------------------------------------------------------------


@odd("out= is its own input")
class OutIsInput(Base):
    def second(self, x):
        y = self.b(x)
        torch.sigmoid(y, out=y)
        return y + self.a.weight.mean() * 0


@odd("out= is a tensor made on the way")
class OutIsNew(Base):
    def second(self, x):
        y, z = self.b(x), torch.empty_like(x)
        torch.add(y, x, out=z)
        return torch.relu(z)


@odd("out= is an activation that others read")
class OutIsRead(Base):
    def features(self, x):
        y = torch.relu(self.a(x))
        z = self.b(y)
        torch.sub(y, z, out=y)
        return torch.relu(y + 0.5 * z)


@odd("relu_ on a view of an activation")
class ReluOnView(Base):
    def second(self, x):
        y = self.b(x)
        y[:, :2].relu_()
        half = y[:, 2:]
        half.mul_(2)
        return y - half.mean(1, keepdim=True)


@odd("add_ on a view made before")
class AddOnView(Base):
    def second(self, x):
        flat = x.view(len(x), 4, -1)
        y = self.b(x)
        flat.add_(y.flatten(2))
        return torch.relu(x)


@odd("in place behind a chunk")
class InPlaceChunk(Base):
    def second(self, x):
        y = self.b(x)
        first, second = y.chunk(2, 1)
        first += second
        second.neg_()
        return torch.relu(y)


@odd("a slice is written to")
class WritesSlice(Base):
    def second(self, x):
        y = self.b(x)
        y[:, 1] = y[:, 2] * x[:, 3]
        return torch.relu(y)


@odd("masked_fill_, index_add_ and copy_")
class WritesMasked(Base):
    def second(self, x):
        y = self.b(x)
        y.masked_fill_(x > 1, 0.0)
        y.index_add_(1, torch.tensor([1, 2]), x[:, 2:4])
        z = torch.empty_like(y)
        z.copy_(y)
        y.zero_()
        return torch.relu(z + y)


@odd("the images are written to")
class WritesImages(Base):
    def forward(self, x):
        x.mul_(0.7).add_(0.1)
        return super().forward(x)


@odd("a buffer is scratch memory")
class Scratch(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("scratch", torch.zeros(NUM_IMAGES, 4, 8, 8))

    def second(self, x):
        scratch = self.scratch[: x.shape[0]]
        torch.mul(self.b(x), 2, out=scratch)
        return torch.relu(scratch - x)


@odd("the weight is written to, and back", "either")
class WritesWeight(Base):
    """Equalized learning rate, done by hand."""

    def second(self, x):
        self.b.weight.data.mul_(2)
        y = self.b(x)
        self.b.weight.data.div_(2)
        return torch.relu(y)


# Across the batch -----------------------------------------------------------------------------------------------------


@odd("less the batch's mean", "either")
class LessMean(Base):
    def second(self, x):
        return torch.relu(self.b(x - x.mean(0)))


@odd("batch norm without running statistics", "either")
class NoStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def second(self, x):
        return torch.relu(self.norm(self.b(x)))


@odd("batch norm that stays in training", "either")
class StaysInTraining(Base):
    def __init__(self):
        super().__init__()
        self.norm = norm(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def second(self, x):
        return torch.relu(self.norm(self.b(x)))


@odd("batch norm by a function, in training", "either")
class FunctionalNorm(Base):
    def second(self, x):
        return torch.relu(F.batch_norm(self.b(x), None, None, training=True))


@odd("each image sees the one before", "either")
class SeesNeighbour(Base):
    def second(self, x):
        return torch.relu(self.b(x) + 0.8 * self.b(x).roll(1, 0))


@odd("divided by the batch's largest", "either")
class LargestOfBatch(Base):
    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head(y / y.abs().max())


@odd("attention from image to image", "either")
class AcrossAttention(Base):
    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head((y @ y.T).softmax(1) @ y - y)


@odd("a convolution over the batch", "either")
class OverBatch(Base):
    def __init__(self):
        super().__init__()
        self.c = conv(4, 4, kind=nn.Conv1d)

    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head(y + self.c(y.T[None])[0].T)


@odd("a batch that is shuffled, and back", "either")
class ShuffledAndBack(Base):
    def second(self, x):
        order = torch.randperm(x.shape[0])
        return torch.relu(self.b(x[order]))[order.argsort()]


@odd("a batch of one size", "either")
class OneSize(Base):
    def second(self, x):
        return torch.relu(self.b(x.view(NUM_IMAGES, 4, 8, 8)))


@odd("the batch folded into the channels")
class FoldedBatch(Base):
    def second(self, x):
        weight = self.b.weight.repeat(x.shape[0], 1, 1, 1)
        return torch.relu(F.conv2d(x.reshape(1, -1, 8, 8), weight, padding=1, groups=x.shape[0])).reshape(-1, 4, 8, 8)


@odd("the channels folded into the batch")
class FoldedChannels(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(2, 2)
        nn.init.normal_(self.b.weight)

    def second(self, x):
        return torch.relu(self.b(x.reshape(-1, 2, 8, 8))).reshape(-1, 4, 8, 8)


@odd("image by image, in a loop")
class InALoop(Base):
    def second(self, x):
        return torch.cat([torch.relu(self.b(one)) for one in x.split(1)])


# Nondeterminism -------------------------------------------------------------------------------------------------------


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


# What a forward pass leaves behind ------------------------------------------------------------------------------------


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


# Control flow ---------------------------------------------------------------------------------------------------------


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


# Gates, and what has no gradient --------------------------------------------------------------------------------------


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


# Hooks ----------------------------------------------------------------------------------------------------------------


@odd("a hook that edits the output")
def _():
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: output.tanh() * 2)
    return net


@odd("a hook that needs all channels")
def _():
    net = Base()
    scale = torch.tensor([0.5, 1, 2, 1])[:, None, None]
    net.b.register_forward_hook(lambda module, args, output: output * scale)
    return net


@odd("a hook that mixes all channels")
def _():
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: output - 2 * output.mean(1, keepdim=True))
    return net


@odd("a hook that asks for the channels' number")
def _():
    def check(module, args, output):
        if output.shape[1] != module.out_channels or module.out_channels != 4:
            raise LookupError("four channels\nare wanted")

    net = Base()
    net.b.register_forward_hook(check)
    return net


@odd("a hook that edits the input")
def _():
    net = Base()
    net.b.register_forward_pre_hook(lambda module, args: (args[0].abs() - 0.5,))
    return net


@odd("a hook on a batch norm behind a convolution")
def _():
    net = nn.Sequential()
    net.a, net.norm = conv(3, 4), norm(4)
    net.rest = nn.Sequential(nn.ReLU(), conv(4, 4), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.head = nn.Linear(4, NUM_CLASSES)
    net.norm.register_forward_hook(lambda module, args, output: output.roll(1, 1))
    net.rest[1].register_forward_hook(lambda module, args, output: output.abs())
    return net


@odd("a hook on the network that edits the logits")
def _():
    net = Base()
    net.register_forward_hook(lambda module, args, output: output.roll(2, 1))
    return net


@odd("a hook on the network that edits some images' logits")
def _():
    def flip(module, args, output):
        return torch.where(args[0][:, 1, 0, :1] > 2, output.flip(1), output)

    net = Base()
    net.register_forward_hook(flip)
    return net


@odd("a hook on the network that edits the images")
def _():
    net = Base()
    net.register_forward_pre_hook(lambda module, args: (args[0].flip(1).abs(),))
    return net


@odd("a hook that counts")
def _():
    def count(module, args, output):
        module.seen = getattr(module, "seen", 0) + len(output)

    net = Base()
    net.b.register_forward_hook(count)
    return net


@odd("a hook that keeps the activation")
def _():
    def keep(module, args, output):
        module.kept = output

    net = Base()
    net.b.register_forward_hook(keep)
    return net


@odd("a backward hook")
def _():
    def count(module, grad_input, grad_output):
        module.seen = getattr(module, "seen", 0) + 1

    net = Base()
    net.b.register_full_backward_hook(count)
    return net


@odd("a backward hook that changes the gradient")
def _():
    net = Base()
    net.b.register_full_backward_hook(lambda module, grad_input, grad_output: tuple(-g for g in grad_input))
    net.b.weight.register_hook(lambda gradient: gradient * 0)
    return net


# Modules of other kinds -----------------------------------------------------------------------------------------------


@odd("a transposed convolution between", left_out=("up",))
class Transposed(Base):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

    def second(self, x):
        return torch.relu(self.b(self.up(x)))


@odd("a convolution with a parameter of the network's own")
class OwnParameter(Base):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def second(self, x):
        return torch.relu(self.b(F.conv2d(x, self.kernel, padding=1)))


@odd("grouped, depthwise, dilated and strided")
class Grouped(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, groups=2)
        self.c, self.d = conv(4, 8, groups=4), conv(8, 4, padding=2, dilation=2, stride=2, groups=2, bias=False)

    def second(self, x):
        return torch.relu(self.d(torch.relu(self.c(torch.relu(self.b(x))))))


@odd("paddings of every mode")
class Padded(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, padding=1, padding_mode="circular")
        self.c = conv(4, 4, padding=(1, 2), padding_mode="reflect", groups=2)
        self.d = conv(4, 4, padding="same", padding_mode="replicate")
        self.e = conv(4, 4, padding="valid")

    def second(self, x):
        return torch.relu(self.e(torch.relu(self.d(torch.relu(self.c(torch.relu(self.b(x))))))))


@odd("1d and 3d convolutions")
class OtherDimensions(Base):
    def __init__(self):
        super().__init__()
        self.deep, self.flat = conv(1, 4, kind=nn.Conv3d), conv(4, 4, kind=nn.Conv1d)

    def second(self, x):
        y = torch.relu(self.deep(torch.relu(self.b(x))[:, None]))
        return torch.relu(self.flat(y.mean(2).flatten(2))).unflatten(2, (8, 8))


@odd("a lazy convolution, made")
class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.b = nn.LazyConv2d(4, 3, padding=1)
        self(images())
        nn.init.normal_(self.b.weight)


@odd("a lazy convolution, not made yet", "refused")
def _():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.append(nn.Linear(4, NUM_CLASSES))


@odd("a scripted part")
class Scripted(Base):
    def __init__(self):
        super().__init__()
        self.part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()))

    def second(self, x):
        return torch.relu(self.b(self.part(x)))


@odd("a scripted function")
class ScriptedFunction(Base):
    def second(self, x):
        return _scripted(self.b(x), x)


@torch.jit.script
def _scripted(x, y):
    if bool(x.mean() > 0):
        return torch.relu(x) + y
    return torch.tanh(x)


@odd("compiled", again=True)
def _():
    return torch.compile(Base(), backend="eager")


@odd("in DataParallel")
def _():
    return nn.DataParallel(Base())


@odd("checkpointed")
class Checkpointed(Base):
    def second(self, x):
        return torch.relu(checkpoint(self.b, x, use_reentrant=False))


@odd("mapped over the images")
class Mapped(Base):
    def second(self, x):
        return torch.relu(torch.vmap(lambda one: self.b(one[None])[0])(x))


@odd("norms of other kinds")
class OtherNorms(Three):
    def __init__(self):
        super().__init__()
        self.d = conv(4, 4)
        self.group, self.instance = (
            nn.GroupNorm(2, 4),
            norm(4, functools.partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)),
        )
        self.layer = nn.LayerNorm(4)

    def second(self, x):
        y = torch.relu(self.group(self.b(x)))
        z = torch.relu(self.instance(self.c(y)))
        return torch.relu(self.layer(self.d(z).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class NormAct(nn.BatchNorm2d):
    """A batch norm with a nonlinearity and a gate in it."""

    def forward(self, x):
        return torch.relu(super().forward(x)) * 1.5 - 0.2


@odd("a batch norm with a forward of its own")
class OwnNorm(Base):
    def __init__(self):
        super().__init__()
        self.norm, self.one = norm(4, NormAct), norm(4)

    def second(self, x):
        return self.norm(self.b(self.one(x)))


@odd("one batch norm behind two convolutions")
class SharedNorm(Three):
    def __init__(self):
        super().__init__()
        self.norm = norm(4)

    def second(self, x):
        return torch.relu(self.norm(self.c(torch.relu(self.norm(self.b(x))))))


@odd("attention, recurrence and a learned token")
class Tokens(Base):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attention, self.memory = nn.MultiheadAttention(4, 2, batch_first=True), nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        y = F.avg_pool2d(self.features(x), 4).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.memory(y)[0][:, -1])


@odd("a sequential that is indexed")
def _():
    layers = {"a": conv(3, 4), "relu": nn.ReLU(inplace=True), "b": conv(4, 4), "head": nn.Linear(4, NUM_CLASSES)}
    return Indexed(collections.OrderedDict(layers))


class Indexed(nn.Sequential):
    def forward(self, x):
        y = self[1](self[0](x))
        for layer in list(self)[2:3]:
            y = y + self[1](layer(y))
        return self[-1](y.mean((2, 3)))


# What passes between layers, and comes out ----------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    rest: dict[str, list[Tensor]]


@dataclasses.dataclass
class Carried:
    value: Tensor
    note: str = ""


class Packs(nn.Module):
    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, x):
        y = torch.relu(self.layer(x))
        return {"tuple": (y, [x]), "named": Pair(y, {"x": [x]}), "class": Carried(y), "dict": {"y": y}}[self.kind]


@odd("tuples, dicts and classes between the layers")
class Packed(Three):
    def __init__(self):
        super().__init__()
        self.d = conv(4, 4)
        self.packs = nn.ModuleList(map(Packs, (self.a, self.b, self.c, self.d), ("tuple", "named", "class", "dict")))

    def features(self, x):
        first, _ = self.packs[0](x)
        pair = self.packs[1](first)
        carried = self.packs[2](pair.first - pair.rest["x"][0])
        return self.packs[3](carried.value)["y"]


@odd("logits in a dict")
class OutDict(Base):
    def forward(self, x):
        return {"features": (y := self.features(x)), "logits": self.head(y.mean((2, 3)))}


@odd("logits first in a tuple")
class OutTuple(Base):
    def forward(self, x, *others, scale=1.0, **options):
        y = self.features(x)
        return self.head(y.mean((2, 3)) * scale), [y]


@odd("an object comes out", "refused")
class OutObject(Base):
    def forward(self, x):
        return Carried(super().forward(x))


@odd("one number comes out for each image", "refused")
class OneLogit(Base):
    def forward(self, x):
        return super().forward(x)[:, :1]


@odd("a map comes out", "refused")
class OutMap(Base):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]


@odd("NaN when a weight is zero")
class DividesByNorm(Base):
    def second(self, x):
        return torch.relu(self.b(x)) / self.b.weight.pow(2).sum((1, 2, 3)).min()


@odd("NaN when an activation is zero")
class DividesByActivation(Base):
    def second(self, x):
        y = self.b(x)
        return torch.relu(y / y.pow(2).sum((2, 3), keepdim=True).sqrt() - self.b.bias[:, None, None] * 0)

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.b.bias)


@odd("NaN in the intact network", "refused")
class IntactNan(Base):
    def forward(self, x):
        return super().forward(x) * float("nan")


@odd("features and logits that saturate")
class Saturates(Base):
    def forward(self, x):
        return F.hardtanh(super().forward(x), -2, 2)

    def second(self, x):
        return torch.sigmoid(3 * self.b(x))


# Types, shapes and layouts --------------------------------------------------------------------------------------------


@odd("half precision between, by a function")
class HalfFunction(Base):
    def second(self, x):
        return torch.relu(F.conv2d(x.bfloat16(), self.b.weight.bfloat16(), padding=1)).float()


@odd("a half-typed module", "either")
class HalfModule(Base):
    def __init__(self):
        super().__init__()
        self.b.to(torch.bfloat16)

    def second(self, x):
        return torch.relu(self.b(x.to(torch.bfloat16))).float()


@odd("half-typed by autocast")
class Autocast(Base):
    def second(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.b(x)
        return torch.relu(y.float())


@odd("double precision", "either")
class Double(Base):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double())


@odd("a module in double precision", "either")
class DoubleModule(Base):
    def __init__(self):
        super().__init__()
        self.b.double()

    def second(self, x):
        return super().second(x.double()).float()


@odd("complex numbers between")
class Complex(Base):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.complex64))

    def second(self, x):
        y = torch.fft.irfft2(torch.fft.rfft2(self.b(x)) * self.filter)
        z = torch.complex(y, x)
        return torch.view_as_real(z * z.conj().roll(1, 1)).sum(-1).abs().sqrt()


@odd("channels last, strided views and windows")
class Views(Base):
    def second(self, x):
        y = self.b(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        y = y.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2))
        return torch.relu(y.transpose(1, 2).permute(0, 3, 1, 2)[..., ::2, 1:])


@odd("pooled with places, and unpooled")
class Unpools(Base):
    def second(self, x):
        y, places = F.max_pool2d(self.b(x), 2, return_indices=True)
        return F.max_unpool2d(torch.relu(y), places, 2)


@odd("resampled where a layer says")
class Resamples(Base):
    def second(self, x):
        place = torch.tanh(self.b(x)[:, :2]).permute(0, 2, 3, 1)
        return F.grid_sample(x, place, align_corners=False)


# State that is no tensor, or does not copy ----------------------------------------------------------------------------


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


# Pairs that look alike, print alike and have equal weights, and give other answers ------------------------------------


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

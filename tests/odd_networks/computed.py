"""Weights that are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from odd_networks.base import CONVOLUTIONS, Base, conv, odd, run
from weanalysis.excitation import excite, fold


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

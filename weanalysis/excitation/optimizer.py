"""Excitation beside the optimizer: the network computes with plain weights, which are made anew once a step.

An excited weight follows from the raw weight and the excitation's own parameters, never from images. As a
parametrization it is computed in every forward pass, and again in every backward pass. Here it is a leaf of the network
like any other weight. Before a step, its gradient is pulled back to the raw weight; after it, it is computed anew.

One weight w with w_e = 2 w stands for them all: the backward pass leaves 0.5 as the gradient of w_e, which pulled back
is 1.0 for w; with a rate of 0.1 the step changes w by -0.1, and w_e by -0.2. For a fixed w the map is linear in the
gradient, so that micro-batches, and the processes of a distributed training, can sum theirs before it is pulled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weanalysis.errors import ExcitationError
from weanalysis.excitation._functions import full_precision
from weanalysis.excitation._layers import Stage, add_gradients, kind_of_chain, stages_of
from weanalysis.excitation._tables import Settings, Tables, kernels_for, settings_of
from weanalysis.excitation.network import BESIDE, chain_of, excited_modules


@dataclass
class _Excited:
    """A convolution whose weight is excited beside the optimizer, and what its parametrization was made of."""

    name: str
    module: Any
    parametrized_class: type
    parametrizations: nn.ModuleDict
    weight: nn.Parameter

    @property
    def chain(self) -> Any:
        """The parametrizations of the weight: called, it computes the excited weight."""
        return self.parametrizations["weight"]

    @property
    def sources(self) -> list[nn.Parameter]:
        """The raw weight and the excitation's own parameters, those that are trained."""
        return [one for one in self.chain.parameters() if one.requires_grad]

    def check_place(self) -> None:
        """Raise ExcitationError where the network no longer computes with this weight, or elsewhere."""
        own = self.module._parameters.get("weight")
        if _is_shard(own):
            raise ExcitationError(_SHARDED.format(name=self.name))
        if own is not self.weight or self.weight.device != self.sources[0].device:
            raise ExcitationError(
                f"the weight of {self.name} is not where it was when the optimizer was made: make it after the network "
                "has been moved, and replace no weights."
            )


class _Alone:
    """One layer, whose excitation is that of its parametrization, through autograd: chains of any kind."""

    def __init__(self, layer: _Excited) -> None:
        self._layer = layer
        # What the chain makes of the raw weight of now, with its graph; a step ends it.
        self._value: Tensor | None = None

    def refresh(self) -> list[tuple[Tensor, Tensor]]:
        """Compute the excited weight; it lies in the memory of what the chain gives, so that nothing is to copy."""
        with torch.enable_grad():
            self._value = self._layer.chain()
        self._layer.weight.data = self._value.detach()
        return []

    def pull(self) -> None:
        """Add to the sources' gradients what the gradient of the excited weight comes to, and let go of that."""
        weight, sources = self._layer.weight, self._layer.sources
        grad, weight.grad = weight.grad, None
        if grad is None or self._value is None:
            return
        pulled = torch.autograd.grad(
            self._value, sources, grad.to(self._value.dtype), retain_graph=True, allow_unused=True
        )
        add_gradients(sources, pulled)


class _Stacked:
    """Layers of one shape and one excitation, all at once, without autograd; one layer is a stack of one."""

    def __init__(self, layers: list[_Excited], stages: list[Stage]) -> None:
        self._layers, self._stages = layers, stages
        self._raw = [layer.chain.original for layer in layers]

    @torch.no_grad()
    def refresh(self) -> list[tuple[Tensor, Tensor]]:
        """Compute the excited weights; return each weight with what is to be copied into it."""
        with full_precision(self._raw[0]):
            stack = _stack(self._raw)
            for stage in self._stages:
                stack = stage.forward(stack)
        weight = self._layers[0].weight
        if len(stack) == 1 and weight.is_cpu and weight.dtype == stack.dtype and weight.is_contiguous():
            weight.data = stack.view_as(weight)  # takes over the memory, so that nothing is to copy
            return []
        return [(layer.weight, one.view_as(layer.weight)) for layer, one in zip(self._layers, stack, strict=True)]

    @torch.no_grad()
    def pull(self) -> None:
        """Add to the sources' gradients what those of the excited weights come to, and let go of these."""
        grads = [layer.weight.grad for layer in self._layers]
        unused = [layer for layer, grad in zip(self._layers, grads, strict=True) if grad is None]
        before = [(source, source.grad) for layer in unused for source in layer.sources]
        for layer in self._layers:
            layer.weight.grad = None
        if all(grad is None for grad in grads):
            return
        raw = _stack(self._raw)
        grad = _stack(
            [torch.zeros_like(one) if own is None else own for own, one in zip(grads, self._raw, strict=True)]
        )
        with full_precision(grad):
            for stage in reversed(self._stages):
                grad = stage.backward(grad, raw)
        add_gradients(self._raw, grad)
        for source, own in before:  # an optimizer leaves alone what has no gradient; zeros would not be the same
            source.grad = own


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Stack convolutions' weights as (L, Out, In/groups, positions), contiguous, in float32 or better."""
    first = parts[0]
    if len(parts) == 1:
        whole = first.detach().contiguous().unsqueeze(0)
    else:
        whole = torch.stack(
            list(parts), out=torch.empty((len(parts), *first.shape), dtype=first.dtype, device=first.device)
        )
    return whole.to(torch.promote_types(whole.dtype, torch.float32)).flatten(3)


class ExcitedOptimizer(Optimizer):
    """Wrap an optimizer of an excited network, which from then on computes with plain weights.

    Made with the parameters of a network that `excite` has changed, and the network::

        net = excite(resnet50(), "lwe").to(device)
        optimizer = ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), net)

    Training then goes as without it. Each excited weight becomes a leaf of the network, with the value that it had;
    `param_groups` and `state` are those of the optimizer that was given: raw weights and the excitation's parameters.
    Looking at `param_groups` pulls back the gradients that are there, so that gradient scaling and clipping by
    `clip_grad_norm_(optimizer.parameters(), ...)` see those that the step uses. With `stacked`, layers of one shape are
    computed together, in few operations; None does so on a GPU, all layers at once where it has Triton, and with small
    layers on a CPU; False computes each by its parametrization. Spectral normalization keeps a state from pass to pass
    and stays a parametrization.
    `parametrized()` gives the network back its parametrizations for a while, to save and to load its state dict.
    Shards of parameters (FSDP) are not supported, and refused.

    Under DDP, wrap the optimizer before the network, and begin in all processes with the same weights.

    Raises ExcitationError where nothing in the network is excited, where the optimizer lacks one of the parameters, for
    a frozen weight, and for one that two layers share.

    The weight that the network computes with is plain while it trains, and its gradient reaches the raw one:

    >>> from weanalysis.excitation import excite
    >>> net = excite(nn.Sequential(nn.Conv2d(3, 4, 3)), "mwe")
    >>> optimizer = ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net)
    >>> before = net[0].weight.detach().clone()
    >>> net(torch.ones(1, 3, 4, 4)).square().sum().backward()
    >>> optimizer.step()
    >>> torch.equal(net[0].weight, before), [name for name, _ in net.named_parameters()]
    (False, ['0.weight', '0.bias'])
    """

    def __init__(self, optimizer: Optimizer, net: nn.Module, stacked: bool | None = None) -> None:
        modules = _suited_modules(net)
        if not modules:
            raise ExcitationError(
                "no weight of the network can be excited beside the optimizer: excite() it first with one of lwe, mwe, "
                "lwe+mwe, we, ws or wn."
            )
        self.optimizer = optimizer
        _check_sources(modules, net, optimizer)
        self._excited = [_take_out(name, module) for name, module in modules.items()]
        self._groups = _grouped(self._excited, stacked)
        self.refresh()

    # What an optimizer has --------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer that was given, after gradients were pulled back."""
        self.pull()
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the optimizer that was given."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The settings of the optimizer that was given."""
        return self.optimizer.defaults

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        raise ExcitationError("an ExcitedOptimizer is not pickled: keep its state_dict() and that of the network.")

    def __repr__(self) -> str:
        return f"ExcitedOptimizer({len(self._excited)} weights, {self.optimizer!r})"

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that the step changes, with the gradients that it uses: what to clip.

        >>> norm = nn.utils.clip_grad_norm_(optimizer.parameters(), max_norm=1.0)
        >>> [tuple(parameter.shape) for parameter in optimizer.parameters()][:2]
        [(4,), (4, 3, 3, 3)]
        """
        for group in self.param_groups:
            yield from group["params"]

    def pull(self) -> None:
        """Pull the gradients of the excited weights back to raw weights and the excitation's parameters.

        >>> optimizer.zero_grad()
        >>> net(torch.ones(1, 3, 4, 4)).sum().backward()
        >>> bias, raw = optimizer.optimizer.param_groups[0]["params"]
        >>> before = raw.grad
        >>> optimizer.pull()
        >>> before is None, tuple(raw.grad.shape)
        (True, (4, 3, 3, 3))
        """
        for group in self._groups:
            group.pull()

    def refresh(self) -> None:
        """Compute the excited weights anew: needed after raw weights were changed otherwise than by `step`.

        >>> raw, before = list(optimizer.parameters())[1], net[0].weight.detach().clone()
        >>> raw.data[0, 0] = 1.0
        >>> unseen = torch.equal(net[0].weight, before)
        >>> optimizer.refresh()
        >>> unseen, torch.equal(net[0].weight, before)
        (True, False)
        """
        copies = [copy for group in self._groups for copy in group.refresh()]
        if copies:
            with torch.no_grad():  # one operation for all of them
                torch._foreach_copy_([weight for weight, _ in copies], [value for _, value in copies])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Pull gradients back, let the optimizer do its step, and compute the excited weights anew.

        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (net(torch.ones(1, 3, 4, 4)) - 1).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> before = net[0].weight.detach().clone()
        >>> loss = optimizer.step(closure)
        >>> loss.shape, torch.equal(net[0].weight, before)
        (torch.Size([]), False)
        """
        for one in self._excited:
            one.check_place()
        if closure is None:
            self.pull()
            loss = self.optimizer.step()
        else:
            loss = self.optimizer.step(self._around(closure))
        self.refresh()
        return loss

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure that computes with the raw weights of the moment, and leaves gradients of these."""

        def evaluate() -> Any:
            self.refresh()
            with torch.enable_grad():
                loss = closure()
            self.pull()
            return loss

        return evaluate

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients.

        >>> optimizer.zero_grad()
        >>> [parameter.grad for parameter in net.parameters()]
        [None, None]
        """
        for one in self._excited:
            one.weight.grad = None
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer that was given.

        >>> before = len(optimizer.param_groups)
        >>> optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "lr": 0.01})
        >>> len(optimizer.param_groups) - before
        1
        """
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer that was given, as it would be without excitation beside it.

        >>> optimizer.state_dict()["param_groups"][0]["lr"]
        0.1
        """
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; raise ExcitationError for the state of other parameters.

        >>> optimizer.load_state_dict(optimizer.state_dict())
        >>> optimizer.load_state_dict({"state": {}, "param_groups": []})
        Traceback (most recent call last):
            ...
        weanalysis.errors.ExcitationError: the optimizer's state is of other parameters than it has now: it was kept
        with another excitation, or of another network.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        named = [number for group in state_dict["param_groups"] for number in group["params"]]
        kept = dict(zip(named, parameters, strict=False))
        fits = len(named) == len(parameters) and all(
            not isinstance(one, Tensor) or one.dim() == 0 or one.shape == kept[number].shape
            for number, values in state_dict["state"].items()
            for one in values.values()
        )
        if not fits:
            raise ExcitationError(
                "the optimizer's state is of other parameters than it has now: it was kept with another excitation, or "
                "of another network."
            )
        self.optimizer.load_state_dict(state_dict)

    @contextmanager
    def parametrized(self) -> Iterator[None]:
        """Give the network its parametrizations back within: its state dict then holds what is trained.

        Afterwards the excited weights are computed anew, since another state may have been loaded.

        >>> with optimizer.parametrized():
        ...     sorted(net.state_dict())
        ['0.bias', '0.parametrizations.weight.original']
        >>> sorted(net.state_dict())
        ['0.bias', '0.weight']
        """
        for one in self._excited:
            del one.module._parameters["weight"]
            one.module.__class__, one.module.parametrizations = one.parametrized_class, one.parametrizations
        try:
            yield
        finally:
            for one in self._excited:
                _become_plain(one)
            self.refresh()


_SHARDED = (
    "the weight of {name} lies in shards (FSDP), of which no layer's excitation can be computed: train with "
    "DistributedDataParallel, or as parametrizations, without ExcitedOptimizer."
)


def _is_shard(parameter: Any) -> bool:
    """Whether a parameter is a part of what it stands for, as FSDP leaves them (a DTensor, a flat parameter)."""
    return hasattr(parameter, "placements") or getattr(parameter, "_is_flat_param", False)


def can_be_beside(net: nn.Module) -> bool:
    """Whether an excited weight of the network follows from weights alone, so that `ExcitedOptimizer` suits it.

    >>> from weanalysis.excitation import excite
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> can_be_beside(net), can_be_beside(excite(net, "lwe"))
    (False, True)
    """
    return bool(_suited_modules(net))


def _suited_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The excited modules by name, without those whose chain keeps a state of its own, as spectral normalization."""
    return {name: module for name, module in excited_modules(net) if not any(True for _ in chain_of(module).buffers())}


def _check_sources(modules: dict[str, nn.Module], net: nn.Module, optimizer: Optimizer) -> None:
    """Raise ExcitationError where raw weights and excitations cannot be trained by this optimizer."""
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    owners: dict[nn.Parameter, str] = {}
    for name, module in modules.items():
        if any(_is_shard(parameter) for parameter in chain_of(module).parameters()):
            raise ExcitationError(_SHARDED.format(name=name))
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if owners.setdefault(parameter, name) != name and any(
            parameter is source for module in modules.values() for source in chain_of(module).parameters()
        ):
            raise ExcitationError(
                f"{owners[parameter]} and {name} are one parameter, which two layers share: leave one of them out of "
                "excite(layers=...), or copy it."
            )
    for name, module in modules.items():
        others = [other for other in module.parametrizations if other != "weight"]  # type: ignore[union-attr]
        if others:
            raise ExcitationError(
                f"{name} has a parametrization of its {', '.join(others)} beside that of its weight: remove it first."
            )
        for part, parameter in chain_of(module).named_parameters():
            if not parameter.requires_grad and part.startswith("original"):
                raise ExcitationError(
                    f"the weight of {name} is frozen, so that its excitation changes nothing: leave the layer out of "
                    "excite(layers=...)."
                )
            if parameter.requires_grad and parameter not in known:
                raise ExcitationError(
                    f"the optimizer does not know the parameter {part} of {name}'s excitation: make the optimizer with "
                    "net.parameters(), after excite()."
                )


def _take_out(name: str, module: Any) -> _Excited:
    """Put a plain weight in the place of a module's parametrization."""
    with torch.no_grad():
        weight = nn.Parameter(module.weight)
    one = _Excited(name, module, type(module), module.parametrizations, weight)
    _become_plain(one)
    return one


# Weights of a layer up to which stacking its like saves more time on a CPU than copying them takes.
_SMALL = 2**18


def _grouped(layers: list[_Excited], stacked: bool | None) -> list[_Alone | _Stacked | Tables]:
    """Put layers together whose excitation is computed at once: all of them where there are kernels for that.

    Elsewhere all of one shape, where starting operations costs more than copying weights: on a GPU, and small ones on
    a CPU. There, larger ones are stacks of one, which are not copied.
    """
    tabled: dict[Settings, list[_Excited]] = {}
    alike: dict[Any, list[_Excited]] = {}
    for layer in layers:
        settings = settings_of(layer.chain, layer.weight) if stacked is None else None
        if settings is not None and kernels_for(settings.device) is not None:
            tabled.setdefault(settings, []).append(layer)
        else:
            alike.setdefault(_what_is_alike(layer, stacked), []).append(layer)
    groups: list[_Alone | _Stacked | Tables] = []
    for settings, members in tabled.items():
        if (kernels := kernels_for(settings.device)) is not None:
            chains, weights = [layer.chain for layer in members], [layer.weight for layer in members]
            groups.append(Tables(kernels, settings, chains, weights))
    for members in alike.values():
        chains, first = [layer.chain for layer in members], members[0]
        stages = None
        if stacked is not False and first.chain.is_tensor:
            alone = stacked is None and _is_large(first)
            stages = stages_of(chains, first.chain.original[0].numel(), alone)
        groups += [_Alone(layer) for layer in members] if stages is None else [_Stacked(members, stages)]
    return groups


def _what_is_alike(layer: _Excited, stacked: bool | None) -> Any:
    """A key that layers share which can be stacked, and should be."""
    if stacked is False or not layer.chain.is_tensor or (stacked is None and _is_large(layer)):
        return layer.name
    raw = layer.chain.original
    return raw.shape, raw.dtype, raw.device, kind_of_chain(layer.chain)


def _is_large(layer: _Excited) -> bool:
    """Whether a layer lies on a CPU, where copying its weights takes longer than starting operations for it alone."""
    return layer.weight.is_cpu and layer.weight.numel() > _SMALL


def _become_plain(one: _Excited) -> None:
    """Take the parametrizations out of a module, which gets its own class back, and its excited weight."""
    module = one.module
    description = dict(getattr(one.chain, "excitation", {"kind": "custom"}))
    del module.parametrizations
    module.__class__ = one.parametrized_class.__bases__[0]
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({"weight": one.weight, **rest})
    setattr(module, BESIDE, description)

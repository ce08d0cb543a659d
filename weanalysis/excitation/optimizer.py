"""Excitation beside the optimizer: the network computes with plain weights, which are made anew once a step.

An excited weight follows from the raw weight and the excitation's own parameters, never from images. As a
parametrization it is computed in every forward pass, and again in every backward pass. Here it is a leaf of the network
like any other weight. Before a step, its gradient is pulled back to the raw weight; after it, it is computed anew.

One weight w with w_e = 2 w stands for them all: the backward pass leaves 0.5 as the gradient of w_e, which pulled back
is 1.0 for w; with a rate of 0.1 the step changes w by -0.1, and w_e by -0.2. For a fixed w the map is linear in the
gradient, so that micro-batches, and the processes of a distributed training, can sum theirs before it is pulled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weanalysis.errors import ExcitationError
from weanalysis.excitation.network import BESIDE, chain_of, excited_modules


@dataclass
class _Excited:
    """A convolution whose weight is excited beside the optimizer, and what its parametrization was made of."""

    name: str
    module: Any
    parametrized_class: type
    parametrizations: nn.ModuleDict
    weight: nn.Parameter
    # What the chain makes of the raw weight of now, with its graph; a step ends it.
    value: Tensor | None = None

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
        if self.module._parameters.get("weight") is not self.weight or self.weight.device != self.sources[0].device:
            raise ExcitationError(
                f"the weight of {self.name} is not where it was when the optimizer was made: make it after the network "
                "has been moved, and replace no weights."
            )

    def refresh(self) -> None:
        """Compute the excited weight anew; it lies in the memory of what the chain gives, not in a copy beside that."""
        with torch.enable_grad():
            self.value = self.chain()
        self.weight.data = self.value.detach()

    def pull(self) -> None:
        """Add to the sources' gradients what the gradient of the excited weight comes to, and let go of that."""
        grad, self.weight.grad = self.weight.grad, None
        if grad is None or self.value is None:
            return
        pulled = torch.autograd.grad(
            self.value, self.sources, grad.to(self.value.dtype), retain_graph=True, allow_unused=True
        )
        for source, one in zip(self.sources, pulled, strict=True):
            if one is not None:
                source.grad = one if source.grad is None else source.grad.add_(one)


class ExcitedOptimizer(Optimizer):
    """Wrap an optimizer of an excited network, which from then on computes with plain weights.

    Made with the parameters of a network that `excite` has changed, and the network::

        net = excite(resnet50(), "lwe").to(device)
        optimizer = ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), net)

    Training then goes as without it. Each excited weight becomes a leaf of the network, with the value that it had;
    `param_groups` and `state` are those of the optimizer that was given: raw weights and the excitation's parameters.
    Looking at `param_groups` pulls back the gradients that are there, so that gradient scaling and clipping by
    `clip_grad_norm_(optimizer.parameters(), ...)` see those that the step uses. Spectral normalization keeps a state
    from pass to pass and stays a parametrization. `parametrized()` gives the network back its parametrizations for a
    while, to save and to load its state dict. Shards of parameters (FSDP) are not supported.

    Under DDP, wrap the optimizer before the network, and begin in all processes with the same weights.

    Raises ExcitationError where nothing in the network is excited, where the optimizer lacks one of the parameters, for
    a frozen weight, and for one that two layers share.
    """

    def __init__(self, optimizer: Optimizer, net: nn.Module) -> None:
        modules = _suited_modules(net)
        if not modules:
            raise ExcitationError(
                "no weight of the network can be excited beside the optimizer: excite() it first with one of lwe, mwe, "
                "lwe+mwe, we, ws or wn."
            )
        self.optimizer = optimizer
        _check_sources(modules, net, optimizer)
        self._excited = [_take_out(name, module) for name, module in modules.items()]

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
        """Everything that the step changes, with the gradients that it uses: what to clip."""
        for group in self.param_groups:
            yield from group["params"]

    def pull(self) -> None:
        """Pull the gradients of the excited weights back to raw weights and the excitation's parameters."""
        for one in self._excited:
            one.pull()

    def refresh(self) -> None:
        """Compute the excited weights anew: needed after raw weights were changed otherwise than by `step`."""
        for one in self._excited:
            one.refresh()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Pull gradients back, let the optimizer do its step, and compute the excited weights anew."""
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
        """Let go of all gradients."""
        for one in self._excited:
            one.weight.grad = None
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer that was given."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer that was given, as it would be without excitation beside it."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        self.optimizer.load_state_dict(state_dict)

    @contextmanager
    def parametrized(self) -> Iterator[None]:
        """Give the network its parametrizations back within: its state dict then holds what is trained.

        Afterwards the excited weights are computed anew, since another state may have been loaded.
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


def can_be_beside(net: nn.Module) -> bool:
    """Whether an excited weight of the network follows from weights alone, so that `ExcitedOptimizer` suits it."""
    return bool(_suited_modules(net))


def _suited_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The excited modules by name, without those whose chain keeps a state of its own, as spectral normalization."""
    return {name: module for name, module in excited_modules(net) if not any(True for _ in chain_of(module).buffers())}


def _check_sources(modules: dict[str, nn.Module], net: nn.Module, optimizer: Optimizer) -> None:
    """Raise ExcitationError where raw weights and excitations cannot be trained by this optimizer."""
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    owners: dict[nn.Parameter, str] = {}
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
    one.refresh()
    return one


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

"""Plain weights for a network whose convolutions compute theirs, so that what is zeroed is what they compute with."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weanalysis.ablation.copies import copied, first_line
from weanalysis.ablation.graph import CONVOLUTIONS, Convolution
from weanalysis.errors import StudyError
from weanalysis.excitation import LWE, MWE, WeightStandardization, fold_module

Forward = Callable[[nn.Module, Tensor], Tensor]

# Folding may change logits by rounding: by so much of the largest one.
_ROUNDING = 1e-4


def fold_weights(net: nn.Module, images: Tensor, forward: Forward, layers: Container[str]) -> list[str]:
    """Give the convolutions of `net`, in place, plain weights: those that its forward pass uses on `images`.

    Parametrizations of any kind are folded, and in `layers` so are weights that a hook computes before each call
    (torch's weight and spectral normalization of old, its pruning masks, or hooks of the user's). `forward(net,
    images)` gives the logits. Returns notes. Raises StudyError where the folded network answers differently, as one
    does whose weight depends on the images.
    """
    computed = {name: how for name, conv in _convolutions(net).items() if (how := _computed_by(conv))}
    hooked = [
        name
        for name, conv in _convolutions(net).items()
        if name in layers and (conv._forward_pre_hooks or not _is_parameter(conv))
    ]
    if not computed and not hooked:
        return []
    before = forward(copied(net), images)
    # The weight of half of the images must be that of all of them.
    computed |= _fold_hooks(net, hooked, images[: max(1, len(images) // 2)], forward)
    for name, conv in _convolutions(net).items():
        if parametrize.is_parametrized(conv, "weight"):
            fold_module(conv)
            _own_parameter(name, conv)
    difference = (forward(copied(net), images) - before).abs().max().item()
    if not difference <= _ROUNDING * max(1e-6, before.abs().max().item()):
        raise StudyError(
            f"the weight of {few(computed)} is another for every image, or for every call, so that there is "
            f"no weight to zero (with that of the first images the logits differ by {difference:.2g}); "
            "leave it out with --layers"
        )
    others = {name: how for name, how in computed.items() if how not in _OURS}
    return (
        [
            f"{few(others)}: the weight is computed ({', '.join(dict.fromkeys(others.values()))}); what is zeroed is "
            "the weight that comes out"
        ]
        if others
        else []
    )


def few(names: Sequence[str] | dict[str, Any]) -> str:
    """The first names of many: "a, b, c and 4 more"."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_OURS = tuple(kind.__name__ for kind in (LWE, MWE, WeightStandardization))


def _convolutions(net: nn.Module) -> dict[str, Convolution]:
    return {name: module for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS)}


def _is_parameter(conv: Convolution) -> bool:
    return "weight" in conv._parameters or parametrize.is_parametrized(conv, "weight")


def _computed_by(conv: Convolution) -> str:
    """What parametrizes a convolution's weight; nothing for a plain one."""
    if not parametrize.is_parametrized(conv, "weight"):
        return ""
    return type(conv.parametrizations["weight"][0]).__name__.lstrip("_")  # type: ignore[index]


def _own_parameter(name: str, conv: Convolution) -> None:
    if not isinstance(conv._parameters.get("weight"), nn.Parameter):
        raise StudyError(f"the weight of {name} cannot be made a plain one; leave it out with --layers")


def _fold_hooks(net: nn.Module, names: Sequence[str], images: Tensor, forward: Forward) -> dict[str, str]:
    """Keep the weights that the forward pass of these layers uses, and take the hooks away that set them."""
    if not names:
        return {}
    trial, folded = copied(net), {}
    used: dict[str, tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str) -> Any:
        def hook(conv: Convolution, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
            used[name] = conv.weight.detach().clone(), inputs, more

        return hook

    for name in names:  # Hooks run in the order in which they are registered: this one sees what the others left.
        trial.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True)
    forward(trial, images)
    for name in names:
        conv, tried = net.get_submodule(name), trial.get_submodule(name)
        plain = isinstance(conv._parameters.get("weight"), nn.Parameter)
        if name not in used:
            if not plain and not parametrize.is_parametrized(conv, "weight"):
                raise StudyError(
                    f"the weight of {name} is computed before each call, and the first {len(images)} "
                    "images do not reach it; leave it out with --layers"
                )
            continue
        weight, inputs, more = used[name]
        setters = [key for key in conv._forward_pre_hooks if _sets_weight(name, tried, key, weight, inputs, more)]
        if plain and not setters:
            continue
        if parametrize.is_parametrized(conv, "weight"):
            if setters:
                raise StudyError(
                    f"the weight of {name} is parametrized, and a hook sets it too; leave it out with --layers"
                )
            continue
        folded[name] = ", ".join(_word(conv._forward_pre_hooks[key]) for key in setters) or "an attribute"
        for key in setters:
            del conv._forward_pre_hooks[key]
        for kept in (conv._buffers, conv._parameters, vars(conv)):
            kept.pop("weight", None)
        conv.register_parameter("weight", nn.Parameter(weight))
    return folded


def _word(hook: Any) -> str:
    """What a hook is called: a function by its name, an object by its class's."""
    return getattr(hook, "__name__", type(hook).__name__)


def _sets_weight(
    name: str, conv: nn.Module, key: int, weight: Tensor, inputs: tuple[Any, ...], more: dict[str, Any]
) -> bool:
    """Whether a forward pre-hook sets the weight: whether another one does not outlive it."""
    other = weight + 1
    held: tuple[dict[str, Any], ...] = (conv._buffers, conv._parameters, vars(conv))
    for kept in held:
        if "weight" in kept:
            kept["weight"] = nn.Parameter(other.clone()) if kept is conv._parameters else other.clone()
    hook = conv._forward_pre_hooks[key]
    try:
        hook(conv, inputs, more) if key in conv._forward_pre_hooks_with_kwargs else hook(conv, inputs)
    except Exception as error:
        raise StudyError(
            f"{name}: a hook that runs before it fails when it is called alone "
            f"({type(error).__name__}: {first_line(error)}); remove it"
        ) from error
    return not torch.equal(torch.as_tensor(conv.weight).detach(), other)

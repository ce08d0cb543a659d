"""Exciting the convolutions of a whole network, and getting plain weights back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from weanalysis.errors import ExcitationError, unknown_name
from weanalysis.excitation.modules import (
    LWE,
    MWE,
    WeightStandardization,
    check_eps,
    check_hidden_of,
    check_reduction,
)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Attention on activations by class name: torchvision's, then timm's. Other blocks can say `is_attention = True`.
_ATTENTION_CLASSES = frozenset(
    {
        "SqueezeExcitation",
        "SqueezeExcite",
        "SqueezeExciteCl",
        "SEModule",
        "EffectiveSEModule",
        "BlockESE",
        "CbamModule",
        "LightCbamModule",
        "ChannelAttn",
        "LightChannelAttn",
        "SpatialAttn",
        "LightSpatialAttn",
        "EcaModule",
        "CecaModule",
        "GatherExcite",
        "GlobalContext",
        "SelectiveKernelAttn",
        "CoordAttn",
        "SimpleCoordAttn",
        "EfficientLocalAttn",
        "StripAttn",
        "NonLocalAttn",
        "BatNonLocalAttn",
        "BilinearAttnTransform",
        "BottleneckAttn",
        "HaloAttn",
        "LambdaLayer",
    }
)

# The attribute of a torch ParametrizationList in which `excite` leaves what it was asked for.
_MARK = "excitation"

# The attribute of a convolution whose weight is excited beside the optimizer; what it holds is the same.
BESIDE = "excited_beside"


@dataclass(frozen=True)
class ExcitationSettings:
    """What `excite` was asked for, beside the kind and the layers."""

    normalize: bool
    reduction: int
    eps: float
    hidden_of: str = "group"
    unbiased: bool = False
    constant_maximum: bool = True

    def describe(self) -> dict[str, Any]:
        """The settings as keyword arguments of `excite`; the last three where they are not the usual ones.

        So a description without them means what it meant before there were others.
        """
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def _is_depthwise(conv: Convolution) -> bool:
    return conv.groups > 1 and conv.weight.shape[1] == 1


def _lwe(conv: Convolution, settings: ExcitationSettings) -> None:
    if not _is_depthwise(conv):
        groups = conv.groups if settings.hidden_of == "layer" else 1
        _attach(conv, LWE(conv.weight.shape[1], settings.reduction, settings.normalize, settings.unbiased, groups))


def _mwe(conv: Convolution, settings: ExcitationSettings) -> None:
    normalize = settings.normalize and not _is_depthwise(conv)
    _attach(conv, MWE(settings.eps, normalize, settings.unbiased, settings.constant_maximum))


def _lwe_then_mwe(conv: Convolution, settings: ExcitationSettings) -> None:
    if _is_depthwise(conv):
        _mwe(conv, settings)
    else:
        _lwe(conv, settings)
        _attach(conv, MWE(settings.eps, normalize=False, constant_maximum=settings.constant_maximum))


def _we(conv: Convolution, settings: ExcitationSettings) -> None:
    (_mwe if _is_depthwise(conv) else _lwe)(conv, settings)


def _ws(conv: Convolution, settings: ExcitationSettings) -> None:
    if not _is_depthwise(conv) and conv.weight[0].numel() > 1:
        _attach(conv, WeightStandardization(settings.unbiased))


def _wn(conv: Convolution, settings: ExcitationSettings) -> None:
    if not _is_depthwise(conv):
        parametrizations.weight_norm(conv)


def _sn(conv: Convolution, settings: ExcitationSettings) -> None:
    if not _is_depthwise(conv):
        parametrizations.spectral_norm(conv)


# Each entry parametrizes `conv.weight`, or leaves a convolution that it does not suit as it is.
KINDS: dict[str, Callable[[Any, ExcitationSettings], None]] = {
    "lwe": _lwe,
    "mwe": _mwe,
    "lwe+mwe": _lwe_then_mwe,
    "we": _we,
    "ws": _ws,
    "wn": _wn,
    "sn": _sn,
}


def excite(
    net: nn.Module,
    kind: str,
    normalize: bool = True,
    reduction: int = 16,
    eps: float = 0.1,
    layers: str | Sequence[str] | None = None,
    hidden_of: str = "group",
    unbiased: bool = False,
    constant_maximum: bool = True,
) -> nn.Module:
    """Parametrize the weights of `net`'s convolutions, in place, and return `net` (sections 3.2, 3.3 and 4.1).

    | kind | ordinary convolutions | depthwise convolutions |
    | --- | --- | --- |
    | `lwe` | LWE | - |
    | `mwe` | MWE | MWE |
    | `lwe+mwe` | LWE, then MWE whose M is the largest weight that LWE leaves | MWE |
    | `we` | LWE | MWE |
    | `ws`, `wn`, `sn` | weight standardization, weight or spectral normalization | - |

    Convolutions inside attention blocks (squeeze-and-excitation, CBAM, BAM and the like) are left alone. The outputs
    change, so the network is to be trained afterwards. A standardized weight has variance 1 whatever its fan-in:
    where no normalization follows the convolutions, activations grow, and `normalize=False` is the choice.

    Args:
        net: any network with Conv1d, Conv2d or Conv3d modules.
        kind: a name in `KINDS`.
        normalize: let LWE and MWE see weights standardized per output channel; never on depthwise convolutions.
        reduction: LWE's ratio of inputs to hidden units.
        eps: MWE's epsilon.
        layers: names of convolutions, shell patterns among them allowed; None means all.
        hidden_of: whether LWE's inputs are those of a "group" or all of the "layer", for grouped convolutions.
        unbiased: divide by a sample's standard deviation plus 1e-5, not by the population's (kinds but wn and sn).
        constant_maximum: let the gradient of MWE take M as a constant (equation 3).

    The last three are there for networks of the public implementation (docs/paper.md); its are "layer", True and False.

    Raises:
        ExcitationError: an unknown kind, an eps or reduction out of range, a layer choice that matches nothing, no
            convolution that `kind` suits, or a network that is excited already.

    >>> net = excite(nn.Sequential(nn.Conv2d(3, 8, 3)), "lwe")
    >>> sorted(name for name, _ in net.named_parameters())[-1]
    '0.parametrizations.weight.original'
    """
    if kind not in KINDS:
        raise ExcitationError(unknown_name("excitation", kind, KINDS))
    check_reduction(reduction)
    check_eps(eps)
    check_hidden_of(hidden_of)
    if (present := excitation_of(net)) is not None:
        raise ExcitationError(f"the network is excited with {present['kind']} already; fold() it before exciting it.")
    chosen = _choose(_convolutions(net), layers)
    settings = ExcitationSettings(
        bool(normalize), reduction, float(eps), hidden_of, bool(unbiased), bool(constant_maximum)
    )
    named = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
    description = {"kind": kind, **settings.describe(), "layers": named}
    for conv in chosen.values():
        num_before = len(chain_of(conv))
        KINDS[kind](conv, settings)
        if len(chain_of(conv)) > num_before:
            conv.train(conv.training)  # what is new in it, too
            setattr(chain_of(conv), _MARK, description)
    if excitation_of(net) is None:
        raise ExcitationError(
            f"{kind} suits none of the {len(chosen)} convolutions chosen: all are depthwise; use mwe, or we."
        )
    return net


def doubts_of(net: nn.Module, kind: str) -> list[str]:
    """Say where a kind of excitation does not suit a network by what the paper found (section 4.2).

    Modules that move channels in time, or in space, say `shifts_channels = True`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> doubts_of(net, "lwe")
    []
    >>> net.shifts_channels = True
    >>> len(doubts_of(net, "lwe")), len(doubts_of(net, "mwe"))
    (1, 0)
    """
    shifted = any(getattr(module, "shifts_channels", False) for module in net.modules())
    if not shifted or kind not in ("lwe", "lwe+mwe", "we"):
        return []
    return [
        "LWE suppresses input channels, and in a network that shifts channels each carries a part of the input of its "
        "own, which is then always ignored: the paper found LWE harmful there, and uses mwe (sections 4.2 and 4.6)"
    ]


def fold(net: nn.Module) -> nn.Module:
    """Replace every excited weight of `net` by its value, in place, and return `net`.

    The outputs stay the same (those of evaluation mode, for spectral normalization), the modules have their original
    classes, and the state dict the names and order it had before `excite`.

    Raises ExcitationError if nothing in `net` is excited.

    >>> net = excite(nn.Sequential(nn.Conv2d(3, 8, 3)), "lwe")
    >>> list(fold(net).state_dict())
    ['0.weight', '0.bias']
    """
    excited = [module for _, module in excited_modules(net)]
    beside = [module for module in net.modules() if hasattr(module, BESIDE)]
    if not excited and not beside:
        raise ExcitationError("there is nothing to fold: the network has plain weights already.")
    for module in excited:
        fold_module(module)
    for module in beside:  # they compute with their values already
        delattr(module, BESIDE)
    return net


def fold_module(module: nn.Module) -> None:
    """Replace a module's parametrized weight, by whatever parametrization, by its value in evaluation mode.

    >>> conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    >>> before = conv.weight.detach().clone()
    >>> fold_module(conv)
    >>> [name for name, _ in conv.named_parameters()], torch.equal(conv.weight, before)
    (['weight', 'bias'], True)
    """
    chain_of(module).eval()
    # copy.deepcopy shares the class that carries `weight`; removing it there would break the other copies.
    cls = type(module)
    module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
    with torch.enable_grad():  # without it, a weight made of several tensors would come back as a buffer
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    if (frozen := module._buffers.pop("weight", None)) is not None:  # as it does where these are frozen
        module.register_parameter("weight", nn.Parameter(frozen, requires_grad=False))
    parameters = module._parameters
    for name in [name for name in parameters if name != "weight"]:
        parameters[name] = parameters.pop(name)


def multipliers(net: nn.Module) -> dict[str, Tensor]:
    """Compute LWE's m for every layer that has LWE: name -> (Out, In/groups), in (0, 1) (equation 1).

    Raises ExcitationError if no layer has LWE.

    >>> net = excite(nn.Sequential(nn.Conv2d(3, 8, 3)), "lwe")
    >>> {name: tuple(m.shape) for name, m in multipliers(net).items()}
    {'0': (8, 3)}
    """
    by_layer: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        for step in chain_of(module):
            if isinstance(step, LWE):
                by_layer[name] = _multiplier(module, step)
    if not by_layer:
        raise ExcitationError("the network has no LWE, so no multipliers; train it with excitation lwe, lwe+mwe or we.")
    return by_layer


def excitation_of(net: nn.Module) -> dict[str, Any] | None:
    """Describe the excitation of `net` as the keyword arguments of `excite` (JSON), or None for plain weights.

    >>> excitation_of(excite(nn.Sequential(nn.Conv2d(3, 8, 3)), "mwe", eps=0.2))["eps"]
    0.2
    """
    for module in net.modules():
        if hasattr(module, BESIDE):
            return dict(getattr(module, BESIDE))
        if _is_excited(module):
            return dict(getattr(chain_of(module), _MARK, {"kind": "custom"}))
    return None


def attention_in(net: nn.Module) -> str | None:
    """Name the classes of the attention blocks in `net`, or None."""
    return "+".join(sorted({type(module).__name__ for module in net.modules() if _is_attention(module)})) or None


def _convolutions(net: nn.Module, prefix: str = "") -> dict[str, Convolution]:
    """The convolutions of `net` by name, in order, without those inside attention blocks."""
    return dict(_walk(net, prefix, set()))


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, Convolution]]:
    if module in seen or _is_attention(module):
        return
    seen.add(module)
    if isinstance(module, Convolution) and not module.transposed:
        yield name, module
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _is_attention(module: nn.Module) -> bool:
    return bool(getattr(module, "is_attention", False)) or any(
        cls.__name__ in _ATTENTION_CLASSES for cls in type(module).__mro__
    )


def _choose(convolutions: dict[str, Convolution], layers: str | Sequence[str] | None) -> dict[str, Convolution]:
    if not convolutions:
        raise ExcitationError("the network has no convolution outside attention blocks, so there is nothing to excite.")
    for name, conv in convolutions.items():
        if isinstance(conv.weight, nn.parameter.UninitializedParameter):
            raise ExcitationError(f"the layer {name!r} has no weight yet: run one batch through the network first.")
        if "weight" not in conv._parameters and not parametrize.is_parametrized(conv, "weight"):
            raise ExcitationError(f"the weight of the layer {name!r} is computed by a hook: remove that first.")
    if layers is None:
        return convolutions
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise ExcitationError("the choice of layers is empty: name a layer or leave the choice out for all.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in convolutions):
            raise ExcitationError(unknown_name("layer", pattern, convolutions, "Patterns such as 'layer1.*' work too."))
    return {
        name: conv for name, conv in convolutions.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _attach(conv: Convolution, step: nn.Module) -> None:
    parametrize.register_parametrization(conv, "weight", step.to(conv.weight.device, conv.weight.dtype))


def excited_modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of `net` whose weight `excite` has parametrized, by name, in order."""
    return [(name, module) for name, module in net.named_modules() if _is_excited(module)]


def chain_of(module: nn.Module) -> Any:
    """The parametrizations of `module.weight`, in the order they are applied; empty for a plain weight."""
    lists = module.parametrizations if parametrize.is_parametrized(module, "weight") else {"weight": ()}
    return cast(Any, lists)["weight"]


def _multiplier(module: nn.Module, lwe: LWE) -> Tensor:
    """Compute m of the weight that reaches `lwe` through the parametrizations before it."""
    seen: list[Tensor] = []
    handle = lwe.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            chain_of(module)()
            return lwe.multiplier(seen[0])
    finally:
        handle.remove()


def _is_excited(module: nn.Module) -> bool:
    chain = chain_of(module)
    return hasattr(chain, _MARK) or any(isinstance(step, LWE | MWE | WeightStandardization) for step in chain)

"""Networks whose channels were removed: what their modules lack beside the original, as JSON, and how to apply it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from weanalysis.errors import ModelError

# The attributes that say how many channels a module has; its tensors follow them.
_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "in_features",
    "out_features",
    "num_channels",
    "num_groups",
    "normalized_shape",
    "num_parameters",
)


def sizes_of(net: nn.Module, original: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe, by module, the attributes and the shapes of tensors in which `net` differs from the `original`.

    {"layer1.0.conv1": {"attributes": {"out_channels": 8}, "shapes": {"weight": [8, 16, 3, 3]}}}; JSON. Raises
    ModelError where the two do not have the same modules and tensors.
    """
    modules, before = dict(net.named_modules()), dict(original.named_modules())
    if modules.keys() != before.keys() or net.state_dict().keys() != original.state_dict().keys():
        raise ModelError("the pruned network has other modules than its architecture, so it could not be built again")
    sizes: dict[str, dict[str, Any]] = {}
    for name, module in modules.items():
        attributes = {
            key: _plain(getattr(module, key))
            for key in _ATTRIBUTES
            if _plain(getattr(module, key, None)) != _plain(getattr(before[name], key, None))
        }
        own, others = (dict(_tensors(one)) for one in (module, before[name]))
        shapes = {key: list(own[key].shape) for key in own if own[key].shape != others[key].shape}
        if attributes or shapes:
            sizes[name] = {"attributes": attributes, "shapes": shapes}
    return sizes


def apply_sizes(net: nn.Module, sizes: Mapping[str, Any], name: str) -> nn.Module:
    """Give the modules of `net` the sizes that `sizes_of` described, in place, with new random weights; return `net`.

    Raises ModelError for sizes that do not belong to this network.
    """
    modules = dict(net.named_modules())
    for path, change in sizes.items():
        module = modules.get(path)
        try:
            assert module is not None
            known = dict(_tensors(module))
            for key, value in change["attributes"].items():
                assert key in _ATTRIBUTES and hasattr(module, key)
                setattr(module, key, tuple(value) if isinstance(value, list) else int(value))
            for key, shape in change["shapes"].items():
                assert key in known and len(shape) == known[key].dim() and min(shape, default=1) > 0
                assert all(int(side) <= full for side, full in zip(shape, known[key].shape, strict=True))
                smaller = known[key].detach()[tuple(slice(int(side)) for side in shape)].clone()
                if key in module._parameters:
                    module._parameters[key] = nn.Parameter(smaller, requires_grad=known[key].requires_grad)
                else:
                    module._buffers[key] = smaller
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the pruned sizes of {path!r} do not fit {name}; prune the network again") from error
    return net


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    own = [*module._parameters.items(), *module._buffers.items()]
    return [(key, tensor) for key, tensor in own if tensor is not None]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | torch.Size) else value

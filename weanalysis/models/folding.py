"""Tensors as other programs store them, and the plain weights that they stand for.

torch's parametrizations (pruning masks, weight and spectral normalization) are replaced by what they compute, sparse
tensors made dense, quantized ones refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from weanalysis.errors import ModelError, some_names

_PARAMETRIZED = re.compile(r"^(.*?)(?:parametrizations\.(\w+)\.(?:original[01]?|0\._[uv])|(\w+)_(?:orig|mask|[guv]))$")
_QUANTIZED = re.compile(r"(?:^|\.)(?:_packed_params(?:\.|$)|zero_point$|.*activation_post_process)")


def unparametrized(name: str) -> str:
    """Return the name of the weight that a tensor of a parametrization belongs to; other names as they are."""
    match = _PARAMETRIZED.match(name)
    return f"{match[1]}{match[2] or match[3]}" if match else name


def folded(state: dict[str, Tensor], expected: Collection[str], origin: str, notes: list[str]) -> dict[str, Tensor]:
    """Replace the tensors of torch's parametrizations by the weight that they compute, unless they are expected."""
    state = dict(state)
    counts: Counter[str] = Counter()
    try:
        for name in list(state):
            if name in state and name not in expected:
                counts.update(_fold_one(state, name))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        line = str(error).splitlines()[0][:120]
        raise ModelError(f"{name} in {origin} and what belongs to it make no weight ({line}); get it again") from error
    notes += [f"folded the {what} of {counted(count, 'weight')} in {origin}" for what, count in counts.items()]
    return state


def _fold_one(state: dict[str, Tensor], name: str) -> list[str]:
    """Fold the parametrization that the tensor `name` begins, in place; return how, or nothing if it begins none."""
    plain = unparametrized(name)
    path = name.rpartition(".")[0]
    if name == f"{plain}_orig" and f"{plain}_mask" in state:
        weight, mask = state.pop(name), state.pop(f"{plain}_mask")
        state[plain] = mask.to(weight.dtype) * weight  # as torch.nn.utils.prune does
        return ["masks (torch's pruning)"]
    for beginning, g, v in ((f"{plain}_g", name, f"{plain}_v"), (f"{path}.original0", name, f"{path}.original1")):
        if name == beginning and v in state:
            state[plain] = _weight_norm(state.pop(g), state.pop(v))
            return ["weight normalization"]
    for beginning, u, v in (
        (f"{plain}_orig", f"{plain}_u", f"{plain}_v"),
        (f"{path}.original", f"{path}.0._u", f"{path}.0._v"),
    ):
        if name == beginning and u in state:
            state[plain] = _spectral(state.pop(name), state.pop(u), state.pop(v, None))
            return ["spectral normalization"]
    return []


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Compute torch's weight normalization, g v / |v|; the dimension that has norms of its own is the one g has."""
    sides = [dim for dim, side in enumerate(g.shape) if side > 1]
    if g.dim() not in (0, v.dim()) or len(sides) > 1:
        raise TypeError(f"norms of {list(g.shape)} for a weight of {list(v.shape)}")
    dim = -1 if g.dim() == 0 else sides[0] if sides else 0
    return torch._weight_norm(v, g, dim)


def _spectral(weight: Tensor, u: Tensor, v: Tensor | None) -> Tensor:
    """Divide a weight by its largest singular value as torch's spectral normalization estimates it in evaluation."""
    if v is None:
        raise TypeError("a spectral normalization of before torch 1.0")
    matrix = weight if weight.dim() > 1 else weight.unsqueeze(0)
    if len(u) != len(matrix):
        raise TypeError(f"{len(u)} outputs for a weight of {list(weight.shape)}")
    return weight / torch.dot(u, torch.mv(matrix.flatten(1), v))


def plain_tensors(
    state: dict[str, Tensor], expected: Collection[str], origin: str, notes: list[str]
) -> dict[str, Tensor]:
    """Make sparse tensors dense; refuse those that are quantized or have no values."""
    refuse_quantized([name for name, tensor in state.items() if tensor.is_quantized], origin)
    refuse_quantized([name for name in state if name not in expected and says_quantized(name)], origin)
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ModelError(f"{some_names(empty)} in {origin} has a shape, but no values; save the weights themselves")
    sparse = [name for name, tensor in state.items() if tensor.layout is not torch.strided]
    if not sparse:
        return state
    notes.append(f"{counted(len(sparse), 'sparse tensor')} in {origin} made dense: {some_names(sparse)}")
    return {name: tensor.to_dense() if name in sparse else tensor for name, tensor in state.items()}


def says_quantized(name: str) -> bool:
    """Say whether an entry of a state dict has a name that only quantized layers give."""
    return bool(_QUANTIZED.search(name))


def refuse_quantized(names: Collection[str], origin: str) -> None:
    """Raise ModelError where there are entries of quantized layers."""
    if names:
        raise ModelError(
            f"{origin} holds quantized weights ({some_names(names)}), which are not read; save the "
            "network as it was before it was quantized"
        )


def excitation_of_state(state: Mapping[str, Tensor], origin: str) -> dict[str, Any] | None:
    """Read off an LWE network's state dict how it was excited: the arguments of `excite`; None for plain weights.

    Raises ModelError where the excitation leaves no traces (MWE, standardization) and so cannot be known.
    """
    tail = ".parametrizations.weight.original"
    layers = [name.removesuffix(tail) for name in state if name.endswith(tail)]
    if not layers:
        return None
    first = {layer: state.get(f"{layer}.parametrizations.weight.0.fc1.weight") for layer in layers}
    unknown = [layer for layer, tensor in first.items() if tensor is None or tensor.dim() != 2]
    if unknown:
        raise ModelError(
            f"{origin} holds parametrized weights ({some_names(unknown)}), and does not say what computes them; if "
            "they were excited here, name it: --model-option excitation=mwe (ws, we, ...), or with its settings as "
            'JSON, excitation=\'{"kind": "mwe", "eps": 0.1}\'; else save plain weights (remove_parametrizations)'
        )
    shapes = [(int(tensor.shape[0]), int(tensor.shape[1])) for tensor in first.values() if tensor is not None]
    widest = max(inputs for _, inputs in shapes)
    fitting = (r for r in range(1, widest + 1) if all(max(1, inputs // r) == hidden for hidden, inputs in shapes))
    ratios = list(fitting) if widest <= 100_000 else []
    if not ratios:
        raise ModelError(f"{origin} holds LWE networks whose widths belong to no one reduction; name the excitation")
    return {"kind": "lwe", "reduction": 16 if 16 in ratios else ratios[0], "layers": layers}


def with_own_lwe(state: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Bring LWE that convolutions keep in layers of their own under the names that it has here, and name the layers.

    The public implementation of WE has `conv.fc1` and `conv.fc2` beside `conv.weight`, as 1x1 convolutions.
    """
    parts = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    state, layers = dict(state), []
    for layer in [name.removesuffix(f".{parts[0]}") for name in state if name.endswith(f".{parts[0]}")]:
        has_weight = {f"{layer}.weight", f"{layer}.parametrizations.weight.original"} & set(expected)
        tensors = [state.get(f"{layer}.{part}") for part in ("weight", *parts)]
        if not has_weight or f"{layer}.{parts[0]}" in expected:  # a block that has two such layers, as SE has
            continue
        if any(one is None or (place % 2 and one.shape[2:].numel() != 1) for place, one in enumerate(tensors)):
            continue
        layers.append(layer)
        state[f"{layer}.parametrizations.weight.original"] = state.pop(f"{layer}.weight")
        for part in parts:
            tensor = state.pop(f"{layer}.{part}")
            state[f"{layer}.parametrizations.weight.0.{part}"] = tensor.flatten(1) if tensor.dim() > 2 else tensor
    return state, layers


def counted(count: int, one: str, several: str | None = None) -> str:
    """Word a number of things: "1 tensor", "2 tensors", "2 entries"."""
    return f"{count} {one if count == 1 else several or one + 's'}"

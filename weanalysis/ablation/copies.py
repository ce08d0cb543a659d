"""Copies of a network that can be traced, run and zeroed while the given one stays what it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weanalysis.errors import DeviceError, ModelError, StudyError

# What module wrappers call the network inside; the copy is of that one, under its own names.
_WRAPPED = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside torch's wrappers for several devices or for compilation."""
    while (name := _WRAPPED.get(type(net).__name__)) is not None and isinstance(inner := getattr(net, name), nn.Module):
        net = inner
    return net


def copied(net: nn.Module) -> nn.Module:
    """Copy a network, in eval mode; raise ModelError where that cannot be.

    Tensors that share memory share it in the copy, and tensors that carry a history lose it, which `copy.deepcopy`
    refuses. What cannot be copied at all (a lock, an open file) is shared.
    """
    net = unwrapped(net)
    memo = _shared_tensors(net)
    try:
        try:
            made = copy.deepcopy(net, dict(memo))
        except (TypeError, RuntimeError, NotImplementedError):
            made = copy.deepcopy(net, {**memo, **_uncopyable(net, memo)})
    except Exception as error:  # whatever the network's own __deepcopy__ raises
        raise ModelError(
            f"the network {type(net).__name__} cannot be copied, and only copies are measured "
            f"({type(error).__name__}: {first_line(error)}); give one that copy.deepcopy takes"
        ) from error
    if not storages_of(made).isdisjoint(storages_of(net)):
        raise ModelError(
            f"a copy of the network {type(net).__name__} shares its weights with it (by a __deepcopy__ of "
            "its own), and only copies are measured; give one that copy.deepcopy really copies"
        )
    return made.eval()


def storages_of(net: nn.Module) -> set[int]:
    """Where a network's parameters and buffers lie in memory."""
    tensors = [*net.parameters(), *net.buffers()]
    plain = [value for value in tensors if value.layout == torch.strided and not is_lazy(value) and value.numel()]
    return {value.untyped_storage().data_ptr() for value in plain} - {0}


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says first, at most 200 characters of it."""
    line = (str(error).splitlines() or [""])[0]
    return line if len(line) <= 200 else f"{line[:199]}…"


def own_state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module keeps beside its parameters, buffers, submodules and hooks, by name."""
    for name, value in vars(module).items():
        if name not in _OF_TORCH:
            yield name, value


_OF_TORCH = frozenset(vars(nn.Module())) | {"forward"}


def tensors_of(net: nn.Module) -> Iterator[Tensor]:
    """All tensors that a network holds: parameters, buffers, and those in attributes, each as often as it is held."""
    for module in net.modules():
        yield from (value for value in module._parameters.values() if value is not None)
        yield from (value for value in module._buffers.values() if value is not None)
        for _, value in own_state(module):
            yield from _tensors_in(value)


def number_types(net: nn.Module) -> set[torch.dtype]:
    """The types of a network's parameters and buffers that are not whole numbers; more than one must be left as is."""
    tensors = [*net.parameters(), *net.buffers()]
    return {value.dtype for value in tensors if value.is_floating_point() or value.is_complex()}


def moved(net: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Bring a network to a device and to a type of numbers; one that mixes types keeps them.

    Raises StudyError where that is not the type asked for, DeviceError where the network cannot be there.
    """
    kinds = number_types(net)
    if len(kinds) > 1 and dtype != torch.float32:
        raise StudyError(
            f"the network's weights are of several types ({', '.join(sorted(map(str, kinds)))}), so that "
            f"it cannot be run in {dtype}; leave --dtype out"
        )
    try:
        return net.to(device) if len(kinds) > 1 else net.to(device, dtype)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"the network cannot be moved to {device}: {first_line(error)}") from error


def _tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set)):
        for one in value:
            yield from _tensors_in(one, depth - 1)
    elif depth and isinstance(value, dict):
        for one in value.values():
            yield from _tensors_in(one, depth - 1)


def _shared_tensors(net: nn.Module) -> dict[int, Tensor]:
    """For `copy.deepcopy`: copies of the tensors that share memory with others, or that carry a history."""
    groups: dict[int, dict[int, Tensor]] = {}
    for tensor in tensors_of(net):
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta:
            groups.setdefault(tensor.untyped_storage().data_ptr(), {})[id(tensor)] = tensor
    memo: dict[int, Tensor] = {}
    for place, group in groups.items():
        if place == 0 or (len(group) == 1 and all(tensor.is_leaf for tensor in group.values())):
            continue
        storage = next(iter(group.values())).untyped_storage().clone()
        for key, tensor in group.items():
            new = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            new.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
            memo[key] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return memo


def _uncopyable(net: nn.Module, memo: dict[int, Tensor]) -> dict[int, Any]:
    """For `copy.deepcopy`: attributes that it cannot copy, as they are; a generator of random numbers is cloned."""
    replaced: dict[int, Any] = {}
    for module in net.modules():
        for _, value in own_state(module):
            if isinstance(value, torch.Generator):
                replaced[id(value)] = value.clone_state()
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                replaced[id(value)] = value
    return replaced

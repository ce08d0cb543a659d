"""Removing channels for real: which filters must go together, by Torch-Pruning, and whether a network allows it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn

from weanalysis.ablation.graph import CONVOLUTIONS
from weanalysis.errors import StudyError

# How far the logits without a channel may be from those with the channel set to 0, relative to the largest.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together: the filters of `root` and of every other layer in `filters`.

    Channel k of the group is filter `filters[layer][k]` of each layer: those are added to one another, or pass through
    one another unmixed (a depthwise convolution).
    """

    root: str
    size: int
    filters: dict[str, tuple[int, ...]]


def find_groups(net: nn.Module, images: Tensor) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
    """Find the channels of `net` that can be removed, and the layers whose channels cannot, each with the reason.

    A group counts as removable if the network without its first channel gives the logits of the network with that
    channel set to 0. `images` (N, 3, H, W) are run through copies of `net`. Raises StudyError where nothing is left.
    """
    groups, skipped = [], []
    for group in _candidates(net, images):
        grouped = [name for name in group.filters if 1 < _conv(net, name).groups < _conv(net, name).out_channels]
        if grouped:
            skipped.append((group.root, f"{grouped[0]} is a grouped convolution, whose groups must stay equal"))
        else:
            groups.append(group)
    if not _is_exact(net, images, groups):
        tested = [(group, _is_exact(net, images, [group])) for group in groups]
        skipped += [
            (group.root, "its channels pass through a step with fixed channels, such as a shortcut padded with zeros")
            for group, exact in tested
            if not exact
        ]
        groups = [group for group, exact in tested if exact]
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise StudyError(f"no channel of the network can be removed ({reasons}); prune kernels instead (--unit kernel)")
    return groups, skipped


def group_scores(
    groups: Iterable[ChannelGroup], scores: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Add up the filters' scores of each group, by its root; groups with a layer that has no scores are left out."""
    return {
        group.root: np.sum([scores[name][list(filters)] for name, filters in group.filters.items()], axis=0)
        for group in groups
        if set(group.filters) <= scores.keys()
    }


def remove_channels(net: nn.Module, images: Tensor, chosen: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of `net` without the channels of each group (by root) that are listed; its shapes are smaller."""
    smaller = copy.deepcopy(net)
    dependencies = _dependencies(smaller, images)
    for root, channels in chosen.items():
        if len(channels):
            module = smaller.get_submodule(root)
            remove = dependencies.get_pruner_of_module(module).prune_out_channels
            dependencies.get_pruning_group(module, remove, idxs=[int(channel) for channel in channels]).prune()
    for parameter, before in zip(smaller.parameters(), net.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
        parameter.grad = None
    return smaller


def _dependencies(net: nn.Module, images: Tensor) -> torch_pruning.DependencyGraph:
    """Trace `net` by its gradients, which all its parameters must have."""
    net.requires_grad_(True)
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(net, example_inputs=images[:1], verbose=False)
    except Exception as error:  # whatever the network's forward or the tracing of its gradients raises
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StudyError(
            f"which channels belong together cannot be traced in this network ({line[:120]}); prune "
            "kernels instead (--unit kernel)"
        ) from error


def _candidates(net: nn.Module, images: Tensor) -> list[ChannelGroup]:
    traced = copy.deepcopy(net)
    dependencies = _dependencies(traced, images)
    names = {module: name for name, module in traced.named_modules()}
    groups = []
    for group in dependencies.get_all_groups(root_module_types=list(CONVOLUTIONS)):
        root = group[0].dep.target.module
        filters = {
            names[dep.target.module]: tuple(int(place) for place in places)
            for dep, places in group
            if isinstance(dep.target.module, CONVOLUTIONS) and dependencies.is_out_channel_pruning_fn(dep.handler)
        }
        size = root.out_channels
        if all(len(places) == size for places in filters.values()):
            groups.append(ChannelGroup(names[root], size, filters))
    order = {name: place for place, (name, _) in enumerate(net.named_modules())}
    return sorted(groups, key=lambda group: order[group.root])


def _is_exact(net: nn.Module, images: Tensor, groups: Sequence[ChannelGroup]) -> bool:
    """Whether removing the first channel of the groups gives the logits that setting it to 0 does."""
    wanted = [group for group in groups if group.size > 1]
    try:
        with torch.no_grad():
            smaller = remove_channels(net, images, {group.root: [0] for group in wanted})(images)
            zeroed = _without(net, images, [group.root for group in wanted])(images)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, AttributeError):
        return False
    return smaller.shape == zeroed.shape and bool(
        torch.allclose(smaller, zeroed, rtol=0, atol=_TOLERANCE * max(1e-6, float(zeroed.abs().max())))
    )


def _without(net: nn.Module, images: Tensor, roots: Sequence[str]) -> nn.Module:
    """Return a copy of `net` in which all that makes the first channel of these groups gives 0."""
    zeroed = copy.deepcopy(net)
    dependencies = _dependencies(zeroed, images)
    zeroed.requires_grad_(False)
    for root in roots:
        module = zeroed.get_submodule(root)
        remove = dependencies.get_pruner_of_module(module).prune_out_channels
        for dep, places in dependencies.get_pruning_group(module, remove, idxs=[0]):
            target: Any = dep.target.module
            if dependencies.is_out_channel_pruning_fn(dep.handler):
                for name in ("weight", "bias"):
                    if isinstance(getattr(target, name, None), Tensor):
                        getattr(target, name)[[int(place) for place in places]] = 0
    return zeroed


def _conv(net: nn.Module, name: str) -> Any:
    return net.get_submodule(name)

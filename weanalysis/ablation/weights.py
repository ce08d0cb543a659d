"""The weights that an ablation zeroes, in place and for a moment, and the channels that change with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.graph import Convolution, is_plain, is_untouched
from weanalysis.ablation.studies import Ablation, Part


class Weights:
    """The convolution weights of a network, zeroed for a moment and put back bit for bit.

    `twin` is a second network with the same convolutions under the same names (such as one whose batch norms are
    folded), whose weights are zeroed at the same places; ranks of |w| are those of the first network.
    """

    def __init__(self, net: nn.Module, twin: nn.Module | None = None):
        self._net, self._twin = net, twin
        self._ranked: dict[str, Tensor] = {}

    def conv(self, layer: str) -> Convolution:
        """The convolution of that name."""
        return self._net.get_submodule(layer)  # type: ignore[return-value]

    def _ranking(self, layer: str) -> Tensor:
        """Flat indices of the layer's weights in ascending |w|; equal magnitudes stay in memory order."""
        if layer not in self._ranked:
            flat = self.conv(layer).weight.detach().float().abs().flatten()
            self._ranked[layer] = flat.argsort(stable=True).to(torch.int32)
        return self._ranked[layer]

    def _index(self, part: Part) -> Any:
        """Where a part lies: an index into the weight."""
        weight = self.conv(part.layer).weight
        if part.ranks is not None:
            first, last = part.ranks
            return torch.unravel_index(self._ranking(part.layer)[first - 1 : last].long(), weight.shape)
        outs = slice(None) if part.out_channels is None else torch.tensor(part.out_channels, device=weight.device)
        ins = slice(None) if part.in_channels is None else torch.tensor(part.in_channels, device=weight.device)
        if isinstance(outs, Tensor) and isinstance(ins, Tensor):
            outs = outs[:, None]
        return outs, ins

    def one_kernel(self, part: Part) -> tuple[int, int, Any] | None:
        """Where a part lies if that is in one kernel: its two channels, and an index into it; None otherwise."""
        if part.ranks is None:
            outs, ins = part.out_channels, part.in_channels
            return (outs[0], ins[0], ...) if outs and ins and len(outs) == len(ins) == 1 else None
        out, in_, *inside = self._index(part)
        if len(out) != 1:
            return None
        return int(out[0]), int(in_[0]), tuple(int(place[0]) for place in inside)

    @contextmanager
    def zeroed(self, ablation: Ablation) -> Iterator[None]:
        """Zero an ablation's weights; put the very same bits back afterwards, whatever happens meanwhile."""
        saved = []
        # All places are found before the first is zeroed: layers may share a weight, whose ranks would be others then.
        places = [(part, self._index(part)) for part in ablation.parts]
        try:
            for part, index in places:
                for net in (self._net, self._twin):
                    if net is not None:
                        weight = net.get_submodule(part.layer).weight.detach()  # type: ignore[operator]
                        saved.append((weight, index, weight[index].clone()))
                        weight[index] = 0
            yield
        finally:
            for weight, index, values in reversed(saved):
                weight[index] = values

    def changed_channels(self, parts: Sequence[Part]) -> list[int] | None:
        """The output channels that the weights of one layer's parts feed; None for all of them."""
        channels: set[int] = set()
        for part in parts:
            some = self._channels_of(part)
            if some is None:
                return None
            channels.update(some)
        return sorted(channels)

    def _channels_of(self, part: Part) -> Sequence[int] | None:
        if part.ranks is None:
            return part.out_channels
        channels = torch.unique(self._index(part)[0]).tolist()
        return None if len(channels) == len(self.conv(part.layer).weight) else channels


def some_channels(conv: Convolution, images: Tensor, channels: Sequence[int]) -> Tensor | None:
    """Compute only some output channels of a convolution; None where its kind does not allow it.

    Shape (N, len(channels), …). All channels must lie in one group. The convolution's own forward runs, on a
    shallow copy that has fewer filters, so that subclasses with a padding of their own are followed.
    """
    group = 0
    if not is_untouched(conv):
        return None
    if conv.groups > 1:
        if not is_plain(conv):
            return None
        outs_of_group = conv.out_channels // conv.groups
        groups = {channel // outs_of_group for channel in channels}
        if len(groups) > 1:
            return None
        group = groups.pop()
        ins_of_group = conv.in_channels // conv.groups
        images = images[:, group * ins_of_group : (group + 1) * ins_of_group]
    few = copy.copy(conv)
    few._parameters = dict(conv._parameters)
    index = torch.tensor(channels, device=conv.weight.device)
    few._parameters["weight"] = conv.weight.detach()[index]  # type: ignore[assignment]
    if conv.bias is not None:
        few._parameters["bias"] = conv.bias.detach()[index]  # type: ignore[assignment]
    few.groups, few.in_channels, few.out_channels = 1, images.shape[1], len(channels)
    return few(images)

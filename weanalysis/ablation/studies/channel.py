"""The coarse studies, in pruning's own units: whole filters, input channels and layers."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from weanalysis.ablation.studies.layers import equidistant, find_layers, input_channel, select_layers
from weanalysis.ablation.studies.parts import Ablation, Part, Study
from weanalysis.errors import StudyError, unknown_name


def channel(
    net: nn.Module,
    side: Literal["out", "in", "both"] = "both",
    grid: str | int = "all",
    layers: str | None = None,
) -> Study:
    """Zero a whole filter `weight[o]` (side "out") or a whole input channel (side "in") at a time.

    An input channel c of a grouped convolution is `weight[outs of c's group, c mod In/groups]`, and the table's
    `in_channel` is c. `grid`: "all", or how many equidistant channels of each layer. Raises StudyError.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> [ablation.key for ablation in channel(net, side="in").ablations]
    ['0[*;0]', '0[*;1]', '0[*;2]']
    """
    if side not in ("out", "in", "both"):
        raise StudyError(unknown_name("channel side", str(side), ["out", "in", "both"]))
    if grid != "all" and not (str(grid).isdecimal() and int(grid) >= 1):
        raise StudyError(f"{grid!r} channels a layer is malformed: give a number such as 16, or all")
    skipped: list[tuple[str, str]] = []
    notes: list[str] = []
    chosen = select_layers(find_layers(net), layers, skipped)
    ablations = []
    for layer in chosen:
        conv, area = layer.conv, math.prod(layer.kernel_size)
        num_out, num_in = layer.shape

        def picked(count: int) -> list[int]:
            return equidistant(count, count if grid == "all" else int(grid))

        if side in ("out", "both"):
            ablations += [
                Ablation((Part(layer.name, (o,)),), "filter", num_in * area, layer.name, layer.depth, out_channel=o)
                for o in picked(num_out)
            ]
        if side == "in" and layer.kind == "depthwise":
            skipped.append((layer.name, "depthwise: its input channels are its filters; use side out"))
        elif side in ("in", "both"):
            if layer.kind == "depthwise":
                notes.append(f"{layer.name} is depthwise: its input channels are its filters, measured once")
                continue
            outs_of_group = num_out // conv.groups
            ablations += [
                Ablation(
                    (input_channel(layer, c),),
                    "input channel",
                    outs_of_group * area,
                    layer.name,
                    layer.depth,
                    in_channel=c,
                )
                for c in picked(conv.in_channels)
            ]
    if not ablations:
        raise StudyError("every selected layer is depthwise, whose input channels are its filters; use side out")
    options = {"side": side, "grid": str(grid)}
    kept = tuple(x.name for x in chosen if x.name not in {name for name, _ in skipped})
    return Study("channel", options, tuple(ablations), tuple(skipped), tuple(notes), kept)


def layer(net: nn.Module, layers: str | None = None) -> Study:
    """Zero a whole layer at a time: the coarsest picture of where the network's weights matter. Raises StudyError.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> [(ablation.layer, ablation.num_weights) for ablation in layer(net).ablations]
    [('0', 108), ('2', 144)]
    """
    skipped: list[tuple[str, str]] = []
    chosen = select_layers(find_layers(net), layers, skipped)
    ablations = tuple(Ablation((Part(one.name),), "layer", one.num_weights, one.name, one.depth) for one in chosen)
    return Study("layer", {}, ablations, tuple(skipped), (), tuple(x.name for x in chosen))

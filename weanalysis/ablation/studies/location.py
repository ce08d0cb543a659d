"""The location study: one kernel at a time (§3.1, Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from weanalysis.ablation.studies.layers import Layer, equidistant, find_layers, select_layers
from weanalysis.ablation.studies.parts import Ablation, Part, Study
from weanalysis.errors import StudyError


def parse_grid(grid: str | tuple[int, int] | Sequence[int]) -> tuple[int, int] | None:
    """Read "5x5" (output × input channels) or "all" (None, every kernel); raise StudyError for anything else.

    >>> parse_grid("5x3")
    (5, 3)
    """
    if isinstance(grid, str):
        if grid == "all":
            return None
        sides = grid.lower().replace("×", "x").split("x")
        if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
            raise StudyError(f"grid {grid!r} is malformed: write N1xN2, such as 5x5 (output x input channels), or all")
        grid = (int(sides[0]), int(sides[1]))
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise StudyError(f"grid {rows}x{columns} is empty: both sides must be at least 1, such as 5x5")
    return int(rows), int(columns)


def _has_side(layer: Layer, side: int) -> bool:
    """Whether a layer's kernels are of this side; of a 3-D one that is factorized, its own part of the kernel."""
    sides = set(layer.kernel_size)
    return sides == {side} or (len(layer.kernel_size) == 3 and sides == {1, side})


def _size_of_side(layer: Layer, side: int) -> str:
    """The size of a kernel of this side that has a layer's dimensions: 3x3, and 3 of a 1-D one."""
    return "x".join([str(side)] * len(layer.kernel_size))


def location(
    net: nn.Module,
    grid: str | tuple[int, int] = (5, 5),
    kernel_size: str | int = 3,
    layers: str | None = None,
) -> Study:
    """Zero one kernel at a time on an N1 × N2 grid of output × input channels of each layer (§3.1, Fig. 2).

    `grid`: (N1, N2), "5x5", or "all" for every kernel. `kernel_size`: 3 keeps the layers whose kernels are 3 on
    every side, as the paper does, of 3-D ones also those that are 1 in time or in space (1x3x3, 3x1x1); another number
    likewise; "any" keeps all convolutions. `layers`: a glob, or several with commas. Raises StudyError.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> [ablation.key for ablation in location(net, grid="2x2", layers="2").ablations]
    ['2[0;0]', '2[0;7]', '2[7;0]', '2[7;7]']
    """
    sides = parse_grid(grid)
    skipped: list[tuple[str, str]] = []
    notes: list[str] = []
    chosen = select_layers(find_layers(net), layers, skipped)
    if kernel_size != "any":
        try:
            side = int(kernel_size)
        except ValueError:
            raise StudyError(f"kernel size {kernel_size!r} is malformed: give a number such as 3, or any") from None
        fitting = [layer for layer in chosen if _has_side(layer, side)]
        if not fitting:
            sizes = sorted({"x".join(map(str, layer.kernel_size)) for layer in chosen})
            wanted = sorted({_size_of_side(layer, side) for layer in chosen})
            raise StudyError(
                f"no selected layer has {' or '.join(wanted)} kernels (found {', '.join(sizes)}); "
                "choose --kernel-size any, or other --layers"
            )
        skipped += [
            (layer.name, f"its kernels are {'x'.join(map(str, layer.kernel_size))}, not {_size_of_side(layer, side)}")
            for layer in chosen
            if layer not in fitting
        ]
        chosen = fitting
    ablations = []
    for layer in chosen:
        num_out, num_in = layer.shape
        rows, columns = sides if sides is not None else (num_out, num_in)
        if rows > num_out or columns > num_in:
            rows, columns = min(rows, num_out), min(columns, num_in)
            notes.append(
                f"{layer.name} has {num_out}x{num_in} kernels"
                f"{f' ({layer.kind})' if layer.conv.groups > 1 else ''}: its grid is {rows}x{columns}"
            )
        area = math.prod(layer.kernel_size)
        ablations += [
            Ablation((Part(layer.name, (o,), (i,)),), "kernel", area, layer.name, layer.depth, o, i)
            for o in equidistant(num_out, rows)
            for i in equidistant(num_in, columns)
        ]
    options = {"grid": "all" if sides is None else f"{sides[0]}x{sides[1]}", "kernel_size": str(kernel_size)}
    return Study("location", options, tuple(ablations), tuple(skipped), tuple(notes), tuple(x.name for x in chosen))

"""Where each layer's map lies when the maps of all layers are drawn as one picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

_TILE_PIXELS = 112
_LABEL_PIXELS = 24
_GUTTER = 0.1  # of a tile's width
_KERNEL_PIXELS = 5  # what a kernel of a large map should at least measure, up to a tile of _LARGEST_TILE_PIXELS
_LARGEST_TILE_PIXELS = 320


@dataclass(frozen=True)
class Tile:
    """One layer's map: its rows of the table, its channels, and how many cells a side draw a kernel.

    Its upper left cell has the middle (`left`, `top`) on the axes, and lies in the picture at `first`: line, column.
    """

    layer: str
    rows: pd.DataFrame
    outs: np.ndarray
    ins: np.ndarray
    top: float
    left: float
    zoom: int
    first: tuple[int, int]

    @property
    def height(self) -> int:
        return len(self.outs) * self.zoom

    @property
    def width(self) -> int:
        return len(self.ins) * self.zoom

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the column of every kernel in the layer's own map."""
        return (
            np.searchsorted(self.outs, self.rows["out_channel"].to_numpy()),
            np.searchsorted(self.ins, self.rows["in_channel"].to_numpy()),
        )

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the y and the x of every kernel's middle, in cells of the mosaic."""
        down, across = self.places()
        middle = (self.zoom - 1) / 2
        return self.top + down * self.zoom + middle, self.left + across * self.zoom + middle


@dataclass(frozen=True)
class Mosaic:
    """The tiles of all layers, `num_columns` in a row; `height` and `width` in kernels of the largest map.

    The lines and columns of its picture end at `y_edges` and `x_edges`: all are one kernel wide but for those between
    the tiles, where the names stand.
    """

    tiles: tuple[Tile, ...]
    num_columns: int
    height: float
    width: float
    x_edges: np.ndarray
    y_edges: np.ndarray
    pixels: int

    def spread(self, values: pd.Series) -> np.ndarray:
        """Lay `values` (indexed as the tiles' rows) out as the picture, NaN between the tiles."""
        picture = np.full((len(self.y_edges) - 1, len(self.x_edges) - 1), np.nan, dtype=np.float32)
        for tile in self.tiles:
            cells = np.full((len(tile.outs), len(tile.ins)), np.nan, dtype=np.float32)
            cells[tile.places()] = values.loc[tile.rows.index].to_numpy()
            enlarged = cells.repeat(tile.zoom, axis=0).repeat(tile.zoom, axis=1)
            line, column = tile.first
            picture[line : line + tile.height, column : column + tile.width] = enlarged
        return picture

    def layout(self) -> dict[str, Any]:
        """Return what makes a figure show all of it, with square cells at any zoom and no wider than it needs."""
        # Drawn as large as the narrower side allows, beginning at the left and the top.
        ends = {"visible": False, "constrain": "domain"}
        return {
            "xaxis": {**ends, "range": [-0.5, self.width - 0.5], "constraintoward": "left"},
            "yaxis": {
                **{**ends, "range": [self.height - 0.5, -0.5], "constraintoward": "top"},
                **{"scaleanchor": "x", "scaleratio": 1},
            },
            "meta": {"most_pixels": math.ceil(self.width * self.pixels / self.height)},
        }


def lay_out(kernels: pd.DataFrame, num_columns: int | None = None, small: bool = False) -> Mosaic:
    """Place one tile a layer, row by row, in the order in which the layers come in `kernels` (one row a kernel).

    Maps smaller than the largest are enlarged by whole numbers, so that layers of few channels stay readable. `small`
    tiles are as large as those of a 5x5 grid, however many kernels they hold.
    """
    layers = [(str(layer), rows) for layer, rows in kernels.groupby("layer", sort=False)]
    channels = [(np.unique(rows["out_channel"]), np.unique(rows["in_channel"])) for _, rows in layers]
    sides = [max(len(outs), len(ins)) for outs, ins in channels]
    zooms = [max(sides) // side for side in sides]
    down = max(len(outs) * zoom for (outs, _), zoom in zip(channels, zooms, strict=True))
    across = max(len(ins) * zoom for (_, ins), zoom in zip(channels, zooms, strict=True))
    tile_pixels = _TILE_PIXELS if small else min(max(_TILE_PIXELS, _KERNEL_PIXELS * down), _LARGEST_TILE_PIXELS)
    num_columns = min(num_columns or _num_columns(len(layers), tile_pixels), len(layers))
    gutter, label = _GUTTER * across, down * _LABEL_PIXELS / tile_pixels
    lefts = np.arange(num_columns) * (across + gutter)
    tops = label + np.arange(math.ceil(len(layers) / num_columns)) * (down + label)

    tiles = []
    for place, ((layer, rows), (outs, ins), zoom) in enumerate(zip(layers, channels, zooms, strict=True)):
        row, column = divmod(place, num_columns)
        first = row * (down + 1) + 1, column * (across + 1)
        tiles.append(Tile(layer, rows, outs, ins, float(tops[row]), float(lefts[column]), zoom, first))
    height = float(tops[-1] + down)
    return Mosaic(
        tiles=tuple(tiles),
        num_columns=num_columns,
        height=height,
        width=float(lefts[-1] + across),
        x_edges=(lefts[:, None] + np.arange(across + 1)).ravel() - 0.5,
        y_edges=np.concatenate([[0.0], (tops[:, None] + np.arange(down + 1)).ravel()]) - 0.5,
        pixels=round(height * tile_pixels / down),
    )


def _num_columns(num_layers: int, tile_pixels: float) -> int:
    """Choose so that the last row of tiles is nearly full; more columns where that is a tie."""
    choices: tuple[int, ...] = (4, 5, 6)
    if tile_pixels > _TILE_PIXELS:
        choices = (2, 3) if tile_pixels > 2 * _TILE_PIXELS else (3, 4)
    return min(choices, key=lambda columns: (-num_layers % columns, -columns))

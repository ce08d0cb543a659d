"""Saliency maps as they are kept in a cache: read and written with numpy alone, so that the dashboard can show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from weanalysis.cache import storable, write_atomically
from weanalysis.errors import StoreError
from weanalysis.kinds import FILTER, INPUT_CHANNEL, KERNEL, LAYER, channels_of

# What a score can be of, in the words of a study's column `selection`; "weight" stands for a single weight.
UNITS = (KERNEL.name, FILTER.name, INPUT_CHANNEL.name, LAYER.name)
WEIGHT = "weight"

_METADATA_KEY = "weanalysis-saliency"


@dataclass(frozen=True)
class MappedLayer:
    """A layer with maps: its place in the forward pass, its kind, and its (Out, In/groups) kernels."""

    name: str
    depth: int
    kind: str
    groups: int
    shape: tuple[int, int]
    kernel_size: tuple[int, ...]


@dataclass
class SaliencyMaps:
    """Scores of every unit of some layers under some criteria; larger means more important.

    `maps[criterion, unit][layer]` is (Out, In/groups) for kernels, (Out,) for filters, (In,) for input channels, () for
    the layer, and the weight's own shape for single weights; NaN where the criterion says nothing of the unit.
    `about` is JSON: the settings that the scores depend on, and the words to show them with.
    """

    layers: tuple[MappedLayer, ...]
    criteria: tuple[str, ...]
    about: dict[str, Any]
    maps: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = field(repr=False)

    def of(self, criterion: str, unit: str, layer: str) -> NDArray[np.float32]:
        """Return one map; all NaN where the criterion has none of this layer. Raises StoreError for unknown names."""
        known = {mapped.name: mapped for mapped in self.layers}
        if criterion not in self.criteria or layer not in known:
            raise StoreError(f"there is no map of {layer} under {criterion!r}; there are {', '.join(self.criteria)}")
        scores = self.maps.get((criterion, unit), {}).get(layer)
        return np.full(_shape(known[layer], unit), np.nan, np.float32) if scores is None else scores

    def scores(self, criterion: str, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Score the rows of a study's table that zero one kernel, filter, input channel or layer; NaN for others.

        `rows` has the columns layer, selection, out_channel and in_channel; like is compared with like, so that the
        selection decides which map a row is looked up in.
        """
        values = np.full(len(rows), np.nan)
        mapped = {layer.name for layer in self.layers}
        groups = rows.reset_index(drop=True).groupby(["layer", "selection"], sort=False)
        for (layer, unit), own in groups:
            if layer not in mapped or unit not in UNITS:
                continue
            columns = channels_of(unit) or ()
            places = tuple(own[column].to_numpy(dtype=np.int64) for column in columns)
            values[own.index] = self.of(criterion, unit, str(layer))[places]
        return values

    def table(self, units: Sequence[str] = UNITS) -> pd.DataFrame:
        """Return one row a unit: layer, depth, selection, out_channel, in_channel, and a column a criterion."""
        frames = []
        for layer in self.layers:
            for unit in units:
                shape = _shape(layer, unit)
                places = np.indices(shape).reshape(len(shape), math.prod(shape))
                columns = channels_of(unit) or ()
                frame = pd.DataFrame(
                    {
                        "layer": layer.name,
                        "depth": layer.depth,
                        "selection": unit,
                        "out_channel": np.nan,
                        "in_channel": np.nan,
                        **{name: self.of(name, unit, layer.name).ravel() for name in self.criteria},
                    }
                )
                for column, values in zip(columns, places, strict=True):
                    frame[column] = values.astype(float)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def save_maps(maps: SaliencyMaps, path: Path) -> None:
    """Write maps as one safetensors file, atomically. Raises StoreError where it cannot be written."""
    tensors = {
        f"{criterion}/{unit}/{layer}": np.ascontiguousarray(values, np.float32)
        for (criterion, unit), by_layer in maps.maps.items()
        for layer, values in by_layer.items()
    }
    described = {
        "about": maps.about,
        "criteria": list(maps.criteria),
        "layers": [[x.name, x.depth, x.kind, x.groups, list(x.shape), list(x.kernel_size)] for x in maps.layers],
    }
    try:
        write_atomically(path, save(tensors, {_METADATA_KEY: json.dumps(described)}))
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


def load_maps(path: Path) -> SaliencyMaps:
    """Read maps that `save_maps` wrote; raise StoreError for a file that is missing, damaged or something else."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})[_METADATA_KEY])
            maps: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}
            for name in file.keys():  # noqa: SIM118 (the file is no dict)
                criterion, unit, layer = name.split("/", 2)
                maps.setdefault((criterion, unit), {})[layer] = file.get_tensor(name)
        layers = tuple(
            MappedLayer(name, depth, kind, groups, (shape[0], shape[1]), tuple(size))
            for name, depth, kind, groups, shape, size in described["layers"]
        )
        return SaliencyMaps(layers, tuple(described["criteria"]), storable(described["about"]), maps)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} holds no saliency maps that can be read here; remove it, and run `weanalysis saliency` again"
        ) from error


def describe_maps(path: Path) -> dict[str, Any]:
    """Read only what a file of maps says of itself: its `about`, with the names of `criteria` and `layers`."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})[_METADATA_KEY])
        layers = [layer[0] for layer in described["layers"]]
        return {**storable(described["about"]), "criteria": list(described["criteria"]), "layers": layers}
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} holds no saliency maps that can be read here; remove it") from error


def list_maps(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """List the files of maps in a cache's folder with what each says of itself, the newest first; leave out others."""
    described = []
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem.endswith("-weights"):
            continue
        try:
            described.append((path, describe_maps(path)))
        except StoreError:
            continue
    return sorted(described, key=lambda pair: -float(pair[1].get("created", 0)))


def _shape(layer: MappedLayer, unit: str) -> tuple[int, ...]:
    num_out, num_in = layer.shape
    shapes = {
        "kernel": layer.shape,
        "filter": (num_out,),
        "input channel": (num_in * layer.groups,),
        "layer": (),
        WEIGHT: (*layer.shape, *layer.kernel_size),
    }
    if unit not in shapes:
        raise StoreError(f"unknown unit {unit!r}: choose from {', '.join(shapes)}")
    return shapes[unit]

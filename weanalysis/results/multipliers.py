"""LWE's multipliers as a study kept them, read with numpy."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from weanalysis.cache import Cache, safe_name, write_atomically
from weanalysis.errors import StoreError


def save_multipliers(cache: Cache, weights_hash: str, multipliers: Mapping[str, np.ndarray]) -> None:
    """Keep m of every layer, (Out, In/groups), of the network with these weights; raise StoreError where it cannot."""
    path = cache.multipliers_file(safe_name(weights_hash))
    try:
        write_atomically(path, save(dict(multipliers)))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose another cache with --cache DIR"
        ) from error


def load_multipliers(cache: Cache, weights_hash: str) -> dict[str, np.ndarray]:
    """Return m of every layer, (Out, In/groups), of the network with these weights; empty where none were kept."""
    try:
        with safe_open(cache.multipliers_file(safe_name(weights_hash)), framework="np") as kept:
            return {name: kept.get_tensor(name) for name in sorted(kept.keys(), key=natural)}
    except (OSError, SafetensorError):
        return {}


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort "conv10" behind "conv9"."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]

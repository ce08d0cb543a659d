"""LWE's multipliers as a study kept them, read with numpy."""

from __future__ import annotations

import re

import numpy as np
from safetensors import SafetensorError, safe_open

from weanalysis.cache import Cache, safe_name


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

"""What only the network itself can tell: LWE's multipliers of a checkpoint, and what a network costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import reading
import streamlit as st

from weanalysis.training.runs import Run

WITH_LWE = ("lwe", "lwe+mwe", "we")


def lwe_runs(runs: list) -> dict[str, Path]:
    """Return the best checkpoint of each run that trained with LWE, by the run's name."""
    checkpoints = {}
    for run in runs:
        checkpoint = Run(reading.cache().runs / run.name).best_checkpoint
        if run.recipe.get("excitation") in WITH_LWE and checkpoint.is_file():
            checkpoints[run.name] = checkpoint
    return checkpoints


def multipliers(checkpoint: Path) -> dict[str, np.ndarray]:
    """Return m of every layer with LWE, in the network's order; read again when the file changes."""
    return _multipliers(str(checkpoint), checkpoint.stat().st_mtime)


@st.cache_data(show_spinner="Computing the multipliers…", max_entries=8)
def _multipliers(checkpoint: str, changed: float) -> dict[str, np.ndarray]:
    # These load torch, which only this view of the dashboard needs.
    from weanalysis.excitation import multipliers as of
    from weanalysis.models import load_network

    return {layer: values.numpy() for layer, values in of(load_network(checkpoint, "default").net).items()}


def costs(about: dict[str, Any]) -> dict[str, Any]:
    """Count parameters and operations of the network of a study, given its settings; see `excitation.costs`.

    A study knows its network as it is at inference. What training cost is told by the checkpoint that the study was
    run on; where that is gone, train_params is NaN and the excitation None.
    """
    shape, path = _input_shape(about["transform"]), _checkpoint(about)
    if path is not None:
        return _costs(str(path), path.stat().st_mtime, shape)
    plain = _costs(json.dumps(about["architecture"], sort_keys=True), 0.0, shape)
    return plain | {"train_params": float("nan"), "excitation": None}


def _input_shape(transform: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of one input, given the description of what makes it: a picture, a clip or an array."""
    if "shape" in transform:
        return tuple(transform["shape"])
    frames = (transform["num_frames"],) if "num_frames" in transform else ()
    return 3, *frames, transform["image_size"], transform["image_size"]


def _checkpoint(about: dict[str, Any]) -> Path | None:
    """Return the checkpoint of this program that a study was run on, if it is still there."""
    path = about.get("checkpoint")
    return Path(path) if path and Path(path).is_file() else None


@st.cache_data(show_spinner="Counting parameters and operations…", max_entries=32)
def _costs(network: str, changed: float, shape: tuple[int, ...]) -> dict[str, Any]:
    """Count what a checkpoint's network costs, or one that a JSON description says how to build, on such inputs."""
    from weanalysis.excitation import costs as of
    from weanalysis.models import build, load_network

    net = build(json.loads(network)) if network.startswith("{") else load_network(network, "default").net
    return of(net, input_shape=shape, batch_size=2, repeats=1)

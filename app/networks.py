"""What only the network itself can tell: LWE's multipliers of a checkpoint, and what a network costs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import reading
import shared
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


def offer_costs(studies: Mapping[str, pd.Series]) -> None:
    """Let the reader compare what the networks of studies, by their labels, cost in training and at inference."""
    if not st.toggle(
        "Compare their costs",
        key="costs",
        bind="query-params",
        help="Parameters in training and at inference, and operations an image. Excitation costs parameters in "
        "training only: it is folded into the weights afterwards. Paper, Table 1.",
    ):
        return
    costs_of = {}
    for label, study in studies.items():
        about = reading.describe(study)
        if not about.get("architecture"):
            st.caption(f"Of {shared.plain(label)} it is not known how to build its network.")
            return
        costs_of[label] = costs(about)
    st.dataframe(
        pd.DataFrame(
            {
                "network": list(costs_of),
                "excitation": [known["excitation"] for known in costs_of.values()],
                "training": [known["train_params"] / 1e6 for known in costs_of.values()],
                "inference": [known["inference_params"] / 1e6 for known in costs_of.values()],
                "operations": [known["gflops"] for known in costs_of.values()],
            }
        ),
        hide_index=True,
        placeholder="–",
        column_config={
            "network": st.column_config.TextColumn("Network of"),
            "excitation": st.column_config.TextColumn("Excitation"),
            "training": st.column_config.NumberColumn("Parameters in training (millions)", format="%.4f"),
            "inference": st.column_config.NumberColumn("at inference (millions)", format="%.4f"),
            "operations": st.column_config.NumberColumn(
                "GFLOPs an image", format="%.4f", help="Billions of multiply-accumulates at inference."
            ),
        },
    )
    unknown = [label for label, known in costs_of.items() if known["excitation"] is None]
    if unknown:
        st.caption(
            f"The checkpoint tells what training cost; of {shared.plain(', '.join(unknown))} it is not known here."
        )
    st.caption("Memory and seconds a step are measured by a command:")
    st.code(
        shlex.join(
            ["weanalysis", "costs", "--model", str(next(iter(studies.values()))["model"]), "--excitation", "none,lwe"]
        )
    )

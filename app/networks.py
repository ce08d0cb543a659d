"""What only the network itself can tell: LWE's multipliers of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import reading
import streamlit as st

from weanalysis.training.runs import Run

WITH_LWE = ("lwe", "lwe+mwe", "we")


def lwe_runs(runs: list) -> dict[str, Path]:
    """Return the best checkpoint of each run that trained with LWE, by the run's name."""
    found = {}
    for run in runs:
        checkpoint = Run(reading.cache().runs / run.name).best_checkpoint
        if run.recipe.get("excitation") in WITH_LWE and checkpoint.is_file():
            found[run.name] = checkpoint
    return found


def multipliers(checkpoint: Path) -> dict[str, np.ndarray]:
    """Return m of every layer with LWE, in the network's order; read again when the file changes."""
    return _multipliers(str(checkpoint), checkpoint.stat().st_mtime)


@st.cache_data(show_spinner="Computing the multipliers…", max_entries=8)
def _multipliers(checkpoint: str, changed: float) -> dict[str, np.ndarray]:
    # These load torch, which only this view of the dashboard needs.
    from weanalysis.excitation import multipliers as of
    from weanalysis.models import load_network

    return {layer: values.numpy() for layer, values in of(load_network(checkpoint, "default").net).items()}

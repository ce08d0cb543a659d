"""How well criteria predict what a study measured, computed once for every state that scores and study were in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from weanalysis.results.saliency import SaliencyMaps
from weanalysis.results.statistics import MeasuredColumn, agreement_table
from weanalysis.results.statistics.agreement import Scope

# What the scores and the measurements of a table follow from.
State = tuple[str | int | float, ...]


def state_of(maps: Path, study: pd.Series) -> State:
    """Return what tells the file of saliency maps and the study, as they are now, from any others."""
    return str(maps), maps.stat().st_mtime_ns, int(study["id"]), float(study["updated"]), str(study["metric"])


def of_network(
    rows: pd.DataFrame, maps: SaliencyMaps, criteria: Sequence[str], measured: MeasuredColumn, top: float, state: State
) -> pd.DataFrame:
    """Return how each criterion agrees with a study over the network, a row each, as `agreement_table` has it.

    `rows` are those of the study that zero units of one kind; they and the `maps` follow from `state`.
    """
    own = [_agreement(rows, maps, criterion, measured, top, "network", state) for criterion in criteria]
    return pd.concat(own, ignore_index=True)


def of_layers(
    rows: pd.DataFrame, maps: SaliencyMaps, criterion: str, measured: MeasuredColumn, top: float, state: State
) -> pd.DataFrame:
    """Return how a criterion agrees with a study in each layer, a row each; none where there is but one layer."""
    return _agreement(rows, maps, criterion, measured, top, "layer", state)


@st.cache_data(show_spinner=False, max_entries=192)
def _agreement(
    _rows: pd.DataFrame,
    _maps: SaliencyMaps,
    criterion: str,
    measured: MeasuredColumn,
    top: float,
    scope: Scope,
    state: State,
) -> pd.DataFrame:
    scored = _rows.assign(**{criterion: _maps.scores(criterion, _rows)})
    return agreement_table(scored, [criterion], top, measured=measured, scopes=[scope])

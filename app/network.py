"""The network of a study as a picture, whose layers lead to their maps."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.figures import By
from weanalysis.kinds import kind_of
from weanalysis.results.outlines import Outline

COLOURS: dict[str, By] = {"Largest D": "drop", "How many differ from 0": "count"}
_KEY = "network"
_STEPS_A_LINE, _STEPS_WHEN_NARROW = 32, 10


def show(
    study: pd.Series, rows: pd.DataFrame, selected: str | None, on_choose: Callable[[str, pd.DataFrame], None]
) -> None:
    """Draw the network of a study, coloured by its `rows`; a click calls `on_choose` with the figure's key and these.

    Where only the order of its layers is known, that is said.
    """
    outline, row = Outline.of(reading.describe(study)), kind_of(study["kind"]).row
    if not outline.names:
        return
    st.markdown(
        "## The network",
        help="From left to right in the order of computation; circles are sums or other joins, arcs are shortcuts. "
        f"The colour is the largest D of a layer's {row}s that differ from 0 (q ≤ {figures.SIGNIFICANT_Q:g}), white "
        "where none does. Click on a layer to see it below.",
    )
    coloured = st.segmented_control(
        "The network's colour",
        list(COLOURS),
        default="Largest D",
        required=True,
        key="network-colour",
        bind="query-params",
        label_visibility="collapsed",
    )
    shared.show(
        figures.network_map(
            rows,
            outline,
            COLOURS[coloured],
            row=row,
            steps_a_line=_STEPS_WHEN_NARROW if shared.is_narrow() else _STEPS_A_LINE,
            selected=selected,
            theme=shared.theme(),
        ),
        key=_KEY,
        data=rows[["layer", "depth", "drop", "q_value"]],
        name=f"network-{study['name']}",
        alt=f"The network with its {sum(outline.are_layers)} layers, coloured by D",
        on_click=lambda: on_choose(_KEY, rows),
    )
    if not outline.is_traced:
        st.caption(
            "Its layers in their order: the study has no record of what leads to what. A new study has one, and so has "
            "this one when its command is run again, which measures nothing anew; a network that cannot be traced "
            "has none."
        )

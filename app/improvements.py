"""Detrimental weights of a study: what improves the network when it is zeroed, or how much could have been missed."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.errors import WeanalysisError
from weanalysis.kinds import kind_of


def show(study: pd.Series, on_choose: Callable[[pd.Series], None]) -> None:
    """Say which ablations of a finished study improve the network, chosen and confirmed on different images.

    `on_choose` is called with the row that the reader selects.
    """
    st.markdown(
        f"## Does removing any {kind_of(study['kind']).row} help?",
        help="Ablations that improve the network on one half of the images (one-sided exact McNemar p ≤ 0.05) are "
        "tested again on the other half, at a false discovery rate of 5 % over those chosen.",
    )
    try:
        improvements = reading.improvements(study)
    except WeanalysisError as error:
        st.caption(f"Not searched: {shared.plain(error)}.")
        return
    verdict = f"{improvements.num_confirmed:,} are confirmed" if improvements.num_confirmed else "none is confirmed"
    one_half, other_half = improvements.num_images
    st.caption(
        f"Of {improvements.num_tested:,} ablations, {len(improvements.table):,} improve it on one half ({one_half:,} "
        f"images) and {verdict} on the other ({other_half:,} images). {improvements.missed}"
    )
    rows = improvements.table
    if rows.empty:
        return

    def choose() -> None:
        if picked := st.session_state["improvements"].selection.rows:
            on_choose(rows.iloc[picked[0]])

    st.dataframe(
        pd.DataFrame(
            {
                "layer": rows["layer"],
                "zeroed": rows["selection"],
                "out": rows["out_channel"],
                "in": rows["in_channel"],
                "drop": rows["drop"],
                "interval": [
                    figures.interval(low, high) for low, high in zip(rows["drop_low"], rows["drop_high"], strict=True)
                ],
                "q": rows["q_value"],
                "confirmed": rows["confirmed"],
            }
        ).dropna(axis=1, how="all"),
        hide_index=True,
        placeholder="–",
        key="improvements",
        on_select=choose,
        selection_mode="single-row",
        column_config={
            "layer": st.column_config.TextColumn("Layer", help="Select a row to look at what it is."),
            "zeroed": st.column_config.TextColumn("Zeroed"),
            "out": st.column_config.NumberColumn("Output channel", format="%d"),
            "in": st.column_config.NumberColumn("Input channel", format="%d"),
            "drop": st.column_config.NumberColumn("D (points)", format="%+.2f", help="On the confirming half."),
            "interval": st.column_config.TextColumn("95 % interval", help="Tango's paired score interval."),
            "q": st.column_config.NumberColumn("q", format="%.2g", help="Over the chosen, one-sided."),
            "confirmed": st.column_config.CheckboxColumn("Confirmed"),
        },
    )

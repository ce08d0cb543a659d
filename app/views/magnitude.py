"""Magnitude (paper, Fig. 1a): does the network need its large weights more than its small ones?"""

from __future__ import annotations

import choosing
import findings
import pandas as pd
import pictures
import reading
import shared
import streamlit as st

from weanalysis import figures

ENLARGED = 90  # from which percentile on the curve is drawn a second time

st.title("Magnitude")
st.caption(
    "What is lost when the weight at the b-th percentile of |w| is set to zero, from the smallest to the largest.",
    help="The weights of a layer are sorted by their absolute value; the one of rank b n / 100 is zeroed. "
    "Paper, section 3.1, Fig. 1a.",
)

study = choosing.choose_study("magnitude")


@shared.live(study["state"] == shared.RUNNING)
def curves() -> None:
    now = reading.again(study)
    rows = reading.table(now)
    findings.headline(now, rows)
    own_layers = list(rows.dropna(subset=["layer"]).sort_values("depth")["layer"].unique())
    layers = own_layers or reading.describe(now).get("layers") or []
    percentiles = sorted(rows["percentile"].dropna().unique().tolist())
    measured = rows.loc[rows["drop"].notna() & (rows["percentile"] >= ENLARGED), "percentile"]
    has_end = measured.nunique() > 2
    whole = st.container()
    grid = st.grid(columns=3, min_column_width=300, gap="medium", dense=True)
    drawn = grid.cell(column_span=2) if has_end or own_layers else None
    with grid.cell():
        st.markdown("## One percentile", help="Click on a point of the curve or of the map, or choose here.")
        layer = choosing.choose_layer(layers) if layers else None
        b = st.select_slider(
            "Percentile b", percentiles, value=percentiles[-1], format_func=word, key="b", bind="query-params"
        )
        shown = rows[rows["layer"] == layer] if own_layers else rows
        row = choose_draw(shown[shown["percentile"] == b])
        if drawn is not None:
            show_weight(now, layer, b)
    if drawn is None:  # nothing else is beside the choice
        with grid.cell(column_span=2):
            show_weight(now, layer, b)
    name = f"magnitude-{now['name']}" + (f"-{layer}" if own_layers else "")
    with whole:
        if own_layers:
            st.markdown(f"## {shared.plain(layer)}")
        whole_curve(shown, b, name)
    if drawn is not None:
        with drawn:
            if has_end:
                end(shown[shown["percentile"] >= ENLARGED], b, name)
            if own_layers:
                st.markdown("## All layers", help="Rows are layers in network order; colour is D, mean over the draws.")
                shared.show(
                    figures.magnitude_map(rows, selected=(str(layer), b), theme=shared.theme()),
                    key="map",
                    data=rows,
                    name=f"magnitude-map-{now['name']}",
                    alt="D by layer and percentile",
                    on_click=lambda: take_click("map"),
                )
    if row is not None:
        with grid.cell(column_span="all"):
            pictures.changed_images(now, row, "changed")


def whole_curve(shown: pd.DataFrame, b: float, name: str) -> None:
    """Show D over the percentiles of some rows, as wide as the page, with the one that is chosen marked."""
    shared.show(
        figures.magnitude_curve(shown, mark=b, theme=shared.theme()),
        key="curve",
        data=shown,
        name=name,
        alt="D against the percentile of the zeroed weight's magnitude, with its 95 % interval",
        on_click=lambda: take_click("curve"),
    )


def end(shown: pd.DataFrame, b: float, name: str) -> None:
    """Show the end of the curve a second time: the largest weights, where D rises."""
    st.markdown(
        f"## b = {ENLARGED} to 100, enlarged", help="Where the largest weights are. Their axis of D is their own."
    )
    figure = figures.magnitude_curve(shown, mark=b if b >= ENLARGED else None, theme=shared.theme())
    shared.show(
        figure.update_xaxes(range=[ENLARGED - 0.5, 100.5], dtick=1),
        key="curve-end",
        data=shown,
        name=f"{name}-largest",
        alt=f"D against the percentile, from {ENLARGED} to 100",
        on_click=lambda: take_click("curve-end"),
    )


def word(percentile: float) -> str:
    return f"{percentile:g}"


def take_click(key: str) -> None:
    """Choose the percentile, and on the map the layer, that was clicked."""
    clicked = st.session_state[key].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        st.session_state["b"] = data[-1]
        if len(data) > 1:
            st.session_state["layer"] = data[0]


def choose_draw(draws: pd.DataFrame) -> pd.Series | None:
    """Let the reader choose among the weights that were zeroed at this percentile, and tell their D."""
    if draws.empty:
        return None
    place = 0
    if len(draws) > 1:
        place = st.pagination(len(draws), key="draw", bind="query-params") - 1
        st.caption(f"Draw {place + 1} of {len(draws)}", help="The weights nearest to this percentile, one a draw.")
    row = draws.iloc[place]
    shared.measured(row)
    return row


def show_weight(now: pd.Series, layer: str | None, b: float) -> None:
    weight = reading.weight(now, layer) if layer else None
    if weight is None:
        st.caption("The weights of this study are no longer in the cache.")
        return
    st.caption(f"Weights of {shared.plain(layer)}, and the one at percentile {b:g}")
    shared.show(
        figures.weight_histogram(weight, b, theme=shared.theme()),
        key="weights",
        data=pd.DataFrame({"weight": weight.ravel()}),
        name=f"weights-{layer}",
        alt=f"Histogram of the absolute weights of {layer}",
    )


curves()

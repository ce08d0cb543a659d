"""Channels and layers: which filters, input channels and layers the network needs, and which it is better without."""

from __future__ import annotations

import choosing
import findings
import improvements
import network
import pandas as pd
import pictures
import reading
import shared
import streamlit as st
import units

from weanalysis import figures
from weanalysis.figures import Order
from weanalysis.kinds import SELECTIONS, kind_of

ORDERS: dict[str, Order] = {"Channel": "channel", "D": "drop"}

st.title("Channels and layers")
st.caption(
    "Whole filters, input channels and layers, set to zero one at a time, in network order. What is high or red was "
    "needed.",
    help="A strip is a layer, its cells are channels. A filter is all that one output channel is computed from, an "
    "input channel all that reads one channel of the input: the units that pruning removes.",
)

study = choosing.choose_study("channels")
first = reading.table(study)
sides = [name for name in kind_of(study["kind"]).units if (first["selection"] == name).any()]
if not sides:
    st.info("The study names no channel and no layer.", icon=":material/view_stream:")
    st.stop()
channels = SELECTIONS[sides[0]].channels
side, order, hide = sides[0], "Channel", False
if channels:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if len(sides) > 1:
            side = st.segmented_control(
                "Zeroed",
                sides,
                default=sides[0],
                required=True,
                format_func=lambda name: f"{name.capitalize()}s",
                key="side",
                bind="query-params",
                help="**Filters** are output channels with all their kernels; **input channels** are what all filters "
                "read of one channel.",
            )
        order = st.segmented_control(
            "Order",
            list(ORDERS),
            default="Channel",
            required=True,
            key="order",
            bind="query-params",
            help="**Channel**: as they lie in the layer. **D**: the most needed first, so that the red part of a strip "
            "is the share that the layer needs.",
        )
        hide = st.toggle(
            f"Only significant channels (q ≤ {figures.SIGNIFICANT_Q:g})",
            key="hide",
            bind="query-params",
            help=f"Greys channels with q > {figures.SIGNIFICANT_Q:g}.",
        )
column = channels[0] if (channels := SELECTIONS[side].channels) else None
word = SELECTIONS[side].called


@shared.live(study["state"] == shared.RUNNING)
def shown() -> None:
    now = reading.again(study)
    table = reading.table(now)
    findings.headline(now, table, on_choose=take_unit)
    rows = table[(table["selection"] == side) & table["layer"].notna()]
    network.show(now, rows, st.session_state.get("unit-layer"), on_choose=units.take_layer)
    confirmed = reading.confirmed(now) if now["state"] != shared.RUNNING else []
    grid = st.grid(columns=3, min_column_width=300, gap="medium", dense=True)
    drawn = grid.cell(column_span=2)
    with grid.cell():
        position = units.choose(
            rows, column, word, f"The {word} opens here: its D, and the images that it was needed for."
        )
        if position is not None:
            shared.measured(rows.loc[position])
    with drawn:
        if column:
            strips(now, rows, confirmed, position)
        else:
            layers(now, rows, position)
    if position is not None:
        images = grid.cell(column_span="all")
    if column:
        with grid.cell(column_span="all"):
            beside(now, rows, position)
    with grid.cell(column_span="all"):
        findings.most_important(rows, word, bool(now["stopping"]), on_choose=units.take_row)
    if now["state"] != shared.RUNNING:
        with grid.cell(column_span="all"):
            improvements.show(now, on_choose=take_unit)
    if position is not None:
        with images:  # last, since finding them may take a while
            pictures.changed_images(now, rows.loc[position], "changed")


def take_unit(row: pd.Series) -> None:
    """Choose what a row zeroes, whether filters or input channels are shown now."""
    if len(sides) > 1:
        st.session_state["side"] = row["selection"]
    units.take_row(row)


def strips(now: pd.Series, rows: pd.DataFrame, confirmed: list[int], position: int | None) -> None:
    shared.show(
        figures.channel_strips(rows, ORDERS[order], hide, marked=confirmed, selected=position, theme=shared.theme()),
        key="strips",
        data=rows,
        name=f"channels-{now['name']}",
        alt=f"D of the {word}s of {rows['layer'].nunique()} layers",
        on_click=lambda: units.take_click("strips"),
    )


def layers(now: pd.Series, rows: pd.DataFrame, position: int | None) -> None:
    shared.show(
        figures.drop_by_layer(rows, selected=position, theme=shared.theme()),
        key="layers",
        data=rows,
        name=f"layers-{now['name']}",
        alt="D of every layer with its 95 % interval, by depth",
        on_click=lambda: units.take_click("layers"),
    )


def beside(now: pd.Series, rows: pd.DataFrame, position: int | None) -> None:
    """Show the channels of the chosen layer with their intervals, and all of them by depth."""
    grid = st.grid(columns=2, min_column_width=420, gap="medium")
    if position is not None:
        layer = str(rows.loc[position, "layer"])
        with grid.cell():
            st.markdown(f"## The {word}s of {shared.plain(layer)}", help="With 95 % intervals, each for its own row.")
            shared.show(
                figures.channel_intervals(rows, layer, selected=position, theme=shared.theme()),
                key="intervals",
                data=rows[rows["layer"] == layer],
                name=f"channels-{now['name']}-{layer}",
                alt=f"D of the {word}s of {layer} with intervals",
                on_click=lambda: units.take_click("intervals"),
            )
    with grid.cell(column_span=1 if position is not None else "all"):
        st.markdown("## How much D varies, by depth", help="Each point is one that was zeroed.")
        shared.show(
            figures.drop_by_layer(rows, selected=position, theme=shared.theme()),
            key="depth",
            data=rows,
            name=f"depth-{now['name']}",
            alt=f"D of the {word}s, by depth",
            on_click=lambda: units.take_click("depth"),
        )


shown()

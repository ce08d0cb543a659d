"""Which channel or layer the reader looks at: by a click on a figure, by keyboard, or by the page's address."""

from __future__ import annotations

import pandas as pd
import streamlit as st

_ADDRESS = "unit"
_LAYER, _CHANNEL = "unit-layer", "unit-channel"


def take_click(key: str) -> None:
    """Choose what was clicked in the figure shown under `key`: its customdata begin with a layer and end with a place.

    What lies between are the numbers of its channels, of which one is a number at the most.
    """
    clicked = st.session_state[key].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        _set(data[0], next((int(side) for side in data[1:-1] if side is not None), None))


def choose(rows: pd.DataFrame, column: str | None, called: str, hint: str) -> int | None:
    """Let the reader choose a row without a mouse, and return its place in the study's table, the index of `rows`.

    `column` numbers the channels, None where a row is a whole layer; `called` is what a row is called. None, and the
    `hint`, as long as none is chosen. The choice is in the page's address, and stays on other pages.
    """
    st.markdown(f"**One {called}**", help="Click on it in a figure, or choose it here.")
    _follow_address(rows, column)
    layer = st.selectbox(
        "Layer",
        list(rows.sort_values("depth", kind="stable")["layer"].unique()),
        index=None,
        key=_LAYER,
        persist_state="session",
        placeholder="Click on a cell, or choose a layer",
    )
    if layer is None:
        st.query_params.pop(_ADDRESS, None)
        st.caption(hint)
        return None
    own = rows[rows["layer"] == layer]
    if column is None:
        st.query_params[_ADDRESS] = layer
        return int(own.index[0])
    channel = st.selectbox(
        called.capitalize(), sorted(own[column].astype(int).tolist()), key=_CHANNEL, persist_state="session"
    )
    st.query_params[_ADDRESS] = f"{layer}:{channel}"
    positions = own.index[own[column] == channel]
    return int(positions[0]) if len(positions) else None


def _follow_address(rows: pd.DataFrame, column: str | None) -> None:
    """Choose what the address names, when a page is opened by it; an address that names nothing here is left alone."""
    address = st.query_params.get(_ADDRESS, "")
    if _LAYER in st.session_state:
        return
    layer, _, number = address.rpartition(":") if column is not None else (address, "", "")
    named = rows["layer"] == layer
    if column is None and named.any():
        _set(layer, None)
    elif column is not None and number.isdecimal() and (named & (rows[column] == int(number))).any():
        _set(layer, int(number))


def _set(layer: str, channel: int | None) -> None:
    st.session_state[_LAYER] = layer
    if channel is not None:
        st.session_state[_CHANNEL] = channel

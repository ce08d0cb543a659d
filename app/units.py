"""Which channel or layer the reader looks at: by a click on a figure, by keyboard, or by the page's address."""

from __future__ import annotations

import pandas as pd
import shared
import streamlit as st

_ADDRESS, _SEEN, _GONE = "unit", "unit-address", "unit-gone"
_LAYER, _CHANNEL = "unit-layer", "unit-channel"


def take_click(key: str) -> None:
    """Choose what was clicked in the figure shown under `key`: its customdata begin with a layer and end with a place.

    What lies between are the numbers of its channels, of which one is a number at the most.
    """
    clicked = st.session_state[key].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        _set(data[0], next((int(side) for side in data[1:-1] if side is not None), None))


def take_layer(key: str, rows: pd.DataFrame) -> None:
    """Choose the most important row of the layer that was clicked in the figure shown under `key`."""
    clicked = st.session_state[key].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        own = rows[(rows["layer"] == data[0]) & rows["drop"].notna()]
        if len(own):
            take_row(own.loc[own["drop"].idxmax()])


def take_row(row: pd.Series) -> None:
    """Choose the channel or the layer of a row of a study's table."""
    channels = row[["out_channel", "in_channel"]].dropna().astype(int).tolist()
    _set(str(row["layer"]), channels[0] if channels else None)


def choose(rows: pd.DataFrame, column: str | None, called: str, hint: str) -> int | None:
    """Let the reader choose a row without a mouse, and return its place in the study's table, the index of `rows`.

    `column` numbers the channels, None where a row is a whole layer; `called` is what a row is called. None, and the
    `hint`, as long as none is chosen. The choice is in the page's address, and stays on other pages.
    """
    st.markdown(f"## One {called}", help="Click on it in a figure, or choose it here.")
    gone = _follow_address(rows, column)
    layer = st.selectbox(
        "Layer",
        list(rows.sort_values("depth", kind="stable")["layer"].unique()),
        index=None,
        key=_LAYER,
        persist_state="session",
        placeholder="Click on a cell, or choose a layer",
    )
    if layer is None:
        if gone:
            shared.not_here(called, gone)
        else:
            st.query_params.pop(_ADDRESS, None)
        st.caption(hint)
        return None
    own = rows[rows["layer"] == layer]
    if column is None:
        st.query_params[_ADDRESS] = st.session_state[_SEEN] = layer
        return int(own.index[0])
    channel = st.selectbox(
        called.capitalize(), sorted(own[column].astype(int).tolist()), key=_CHANNEL, persist_state="session"
    )
    st.query_params[_ADDRESS] = st.session_state[_SEEN] = f"{layer}:{channel}"
    positions = own.index[own[column] == channel]
    return int(positions[0]) if len(positions) else None


def _follow_address(rows: pd.DataFrame, column: str | None) -> str | None:
    """Choose what the address names; return that, or what another page or study had chosen, if it is not among `rows`.

    Nothing is chosen in its place, as `kernels` does.
    """
    asked, seen = st.query_params.get(_ADDRESS), st.session_state.get(_SEEN)
    layer, channel = st.session_state.get(_LAYER), st.session_state.get(_CHANNEL)
    now = layer if layer is None or column is None else f"{layer}:{channel}"
    gone = st.session_state.pop(_GONE, None)
    if asked is None or (asked != gone and _LAYER in st.session_state and asked == seen):
        if now is None or now != seen:
            return None  # nothing, or what was chosen on this page just now
        asked = now
    elif asked == gone and layer is not None:
        return None  # chosen in its place just now
    layer, _, number = asked.rpartition(":") if column is not None else (asked, "", "")
    named = rows["layer"] == layer
    if column is not None:
        named &= rows[column] == int(number) if number.isdecimal() else False
    if not named.any():
        st.session_state.pop(_LAYER, None)
        st.session_state.pop(_CHANNEL, None)
        st.session_state[_GONE] = asked
        return asked
    _set(layer, None if column is None else int(number))
    return None


def _set(layer: str, channel: int | None) -> None:
    st.session_state[_LAYER] = layer
    if channel is not None:
        st.session_state[_CHANNEL] = channel

"""Which kernel the reader looks at: by a click on a mosaic, by keyboard, or by the page's address."""

from __future__ import annotations

import pandas as pd
import streamlit as st

_ADDRESS = "kernel"
_KEYS = ("kernel-layer", "kernel-out", "kernel-in")


def take_click(key: str) -> None:
    """Choose the kernel that was clicked in the mosaic shown under `key`."""
    clicked = st.session_state[key].selection.points
    if clicked and (kernel := clicked[0].get("customdata")):
        _set(kernel[0], kernel[1], kernel[2])


def chosen() -> tuple[str, int, int] | None:
    """Return layer, output and input channel of the chosen kernel."""
    layer, out, into = (st.session_state.get(key) for key in _KEYS)
    return None if layer is None or out is None or into is None else (layer, int(out), int(into))


def choose(rows: pd.DataFrame, hint: str) -> int | None:
    """Let the reader choose a kernel without a mouse, and return its row's place in the table.

    None, and the `hint`, as long as none is chosen. The choice is in the page's address, and stays on other pages.
    """
    st.markdown("**One kernel**", help="Click on a cell of the maps, or choose a layer and its channels here.")
    kernels = rows.dropna(subset=["layer", "out_channel", "in_channel"])
    _follow_address(kernels)
    layer = st.selectbox(
        "Layer",
        list(kernels.sort_values("depth")["layer"].unique()),
        index=None,
        key=_KEYS[0],
        persist_state="session",
        placeholder="Click on a cell, or choose a layer",
    )
    if layer is None:
        st.query_params.pop(_ADDRESS, None)
        st.caption(hint)
        return None
    own = kernels[kernels["layer"] == layer]
    with st.container(horizontal=True):
        out, into = (
            st.selectbox(title, sorted(own[column].astype(int).unique().tolist()), key=key, persist_state="session")
            for title, column, key in (
                ("Output channel", "out_channel", _KEYS[1]),
                ("Input channel", "in_channel", _KEYS[2]),
            )
        )
    st.query_params[_ADDRESS] = f"{layer}:{out}:{into}"
    found = own.index[(own["out_channel"] == out) & (own["in_channel"] == into)]
    return int(found[0]) if len(found) else None


def _follow_address(kernels: pd.DataFrame) -> None:
    """Choose what the address names, when a page is opened by it; an address that names nothing here is left alone."""
    layer, *channels = st.query_params.get(_ADDRESS, "").rsplit(":", 2)
    if _KEYS[0] in st.session_state or len(channels) != 2 or not all(text.isdecimal() for text in channels):
        return
    out, into = map(int, channels)
    named = (kernels["layer"] == layer) & (kernels["out_channel"] == out) & (kernels["in_channel"] == into)
    if named.any():
        _set(layer, out, into)


def _set(layer: str, out: int, into: int) -> None:
    for key, value in zip(_KEYS, (layer, out, into), strict=True):
        st.session_state[key] = value

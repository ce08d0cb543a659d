"""Which layers and which kernel the reader looks at: by a click on a mosaic, by keyboard, or by the page's address."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

import pandas as pd
import shared
import streamlit as st

LAYERS_A_PAGE = 48
KERNELS_A_PAGE = 6_000  # more cells than that are slow to draw and to hover over, and too small to hit

_ADDRESS, _SEEN, _GONE = "kernel", "kernel-address", "kernel-gone"
_KEYS = ("kernel-layer", "kernel-out", "kernel-in")


def take_click(key: str) -> None:
    """Choose the kernel that was clicked in the mosaic shown under `key`."""
    clicked = st.session_state[key].selection.points
    if clicked and (kernel := clicked[0].get("customdata")):
        _set(kernel[0], kernel[1], kernel[2])


def take_row(row: pd.Series) -> None:
    """Choose the kernel of a row of a study's table."""
    _set(str(row["layer"]), int(row["out_channel"]), int(row["in_channel"]))


def take_layer(key: str, rows: pd.DataFrame) -> None:
    """Choose the most important kernel of the layer that was clicked in the figure shown under `key`, and its page."""
    clicked = st.session_state[key].selection.points
    if not clicked or not (data := clicked[0].get("customdata")):
        return
    own = rows[(rows["layer"] == data[0]) & rows["drop"].notna() & rows["in_channel"].notna()]
    if own.empty:
        return
    take_row(own.loc[own["drop"].idxmax()])
    for number, layers in enumerate(pages_of(_sizes(rows)), start=1):
        if data[0] in layers and "page" in st.session_state:
            st.session_state["page"] = number


def chosen() -> tuple[str, int, int] | None:
    """Return layer, output and input channel of the chosen kernel."""
    layer, out, into = (st.session_state.get(key) for key in _KEYS)
    return None if layer is None or out is None or into is None else (layer, int(out), int(into))


def address() -> dict[str, str]:
    """Return the part of an address that opens the chosen kernel; nothing where none is."""
    now = chosen()
    return {} if now is None else {_ADDRESS: _word(*now)}


def choose(rows: pd.DataFrame, hint: str) -> int | None:
    """Let the reader choose a kernel without a mouse, and return its row's place in the table.

    None, and the `hint`, as long as none is chosen. The choice is in the page's address, and stays on other pages.
    """
    st.markdown("## One kernel", help="Click on a cell of the maps, or choose a layer and its channels here.")
    kernels = rows.dropna(subset=["layer", "out_channel", "in_channel"])
    gone = _follow_address(kernels)
    layer = st.selectbox(
        "Layer",
        list(kernels.sort_values("depth")["layer"].unique()),
        index=None,
        key=_KEYS[0],
        persist_state="session",
        placeholder="Click on a cell, or choose a layer",
    )
    if layer is None:
        if gone:
            shared.not_here("kernel", gone)
        else:
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
    st.query_params[_ADDRESS] = st.session_state[_SEEN] = _word(layer, int(out), int(into))
    positions = own.index[(own["out_channel"] == out) & (own["in_channel"] == into)]
    return int(positions[0]) if len(positions) else None


def page_of_layers(rows: pd.DataFrame, most: int = KERNELS_A_PAGE) -> list[str]:
    """Return the layers that fit one picture of `most` kernels; let the reader turn the page where there are more."""
    return page_of_sizes(_sizes(rows), most)


def page_of_sizes(sizes: dict[str, int], most: int, most_layers: int = LAYERS_A_PAGE) -> list[str]:
    """Do what `page_of_layers` does, given how many kernels each layer has, in order."""
    pages = pages_of(sizes, most, most_layers)
    if len(pages) <= 1:
        return list(sizes)
    with st.container(horizontal=True, vertical_alignment="center"):
        number = st.pagination(len(pages), key="page", bind="query-params") - 1
        shown = pages[min(number, len(pages) - 1)]
        first = list(sizes).index(shown[0]) + 1
        st.caption(
            f"Layers {first:,} to {first + len(shown) - 1:,} of {len(sizes):,}: "
            f"{shared.plain(shown[0])} to {shared.plain(shown[-1])}"
        )
    return shown


def _sizes(rows: pd.DataFrame) -> dict[str, int]:
    """Return how many kernels each layer has, in order."""
    counts = rows.dropna(subset=["layer"]).groupby(["depth", "layer"]).size()
    return {str(layer): int(count) for (_, layer), count in counts.items()}


def pages_of(sizes: dict[str, int], most: int = KERNELS_A_PAGE, most_layers: int = LAYERS_A_PAGE) -> list[list[str]]:
    """Share layers out to pages, in order, given each one's number of kernels and how many a page may have of both.

    A stage begins a new page where it would be cut otherwise; one that is too large for a page is cut in even parts.
    """
    pages: list[list[str]] = [[]]
    for _, members in groupby(sizes, _stage):
        for part in _parts(list(members), sizes, most, most_layers):
            if pages[-1] and not _fits([*pages[-1], *part], sizes, most, most_layers):
                pages.append([])
            pages[-1] += part
    return pages


def _parts(layers: list[str], sizes: dict[str, int], most: int, most_layers: int) -> list[list[str]]:
    for number in range(1, len(layers) + 1):
        ends = [round(part * len(layers) / number) for part in range(number + 1)]
        parts = [layers[start:end] for start, end in pairwise(ends)]
        if all(_fits(part, sizes, most, most_layers) for part in parts):
            return parts
    return [[layer] for layer in layers]


def _fits(layers: list[str], sizes: dict[str, int], most: int, most_layers: int) -> bool:
    return len(layers) <= most_layers and sum(sizes[layer] for layer in layers) <= most


def _stage(layer: str) -> str:
    """Return what the layers of a stage have in common: "layer3" of layer3.0.conv1, "stages.2" of stages.2.blocks.0."""
    match = re.match(r".*?\d[^.]*(?=\.)", layer)
    return match[0] if match else layer.rpartition(".")[0]


def _follow_address(kernels: pd.DataFrame) -> str | None:
    """Choose what the address names; return that, or what was chosen for another study, if it is not among `kernels`.

    Nothing is chosen in its place: another kernel would be taken for the one that was asked for.
    """
    asked, seen, now = st.query_params.get(_ADDRESS), st.session_state.get(_SEEN), chosen()
    gone, wanted = st.session_state.pop(_GONE, None), None
    if asked is not None and (asked == gone or _KEYS[0] not in st.session_state or asked != seen):
        if asked == gone and st.session_state.get(_KEYS[0]) is not None:
            return None  # chosen in its place just now
        wanted = _kernel_of(asked)
    elif now is not None and _word(*now) == seen:
        asked, wanted = seen, now
    else:
        return None  # nothing, or what was chosen on this page just now
    if wanted is None or not _are(kernels, wanted).any():
        for key in _KEYS:
            st.session_state.pop(key, None)
        st.session_state[_GONE] = asked
        return asked
    _set(*wanted)
    return None


def _kernel_of(address: str) -> tuple[str, int, int] | None:
    layer, *channels = address.rsplit(":", 2)
    if len(channels) != 2 or not all(text.isdecimal() for text in channels):
        return None
    return layer, int(channels[0]), int(channels[1])


def _word(layer: str, out: int, into: int) -> str:
    return f"{layer}:{out}:{into}"


def _are(kernels: pd.DataFrame, wanted: tuple[str, int, int]) -> pd.Series:
    layer, out, into = wanted
    return (kernels["layer"] == layer) & (kernels["out_channel"] == out) & (kernels["in_channel"] == into)


def _set(layer: str, out: int, into: int) -> None:
    for key, value in zip(_KEYS, (layer, out, into), strict=True):
        st.session_state[key] = value

"""What the pages share: how they look, choosing a study, and a figure that can be saved."""

from __future__ import annotations

import functools
import html
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import browser
import pandas as pd
import plotly.graph_objects as go
import reading
import streamlit as st

from weanalysis import figures
from weanalysis.cache import safe_name, storable
from weanalysis.errors import WeanalysisError
from weanalysis.kinds import called
from weanalysis.tasks import find_metric

Colour = Literal["blue", "green", "orange", "red", "gray"]

POLL_SECONDS = 3.0
RUNNING = "running"
_ROOM, _PICTURED = "window-room", "figures-are-of"
SILENT_MINUTES = 10
_NAMES_WHEN_NARROW = 10
_TELEPHONE_PIXELS = 358  # what is left for a figure of a window 390 pixels wide

AXES = "each row is an output channel, each column an input channel"  # of a layer's map

INTERVALS = "Tango's paired score interval; anytime-valid where ablations were stopped early"
SCREENED = (
    "The study was screened: most images' predictions are predicted from gradients, and only those at risk are "
    "computed. D on these very images lies between these bounds; what other images would add is in the 95 % interval"
)

# Streamlit leaves much room above and beside a page; an instrument needs it for its figures. A page has none of the
# variables (--st-…) that its components have.
_STYLE = """
<style>
.stMainBlockContainer {padding: 2.6rem 2rem 3rem 2rem;}
[data-testid="stMetricValue"] {font-size: 1.5rem;}
.weanalysis-names {position: absolute; inset: 0; overflow: hidden; pointer-events: none;}
.weanalysis-names span {
    position: absolute; padding: 0 0.25rem; font-size: 12px; line-height: 16px;
    background: light-dark(LIGHT_PAGE, DARK_PAGE);
}
.st-key-preload, .st-key-keep-zoom {display: none;}
[class*="st-key-link-"] button p {text-decoration: underline;}
/* What Streamlit draws paler than a contrast of 4.5 : 1. */
[data-testid="stCode"] .token[class], [data-testid="stPaginationEllipsis"] {color: inherit;}
/* White cannot be read on a blue that can be read on black. */
:is(button[data-testid="stBaseButton-primary"], [data-testid="stMultiSelect"] [data-tag]),
:is(button[data-testid="stBaseButton-primary"], [data-testid="stMultiSelect"] [data-tag]) * {
    color: light-dark(#FFFFFF, #101317);
}
/* Captions at less than full strength fall below a contrast of 4.5 : 1. */
[data-testid="stCaptionContainer"] {color: inherit; opacity: 0.8;}
[data-testid="stCaptionContainer"] * {color: inherit; opacity: 1;}
.stApp :is([data-testid="stSidebar"], [data-testid="stHeader"]) :focus-visible {
    outline: 2px solid currentColor !important; outline-offset: -2px;
}
/* Headings are of the level that they have in the page, and smaller than those of a text. */
[data-testid="stMarkdown"] :is(h2, h3) {font-size: 1rem !important; font-weight: 600 !important;}
[data-testid="stMarkdown"] :is(h2, h3) {padding: 0.2rem 0 !important;}
[data-testid="stHeading"] h2 {font-size: 1.25rem !important; font-weight: 600 !important; padding: 0.5rem 0 !important;}
@media (max-width: 640px) {
    .stMainBlockContainer {padding: 2.6rem 0.75rem 3rem 0.75rem;}
}
</style>
""".replace("LIGHT_PAGE", figures.THEMES["light"].page).replace("DARK_PAGE", figures.THEMES["dark"].page)

_NOTHING = go.Figure()


def style() -> None:
    """Set what Streamlit's configuration cannot: the margins of the page, and that a zoom outlives a new figure."""
    st.html(_STYLE)
    with st.container(key="keep-zoom"):
        browser.KEEP_ZOOM(key="keeps-zoom")
        known = browser.WIDTH(key="width", data={"room": _room()}, on_room_change=lambda: None)
        st.session_state[_ROOM] = known.room or "wide"


def _room() -> str:
    """Return how wide the window is: "narrow" on a telephone, "medium" on a tablet, else "wide"."""
    return str(st.session_state.get(_ROOM, "wide"))


def is_narrow() -> bool:
    """Whether the page is shown on a telephone, where a mosaic has room for two maps side by side."""
    return _room() == "narrow"


def columns(wide: int | None) -> int | None:
    """Return how many maps a mosaic has side by side, given how many where there is room (None: as it likes)."""
    most = {"narrow": 2, "medium": 4}.get(_room())
    return wide if most is None else min(most, wide or most)


def pictured(*studies: str) -> None:
    """Note what the figures of this page are of, which a saved picture says; without any, of nothing in particular."""
    st.session_state[_PICTURED] = " beside ".join(studies)


def preload_plotly() -> None:
    """Make the browser load Plotly, most of what a page with figures needs, while Python still reads the study.

    Streamlit asks for it when the first figure arrives; this one is empty and never seen.
    """
    with st.container(key="preload"):
        st.plotly_chart(_NOTHING, key="preload-figure", theme=None)


@contextmanager
def faults() -> Iterator[None]:
    """Say in one line what could not be read; the rest of the page works on."""
    try:
        yield
    except WeanalysisError as error:
        st.error(plain(error), icon=":material/error:")
    except (sqlite3.Error, OSError) as error:
        st.error(f"The cache {plain(reading.cache().root)} cannot be read ({plain(error)}).", icon=":material/error:")


def live(running: bool) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Make a part of a page that is drawn anew by itself while `running`, and that keeps its faults to itself."""

    def decorate(part: Callable[[], None]) -> Callable[[], None]:
        @st.fragment(run_every=POLL_SECONDS if running else None)
        @functools.wraps(part)
        def guarded() -> None:
            with faults():
                part()

        return guarded

    return decorate


def theme() -> str:
    """Return "light" or "dark", as the reader's browser shows the page now."""
    return "dark" if st.context.theme.type == "dark" else "light"


def how_to_begin(kind: str | None = None) -> None:
    """Say which command makes what this page shows."""
    what = f"No {kind} study yet" if kind else "Nothing has been measured yet"
    st.info(
        f"{what}. Run a study under Jobs or in a terminal; it appears here while it runs.",
        icon=":material/rocket_launch:",
    )
    study = f" --study {kind}" if kind else ""
    st.markdown("**On a network trained here on handwritten digits** (nothing to download, a few minutes):")
    st.code(f"weanalysis ablate --model resnet20{study}", language="bash")
    st.markdown("## On your own network and images:")
    st.code(f"weanalysis ablate --model resnet50 --weights FILE --data imagefolder:DIR{study}", language="bash")
    st.caption(f"Results are kept in {plain(reading.cache().root)}.")


def measured(row: pd.Series) -> None:
    """Tell D of one row of a study's table, and how sure it is."""
    what, metric = called(row["selection"]), find_metric(row["metric"])
    with st.container(horizontal=True):
        st.metric(
            f"D ({metric.unit})",
            metric.words(row["drop"]),
            help=f"{metric.meaning}, when this {what} is zeroed. Positive: it was needed.",
        )
        st.metric("95 % interval", metric.interval(row["drop_low"], row["drop_high"]), help=f"{INTERVALS}.")
        if figures.is_screened(row.to_frame().T).any():
            bounds = figures.interval(row["screen_low"], row["screen_high"])
            st.metric("Screening bounds", bounds, help=f"{SCREENED}.")


def state_badge(state: str) -> None:
    colours: dict[str, Colour] = {"running": "blue", "complete": "green", "stopped": "orange", "failed": "red"}
    st.badge(state, color=colours.get(state, "gray"))


def show(
    figure: go.Figure,
    key: str,
    data: pd.DataFrame,
    name: str,
    alt: str,
    on_click: Callable[[], None] | None = None,
) -> Any:
    """Show `figure` under `key` with buttons that save it as PNG or SVG and `data` as CSV, as files called `name`.

    `alt` says what is drawn, with its axes where these are not named; a saved picture says it too. `on_click` is
    called when the reader clicks on a point; the point is then in st.session_state[key].
    """
    figure.update_layout(uirevision=f"{name} {figure.layout.uirevision}")  # another study is another picture
    if is_narrow():
        _thin_out_names(figure)
    figures.make_room(figure)
    widest = (figure.layout.meta or {}).get("most_pixels")
    if widest and is_narrow():
        _shrink_to_telephone(figure, widest)
    event = st.plotly_chart(
        figure,
        width=widest + figure.layout.margin.l + figure.layout.margin.r if widest else "stretch",
        key=key,
        theme=None,
        alt=alt,
        on_select=on_click or "ignore",
        selection_mode="points",
        config={
            "displaylogo": False,
            "showSendToCloud": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        },
    )
    saving = st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save")
    with saving, st.container(horizontal=True, vertical_alignment="center"):
        words = {"title": st.session_state.get(_PICTURED, ""), "about": alt}
        browser.SAVE_BUTTONS(key=f"{key}-picture", data={"key": key, "name": safe_name(name), **words}, width="content")
        st.download_button(
            "CSV",
            lambda: data.to_csv(index=False).encode(),
            file_name=f"{safe_name(name)}.csv",
            mime="text/csv",
            key=f"{key}-csv",
            on_click="ignore",
        )
    return event


def _shrink_to_telephone(figure: go.Figure, widest: int) -> None:
    """Make a picture of square cells as low as a telephone's width makes it, so that there is no hole below it."""
    margin = figure.layout.margin
    shrunk = min(1.0, (_TELEPHONE_PIXELS - margin.l - margin.r) / widest)
    around = margin.t + margin.b
    figure.update_layout(height=around + (figure.layout.height - around) * shrunk)


def _thin_out_names(figure: go.Figure) -> None:
    """Leave out so many of the names along a figure that they are not printed over each other on a telephone."""
    axis = figure.layout.xaxis
    if axis.ticktext and axis.tickangle and (step := math.ceil(len(axis.ticktext) / _NAMES_WHEN_NARROW)) > 1:
        axis.update(tickvals=axis.tickvals[::step], ticktext=axis.ticktext[::step])


def not_here(what: str, named: str) -> None:
    """Say that a kernel, a filter … that the address or another page names is none of the study that is shown."""
    st.warning(f"This study has not measured the {what} {plain(named)}; none is shown.", icon=":material/link_off:")


def plain(text: object) -> str:
    """Keep a name from being read as Markdown or HTML."""
    escaped = html.escape(storable(str(text)), quote=False)
    return "".join("\\" + sign if sign in "\\`*_{}[]()#+-.!|~:$" else sign for sign in escaped)

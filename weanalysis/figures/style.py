"""How every figure looks: its page, its axes, its words."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.tasks import METRICS, Metric, find_metric

_MOST_DOTS = 500  # beyond it dots lie on each other, and each is an element that the browser draws
_MOST_SIGNIFICANT_DOTS = 3_000
SIGNIFICANT_Q = 0.05
MOST_MARKERS = 50  # of a curve, for the same reason; every point tells what it is, marked or not


_LEGEND_PIXELS = 520  # a legend's width in a page of two columns


FONT = '"Source Sans", "Source Sans Pro", "Helvetica Neue", Arial, sans-serif'


def new_figure(theme: str, height: int, **layout: object) -> go.Figure:
    """Return an empty figure in the colours of `theme` ("light" or "dark"), `height` in pixels."""
    axes = {"xaxis": _axis(theme), "yaxis": _axis(theme)}
    return go.Figure(layout=_base(theme, height) | axes).update_layout(**layout)


def new_panels(theme: str, height: int, panels: dict[str, object], **layout: object) -> go.Figure:
    """Return an empty figure of several panels; `panels` are the arguments of Plotly's make_subplots."""
    figure = make_subplots(**panels)
    axes = {name: _axis(theme) for name in figure.layout if name.startswith(("xaxis", "yaxis"))}
    figure.update_layout(**_base(theme, height), **axes)
    figure.update_annotations(font={"size": 13, "color": THEMES[theme].ink})
    return figure.update_layout(**layout)


def _axis(theme: str) -> dict[str, Any]:
    colours = THEMES[theme]
    return {
        "gridcolor": colours.grid,
        "zerolinecolor": colours.grid,
        "linecolor": colours.muted,
        "tickfont": {"color": colours.muted, "size": 12},
        "title": {"font": {"color": colours.ink, "size": 13}, "standoff": 8},
        "automargin": True,
        # Else the browser measures every label, twice, to hide one that sticks out; of these none does.
        "ticklabeloverflow": "allow",
    }


def _base(theme: str, height: int) -> dict[str, Any]:
    colours = THEMES[theme]
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 28, "b": 8},
        "paper_bgcolor": colours.page,
        "plot_bgcolor": colours.page,
        "font": {"family": FONT, "size": 13, "color": colours.ink},
        "hoverlabel": {
            "bgcolor": colours.tile,
            "bordercolor": colours.muted,
            "font": {"color": colours.ink, "size": 13},
        },
        "colorway": list(CATEGORICAL),
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        # A new figure of the same study keeps the zoom that the reader chose.
        "uirevision": "keep",
        "dragmode": "zoom",
    }


def make_room(figure: go.Figure) -> go.Figure:
    """Widen the margins of a figure to a little more than its labels and its legend will take; return it.

    Where they do not fit, the browser draws the whole figure a second time.

    >>> figure = new_figure("light", 300, yaxis={"ticktext": ["layer1.0.conv1", "layer1.0.conv2"], "tickvals": [0, 1]})
    >>> before = figure.layout.margin.l
    >>> before, make_room(figure).layout.margin.l
    (8, 111)
    """
    layout, room = figure.layout, figure.layout.margin.to_plotly_json()
    beside, below = layout.yaxis, layout.xaxis
    if beside.visible is not False:
        labels = 20 + 6.5 * _longest(beside.ticktext) if beside.ticktext else 42
        room["l"] = max(room["l"], labels + (22 if beside.title.text else 0))
    if below.visible is not False:
        labels = 28 + 4.6 * _longest(below.ticktext) if below.tickangle else 30
        room["b"] = max(room["b"], labels + (24 if below.title.text else 0))
    bars = [
        one.colorbar.title.text or "" for one in figure.data if one.type == "heatmap" and one.showscale is not False
    ]
    if bars:
        room["r"] = max(room["r"], 70, 42 + 5.5 * _longest([text.removesuffix("<br> ") for text in bars]))
    names = [one.name for one in figure.data if one.name and one.showlegend is not False]
    if len(names) > 1 and layout.showlegend is not False:
        rows = math.ceil(sum(40 + 6.5 * len(name) for name in names) / _LEGEND_PIXELS)
        room["t"] = max(room["t"], 22 + 19 * rows + 0.02 * layout.height)
    return figure.update_layout(margin={side: math.ceil(pixels) for side, pixels in room.items()})


def _longest(labels: Sequence[str] | None) -> int:
    return max((len(label) for label in labels or ()), default=0)


def message_figure(message: str, theme: str, height: int = 240) -> go.Figure:
    """Return a figure that says why there is nothing to draw."""
    figure = new_figure(theme, height)
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    figure.add_annotation(text=html.escape(message), showarrow=False, font={"color": THEMES[theme].muted, "size": 15})
    return figure


def histogram(
    values: np.ndarray,
    bins: int,
    symbol: str,
    quantity: str,
    theme: str,
    digits: str,
    top: int,
    ends: tuple[float, float] | None = None,
) -> go.Figure:
    """Draw how many values (`symbol`, numbers of a `quantity`) lie in each of some equal bins."""
    counts, edges = np.histogram(values, bins=bins, range=ends)
    figure = new_figure(
        theme,
        300,
        bargap=0.02,
        showlegend=False,
        margin={"l": 8, "r": 8, "t": top, "b": 8},
        yaxis_title_text=f"number of {quantity}",
    )
    figure.add_trace(
        go.Bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges),
            marker={"color": THEMES[theme].line, "line": {"width": 0}},
            customdata=np.stack([edges[:-1], edges[1:]], axis=1).tolist(),
            hovertemplate=f"{symbol} from %{{customdata[0]:{digits}}} to %{{customdata[1]:{digits}}}<br>%{{y:,}} "
            f"{quantity}<extra></extra>",
        )
    )
    return figure


def each(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Go through a table row by row, as tuples of the plain values of these columns."""
    return zip(*(table[column].tolist() for column in columns), strict=True)


def measurement(drop: float, low: float, high: float, metric: Metric, quantity: str = "D") -> str:
    """Word a D and its interval in two lines of a hover text."""
    return f"<br>{quantity} = {metric.words(drop)} {metric.unit}<br>95 % interval {metric.interval(low, high)}"


def screenings(table: pd.DataFrame) -> pd.Series:
    """Word between which bounds D on the very images measured lies, row by row; empty where D is exact.

    `table` has the results' columns drop, screen_low and screen_high; a table without bounds has exact D.
    """
    words = pd.Series("", index=table.index, dtype=object)
    if {"screen_low", "screen_high"} <= set(table):
        bounded = is_screened(table)
        words[bounded] = [
            f"<br>on these images {interval(low, high)} (screened)"
            for low, high in each(table[bounded], "screen_low", "screen_high")
        ]
    return words


def is_screened(table: pd.DataFrame) -> pd.Series:
    """Tell of each row whether D on the very images measured is known only within screen_low and screen_high.

    >>> table = pd.DataFrame({"drop": [1.0, 1.0], "screen_low": [1.0, 0.9], "screen_high": [1.0, 1.2]})
    >>> is_screened(table).tolist()
    [False, True]
    """
    low, high = table["screen_low"].astype(float), table["screen_high"].astype(float)
    return low.notna() & high.notna() & ((low != table["drop"]) | (high != table["drop"]))


def clickable(x: Any, y: Any, customdata: list[list[Any]], words: list[str]) -> go.Scatter:
    """Return invisible points to lay over a heatmap, which alone tells Streamlit of no click.

    Of the markers one at the most is drawn, and that one cannot be seen: to make an element for each takes longer than
    all else together. All of them tell what they are and take clicks.
    """
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"maxdisplayed": 1, "opacity": 0},
        showlegend=False,
        # As arrays: plotly looks at lists element by element, which takes longer than to draw them.
        customdata=np.array(customdata, dtype=object),
        hovertext=np.array(words, dtype=object),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def error_bars(
    values: pd.Series, low: pd.Series, high: pd.Series, thickness: float = 1.5, width: int = 3
) -> dict[str, Any]:
    """Return what draws the intervals `low` to `high` about values."""
    sides = {"array": high - values, "arrayminus": values - low}
    return {"type": "data", "symmetric": False, **sides, "thickness": thickness, "width": width}


def diamond(x: float, y: float, theme: str) -> go.Scatter:
    """Return the mark of the point that is chosen, to lay over it; it takes no clicks."""
    marker = {"symbol": "diamond", "size": 12, "color": THEMES[theme].accent}
    return go.Scatter(x=[x], y=[y], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def thinned(table: pd.DataFrame, generator: np.random.Generator, by: str) -> pd.DataFrame:
    """Return the rows themselves, or as many of them as a reader can tell apart as dots.

    `table` has the results' columns drop and q_value. Always among the dots are the largest and the smallest D of all
    and of each value of the column `by`, and what differs from 0 after correction (of very many, the largest); only
    what is left is drawn at random.
    """
    if len(table) <= _MOST_DOTS:
        return table
    drop = table["drop"].reset_index(drop=True)
    groups = drop.groupby(table[by].to_numpy())
    kept = np.zeros(len(table), bool)
    kept[[drop.idxmax(), drop.idxmin(), *groups.idxmax(), *groups.idxmin()]] = True
    if "q_value" in table:
        certain = np.flatnonzero(table["q_value"].to_numpy(dtype=float) <= SIGNIFICANT_Q)
        by_size = np.argsort(-np.abs(drop.to_numpy(dtype=float)[certain]), kind="stable")
        kept[certain[by_size[:_MOST_SIGNIFICANT_DOTS]]] = True
    rest = np.flatnonzero(~kept)
    kept[generator.permutation(rest)[: max(0, _MOST_DOTS - int(kept.sum()))]] = True
    return table[kept]


def worded_once(table: pd.DataFrame, *columns: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the different rows of `columns`, and for each row of `table` the place of its own among them.

    Thousands of ablations share a few counts of images, and so their words.
    """
    keys = pd.DataFrame({column: pd.factorize(table[column], use_na_sentinel=False)[0] for column in columns})
    place = keys.groupby(list(columns), sort=False).ngroup().to_numpy()
    _, first = np.unique(place, return_index=True)
    return table.iloc[first], place


def shorten(name: str, length: int) -> str:
    """Fit a layer's name into `length` characters and make it safe to show.

    Its parts are abbreviated from the left, as in "features.denseblock1.conv2" to "f.d1.conv2", so that layers stay
    apart; what is still too long loses its front.
    """
    parts = name.split(".")
    for place in range(len(parts) - 1):
        if len(".".join(parts)) <= length:
            break
        parts[place] = re.sub(r"[A-Za-z_]+", lambda letters: letters[0][0], parts[place])
    short = ".".join(parts)
    return html.escape(short if len(short) <= length else "…" + short[-(length - 1) :])


def layer_ticks(layers: Sequence[str], most: int, length: int = 20) -> dict[str, Any]:
    """Return the ticks of an axis on which the layers lie in order, at even steps and no more than about `most`."""
    shown = range(0, len(layers), -(-len(layers) // most))
    return {"tickvals": list(shown), "ticktext": [shorten(layers[place], length) for place in shown]}


def band(x: Any, low: Any, high: Any, colour: str, opacity: float, **given: Any) -> go.Scatter:
    """Make the trace that fills the area from `low` to `high`, (N,) each like `x`; `given` goes to the trace.

    >>> [value.tolist() for value in (lambda one: (one.x, one.y))(band([0, 1], [2, 3], [4, 5], "#0072B2", 0.2))]
    [[0, 1, 1, 0], [4, 5, 3, 2]]
    """
    x, low, high = (np.asarray(values) for values in (x, low, high))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=translucent(colour, opacity),
        line={"width": 0},
        hoverinfo="skip",
        **given,
    )


def whole_numbers(last: int) -> dict[str, Any]:
    """Return the ticks of an axis that counts from 0 to `last`: whole numbers, about ten at the most.

    >>> whole_numbers(3), whole_numbers(63)["dtick"]
    ({'tick0': 0, 'dtick': 1, 'tickformat': ',d'}, 10)
    """
    step = next(digit * 10**power for power in range(10) for digit in (1, 2, 5) if last / (digit * 10**power) <= 10)
    return {"tick0": 0, "dtick": step, "tickformat": ",d"}


def points(value: float, signed: bool = True) -> str:
    """Word a D in percentage points: two decimals and a true minus sign, or "not measured".

    >>> points(-1.5)
    '−1.50'
    """
    return METRICS["top1"].words(value, signed)


def interval(low: float, high: float) -> str:
    """Word an interval in percentage points, or say that there is none.

    >>> interval(-0.5, 1.25)
    '−0.50 to +1.25'
    """
    return METRICS["top1"].interval(low, high)


def colour_bar(theme: str, title: str, height: int | None = None, **more: Any) -> dict[str, Any]:
    """Return a thin colour bar with `title` above, at the top of the figure where that is `height` pixels high."""
    bar: dict[str, Any] = {
        "thickness": 12,
        "outlinewidth": 0,
        "xpad": 8,
        "ypad": 4,
        "title": {"text": f"{title}<br> ", "font": {"size": 12, "color": THEMES[theme].ink}},
        "tickfont": {"size": 12, "color": THEMES[theme].muted},
    }
    if height is not None:
        bar |= {"lenmode": "pixels", "len": min(height - 8, 380), "y": 1, "yanchor": "top"}
    return bar | more


def drop_title(metric: Metric) -> str:
    """Title the axis of D: what is lost when weights are zeroed.

    >>> drop_title(METRICS["top1"])
    'Accuracy lost, D (points)'
    """
    what = "Accuracy" if metric.counts_images else f"{metric.label[0].upper()}{metric.label[1:]}"
    return f"{what} {'lost' if metric.worse < 0 else 'gained'}, D ({metric.unit})"


def metric_of(rows: pd.DataFrame) -> Metric:
    """Return the metric of a study's table."""
    return find_metric(str(rows["metric"].iloc[0]))

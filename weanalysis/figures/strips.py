"""Studies of channels: each layer a strip, each channel a cell of it; and the channels of one layer with intervals."""

from __future__ import annotations

import html
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, SEQUENTIAL, THEMES, translucent
from weanalysis.figures.location import measurements, significance
from weanalysis.figures.scale import scale_of
from weanalysis.figures.style import (
    SIGNIFICANT_Q,
    clickable,
    colour_bar,
    diamond,
    drop_title,
    error_bars,
    layer_ticks,
    message_figure,
    metric_of,
    new_figure,
    whole_numbers,
)
from weanalysis.kinds import channels_of

Order = Literal["channel", "drop"]

_STRIP_PIXELS = 26
_LEAST_PIXELS = 220
_MOST_MARKERS = 30_000  # clickable cells; with more, the page would carry more text than picture
_MOST_INTERVALS = 400  # with more, intervals lie on each other and hide the points
_NOTHING = "No channel has been measured yet."


def channel_strips(
    table: pd.DataFrame,
    order: Order = "channel",
    hide_insignificant: bool = False,
    *,
    marked: Collection[int] = (),
    selected: int | None = None,
    quantity: str = "D",
    theme: str = "light",
) -> go.Figure:
    """Draw the channels of every layer as a strip of cells, coloured by D; the strips lie in network order.

    `table` holds the rows of a channel study (the results' columns) that zero units of one kind, filters or input
    channels; its index is their place in the study. Strips of few channels are stretched by whole numbers. `order`
    "drop" sorts each strip, so that its length in red is the share of channels that the layer needs.
    `hide_insignificant` greys what cannot be told from zero (q > 0.05). The rows whose places are `marked` carry a
    diamond, the one `selected` is framed. `quantity` names what the column drop holds, if not D itself. A click on a
    cell carries customdata [layer, channel, place].

    A strip of three filters, sorted by D:

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 1, 2], "drop": [0.5, 5.0, 1.0], "q_value": 0.01})
    >>> table = table.assign(layer="conv1", depth=0, selection="filter", metric="top1").reindex(columns=COLUMNS)
    >>> figure = channel_strips(table, order="drop")
    >>> [channel for _, channel, _ in figure.data[1].customdata]
    [1, 2, 0]
    """
    rows, column = _units(table)
    if rows.empty or column is None:
        return message_figure(_NOTHING, theme)
    rows = _laid_out(rows, column, order)
    layers = list(dict.fromkeys(rows["layer"]))
    shades = rows["drop"].astype(float)
    if hide_insignificant:
        shades = shades.where(significance(rows) <= SIGNIFICANT_Q)
    metric = metric_of(rows)
    scale = scale_of(rows, rows["drop"])
    limit, marks, shades = scale.end, scale.marks(metric, f"{quantity}, {metric.unit}"), scale.places(shades)
    scale_of_colours = {"colorscale": THEMES[theme].diverging, "zmin": -limit, "zmax": limit}
    figure = _strips_figure(_cells(rows, shades), layers, scale_of_colours, marks, order, theme)
    middles = (rows["left"] + rows["right"] - 1) / 2
    figure.update_layout(
        shapes=[*_grounds(rows, theme), *_frame(rows, selected, theme)],
        showlegend=bool(len(marked)),
    )
    if len(rows) <= _MOST_MARKERS:
        figure.add_trace(clickable(middles, rows["strip"], _keys(rows, column), _words(rows, column, quantity)))
    if len(chosen := rows[rows.index.isin(list(marked))]):
        marker = {"symbol": "diamond", "size": 8, "color": THEMES[theme].accent}
        figure.add_trace(
            go.Scatter(
                x=middles[chosen.index],
                y=chosen["strip"],
                mode="markers",
                name="better off without, confirmed",
                marker={**marker, "line": {"width": 1.5, "color": THEMES[theme].page}},
                hoverinfo="skip",
            )
        )
    return figure


def score_strips(units: pd.DataFrame, criterion: str, within: str = "network", *, theme: str = "light") -> go.Figure:
    """Draw a saliency criterion's score of every channel as `channel_strips` draws D: each layer a strip of cells.

    `units` holds rows of a channel study of units of one kind with a column called `criterion`. The colour is the share
    of channels with a lower score, `within` the "network" or the "layer", in percent, as in a `saliency_mosaic`.

    >>> units = pd.DataFrame({"layer": "conv1", "depth": 0, "selection": "filter", "out_channel": [0, 1]})
    >>> score_strips(units.assign(l1=[0.1, 0.4]), "l1").data[0].z.tolist()
    [[50.0, 100.0]]
    """
    rows, column = _units(units)
    if rows.empty or column is None or rows[criterion].isna().all():
        return message_figure(f"{criterion} says nothing of these channels.", theme)
    rows = _laid_out(rows, column, "channel")
    scores = rows[criterion].groupby(rows["layer"]) if within == "layer" else rows[criterion]
    ranks = 100 * scores.rank(pct=True)
    marks = {"title": "rank, %"}
    colours = {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 100}
    layers = list(dict.fromkeys(rows["layer"]))
    figure = _strips_figure(_cells(rows, ranks), layers, colours, marks, "channel", theme)
    figure.update_layout(shapes=_grounds(rows, theme), showlegend=False)
    if len(rows) <= _MOST_MARKERS:
        said = [
            f"<b>{html.escape(str(layer))}</b><br>{html.escape(str(selection))} {channel:.0f}<br>"
            f"{html.escape(criterion)} = {score:.3g}<br>higher than {rank:.1f} % of the {within}"
            for layer, selection, channel, score, rank in zip(
                rows["layer"], rows["selection"], rows[column], rows[criterion], ranks, strict=True
            )
        ]
        figure.add_trace(clickable((rows["left"] + rows["right"] - 1) / 2, rows["strip"], _keys(rows, column), said))
    return figure


def _cells(rows: pd.DataFrame, shades: pd.Series) -> np.ndarray:
    """Lay the shade of each row into its cells of the strips: (layers, width), NaN where there is none."""
    z = np.full((int(rows["strip"].max()) + 1, int(rows["right"].max())), np.nan, dtype=np.float32)
    for strip, left, right, shade in zip(rows["strip"], rows["left"], rows["right"], shades, strict=True):
        z[strip, left:right] = shade
    return z


def _strips_figure(
    z: np.ndarray, layers: list[str], colours: dict[str, Any], marks: dict[str, Any], order: Order, theme: str
) -> go.Figure:
    """Draw the cells (layers, width) of all strips, and name the layers."""
    height = max(_LEAST_PIXELS, _STRIP_PIXELS * len(layers))
    figure = new_figure(
        theme,
        height + 50,
        margin={"l": 8, "r": 2, "t": 28, "b": 8},
        hovermode="closest",
        hoverdistance=-1,
        uirevision=f"{order} {len(layers)}",
        xaxis_title_text="channels in their order" if order == "channel" else "channels, the most needed first",
    )
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, zeroline=False, range=[-0.5, z.shape[1] - 0.5])
    figure.update_yaxes(**layer_ticks(layers, most=60), showgrid=False, zeroline=False, range=[len(layers) - 0.5, -0.5])
    figure.add_trace(
        go.Heatmap(
            z=z,
            hoverinfo="skip",
            ygap=max(3, round(0.2 * height / len(layers))),
            **colours,
            colorbar=colour_bar(theme, height=height, **marks),
        )
    )
    return figure


def channel_intervals(
    table: pd.DataFrame, layer: str, *, selected: int | None = None, theme: str = "light"
) -> go.Figure:
    """Draw D of every channel of one layer with its 95 % interval; the one `selected` is the diamond.

    `table` is as for `channel_strips`; a click on a channel carries its customdata.

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 1], "drop": [0.5, 5.0], "drop_low": [0, 3], "drop_high": [2, 8]})
    >>> table = table.assign(layer="conv1", depth=0, selection="filter", metric="top1").reindex(columns=COLUMNS)
    >>> points = channel_intervals(table, "conv1").data[0]
    >>> points.y.tolist(), points.error_y.array.tolist()
    ([0.5, 5.0], [1.5, 3.0])
    """
    rows, column = _units(table)
    rows = rows[rows["layer"] == layer].dropna(subset=["drop"])
    if rows.empty or column is None:
        return message_figure("No channel of this layer has been measured yet.", theme)
    metric = metric_of(rows)
    figure = new_figure(
        theme,
        320,
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        xaxis_title_text=str(rows["selection"].iloc[0]),
        yaxis_title_text=drop_title(metric),
        hovermode="closest",
    )
    certain = significance(rows) <= SIGNIFICANT_Q
    for name, own, colour in (
        (f"cannot be told from 0 (q > {SIGNIFICANT_Q:g})", rows[~certain], translucent(CATEGORICAL[8], 0.8)),
        (f"differs from 0 (q ≤ {SIGNIFICANT_Q:g})", rows[certain], THEMES[theme].line),
    ):
        if own.empty:
            continue
        error = error_bars(own["drop"], own["drop_low"], own["drop_high"], thickness=1.2, width=2)
        figure.add_trace(
            go.Scatter(
                x=own[column],
                y=own["drop"],
                error_y=error if len(rows) <= _MOST_INTERVALS else None,
                mode="markers",
                name=name,
                marker={"size": 6, "color": colour},
                customdata=_keys(own, column),
                text=_words(own, column),
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if selected in rows.index:
        figure.add_trace(diamond(rows.loc[selected, column], rows.loc[selected, "drop"], theme))
    figure.update_xaxes(showgrid=False, zeroline=False, **whole_numbers(int(rows[column].max())))
    figure.update_yaxes(zeroline=True, zerolinecolor=THEMES[theme].muted)
    return figure


def _units(table: pd.DataFrame) -> tuple[pd.DataFrame, str | None]:
    """Return the rows that zero one channel each, in network order, and the column that numbers them."""
    rows = table.dropna(subset=["layer"])
    known = [channels_of(name) or () for name in rows["selection"].unique()]
    column = next((channels[0] for channels in known if len(channels) == 1), None)
    if column is None:
        return rows.iloc[:0], None
    return rows.dropna(subset=[column]).sort_values(["depth", "layer", column], kind="stable"), column


def _laid_out(rows: pd.DataFrame, column: str, order: Order) -> pd.DataFrame:
    """Give every row its strip, and from where to where in it its cell lies; what is not measured comes last."""
    strip = rows.groupby("layer", sort=False).ngroup()
    if order == "drop":
        rows = rows.assign(_strip=strip).sort_values(["_strip", "drop"], ascending=[True, False], kind="stable")
        strip = rows.pop("_strip")
    place = rows.groupby("layer", sort=False).cumcount()
    counts = rows.groupby("layer", sort=False)[column].transform("size")
    zoom = counts.max() // counts
    return rows.assign(strip=strip, left=place * zoom, right=(place + 1) * zoom)


def _keys(rows: pd.DataFrame, column: str) -> list[list[Any]]:
    return [
        list(key) for key in zip(rows["layer"], rows[column].astype(int).tolist(), rows.index.tolist(), strict=True)
    ]


def _words(rows: pd.DataFrame, column: str, quantity: str = "D") -> list[str]:
    places = zip(rows["layer"], rows["selection"], rows[column], measurements(rows, quantity), strict=True)
    return [
        f"<b>{html.escape(str(layer))}</b><br>{html.escape(str(selection))} {channel:.0f}{words}"
        for layer, selection, channel, words in places
    ]


def _grounds(rows: pd.DataFrame, theme: str) -> list[dict[str, Any]]:
    """Return the grey below each strip, which shows wherever a channel is hidden or not measured."""
    ends = rows.groupby("strip")["right"].max()
    return [
        _box(-0.5, strip - 0.4, right - 0.5, strip + 0.4)
        | {"layer": "below", "line": {"width": 0}, "fillcolor": THEMES[theme].tile}
        for strip, right in ends.items()
    ]


def _frame(rows: pd.DataFrame, selected: int | None, theme: str) -> list[dict[str, Any]]:
    """Return the frame of the selected cell: a dark line in a light one shows on any colour."""
    if selected is None or selected not in rows.index:
        return []
    row = rows.loc[selected]
    box = _box(row["left"] - 0.5, row["strip"] - 0.42, row["right"] - 0.5, row["strip"] + 0.42)
    lines = ((THEMES[theme].page, 5), (THEMES[theme].accent, 2.5))
    return [box | {"line": {"color": colour, "width": width}} for colour, width in lines]


def _box(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return {"type": "rect", "x0": left, "y0": top, "x1": right, "y1": bottom}

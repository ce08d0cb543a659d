"""One kernel: its weights, and the kernels that share a channel with it."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from weanalysis.figures.colours import CATEGORICAL, THEMES, readable_on
from weanalysis.figures.location import kernel_rows
from weanalysis.figures.style import (
    drop_title,
    each,
    error_bars,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    new_panels,
    screenings,
    whole_numbers,
)

_MOST_WRITTEN = 49  # weights of a kernel that are written as numbers


def kernel_weights(weight: ArrayLike, *, theme: str = "light") -> go.Figure:
    """Draw the weights of one kernel, (w,), (h, w) or (t, h, w); moments t lie side by side.

    Red is positive, blue negative, on a scale symmetric about 0.

    >>> cells = kernel_weights([[0.5, -0.25], [0.0, 0.125]]).data[0]
    >>> float(cells.zmin), float(cells.zmax)
    (-0.5, 0.5)
    """
    kernel = np.asarray(weight, dtype=np.float64)
    kernel = kernel.reshape((1,) * max(0, 3 - kernel.ndim) + kernel.shape)
    _, height, width = kernel.shape
    # A column of nothing between two moments.
    plane = np.concatenate([np.pad(moment, ((0, 0), (0, 1)), constant_values=np.nan) for moment in kernel], axis=1)
    plane = plane[:, :-1]
    limit = float(np.nanmax(np.abs(plane))) or 1.0
    figure = new_figure(
        theme,
        min(220, 40 + 50 * height),
        margin={"l": 2, "r": 2, "t": 28, "b": 2},
        xaxis={"visible": False, "constrain": "domain"},
        yaxis={"visible": False, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
    )
    written = np.isfinite(plane) & (height * width <= _MOST_WRITTEN)
    figure.add_trace(
        go.Heatmap(
            z=plane,
            colorscale=THEMES[theme].diverging,
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            showscale=False,
            hovertemplate="weight %{z:.5g}<extra></extra>",
        )
    )
    down, across = np.nonzero(written)
    values = plane[written]
    figure.add_trace(
        go.Scatter(
            x=across,
            y=down,
            mode="text",
            text=[f"{value:.2g}".replace("-", "−") for value in values],
            textfont={"color": readable_on(values / limit, THEMES[theme].diverging)},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    return figure


def kernel_neighbours(
    table: pd.DataFrame, layer: str, out_channel: int, in_channel: int, *, theme: str = "light"
) -> go.Figure:
    """Draw D with its interval of the measured kernels that share the output or the input channel of one kernel.

    `table` holds the rows of a location study. The kernel itself is a diamond.

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 0, 1], "in_channel": [0, 1, 1], "drop": [2.0, 0.5, 0.1]})
    >>> table = table.assign(layer="conv1", selection="kernel", metric="top1").reindex(columns=COLUMNS)
    >>> others, own = kernel_neighbours(table, "conv1", 0, 0).data
    >>> list(map(float, others.y)), list(map(float, own.y))
    ([2.0, 0.5], [2.0])
    """
    kernels = kernel_rows(table)
    kernels = kernels[(kernels["layer"] == layer) & kernels["drop"].notna()]
    if kernels.empty:
        return message_figure(f"No kernel of {layer} has been measured yet.", theme)
    metric = metric_of(kernels)
    panels = {"rows": 2, "vertical_spacing": 0.26, "shared_yaxes": "all"}
    figure = new_panels(theme, 380, panels, margin={"l": 8, "r": 8, "t": 28, "b": 8}, showlegend=False)
    sides = (
        ("out_channel", out_channel, "in_channel", in_channel, f"input channel, to output {out_channel}"),
        ("in_channel", in_channel, "out_channel", out_channel, f"output channel, from input {in_channel}"),
    )
    for place, (fixed, fixed_channel, free, own_channel, title) in enumerate(sides):
        shown = kernels[kernels[fixed] == fixed_channel]
        channels = shown[free]
        own = (channels == own_channel).to_numpy()
        figure.add_trace(
            go.Scatter(
                x=channels,
                y=shown["drop"],
                mode="markers",
                marker={
                    "color": CATEGORICAL[place],
                    "symbol": np.where(own, "diamond", "circle"),
                    "size": np.where(own, 12, 7),
                },
                error_y=error_bars(shown["drop"], shown["drop_low"], shown["drop_high"]),
                text=[
                    f"<b>{html.escape(layer)}</b><br>output {out:.0f}, input {into:.0f}"
                    + measurement(drop, low, high, metric)
                    + screened
                    for out, into, drop, low, high, screened in each(
                        shown.assign(screened=screenings(shown)),
                        *("out_channel", "in_channel", "drop", "drop_low", "drop_high", "screened"),
                    )
                ],
                hovertemplate="%{text}<extra></extra>",
            ),
            row=place + 1,
            col=1,
        )
        ticks = whole_numbers(int(channels.max()) if len(channels) else 0)
        figure.update_xaxes(title_text=title, **ticks, row=place + 1, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(title_text=drop_title(metric), zeroline=True, zerolinecolor=THEMES[theme].muted)
    return figure

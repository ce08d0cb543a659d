"""Magnitude-based weight excitation (paper, section 3.3, Fig. 3b): what MWE does to a weight and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.figures.style import message_figure, new_panels


def excited(weight: ArrayLike, eps: float, largest: float | None = None) -> np.ndarray:
    """Return f_A of a weight (equation 2); `largest` is M, the layer's largest |w|, by default that of `weight`.

    Any shape, to float64 of the same.

    >>> excited([0.0, 0.5, -1.0], eps=0.1).round(2).tolist()
    [0.0, 0.54, -1.67]
    """
    weight = np.asarray(weight, dtype=np.float64)
    bound = (1 + eps) * (np.abs(weight).max() if largest is None else largest)
    return bound * np.arctanh(weight / bound) if bound > 0 else weight


def gain(weight: ArrayLike, eps: float, largest: float | None = None) -> np.ndarray:
    """Return by how much MWE multiplies the gradient of a weight (equation 3); shapes and `largest` as for `excited`.

    >>> gain([0.0, 0.5, -1.0], eps=0.1).round(2).tolist()
    [1.0, 1.26, 5.76]
    """
    weight = np.asarray(weight, dtype=np.float64)
    bound = (1 + eps) * (np.abs(weight).max() if largest is None else largest)
    return bound**2 / (bound**2 - weight**2) if bound > 0 else np.ones_like(weight)


def excitation_curves(eps: float, beside: Sequence[float] = (0.01, 0.1, 0.2), *, theme: str = "light") -> go.Figure:
    """Draw f_A of a weight and the gain of its gradient over w / M, for `eps` and, paler, a few others (Fig. 3b).

    >>> figure = excitation_curves(0.1, beside=(0.01,))
    >>> sorted({curve.name for curve in figure.data})
    ['no excitation', 'ε = 0.01', 'ε = 0.1']
    """
    figure = new_panels(
        theme,
        400,
        {"rows": 1, "cols": 2, "horizontal_spacing": 0.12},
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "xanchor": "left", "x": 0},
    )
    weight = np.linspace(-1, 1, 401)
    figure.add_trace(
        go.Scatter(
            x=weight,
            y=weight,
            mode="lines",
            name="no excitation",
            line={"color": THEMES[theme].muted, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    others = [value for value in beside if value != eps]
    for place, value in enumerate([*others, eps]):
        chosen = value == eps
        colour = THEMES[theme].line if chosen else translucent(CATEGORICAL[1 + place % 9], 0.55)
        for column, curve in ((1, excited), (2, gain)):
            figure.add_trace(
                go.Scatter(
                    x=weight,
                    y=curve(weight, value, 1.0),
                    mode="lines",
                    name=f"ε = {value:g}",
                    legendgroup=f"{value:g}",
                    showlegend=column == 1,
                    line={"color": colour, "width": 3 if chosen else 1.5},
                    hovertemplate=f"ε = {value:g}<br>w / M = %{{x:.2f}}<br>%{{y:.3f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="w / M", zeroline=True)
    figure.update_yaxes(title_text="f_A(w) / M", zeroline=True, row=1, col=1)
    top = float(gain(1.0, eps, 1.0))
    figure.update_yaxes(title_text="gain of the gradient", range=[0.8, max(1.5, 1.15 * top)], row=1, col=2)
    return figure


def excitation_of_layer(weight: ArrayLike, eps: float, *, theme: str = "light") -> go.Figure:
    """Draw how one layer's weights, of any shape, are distributed before and after MWE, and the gain at each.

    Paper: equations 2 and 3.

    >>> figure = excitation_of_layer([[-0.5, 0.1], [0.2, 1.0]], eps=0.1)
    >>> [trace.name for trace in figure.data]
    ['before', 'after MWE', 'gain of the gradient (right)']
    """
    values = np.asarray(weight, dtype=np.float64).ravel()
    if not values.size:
        return message_figure("This layer has no weights.", theme)
    after = excited(values, eps)
    edges = np.linspace(min(after.min(), values.min()), max(after.max(), values.max()), 81)
    figure = new_panels(
        theme,
        380,
        {"specs": [[{"secondary_y": True}]]},
        hovermode="closest",
        barmode="overlay",
        bargap=0,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
    )
    for name, numbers, colour in (("before", values, CATEGORICAL[8]), ("after MWE", after, THEMES[theme].line)):
        counts, _ = np.histogram(numbers, edges)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=np.diff(edges),
                name=name,
                marker={"color": translucent(colour, 0.55), "line": {"width": 0}},
                hovertemplate=f"{name}<br>near %{{x:.3g}}: %{{y:,}} weights<extra></extra>",
            )
        )
    at = np.linspace(values.min(), values.max(), 201)
    figure.add_trace(
        go.Scatter(
            x=at,
            y=gain(at, eps, float(np.abs(values).max())),
            mode="lines",
            name="gain of the gradient (right)",
            line={"color": CATEGORICAL[1], "width": 2},
            hovertemplate="w = %{x:.3g}<br>gain %{y:.2f}<extra></extra>",
        ),
        secondary_y=True,
    )
    figure.update_xaxes(title_text="weight", zeroline=False)
    figure.update_yaxes(title_text="number of weights", zeroline=False, secondary_y=False)
    figure.update_yaxes(
        title_text="gain", rangemode="tozero", tickmode="auto", showgrid=False, zeroline=False, secondary_y=True
    )
    return figure

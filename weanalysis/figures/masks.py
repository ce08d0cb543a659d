"""Masks as people see them: classes in colours over their picture, and the IoU of each class before and after."""

from __future__ import annotations

import colorsys
import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.figures.style import message_figure, new_figure

RGB = tuple[int, int, int]

_OPACITY = 0.65
# The golden ratio's turns lie far apart, however many there are.
_TURN = 0.61803398875


def class_colour(index: int) -> RGB:
    """Return the colour of a class, from 0 to 255; neighbours differ in hue, and every other one in brightness.

    >>> class_colour(0), class_colour(1)
    ((242, 104, 85), (32, 62, 210))
    """
    value = 0.95 - index % 3 / 8
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _TURN) % 1, 0.85 if index % 2 else 0.65, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_legend(classes: Sequence[int], names: Sequence[str]) -> str:
    """Return the names of some classes, each with its colour, as a line of HTML.

    >>> legend = class_legend([1], ["background", "<b>"])
    >>> "rgb(32, 62, 210)" in legend, legend.partition("&#9632;</span> ")[2]
    (True, '&lt;b&gt;</span>')
    """
    parts = []
    for index in classes:
        name = html.escape(names[index] if index < len(names) else f"class {index}")
        square = f'<span style="color:rgb{class_colour(index)}">&#9632;</span>'
        parts.append(f'<span style="white-space:nowrap;margin-right:1em">{square} {name}</span>')
    return " ".join(parts)


def overlay(picture: np.ndarray, mask: np.ndarray, void: int, background: int | None = 0) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), with the classes of a mask (H, W) in colours over it, uint8 (H, W, 3).

    Pixels of the `background` show the picture alone, those that are `void` are grey stripes.

    >>> overlay(np.zeros((1, 2, 3), np.uint8), np.array([[0, 1]]), void=255).any(axis=2).tolist()
    [[False, True]]
    """
    grey = picture.astype(np.float64).mean(2, keepdims=True)
    shown = np.repeat(grey, 3, 2)
    for index in np.unique(mask):
        if index not in (void, background):
            here = mask == index
            shown[here] = (1 - _OPACITY) * shown[here] + _OPACITY * np.array(class_colour(int(index)))
    rows, columns = np.indices(mask.shape)
    shown[(mask == void) & ((rows + columns) % 4 < 2)] = 128
    return shown.round().astype(np.uint8)


def iou_by_class(table: pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Draw the IoU of each class, intact and ablated, joined by a line; those that fell most are at the top.

    `table` is that of `Store.class_table`: class, num_images, before, after and drop in percent.

    >>> table = pd.DataFrame({"class": ["road", "bicycle"], "before": [90.0, 60.0], "after": [89.0, 40.0]})
    >>> figure = iou_by_class(table.assign(drop=table["before"] - table["after"], num_images=9))
    >>> [(trace.name, list(map(float, trace.x))) for trace in figure.data if trace.name]
    [('intact', [90.0, 60.0]), ('ablated', [89.0, 40.0])]
    """
    rows = table.dropna(subset=["before"]).sort_values("drop", kind="stable")
    if rows.empty:
        return message_figure("No class has been measured yet.", theme)
    figure = new_figure(
        theme,
        max(220, 24 * len(rows) + 70),
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        xaxis_title_text="IoU (%)",
        hovermode="closest",
    )
    names = rows["class"].astype(str)
    for name, before, after in zip(names, rows["before"], rows["after"], strict=True):
        line = {"color": translucent(CATEGORICAL[8], 0.7), "width": 3}
        figure.add_trace(
            go.Scatter(x=[before, after], y=[name, name], mode="lines", line=line, hoverinfo="skip", showlegend=False)
        )
    hover = "%{y}: %{x:.2f} %, in %{customdata:,} images<extra>%{fullData.name}</extra>"
    for title, column, colour in (("intact", "before", CATEGORICAL[0]), ("ablated", "after", CATEGORICAL[1])):
        marker = {"size": 10, "color": colour, "line": {"width": 1, "color": THEMES[theme].page}}
        figure.add_trace(
            go.Scatter(
                x=rows[column],
                y=names,
                mode="markers",
                name=title,
                marker=marker,
                customdata=rows["num_images"],
                hovertemplate=hover,
            )
        )
    figure.update_yaxes(type="category", showgrid=False)
    return figure

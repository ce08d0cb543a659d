"""A study by its images: how many ablations change each, which classes are taken for which, and in which layers."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, SEQUENTIAL, THEMES, readable_on
from weanalysis.figures.style import colour_bar, diamond, each, layer_ticks, message_figure, new_figure, shorten

_MOST_CLASSES = 20  # of a matrix; more are too small to be read
_MOST_WORDED = 12  # of a matrix whose cells carry their counts
_MOST_SINGLE_TICKS = 6
_MOST_POINTS = 600  # of a curve over images


def images_by_rows(images: pd.DataFrame, row: str, *, selected: int | None = None, theme: str = "light") -> go.Figure:
    """Draw how many of a study's rows (`row` is what one is called) change each image, the most dependent first.

    `images` has the columns image_id, changed and num_rows. Of many images, all of the first hundred are drawn and
    others at even distances. The image whose id is `selected` is the diamond. A click carries customdata [image_id].

    >>> images = pd.DataFrame({"image_id": [7, 8], "changed": [1, 30], "num_rows": 40})
    >>> images_by_rows(images, "kernel").data[0].customdata.tolist()
    [[8], [7]]
    """
    rows = images.sort_values("changed", ascending=False, kind="stable", ignore_index=True)
    rows = rows[rows["num_rows"] > 0]
    if rows.empty:
        return message_figure("No image has been measured yet.", theme)
    places = np.arange(len(rows))
    if len(rows) > _MOST_POINTS:
        places = np.unique(np.r_[:100, np.linspace(100, len(rows) - 1, _MOST_POINTS - 100).round().astype(int)])
    shown = rows.iloc[places]
    figure = new_figure(
        theme,
        280,
        xaxis_title_text="images, the most dependent first",
        yaxis_title_text=f"{row}s that change it",
        hovermode="closest",
        showlegend=False,
    )
    figure.add_trace(
        go.Scatter(
            x=places + 1,
            y=shown["changed"],
            mode="lines+markers",
            line={"color": THEMES[theme].line, "width": 2},
            marker={"size": 5, "maxdisplayed": 100},
            customdata=np.array([[number] for number in shown["image_id"].tolist()], dtype=object),
            text=[
                f"image {number}<br>{changed:,} of {num_rows:,} {html.escape(row)}s"
                for number, changed, num_rows in each(shown, "image_id", "changed", "num_rows")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    if len(chosen := rows.index[rows["image_id"] == selected]):
        figure.add_trace(diamond(int(chosen[0]) + 1, int(rows.loc[chosen[0], "changed"]), theme))
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(rangemode="tozero", dtick=_whole_step(shown["changed"].max()))
    return figure


def _whole_step(most: float) -> int | None:
    """Return how far ticks of an axis of counts are apart, where Plotly would put some between whole numbers."""
    return 1 if most <= _MOST_SINGLE_TICKS else None


def confusion_of_changes(confusion: pd.DataFrame, classes: Sequence[str], *, theme: str = "light") -> go.Figure:
    """Draw how often one answer became another: a row the class answered by the intact network, a column that after.

    `confusion` has the columns before, after (numbers of classes) and count. Of more than twenty classes, those with
    the most changes are drawn.

    >>> confusion = pd.DataFrame({"before": [0, 1], "after": [1, 0], "count": [5, 2]})
    >>> confusion_of_changes(confusion, ["cat", "dog"]).data[0].z.tolist()
    [[nan, 5.0], [2.0, nan]]
    """
    if confusion.empty:
        return message_figure("No answer changed.", theme)
    of_class = confusion.groupby("before")["count"].sum().add(confusion.groupby("after")["count"].sum(), fill_value=0)
    chosen = np.sort(of_class.nlargest(_MOST_CLASSES).index.to_numpy(dtype=int))
    rows = confusion[confusion["before"].isin(chosen) & confusion["after"].isin(chosen)]
    z = np.full((len(chosen), len(chosen)), np.nan)
    z[np.searchsorted(chosen, rows["before"]), np.searchsorted(chosen, rows["after"])] = rows["count"]
    names = [_class_name(classes, number) for number in chosen.tolist()]
    short = [shorten(name, 14) for name in names]
    figure = new_figure(
        theme,
        max(300, 110 + 26 * len(chosen)),
        hovermode="closest",
        xaxis_title_text="answer then",
        yaxis_title_text="intact answer",
    )
    largest = float(np.nanmax(z)) if rows["count"].any() else 1.0
    figure.add_trace(
        go.Heatmap(
            z=z,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=largest,
            xgap=1,
            ygap=1,
            text=[[html.escape(f"{one} → {other}") for other in names] for one in names],
            hovertemplate="%{text}<br>%{z:,} times<extra></extra>",
            hoverongaps=False,
            colorbar=colour_bar(theme, "changes"),
        )
    )
    if len(chosen) <= _MOST_WORDED:
        down, across = np.nonzero(np.isfinite(z))
        inks = readable_on(2 * z[down, across] / largest - 1, SEQUENTIAL)
        for y, x, ink in zip(down.tolist(), across.tolist(), inks, strict=True):
            figure.add_annotation(x=x, y=y, text=f"{z[y, x]:,.0f}", showarrow=False, font={"size": 12, "color": ink})
    places = list(range(len(chosen)))
    figure.update_xaxes(tickvals=places, ticktext=short, tickangle=-45, showgrid=False, zeroline=False)
    figure.update_yaxes(tickvals=places, ticktext=short, showgrid=False, zeroline=False, autorange="reversed")
    return figure


def changes_by_class(images: pd.DataFrame, classes: Sequence[str], row: str, *, theme: str = "light") -> go.Figure:
    """Draw under how many of a study's rows an image of each class turns wrong on average, and right, as bars.

    `images` has the columns target, lost, gained and num_rows; `row` is what one row is called. Of more than twenty
    classes, those that lose most are drawn.

    >>> images = pd.DataFrame({"target": [0, 0, 1], "lost": [4, 2, 0], "gained": [0, 0, 1], "num_rows": 9})
    >>> [(bars.name, bars.x.tolist()) for bars in changes_by_class(images, ["cat", "dog"], "kernel").data]
    [('turned wrong', [0.0, 3.0]), ('turned right', [-1.0, -0.0])]
    """
    rows = images[images["num_rows"] > 0]
    if rows.empty:
        return message_figure("No image has been measured yet.", theme)
    means = rows.groupby("target")[["lost", "gained"]].mean()
    means = means.nlargest(_MOST_CLASSES, "lost").sort_values("lost", kind="stable")
    names = [shorten(_class_name(classes, int(number)), 20) for number in means.index]
    figure = new_figure(
        theme,
        max(300, 110 + 26 * len(means)),
        barmode="relative",
        hovermode="closest",
        xaxis_title_text=f"{row}s for an image of the class, on average",
    )
    for name, values, colour in (
        ("turned wrong", means["lost"], CATEGORICAL[1]),
        ("turned right", -means["gained"], CATEGORICAL[0]),
    ):
        words = [f"{one}: an image {name} by {abs(value):.2g} {row}s" for one, value in zip(names, values, strict=True)]
        figure.add_trace(
            go.Bar(
                x=values,
                y=list(range(len(means))),
                orientation="h",
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                text=words,
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_yaxes(tickvals=list(range(len(means))), ticktext=names, showgrid=False, zeroline=False)
    figure.update_xaxes(zeroline=True, zerolinecolor=THEMES[theme].muted)
    return figure


def layers_of_image(rows: pd.DataFrame, changing: Sequence[int], row: str, *, theme: str = "light") -> go.Figure:
    """Draw how many of each layer's rows of a study change one image; `changing` are their places in `rows`.

    `rows` is the study's table, `row` what one of its rows is called.

    >>> rows = pd.DataFrame({"layer": ["conv1", "conv1", "conv2"], "depth": [0, 0, 1], "drop": 1.0})
    >>> layers_of_image(rows, [0, 1], "kernel").data[0].y.tolist()
    [2, 0]
    """
    named = rows.dropna(subset=["layer", "drop"]).sort_values("depth", kind="stable")
    if named.empty:
        return message_figure("No layer has been measured yet.", theme)
    layers = [str(layer) for layer in dict.fromkeys(named["layer"])]
    counts = named["layer"].value_counts()
    of_layer = named.loc[named.index.isin(list(changing)), "layer"].value_counts().reindex(layers, fill_value=0)
    figure = new_figure(theme, 260, yaxis_title_text=f"{row}s that change it", hovermode="closest", showlegend=False)
    figure.add_trace(
        go.Bar(
            x=list(range(len(layers))),
            y=of_layer.to_numpy(),
            marker={"color": THEMES[theme].line, "line": {"width": 0}},
            text=[f"<b>{html.escape(one)}</b><br>{of_layer[one]:,} of {counts[one]:,} {row}s" for one in layers],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    )
    ticks = layer_ticks(layers, most=12)
    figure.update_xaxes(**ticks, tickangle=-45, showgrid=False, zeroline=False, range=[-0.7, len(layers) - 0.3])
    figure.update_yaxes(rangemode="tozero", dtick=_whole_step(of_layer.max()))
    return figure


def _class_name(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"

"""Magnitude studies (paper, section 3.1 and Fig. 1a): how D rises with the rank of the zeroed weight."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.figures.style import (
    MOST_MARKERS,
    band,
    clickable,
    colour_bar,
    drop_title,
    each,
    histogram,
    layer_ticks,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    screenings,
    thinned,
    worded_once,
)
from weanalysis.tasks import Metric

_NOTHING = "No percentile has been measured yet."


def magnitude_curve(
    table: pd.DataFrame, layer: str | None = None, *, mark: float | None = None, theme: str = "light"
) -> go.Figure:
    """Draw D against the percentile of the zeroed weight, with its 95 % interval as a band.

    `table` holds the rows of a magnitude study; `layer` picks one layer of a study that zeroed layer by layer, None
    takes the rows as they are. Where a percentile was drawn several times, each draw is a point, and line and band
    are the means of the draws and of their bounds. `mark` puts an upright line at a percentile. A click on a point
    carries customdata [percentile]. Paper: Fig. 1a.

    >>> columns = {"percentile": [50.0, 100.0], "drop": [0.1, 4.0], "drop_low": [-0.2, 3.0], "drop_high": [0.4, 5.0]}
    >>> magnitude_curve(pd.DataFrame({**columns, "metric": "top1"})).layout.yaxis.title.text
    'Accuracy lost, D (points)'
    """
    return magnitude_curves({"D": table if layer is None else table[table["layer"] == layer]}, mark=mark, theme=theme)


def magnitude_curves(
    tables: Mapping[str, pd.DataFrame],
    *,
    mark: float | None = None,
    colours: Mapping[str, str] | None = None,
    theme: str = "light",
) -> go.Figure:
    """Draw the curves of several magnitude studies, by name, as `magnitude_curve` draws one.

    >>> table = pd.DataFrame({"percentile": [50.0, 100.0], "drop": [0.1, 4.0], "drop_low": -1.0, "drop_high": 5.0})
    >>> table["metric"] = "top1"
    >>> figure = magnitude_curves({"baseline": table, "lwe": table})
    >>> [trace.name for trace in figure.data if trace.showlegend is not False]
    ['baseline', 'lwe']
    """
    measured = {name: table.dropna(subset=["percentile", "drop"]) for name, table in tables.items()}
    measured = {name: rows for name, rows in measured.items() if len(rows)}
    if not measured:
        return message_figure(_NOTHING, theme)
    metric = metric_of(next(iter(measured.values())))
    figure = new_figure(
        theme,
        420,
        hovermode="closest",
        xaxis_title_text="percentile b of |w| (0: smallest, 100: largest)",
        yaxis_title_text=drop_title(metric),
    )
    for place, (name, rows) in enumerate(measured.items()):
        usual = THEMES[theme].line if len(measured) == 1 else CATEGORICAL[place % len(CATEGORICAL)]
        colour = (colours or {}).get(name, usual)
        _add_curve(figure, name, rows, colour, metric, alone=len(measured) == 1)
    figure.add_hline(y=0, line={"color": THEMES[theme].muted, "width": 1})
    if mark is not None:
        figure.add_vline(x=mark, line={"color": CATEGORICAL[1], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(range=[-1, 101.5], zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure


def _add_curve(figure: go.Figure, name: str, rows: pd.DataFrame, colour: str, metric: Metric, *, alone: bool) -> None:
    curve = rows.groupby("percentile", as_index=False)[_measured(rows)].mean()
    curve = curve.assign(screened=screenings(curve))
    num_draws = rows.groupby("percentile").size().to_numpy()
    title = html.escape(name)
    group = None if alone else name  # members of a group stand below each other in the legend
    low, high = curve["drop_low"], curve["drop_high"]
    about = {"legendgroup": group, "showlegend": alone, "name": "95 % interval"}
    figure.add_trace(band(curve["percentile"], low, high, colour, 0.18, **about))
    if num_draws.max() > 1:
        dots = thinned(rows, np.random.default_rng(0), "percentile")
        figure.add_trace(
            go.Scatter(
                x=dots["percentile"],
                y=dots["drop"],
                mode="markers",
                name="one draw" + (f" ({len(dots):,} of {len(rows):,})" if len(dots) < len(rows) else ""),
                legendgroup=group,
                showlegend=alone,
                marker={"size": 5, "color": translucent(CATEGORICAL[8] if alone else colour, 0.5)},
                customdata=[[percentile] for percentile in dots["percentile"].tolist()],
                hovertemplate=f"b = %{{x}}<br>D = %{{y:+.{metric.decimals}f}}<extra>one draw</extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=curve["percentile"],
            y=curve["drop"],
            mode="lines+markers",
            name="mean D of the draws" if alone and num_draws.max() > 1 else title,
            legendgroup=group,
            line={"color": colour, "width": 2},
            marker={"size": 5, "maxdisplayed": MOST_MARKERS},
            customdata=[[percentile] for percentile in curve["percentile"].tolist()],
            text=[
                ("" if alone else f"{title}<br>")
                + f"<b>b = {percentile:g}</b>"
                + measurement(drop, low, high, metric)
                + screened
                + (f"<br>mean of {count} draws" if count > 1 else "")
                for (percentile, drop, low, high, screened), count in zip(
                    each(curve, "percentile", "drop", "drop_low", "drop_high", "screened"), num_draws, strict=True
                )
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def magnitude_map(table: pd.DataFrame, *, selected: tuple[str, float] | None = None, theme: str = "light") -> go.Figure:
    """Draw D by layer (network order, from the top) and percentile; repeats are averaged.

    `table` holds the rows of a magnitude study that zeroed layer by layer. `selected` = (layer, percentile) is framed.
    A click on a cell carries customdata [layer, percentile].

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"layer": ["conv1", "conv2"], "depth": [0, 1], "percentile": 100.0, "drop": [3.0, 1.0]})
    >>> figure = magnitude_map(table.assign(metric="top1").reindex(columns=COLUMNS))
    >>> figure.data[0].z.tolist()
    [[3.0], [1.0]]
    """
    rows = table[table["percentile"].notna() & table["layer"].notna() & table["drop"].notna()]
    if rows.empty:
        return message_figure(_NOTHING, theme)
    means = rows.groupby(["depth", "layer", "percentile"], as_index=False)[_measured(rows)].mean()
    layers = list(dict.fromkeys(means["layer"]))
    z = means.pivot(index="layer", columns="percentile", values="drop").loc[layers]
    percentiles = z.columns.to_numpy(dtype=np.float64)
    limit = float(np.nanmax(np.abs(z.to_numpy()))) or 1.0
    metric = metric_of(rows)
    height = max(260, 90 + 20 * len(layers)) if len(layers) <= 60 else 1290
    figure = new_figure(
        theme,
        height,
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        xaxis_title_text="percentile b of |w| (0: smallest, 100: largest)",
        plot_bgcolor=THEMES[theme].tile,
        hovermode="closest",
        hoverdistance=-1,
    )
    figure.add_trace(
        go.Heatmap(
            x=percentiles,
            y=list(range(len(layers))),
            z=z.to_numpy(),
            hoverinfo="skip",
            colorscale=THEMES[theme].diverging,
            zmin=-limit,
            zmax=limit,
            colorbar=colour_bar(theme, f"D, {metric.unit}", height - 60),
        )
    )
    figure.add_trace(_cells_to_click(means, layers, metric))
    if selected is not None and selected[0] in layers:
        place = layers.index(selected[0])
        width = _step(percentiles)
        for colour, thickness in ((THEMES[theme].page, 5), (THEMES[theme].accent, 2.5)):
            figure.add_shape(
                type="rect",
                x0=selected[1] - width / 2,
                x1=selected[1] + width / 2,
                y0=place - 0.5,
                y1=place + 0.5,
                line={"color": colour, "width": thickness},
            )
    figure.update_yaxes(
        **layer_ticks(layers, most=60, length=28),
        range=[len(layers) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    half = _step(percentiles) / 2
    figure.update_xaxes(range=[percentiles[0] - half, percentiles[-1] + half], showgrid=False, zeroline=False)
    return figure


def _cells_to_click(means: pd.DataFrame, layers: list[str], metric: Metric) -> go.Scattergl:
    """Lay a marker over each cell, which tells D when hovered over, and where it is when clicked."""
    cells = means.assign(place=means["layer"].map({layer: place for place, layer in enumerate(layers)}))
    cells = cells.assign(screened=screenings(cells))
    measured = ("drop", "drop_low", "drop_high", "screened")
    different, wording = worded_once(cells, *measured)
    words = [
        measurement(drop, low, high, metric) + screened for drop, low, high, screened in each(different, *measured)
    ]
    places = list(each(cells, "layer", "percentile"))
    return clickable(
        cells["percentile"],
        cells["place"],
        [list(key) for key in places],
        [
            f"<b>{html.escape(layer)}</b><br>b = {percentile:g}{words[number]}"
            for (layer, percentile), number in zip(places, wording.tolist(), strict=True)
        ],
    )


def weight_histogram(weight: ArrayLike, percentile: float | None = None, *, theme: str = "light") -> go.Figure:
    """Draw how the |w| of one layer are distributed, with the weight at `percentile` marked.

    `weight` may have any shape. The marked weight has rank ceil(b n / 100), counted from 1 in ascending |w|, the one
    that a magnitude study zeroes (paper, section 3.1).

    >>> figure = weight_histogram([0.1, -0.2, 0.3, 0.4], percentile=50)
    >>> int(sum(figure.data[0].y)), figure.layout.xaxis.title.text
    (4, '|w|')
    """
    magnitudes = np.sort(np.abs(np.asarray(weight, dtype=np.float64)).ravel())
    if not len(magnitudes):
        return message_figure("This layer has no weights.", theme)
    bins = min(80, max(10, len(magnitudes) // 20))
    figure = histogram(magnitudes, bins, "|w|", "weights", theme, ".3g", top=30)
    figure.update_xaxes(title_text="|w|")
    if percentile is not None:
        rank = max(1, int(np.ceil(percentile * len(magnitudes) / 100)))
        marked = magnitudes[rank - 1]
        bars = figure.data[0]
        figure.add_vline(
            x=marked,
            line={"color": CATEGORICAL[1], "width": 2},
            annotation={
                "text": f"b = {percentile:g}: |w| = {marked:.3g}",
                "font": {"color": THEMES[theme].ink},
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "xanchor": "right" if marked > (bars.x[-1] + bars.width[-1] / 2) / 2 else "left",
            },
        )
    figure.update_xaxes(zeroline=False, showgrid=False)
    return figure


def _measured(rows: pd.DataFrame) -> list[str]:
    """Return the columns that are averaged over the draws of a percentile."""
    return [column for column in ("drop", "drop_low", "drop_high", "screen_low", "screen_high") if column in rows]


def _step(percentiles: np.ndarray) -> float:
    """Return the smallest distance of two percentiles, 1 for a single one."""
    return float(np.diff(percentiles).min()) if len(percentiles) > 1 else 1.0

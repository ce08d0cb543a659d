"""LWE's multipliers (paper, sections 3.2 and 4.2): what was learned, and whether it tells which channels matter."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from weanalysis.figures.colours import CATEGORICAL, SEQUENTIAL, THEMES, translucent
from weanalysis.figures.style import (
    MOST_MARKERS,
    band,
    colour_bar,
    drop_title,
    each,
    error_bars,
    histogram,
    layer_ticks,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    thinned,
    whole_numbers,
)

_MOST_CELLS = 512  # rows or columns of a map that are drawn; a screen has no more pixels for it
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def multiplier_drops(table: pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Draw D_L and D_H of each layer, with intervals: the channels, or kernels, of the lowest and highest multiplier.

    `table` holds the rows of a multiplier study. Paper: section 4.2, "Validity of attention multiplier".

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"selection": ["lowest", "highest"], "drop": [0.1, 4.0], "in_channel": [3, 7]})
    >>> table = table.assign(layer="conv1", depth=0, metric="top1").reindex(columns=COLUMNS)
    >>> [(trace.name, list(map(float, trace.x))) for trace in multiplier_drops(table).data]
    [('D<sub>L</sub>: lowest multiplier', [0.1]), ('D<sub>H</sub>: highest multiplier', [4.0])]
    """
    rows = table[table["layer"].notna() & table["drop"].notna()]
    if rows.empty:
        return message_figure("No layer has been measured yet.", theme)
    layers = list(dict.fromkeys(rows.sort_values("depth")["layer"]))
    metric = metric_of(rows)
    figure = new_figure(
        theme,
        max(240, 90 + 22 * len(layers)),
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        xaxis_title_text=drop_title(metric),
    )
    for selection, name, colour, shift in (
        ("lowest", "D<sub>L</sub>: lowest multiplier", THEMES[theme].line, 0.15),
        ("highest", "D<sub>H</sub>: highest multiplier", CATEGORICAL[1], -0.15),
    ):
        own = rows[rows["selection"] == selection]
        figure.add_trace(
            go.Scatter(
                x=own["drop"],
                y=own["layer"].map(layers.index) + shift,
                mode="markers",
                name=name,
                marker={"color": colour, "size": 8},
                error_x=error_bars(own["drop"], own["drop_low"], own["drop_high"]),
                text=[
                    f"<b>{html.escape(layer)}</b><br>{selection} multiplier"
                    + _unit_words(out, channel)
                    + measurement(drop, low, high, metric)
                    for layer, out, channel, drop, low, high in each(
                        own, "layer", "out_channel", "in_channel", "drop", "drop_low", "drop_high"
                    )
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": THEMES[theme].muted, "width": 1})
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(
        **layer_ticks(layers, most=60, length=28),
        range=[len(layers) - 0.5, -0.5],
        zeroline=False,
    )
    return figure


def _unit_words(out: float, into: float) -> str:
    """Word which channel, or kernel, was zeroed; nothing where it was several."""
    if np.isnan(into):
        return ""
    return f": input channel {into:.0f}" if np.isnan(out) else f": kernel [{out:.0f}, {into:.0f}]"


def multiplier_curve(table: pd.DataFrame, ranked: str = "input channel", *, theme: str = "light") -> go.Figure:
    """Draw D against the share zeroed of what is `ranked`, in every layer: lowest first, highest first, and random.

    `table` holds the rows of a multiplier study, whose units are input channels or kernels; of several random draws
    each is a point (of very many, some are shown), and the line their mean.

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"selection": ["lowest", "highest"] * 2, "fraction": [0.1] * 2 + [1.0] * 2})
    >>> figure = multiplier_curve(table.assign(drop=[0, 9, 5, 60], metric="top1").reindex(columns=COLUMNS))
    >>> [(trace.name, list(map(float, trace.y))) for trace in figure.data if trace.name]
    [('highest multiplier first', [9.0, 60.0]), ('lowest multiplier first', [0.0, 5.0])]
    """
    rows = table[table["layer"].isna() & table["fraction"].notna() & table["drop"].notna()]
    if rows.empty:
        return message_figure("No share of channels has been measured yet.", theme)
    figure = new_figure(
        theme,
        400,
        hovermode="closest",
        xaxis_title_text=f"{ranked}s zeroed in every layer (%)",
        yaxis_title_text=drop_title(metric_of(rows)),
    )
    for selection, colour, name in (
        ("highest", CATEGORICAL[1], "highest multiplier first"),
        ("random", CATEGORICAL[8], f"random {ranked.split()[-1]}s"),
        ("lowest", THEMES[theme].line, "lowest multiplier first"),
    ):
        own = rows[rows["selection"] == selection]
        if len(own):
            _add_rank_curve(figure, own, name, ranked, colour)
    figure.add_hline(y=0, line={"color": THEMES[theme].muted, "width": 1})
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure


def _add_rank_curve(figure: go.Figure, own: pd.DataFrame, name: str, ranked: str, colour: str) -> None:
    """Draw the rows of one selection: the mean over draws as a line, its interval as a band, draws as points."""
    metric, selection = metric_of(own), own["selection"].iloc[0]
    mean = own.groupby("fraction", as_index=False)[["drop", "drop_low", "drop_high"]].mean()
    share = 100 * mean["fraction"]
    interval_of = band(
        share, mean["drop_low"], mean["drop_high"], colour, 0.18, legendgroup=selection, showlegend=False
    )
    figure.add_trace(interval_of)
    if len(own) > len(mean):
        dots = thinned(own, np.random.default_rng(0), "fraction")
        figure.add_trace(
            go.Scatter(
                x=100 * dots["fraction"],
                y=dots["drop"],
                mode="markers",
                marker={"size": 5, "color": translucent(colour, 0.6)},
                legendgroup=selection,
                name=f"random draws ({len(dots):,} of {len(own):,})",
                showlegend=len(dots) < len(own),
                hovertemplate=f"%{{x:g}} %<br>D = %{{y:+.{metric.decimals}f}}<extra>one draw</extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=share,
            y=mean["drop"],
            mode="lines+markers",
            name=name,
            legendgroup=selection,
            line={"color": colour, "width": 2},
            marker={"maxdisplayed": MOST_MARKERS},
            text=[
                f"<b>{name}</b><br>{100 * fraction:g} % of the {ranked.split()[-1]}s"
                + measurement(drop, low, high, metric)
                for fraction, drop, low, high in each(mean, "fraction", "drop", "drop_low", "drop_high")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def multiplier_map(multiplier: ArrayLike, layer: str, *, theme: str = "light") -> go.Figure:
    """Draw LWE's m of one layer, rows output and columns input channels (equation 1).

    Layers with more than 512 channels a side are drawn by equidistant channels.

    >>> figure = multiplier_map([[0.25, 0.5], [0.5, 0.75]], "conv1")
    >>> figure.data[0].z.tolist()
    [[0.25, 0.5], [0.5, 0.75]]
    """
    values = np.asarray(multiplier, dtype=np.float64)
    outs, ins = (
        np.unique(np.linspace(0, side - 1, min(side, _MOST_CELLS)).round().astype(int)) for side in values.shape
    )
    figure = new_figure(
        theme,
        460,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        xaxis_title_text="input channel",
        yaxis_title_text="output channel",
    )
    figure.add_trace(
        go.Heatmap(
            x=ins,
            y=outs,
            z=values[np.ix_(outs, ins)].astype(np.float32),
            colorscale=SEQUENTIAL,
            colorbar=colour_bar(theme, "m"),
            hovertemplate=f"<b>{html.escape(layer)}</b><br>output %{{y}}, input %{{x}}"
            "<br>m = %{z:.4f}<extra></extra>",
        )
    )
    for update, side, ends in (
        (figure.update_xaxes, values.shape[1], [-0.5, values.shape[1] - 0.5]),
        (figure.update_yaxes, values.shape[0], [values.shape[0] - 0.5, -0.5]),
    ):
        update(range=ends, showgrid=False, zeroline=False, **whole_numbers(side - 1))
    return figure


def multiplier_histogram(multiplier: ArrayLike, *, theme: str = "light") -> go.Figure:
    """Draw how LWE's m of one layer, of any shape, are distributed between 0 and 1.

    >>> figure = multiplier_histogram([[0.4, 0.6], [0.5, 0.9]])
    >>> int(sum(figure.data[0].y)), figure.layout.xaxis.range
    (4, (0, 1))
    """
    values = np.asarray(multiplier, dtype=np.float64).ravel()
    bins = min(50, max(10, len(values) // 20))
    figure = histogram(values, bins, "m", "kernels", theme, ".2f", top=28, ends=(0, 1))
    figure.update_xaxes(title_text="multiplier m")
    figure.update_xaxes(range=[0, 1], zeroline=False, showgrid=False)
    return figure


def multiplier_spread(
    multipliers: Mapping[str, ArrayLike], *, selected: str | None = None, theme: str = "light"
) -> go.Figure:
    """Draw, by layer in the order of `multipliers`, between which bounds the multipliers m lie.

    Bands hold all, 90 % and 50 % of a layer's multipliers, of any shape; the line is their median.

    >>> figure = multiplier_spread({"conv1": [[0.4, 0.6, 0.5]], "conv2": [[0.1, 0.9, 0.2]]})
    >>> next(list(map(float, trace.y)) for trace in figure.data if trace.name == "median")
    [0.5, 0.2]
    """
    if not multipliers:
        return message_figure("This network has no multipliers.", theme)
    layers = list(multipliers)
    table = np.array([np.quantile(np.asarray(multipliers[layer], dtype=np.float64), _QUANTILES) for layer in layers])
    figure = new_figure(theme, 400, yaxis_title_text="multiplier m", hovermode="x unified")
    places = np.arange(len(layers))
    for (low, high), name, alpha in (((0, 6), "all", 0.12), ((1, 5), "90 %", 0.2), ((2, 4), "50 %", 0.32)):
        figure.add_trace(band(places, table[:, low], table[:, high], THEMES[theme].line, alpha, name=name))
    figure.add_trace(
        go.Scatter(
            x=places,
            y=table[:, 3],
            mode="lines+markers",
            name="median",
            line={"color": THEMES[theme].line, "width": 2},
            customdata=[[layer] for layer in layers],
            text=[
                f"<b>{html.escape(layer)}</b><br>median {row[3]:.4f}<br>all {row[0]:.4f} to {row[6]:.4f}"
                for layer, row in zip(layers, table, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    if selected in layers:
        figure.add_vline(x=layers.index(selected), line={"color": CATEGORICAL[1], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(**layer_ticks(layers, most=14), tickangle=-45, showgrid=False, zeroline=False)
    return figure


def multiplier_ranks(multiplier: ArrayLike, *, kernels: bool = False, theme: str = "light") -> go.Figure:
    """Draw the mean of m over the outputs of each input channel, from the lowest to the highest; or m of each kernel.

    `multiplier` is (Out, In/groups); with `kernels` each of its numbers is drawn by itself. The ends are what D_L and
    D_H are measured by. Paper: section 4.2.

    Two outputs read three input channels; the second of these has the lowest mean:

    >>> figure = multiplier_ranks([[0.5, 0.2, 0.9], [0.5, 0.4, 0.7]])
    >>> figure.data[0].y.round(2).tolist()
    [0.3, 0.5, 0.8]
    """
    values = np.asarray(multiplier, dtype=np.float64)
    means = values.ravel() if kernels else values.mean(axis=0)
    order = np.argsort(means, kind="stable")
    num_ins = values.shape[1]
    names = [f"[{place // num_ins}, {place % num_ins}]" if kernels else str(place) for place in order]
    long, short, value = ("kernel", "kernel", "m") if kernels else ("input channel", "channel", "mean m")
    ranks = pd.Series(means[order])
    figure = new_figure(
        theme,
        300,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        xaxis_title_text=f"rank of the {long}",
        yaxis_title_text=value,
        showlegend=False,
        hovermode="closest",
    )
    figure.add_trace(
        go.Scatter(
            x=ranks.index + 1,
            y=ranks,
            mode="lines+markers",
            line={"color": THEMES[theme].line, "width": 1.5},
            marker={"size": 4},
            text=[f"{long} {name}<br>{value} = {m:.4f}" for name, m in zip(names, ranks, strict=True)],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    ends = [0, len(order) - 1]
    figure.add_trace(
        go.Scatter(
            x=[place + 1 for place in ends],
            y=ranks.iloc[ends],
            mode="markers+text",
            marker={"size": 10, "color": CATEGORICAL[1]},
            text=[f"lowest: {short} {names[0]}", f"highest: {short} {names[-1]}"],
            textposition=["bottom right", "top left"],
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(dtick=1 if len(order) <= 10 else None, zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure

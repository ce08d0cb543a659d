"""Two studies beside each other: how their D are distributed, and whether they agree about what matters."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.figures.style import drop_title, message_figure, metric_of, new_figure
from weanalysis.tasks import METRICS, Metric

_NOTHING = "Nothing has been measured in either study yet."


def drop_distributions(
    tables: Mapping[str, pd.DataFrame], *, colours: Mapping[str, str] | None = None, theme: str = "light"
) -> go.Figure:
    """Draw, for each study by name, which share of its ablations has at least a given D.

    The further right a curve stays high, the more of the network is needed. The shares are on a logarithmic scale.

    >>> tables = {"first": pd.DataFrame({"drop": [0.0, 2.0], "metric": "top1"})}
    >>> (line,) = drop_distributions(tables).data
    >>> line.name, line.x.tolist(), line.y.tolist()
    ('first', [0.0, 2.0], [100.0, 50.0])
    """
    drops = {name: np.sort(table["drop"].dropna().to_numpy()) for name, table in tables.items()}
    drops = {name: values for name, values in drops.items() if len(values)}
    if not drops:
        return message_figure(_NOTHING, theme)
    metric = metric_of(next(iter(tables.values())))
    figure = new_figure(
        theme,
        380,
        xaxis_title_text=drop_title(metric),
        yaxis_title_text="Share of ablations costing at least D (%)",
        hovermode="closest",
    )
    for place, (name, values) in enumerate(drops.items()):
        colour = (colours or {}).get(name, CATEGORICAL[place % len(CATEGORICAL)])
        different, first_place = np.unique(values, return_index=True)
        figure.add_trace(
            go.Scatter(
                x=different,
                y=100 * (len(values) - first_place) / len(values),
                mode="lines",
                line={"shape": "vh", "width": 2, "color": colour},
                name=html.escape(name),
                hovertemplate=f"%{{y:.1f}} % cost at least D = %{{x:+.{metric.decimals}f}}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": THEMES[theme].muted, "width": 1})
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def drop_agreement(
    pairs: pd.DataFrame, first: str, second: str, metric: Metric = METRICS["top1"], *, theme: str = "light"
) -> go.Figure:
    """Draw D in one study against D in another, a point for each place that both measured.

    `pairs` has the columns layer, first and second (D), and, where they say more, out_channel and in_channel or
    percentile. On the dashed line both are the same.

    >>> pairs = pd.DataFrame({"layer": "conv1", "first": [0.5, 2.0], "second": [1.0, 2.5], "percentile": [50.0, 100.0]})
    >>> figure = drop_agreement(pairs, "baseline", "lwe")
    >>> figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    ('D in baseline', 'D in lwe')
    >>> [list(map(float, trace.y)) for trace in figure.data if trace.mode == "markers"]
    [[1.0, 2.5]]
    """
    if pairs.empty:
        return message_figure("The two studies have no place in common.", theme)
    figure = new_figure(
        theme,
        380,
        xaxis_title_text=f"D in {html.escape(first)}",
        yaxis_title_text=f"D in {html.escape(second)}",
        hovermode="closest",
        showlegend=False,
    )
    ends = [pairs[["first", "second"]].min().min(), pairs[["first", "second"]].max().max()]
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            hoverinfo="skip",
            line={"color": THEMES[theme].muted, "dash": "dash", "width": 1},
        )
    )
    # D comes in whole images, so that many places share a point.
    alike = pairs.groupby(["first", "second"], sort=False)
    shown = pairs.loc[alike.head(1).index].assign(others=alike.size().to_numpy() - 1)
    figure.add_trace(
        go.Scatter(
            x=shown["first"],
            y=shown["second"],
            mode="markers",
            marker={"size": 6, "color": translucent(THEMES[theme].line, 0.55)},
            text=[
                f"<b>{html.escape(str(layer))}</b><br>{html.escape(where)}"
                + (f"<br>and {others:,} other place{'s' if others > 1 else ''}" if others else "")
                + f"<br>{html.escape(first)}: D = {metric.words(one)}<br>{html.escape(second)}: D = {metric.words(two)}"
                for layer, where, others, one, two in zip(
                    shown["layer"], _places(shown), shown["others"], shown["first"], shown["second"], strict=True
                )
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(zeroline=True)
    return figure


def _places(pairs: pd.DataFrame) -> list[str]:
    if {"out_channel", "in_channel"} <= set(pairs.columns):
        channels = zip(pairs["out_channel"], pairs["in_channel"], strict=True)
        return [f"output {out_channel:.0f}, input {in_channel:.0f}" for out_channel, in_channel in channels]
    if "percentile" in pairs:
        return [f"b = {percentile:g}" for percentile in pairs["percentile"]]
    return [""] * len(pairs)

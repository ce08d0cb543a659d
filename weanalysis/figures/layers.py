"""Studies of whole channels and layers: D of every ablation, by depth."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, THEMES, translucent
from weanalysis.figures.style import (
    SIGNIFICANT_Q,
    diamond,
    drop_title,
    each,
    error_bars,
    layer_ticks,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    thinned,
)
from weanalysis.tasks import Metric

_ROUNDING = 1e-6
_MOST_INTERVALS = 60  # with more, intervals lie on each other and hide the points


def drop_by_layer(
    table: pd.DataFrame, *, selected: int | None = None, theme: str = "light", seed: int = 0
) -> go.Figure:
    """Draw D of every ablation of a study that zeroes channels or layers, by depth, and whether it differs from 0.

    `table` holds the study's rows (the results' columns). Few ablations carry their 95 % intervals; of very many some
    are shown, drawn at random from `seed`, and beside each other within their layer. The row whose place is `selected`
    is the diamond. A click on a point carries customdata [layer, out_channel, in_channel, place], place being the
    row's index.

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"layer": ["conv1", "conv2"], "depth": [0, 1], "drop": [60.0, 2.0], "q_value": [0.0, 0.2]})
    >>> figure = drop_by_layer(table.assign(selection="layer", metric="top1").reindex(columns=COLUMNS))
    >>> [(trace.name, list(map(float, trace.y))) for trace in figure.data]
    [('cannot be told from 0 (q > 0.05)', [2.0]), ('differs from 0 (q ≤ 0.05)', [60.0])]
    """
    rows = table.dropna(subset=["drop", "layer"]).sort_values(["depth", "layer"], kind="stable")
    if rows.empty:
        return message_figure("No layer has been measured yet.", theme)
    generator = np.random.default_rng(seed)
    layers = list(dict.fromkeys(rows["layer"]))
    crowded = len(rows) > len(layers)
    rows = rows.assign(
        place=rows["layer"].map({layer: place for place, layer in enumerate(layers)})
        + (generator.uniform(-0.28, 0.28, len(rows)) if crowded else 0.0)
    )
    metric = metric_of(rows)
    figure = new_figure(
        theme,
        400,
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        yaxis_title_text=drop_title(metric),
        hovermode="closest",
    )
    significant = rows["q_value"] <= SIGNIFICANT_Q
    for name, own, colour in (
        (f"cannot be told from 0 (q > {SIGNIFICANT_Q:g})", rows[~significant], translucent(CATEGORICAL[8], 0.6)),
        (f"differs from 0 (q ≤ {SIGNIFICANT_Q:g})", rows[significant], THEMES[theme].line),
    ):
        if own.empty:
            continue
        shown = thinned(own, generator, "layer")
        name += f", {len(shown):,} of {len(own):,}" if len(shown) < len(own) else ""
        points = _points(shown, metric, with_intervals=len(rows) <= _MOST_INTERVALS)
        figure.add_trace(points.update(name=name, marker={"size": 5 if crowded else 8, "color": colour}))
    if selected in rows.index:
        figure.add_trace(diamond(rows.loc[selected, "place"], rows.loc[selected, "drop"], theme))
    figure.update_xaxes(
        **layer_ticks(layers, most=20), tickangle=-45, showgrid=False, zeroline=False, range=[-0.7, len(layers) - 0.3]
    )
    figure.update_yaxes(rangemode="tozero", zeroline=True, zerolinecolor=THEMES[theme].muted)
    return figure


def _points(shown: pd.DataFrame, metric: Metric, with_intervals: bool) -> go.Scatter:
    """A point an ablation at its place, which tells D when hovered over, and which row it is when clicked."""
    error = error_bars(shown["drop"], shown["drop_low"], shown["drop_high"], thickness=1.2, width=2)
    return go.Scatter(
        x=shown["place"],
        y=shown["drop"],
        error_y=error if with_intervals else None,
        mode="markers",
        customdata=np.array(
            [
                [layer, *(None if np.isnan(side) else int(side) for side in (out, into)), place]
                for (layer, out, into), place in zip(
                    each(shown, "layer", "out_channel", "in_channel"), shown.index.tolist(), strict=True
                )
            ],
            dtype=object,
        ),
        text=[
            f"<b>{html.escape(str(layer))}</b><br>{html.escape(str(selection))}"
            + ("" if np.isnan(out) else f", output {out:.0f}")
            + ("" if np.isnan(into) else f", input {into:.0f}")
            + measurement(drop, low, high, metric)
            for layer, selection, out, into, drop, low, high in each(
                shown, "layer", "selection", "out_channel", "in_channel", "drop", "drop_low", "drop_high"
            )
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def spread_by_depth(spreads: pd.DataFrame, metric: Metric, *, theme: str = "light") -> go.Figure:
    """Draw the standard deviation of D in each layer, noise taken off, by depth on a logarithmic axis (paper, Fig. 2).

    `spreads` has the columns layer, in network order, spread, low and high (NaN for no interval). Layers that vary by
    no more than the noise have a spread of 0, which a logarithmic axis has no place for: they are marked at its lower
    end.

    >>> from weanalysis.tasks import find_metric
    >>> spreads = pd.DataFrame({"layer": ["a", "b"], "spread": [2.0, 0.0], "low": [1.0, None], "high": [4.0, None]})
    >>> [(trace.name, trace.x.tolist()) for trace in spread_by_depth(spreads, find_metric("top1")).data]
    [('standard deviation', [0]), ('no more than the noise', [1])]
    """
    table = spreads.reset_index(drop=True).dropna(subset=["spread"])
    # What is left of a difference of two equal numbers is nothing.
    nothing = _ROUNDING * table["spread"].max()
    varies = table[table["spread"] > nothing]
    if varies.empty:
        return message_figure("D of no layer varies by more than the noise of the images.", theme)
    floor = float(np.nanmin([*varies["spread"], *varies.loc[varies["low"] > nothing, "low"]])) / 2
    low = varies["low"].clip(lower=floor)
    figure = new_figure(
        theme,
        380,
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        yaxis_title_text=f"standard deviation of D ({metric.unit})",
        hovermode="closest",
    )
    figure.add_trace(
        go.Scatter(
            x=varies.index.to_numpy(),
            y=varies["spread"],
            mode="lines+markers",
            name="standard deviation",
            line={"color": CATEGORICAL[1], "width": 2},
            marker={"size": 7},
            error_y=error_bars(varies["spread"], low, varies["high"]),
            text=[
                f"<b>{html.escape(layer)}</b><br>{metric.words(spread, signed=False)} {metric.unit}<br>"
                + (f"95 % interval {low:.2f} to {high:.2f}" if low == low else "no interval can be given")
                for layer, spread, low, high in each(varies, "layer", "spread", "low", "high")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    quiet = table[table["spread"] <= nothing]
    if len(quiet):
        figure.add_trace(
            go.Scatter(
                x=quiet.index.to_numpy(),
                y=[floor] * len(quiet),
                mode="markers",
                name="no more than the noise",
                marker={"symbol": "triangle-down-open", "size": 9, "color": THEMES[theme].muted},
                text=[f"<b>{html.escape(layer)}</b><br>no more than the noise" for layer in quiet["layer"]],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    ticks = layer_ticks(spreads["layer"].tolist(), most=10)
    figure.update_xaxes(**ticks, tickangle=-45, showgrid=False, zeroline=False, range=[-0.7, len(spreads) - 0.3])
    figure.update_yaxes(type="log", zeroline=False, dtick=1)
    return figure

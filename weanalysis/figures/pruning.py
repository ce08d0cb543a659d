"""Pruned networks: what accuracy, or loss, is left over the share of units that are gone, by the ranking."""

from __future__ import annotations

import html
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, THEMES
from weanalysis.figures.style import band, message_figure, new_figure
from weanalysis.tasks import METRICS, Metric, find_metric

# The columns of a curve's table that hold the score and its paired change, of the network's metric and of its loss.
_LOSS = {
    "intact": "loss_intact",
    "ablated": "loss",
    "drop": "loss_drop",
    "drop_low": "loss_low",
    "drop_high": "loss_high",
}


def pruning_curves(
    tables: Mapping[str, pd.DataFrame], unit: str, metric: str, *, theme: str = "light", loss: bool = False
) -> go.Figure:
    """Draw the score that is left over the share of units that are pruned, a line with its 95 % interval a ranking.

    `tables` are the tables of `pruning.Pruned` by the ranking's name, all of one network and one set of images;
    `metric` is that of their columns intact, ablated and drop; with `loss`, the mean loss is drawn. Intervals are those
    of D, laid from the unpruned network's score, the dashed line.

    >>> table = pd.DataFrame({"num_units": 10, "num_pruned": [2, 5], "num_nonzero": 9, "gflops": 1.0, "intact": 90.0})
    >>> table = table.assign(ablated=[88.0, 60.0], drop=[2.0, 30.0], drop_low=[1.0, 25.0], drop_high=[3.0, 35.0])
    >>> figure = pruning_curves({"taylor": table}, "kernel", "top1")
    >>> [list(trace.x) for trace in figure.data if trace.name == "taylor"], figure.layout.yaxis.title.text
    ([[0.0, 20.0, 50.0]], 'top-1 accuracy (%)')
    """
    measured = METRICS["loss"] if loss else find_metric(metric)
    if not any(len(table) for table in tables.values()):
        return message_figure("Nothing has been pruned yet.", theme)
    figure = new_figure(
        theme,
        460,
        hovermode="closest",
        xaxis_title_text=f"{unit}s pruned (%)",
        yaxis_title_text=f"{measured.label}{' accuracy' if measured.counts_images else ''} ({measured.mark})",
    )
    renamed = {
        name: table.drop(columns=list(_LOSS)).rename(columns={now: usual for usual, now in _LOSS.items()})
        if loss
        else table
        for name, table in tables.items()
    }
    for place, (name, table) in enumerate(renamed.items()):
        _add_curve(figure, name, table, unit, measured, CATEGORICAL[place % len(CATEGORICAL)])
    intact = float(next(iter(renamed.values()))["intact"].iloc[0])
    figure.add_hline(
        y=intact,
        line={"color": THEMES[theme].muted, "width": 1.5, "dash": "dash"},
        annotation={
            "text": f"unpruned, {measured.words(intact, signed=False)}",
            "font": {"color": THEMES[theme].muted, "size": 12},
            "xanchor": "right",
            "yanchor": "top" if measured.worse > 0 else "bottom",
        },
    )
    figure.update_xaxes(range=[-1, 101], zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure


def _add_curve(figure: go.Figure, name: str, table: pd.DataFrame, unit: str, metric: Metric, colour: str) -> None:
    """Add a line from the unpruned network on, and its band: a score is as much worse than intact as D says.

    The band ends where the score does: an accuracy of 98 % with D in [-4, 1] is drawn from 97 % to 100 %.
    """
    rows = table.sort_values("num_pruned")
    intact, share = rows["intact"].iloc[0], (100 * rows["num_pruned"] / rows["num_units"]).tolist()
    ends = ((intact + metric.worse * rows[side]).clip(0, metric.most) for side in ("drop_low", "drop_high"))
    best, worst = ([intact, *end] for end in ends)
    along = [0.0, *share]
    figure.add_trace(band(along, worst, best, colour, 0.14, legendgroup=name, showlegend=False, name="95 % interval"))
    said = [
        f"<b>{html.escape(name)}</b><br>{row.num_pruned:,.0f} of {row.num_units:,.0f} {unit}s pruned<br>"
        f"{metric.label} {metric.words(row.ablated, signed=False)}<br>D = {metric.words(row.drop)} {metric.unit}, "
        f"95 % {metric.interval(row.drop_low, row.drop_high)}<br>{row.num_nonzero:,.0f} parameters are not 0"
        for row in rows.itertuples()
    ]
    figure.add_trace(
        go.Scatter(
            x=along,
            y=[intact, *rows["ablated"]],
            mode="lines+markers",
            name=html.escape(name),
            legendgroup=name,
            line={"color": colour, "width": 2},
            marker={"size": 6},
            text=["unpruned", *said],
            hovertemplate="%{text}<extra></extra>",
        )
    )

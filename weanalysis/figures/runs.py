"""Training runs (paper, Figs 4 and 5): how loss and accuracy went, run by run or as the mean over seeds."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from weanalysis.figures.colours import CATEGORICAL, translucent
from weanalysis.figures.style import band, message_figure, new_figure

X_TITLES = {"epoch": "epoch", "step": "step", "seconds": "time trained (minutes)"}
METRIC_TITLES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "miou": "mean IoU (%)",
    "loss": "loss (cross-entropy)",
    "learning_rate": "learning rate",
    "peak_memory_gib": "peak memory (GiB)",
}
# Of fewer runs the range says nothing of how far others may lie.
FEWEST_SEEDS = 3

_LOWER_IS_BETTER = ("loss", "error")


def training_curves(
    runs: Mapping[str, pd.DataFrame],
    metric: str = "top1",
    x: str = "epoch",
    *,
    smoothing: float = 0.0,
    groups: Mapping[str, str] | None = None,
    show_training: bool = True,
    colours: Mapping[str, str] | None = None,
    theme: str = "light",
) -> go.Figure:
    """Draw a metric of several runs, validation as a solid and training as a dotted line, the best epoch as a star.

    `runs` maps a name to a table of one row an epoch or step. `metric` is a column of it, or the name that val_… and
    train_… columns share, such as "top1"; `x` is "epoch", "step" or "seconds". `smoothing` in [0, 1) is the weight of
    the past in an exponential mean; the raw line then stays, paler. `groups` maps a run's name to the name of its
    group: each group is drawn as the mean of its runs, from three on with their range as a band, and the runs paler.
    `colours` gives the colour of each run, or group, by its name.

    The best of three epochs is the second:

    >>> run = pd.DataFrame({"epoch": [1, 2, 3], "val_top1": [45.0, 62.0, 61.0]})
    >>> validation, best = training_curves({"baseline": run}).data
    >>> validation.y.tolist(), list(best.x)
    ([45.0, 62.0, 61.0], [2.0])
    """
    solid, dotted = _columns(runs, metric)
    if solid is None:
        return message_figure(f"None of these runs has recorded “{metric}” by {x}.", theme)
    figure = new_figure(
        theme,
        440,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "xanchor": "left", "x": 0},
        xaxis_title_text=X_TITLES.get(x, x),
        yaxis_title_text=METRIC_TITLES.get(metric, html.escape(metric)),
    )
    names = list(dict.fromkeys(groups[name] if groups else name for name in runs))
    colours = colours or {name: CATEGORICAL[place % len(CATEGORICAL)] for place, name in enumerate(names)}
    columns = [(solid, "solid")] + ([(dotted, "dot")] if dotted and show_training else [])
    for column, dash in columns:
        known = {name: _known(frame, x, column) for name, frame in runs.items()}
        for name, (places, values) in known.items():
            if not len(values):
                continue
            colour = colours[groups[name] if groups else name]
            pale = groups is not None or smoothing > 0
            _add_line(figure, name, places, values, column, dash, colour, pale=pale, legend=not pale)
            if smoothing > 0 and groups is None:
                smooth = exponential_mean(values, smoothing)
                _add_line(figure, name, places, smooth, f"{column}, smoothed", dash, colour, pale=False, legend=True)
            if dash == "solid" and groups is None and column not in ("learning_rate", "peak_memory_gib"):
                _add_best(figure, name, places, values, column, colour)
        if groups is not None:
            for group in names:
                members = [known[name] for name in runs if groups[name] == group and len(known[name][1])]
                _add_group(figure, group, members, column, dash, colours[group], smoothing)
    places = np.concatenate([_known(frame, x, solid)[0] for frame in runs.values()])
    is_short = x == "epoch" and len(places) and np.ptp(places) <= 12
    figure.update_xaxes(zeroline=False, dtick=1 if is_short else None)
    figure.update_yaxes(zeroline=False)
    return figure


def exponential_mean(values: ArrayLike, weight: float) -> np.ndarray:
    """Return the exponential moving mean of `values`, in which the past weighs `weight` and the start is not biased."""
    if not 0 <= weight < 1:
        raise ValueError(f"the weight of the past must lie in [0, 1), not {weight}")
    return pd.Series(np.asarray(values, dtype=np.float64)).ewm(alpha=1 - weight, adjust=True).mean().to_numpy()


def best_epoch(values: ArrayLike, column: str) -> int:
    """Return the place of the best value: the first lowest of a loss or error, the first highest of all else.

    `values` are (E,), some of them NaN; `column` is what they are called. Raises ValueError where all are NaN.

    >>> best_epoch([60.0, 70.0, 65.0], "val_top1"), best_epoch([0.9, 0.5, 0.5], "val_loss")
    (1, 1)
    """
    values = np.asarray(values, dtype=np.float64)
    lower = any(word in column for word in _LOWER_IS_BETTER)
    return int(np.nanargmin(values) if lower else np.nanargmax(values))


def _columns(runs: Mapping[str, pd.DataFrame], metric: str) -> tuple[str | None, str | None]:
    """Return the column of the solid line and that of the dotted one."""
    present = {column for frame in runs.values() for column in frame.columns}
    solid = next((name for name in (f"val_{metric}", metric, f"train_{metric}") if name in present), None)
    dotted = f"train_{metric}"
    return solid, dotted if dotted in present and dotted != solid else None


def _known(frame: pd.DataFrame, x: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where and what a run has recorded; seconds become minutes."""
    if x not in frame or column not in frame:
        return np.empty(0), np.empty(0)
    known = frame[[x, column]].dropna().sort_values(x)
    places = known[x].to_numpy(dtype=np.float64)
    return places / 60 if x == "seconds" else places, known[column].to_numpy(dtype=np.float64)


def _add_line(
    figure: go.Figure,
    name: str,
    places: np.ndarray,
    values: np.ndarray,
    column: str,
    dash: str,
    colour: str,
    *,
    pale: bool,
    legend: bool,
) -> None:
    figure.add_trace(
        go.Scatter(
            x=places,
            y=values,
            mode="lines+markers" if len(places) == 1 else "lines",
            name=html.escape(name),
            legendgroup=name,
            showlegend=legend and dash == "solid",
            line={"color": translucent(colour, 0.35) if pale else colour, "width": 1.2 if pale else 2, "dash": dash},
            hovertemplate=f"<b>{html.escape(name)}</b><br>{html.escape(column)}: %{{y:.4g}}<br>at %{{x:.4g}}"
            "<extra></extra>",
        )
    )


def _add_best(figure: go.Figure, name: str, places: np.ndarray, values: np.ndarray, column: str, colour: str) -> None:
    best = best_epoch(values, column)
    figure.add_trace(
        go.Scatter(
            x=[places[best]],
            y=[values[best]],
            mode="markers",
            legendgroup=name,
            showlegend=False,
            marker={"symbol": "star", "size": 12, "color": colour},
            hovertemplate=f"<b>{html.escape(name)}</b><br>best {html.escape(column)}: %{{y:.4g}}<br>at %{{x:.4g}}"
            "<extra></extra>",
        )
    )


def _add_group(
    figure: go.Figure,
    group: str,
    members: list[tuple[np.ndarray, np.ndarray]],
    column: str,
    dash: str,
    colour: str,
    smoothing: float,
) -> None:
    """Draw the mean and the range of several runs where all of them have a value, between their points if need be."""
    if not members:
        return
    first, last = max(places[0] for places, _ in members), min(places[-1] for places, _ in members)
    places = np.unique(np.concatenate([places for places, _ in members]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):
        return
    values = np.stack([np.interp(places, own, value) for own, value in members])
    if smoothing > 0:
        values = np.stack([exponential_mean(row, smoothing) for row in values])
    if len(members) >= FEWEST_SEEDS and dash == "solid":
        low, high = values.min(axis=0), values.max(axis=0)
        figure.add_trace(band(places, low, high, colour, 0.22, legendgroup=group, showlegend=False))
    title = f"{group} (mean of {len(members)})" if len(members) > 1 else group
    _add_line(figure, title, places, values.mean(axis=0), column, dash, colour, pale=False, legend=True)

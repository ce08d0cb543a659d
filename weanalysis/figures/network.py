"""A network as a picture: its layers in the order in which they compute, its shortcuts as arcs, coloured by D."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import THEMES
from weanalysis.figures.scale import scale_of
from weanalysis.figures.style import SIGNIFICANT_Q, colour_bar, message_figure, metric_of, new_figure, shorten
from weanalysis.results.outlines import Outline
from weanalysis.tasks import Metric

By = Literal["drop", "count"]

_LANE, _ROW_GAP = 1.0, 1.6  # in units of a step to the right
_LANE_PIXELS = 34
_MOST_ARC = 1.5
_MOST_NAMED = 60


@dataclass(frozen=True)
class _Places:
    """Where each node lies: its line of the picture, its step to the right in it, its lane below the first."""

    line: np.ndarray
    x: np.ndarray
    lane: np.ndarray
    tops: np.ndarray
    width: int

    @property
    def y(self) -> np.ndarray:
        return self.tops[self.line] - _LANE * self.lane


def network_map(
    table: pd.DataFrame,
    outline: Outline,
    by: By = "drop",
    *,
    row: str = "kernel",
    steps_a_line: int = 32,
    selected: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Draw a network's layers from left to right, and what leads from one to another; arcs are shortcuts.

    `table` is a study's (the results' columns), `row` what one of its rows is called. A layer is coloured by the
    largest D of its rows that differs from 0 (q ≤ 0.05), or, by "count", by how many do; white is none, grey was not
    measured. A line has at most `steps_a_line` steps. The layer `selected` is framed. A click carries customdata
    [layer].

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"layer": ["a", "b"], "depth": [0, 1], "drop": [9.0, 1.0], "q_value": [0.01, 0.5]})
    >>> table = table.assign(metric="top1", num_images=100).reindex(columns=COLUMNS)
    >>> layers = network_map(table, Outline.of({"layers": ["a", "b"]})).data[-1]
    >>> layers.customdata.tolist(), layers.text[1]
    ([['a'], ['b']], '<b>b</b><br>none of 1 kernels differs from 0')
    """
    if not outline.names:
        return message_figure("Nothing is known of this network's layers.", theme)
    places = _laid_out(outline, steps_a_line)
    lines = len(places.tops)
    figure = new_figure(
        theme,
        round(60 + _LANE_PIXELS * (places.tops[0] + _MOST_ARC - places.tops[-1] + places.lane.max() + 1.2 * lines)),
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
        hovermode="closest",
        hoverdistance=12,
        showlegend=False,
    )
    bottom = float((places.y).min())
    # The last name leans out to the right.
    figure.update_xaxes(
        visible=False, range=[-0.8, places.width + (0.9 if len(outline.names) <= _MOST_NAMED else -0.2)]
    )
    figure.update_yaxes(visible=False, range=[bottom - 1.9, places.tops[0] + _MOST_ARC + 0.2])
    figure.add_trace(_edges(outline, places, theme))
    joins = [place for place, is_layer in enumerate(outline.are_layers) if not is_layer]
    figure.add_trace(_joins(outline, places, joins, theme))
    layers = [place for place, is_layer in enumerate(outline.are_layers) if is_layer]
    figure.add_trace(_layers(table, outline, places, layers, (by, row, selected), theme))
    if len(layers) <= _MOST_NAMED:
        for place in layers:
            figure.add_annotation(
                x=places.x[place],
                y=places.y[place] - 0.35,
                text=shorten(outline.names[place], 12),
                showarrow=False,
                textangle=40,
                xanchor="left",
                yanchor="top",
                font={"size": 10, "color": THEMES[theme].muted},
            )
    return figure


def _laid_out(outline: Outline, steps_a_line: int) -> _Places:
    """Put each node as far to the right as the longest way to it, in a lane of its own, and break that into lines."""
    num = len(outline.names)
    before: list[list[int]] = [[] for _ in range(num)]
    for first, second in outline.edges:
        before[second].append(first)
    step, lane = np.zeros(num, int), np.zeros(num, int)
    taken: dict[int, set[int]] = {}
    for place in range(num):
        step[place] = max((step[one] + 1 for one in before[place]), default=0)
        used = taken.setdefault(int(step[place]), set())
        nearest = [one for one in before[place] if step[one] == step[place] - 1]
        wish = 0 if not outline.are_layers[place] else min((int(lane[one]) for one in nearest), default=0)
        lane[place] = next(one for one in range(wish, wish + num + 1) if one not in used)
        used.add(int(lane[place]))
    starts = _line_starts(step, outline, steps_a_line)
    line = np.searchsorted(starts, step, side="right") - 1
    depths = [lane[line == one].max(initial=0) for one in range(len(starts))]
    heights = np.cumsum([0.0, *(_LANE * depth + _MOST_ARC + _ROW_GAP for depth in depths[:-1])])
    x = step - starts[line]
    return _Places(line, x, lane, -heights, max(int(x.max()) + 1, 2))


def _line_starts(step: np.ndarray, outline: Outline, steps_a_line: int) -> np.ndarray:
    """Choose at which step each line begins: where the fewest edges are cut, not far before the line is full."""
    last, starts = int(step.max()), [0]
    edges = np.array(outline.edges, int).reshape(-1, 2)
    while last - starts[-1] >= steps_a_line:
        offered = range(starts[-1] + max(1, 2 * steps_a_line // 3), starts[-1] + steps_a_line + 1)
        cut = [int(((step[edges[:, 0]] < one) & (step[edges[:, 1]] >= one)).sum()) for one in offered]
        starts.append(max(one for one, count in zip(offered, cut, strict=True) if count == min(cut)))
    return np.array(starts)


def _edges(outline: Outline, places: _Places, theme: str) -> go.Scatter:
    xs: list[float | None] = []
    ys: list[float | None] = []
    along = np.linspace(0, 1, 16)
    for first, second in outline.edges:
        ends = [(float(places.x[one]), float(places.y[one])) for one in (first, second)]
        if places.line[first] == places.line[second]:
            pieces = [(ends[0], ends[1])]
        else:  # out of its line to the right, and into the other from the left
            edge = places.tops[[places.line[first], places.line[second]]]
            pieces = [(ends[0], (places.width - 0.3, edge[0])), ((-0.7, edge[1]), ends[1])]
        for (x0, y0), (x1, y1) in pieces:
            arc = min(_MOST_ARC, 0.35 + 0.12 * (x1 - x0)) if x1 - x0 > 1.01 and y0 == y1 else 0.0
            eased = along * along * (3 - 2 * along)
            xs += [*(x0 + (x1 - x0) * along), None]
            ys += [*(y0 + (y1 - y0) * eased + arc * np.sin(np.pi * along) ** 0.7), None]
    line = {"color": THEMES[theme].muted, "width": 1.3}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip")


def _joins(outline: Outline, places: _Places, joins: list[int], theme: str) -> go.Scatter:
    return go.Scatter(
        x=places.x[joins],
        y=places.y[joins],
        mode="markers",
        marker={"size": 9, "color": THEMES[theme].page, "line": {"width": 1.5, "color": THEMES[theme].muted}},
        text=[html.escape({"+": "sum", "×": "product"}.get(outline.names[one], outline.names[one])) for one in joins],
        hovertemplate="%{text}<extra></extra>",
    )


def _layers(
    table: pd.DataFrame,
    outline: Outline,
    places: _Places,
    layers: list[int],
    asked: tuple[By, str, str | None],
    theme: str,
) -> go.Scatter:
    by, row, selected = asked
    rows = table.dropna(subset=["layer", "drop"])
    certain = rows[rows["q_value"] <= SIGNIFICANT_Q]
    largest = certain.loc[certain["drop"].abs().groupby(certain["layer"]).idxmax()].set_index("layer")["drop"]
    counts, of_all = certain["layer"].value_counts(), rows["layer"].value_counts()
    names = [outline.names[place] for place in layers]
    measured = pd.Series([name in of_all.index for name in names])
    own = counts if by == "count" else largest
    values = own.reindex(names).reset_index(drop=True).astype(float).fillna(0.0)
    metric = metric_of(rows) if len(rows) else None
    colours = THEMES[theme].diverging
    if by == "drop" and metric is not None:
        scale = scale_of(rows, largest if len(largest) else rows["drop"])
        bounds, shades = (-scale.end, scale.end), scale.places(values)
        # The bar is short: its ends and its middle have room.
        marks = scale.marks(metric, f"largest D, {metric.unit}")
        last = max(marks["tickvals"])  # as computed for the ticks: another logarithm may differ in the last digit
        ends = [place for place, value in enumerate(marks["tickvals"]) if abs(value) in (0, last)]
        bar: dict[str, Any] = marks | {name: [marks[name][end] for end in ends] for name in ("tickvals", "ticktext")}
    else:
        bounds, shades = (0.0, max(1.0, float(values.max()))), values
        upper = colours[len(colours) // 2 :]
        colours = [[2 * (at - 0.5), colour] for at, colour in upper]
        bar = {"title": f"{row}s, q ≤ {SIGNIFICANT_Q:g}"}
    words = [_words(name, row, counts, of_all, largest, metric) for name in names]
    frames = [THEMES[theme].accent if name == selected else THEMES[theme].muted for name in names]
    return go.Scatter(
        x=places.x[layers],
        y=places.y[layers],
        mode="markers",
        marker={
            "symbol": ["square" if one else "square-open" for one in measured],
            "size": 17,
            "color": shades,
            "cmin": bounds[0],
            "cmax": bounds[1],
            "colorscale": colours,
            "showscale": True,
            "colorbar": colour_bar(theme, **bar) | {"len": 0.92, "y": 0.5, "ticklabeloverflow": "allow"},
            "line": {"width": [3 if name == selected else 1 for name in names], "color": frames},
        },
        customdata=np.array([[name] for name in names], dtype=object),
        text=words,
        hovertemplate="%{text}<extra></extra>",
    )


def _words(name: str, row: str, counts: pd.Series, of_all: pd.Series, largest: pd.Series, metric: Metric | None) -> str:
    """Say of a layer how many of its rows differ from 0, and which D is the largest of these."""
    if name not in of_all.index:
        return f"<b>{html.escape(name)}</b><br>not measured"
    some = f"{counts[name]:,} of {of_all[name]:,} {row}s differ" if name in counts.index else ""
    text = f"<b>{html.escape(name)}</b><br>{some or f'none of {of_all[name]:,} {row}s differs'} from 0"
    if name in largest.index and metric is not None:
        text += f"<br>the largest: D = {metric.words(largest[name])} {metric.unit}"
    return text

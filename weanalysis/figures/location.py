"""Location studies (paper, section 3.1 and Fig. 2): the importance maps of all layers, and how much they vary."""

from __future__ import annotations

import html
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, SEQUENTIAL, THEMES, translucent
from weanalysis.figures.mosaic import Mosaic, Tile, lay_out
from weanalysis.figures.scale import SymmetricLog, marks_of_q, noise_of, scale_of
from weanalysis.figures.style import (
    SIGNIFICANT_Q,
    clickable,
    colour_bar,
    drop_title,
    each,
    error_bars,
    layer_ticks,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    screenings,
    shorten,
    thinned,
    worded_once,
)

Value = Literal["drop", "significance", "flipped"]
Scale = Literal["shared", "layer"]

_LINED_PIXELS = 10  # a kernel of that many is much larger than the line between two
_LARGEST_LOG_Q = 4.0  # beyond q = 0.0001 a darker colour says nothing more
_MOST_MARKERS = 30_000  # clickable cells; with more, the page would carry more text than picture
_LARGEST_BOOTSTRAP = 2_000
_NOTHING = "No kernel has been measured yet."


def location_mosaic(
    table: pd.DataFrame,
    value: Value = "drop",
    scale: Scale = "shared",
    hide_insignificant: bool = False,
    *,
    layers: Collection[str] | None = None,
    selected: tuple[str, int, int] | None = None,
    limit: float | None = None,
    num_columns: int | None = None,
    quantity: str = "D",
    theme: str = "light",
) -> go.Figure:
    """Draw the kernels of every layer as one mosaic: layers in network order, rows output, columns input channels.

    `table` holds the rows of a location study (the results' columns, one row a kernel). `value` is what the colour
    says: "drop" is D on a symmetric logarithmic scale to the largest (pale where its interval holds 0), "significance"
    q on a logarithmic scale with the sign of D, "flipped" the share of images whose correctness changed. Kernels that
    differ from 0 after correction (q <= 0.05) are outlined; above each map stands its largest D. `scale` "layer"
    stretches the colours of each layer to its own largest value, but not below what D is known to.
    `hide_insignificant` greys what cannot be told from zero (q > 0.05). `layers` draws only some of the layers, in the
    colours that they have among all. `selected` = (layer, out, in) is framed.
    `limit` fixes the end of the shared scale, so that two mosaics can be compared. `quantity` names what the column
    drop holds, if that is not D itself but, say, a difference of two. A click on a cell carries
    customdata [layer, out_channel, in_channel, position], the last being the row's place in `table`.
    Paper: section 3.1, "Weight location and importance".

    The four kernels of a layer, as `wa.ablate(model, data, "location")` would return them, coloured by sign and size:

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 0, 1, 1], "in_channel": [0, 1, 0, 1], "drop": [0.0, 1.5, 3.0, -0.5]})
    >>> table = table.assign(layer="conv1", depth=0, selection="kernel", metric="top1").reindex(columns=COLUMNS)
    >>> shades = np.asarray(location_mosaic(table).data[0].z)[-2:]
    >>> np.sign(shades).tolist(), int(shades.argmax())
    ([[0.0, 1.0], [1.0, -1.0]], 2)
    """
    kernels = kernel_rows(table)
    if kernels.empty:
        return message_figure(_NOTHING, theme)
    colours, marks = _colours(kernels, value, scale, hide_insignificant, limit, quantity)
    if layers is not None:
        kernels = kernels[kernels["layer"].isin(layers)]
    mosaic = lay_out(kernels, num_columns)

    figure = new_figure(
        theme,
        mosaic.pixels + 30,
        margin={"l": 2, "r": 2, "t": 28, "b": 2},
        hovermode="closest",
        hoverdistance=-1,
        showlegend=False,
        uirevision=f"{mosaic.tiles[0].layer} to {mosaic.tiles[-1].layer}",  # other layers lie elsewhere
        **mosaic.layout(),
    )
    # Lines between the kernels, as long as a kernel is much larger than a line.
    gaps = dict.fromkeys(("xgap", "ygap"), 1 if mosaic.pixels / mosaic.height >= _LINED_PIXELS else 0)
    end = marks.pop("end")
    figure.add_trace(
        go.Heatmap(
            x=mosaic.x_edges,
            y=mosaic.y_edges,
            z=mosaic.spread(colours),
            hoverinfo="skip",
            **gaps,
            colorscale=SEQUENTIAL if value == "flipped" else THEMES[theme].diverging,
            zmin=0 if value == "flipped" else -end,
            zmax=end,
            colorbar=colour_bar(theme, height=mosaic.pixels, **marks),
        )
    )
    # All at once: adding shapes one by one takes Plotly time that grows with the square of their number.
    frames = [frame for tile in mosaic.tiles for frame in _frame(tile, selected, theme)]
    largest = _largest_by_layer(kernels) if value == "drop" else {}
    figure.update_layout(
        shapes=[*(layer_ground(tile, theme) for tile in mosaic.tiles), *frames],
        annotations=[layer_name(tile, mosaic, theme, largest.get(tile.layer, "")) for tile in mosaic.tiles],
    )
    if len(kernels) <= _MOST_MARKERS:
        _add_markers(figure, mosaic, kernels, quantity)
        figure.add_trace(_outlines(mosaic, kernels, theme))
    if value == "drop":
        figure.add_trace(_veil(mosaic, kernels, theme, gaps))
    return figure


def _colours(
    kernels: pd.DataFrame, value: Value, scale: Scale, hide_insignificant: bool, limit: float | None, quantity: str
) -> tuple[pd.Series, dict[str, Any]]:
    """Where on the colour scale each kernel lies, NaN for those that are greyed; the bar's title, ticks and `end`."""
    shades, metric = _shades(kernels, value), metric_of(kernels)
    if value == "significance":
        colours, marks = shades, marks_of_q(float(shades.abs().max()))
    else:
        log = scale_of(kernels, shades, limit)
        colours = log.places(shades)
        title = "images<br>flipped, %" if value == "flipped" else f"{quantity}, {metric.unit}"
        marks = log.marks(metric, title, signed=value != "flipped") | {"end": log.end}
    if scale == "layer":
        # A layer in which a single image flips is as pale as what cannot be told from it.
        least = SymmetricLog(log.unit, noise_of(kernels)).end if value == "drop" and noise_of(kernels) > 0 else 0.0
        tops = colours.abs().groupby(kernels["layer"]).transform("max").clip(lower=least)
        colours = (colours / tops).where(tops > 0, colours)
        ends = {"tickvals": [0, 1, -1], "ticktext": ["0", "max", "−max"]}
        marks = {"title": "of the<br>layer", "end": 1.0, **ends}
    return colours.where(significance(kernels) <= SIGNIFICANT_Q) if hide_insignificant else colours, marks


def _veil(mosaic: Mosaic, kernels: pd.DataFrame, theme: str, gaps: dict[str, int]) -> go.Heatmap:
    """Return what lies over the kernels whose interval holds 0, so that their colour is pale."""
    held = (kernels["drop_low"] <= 0) & (kernels["drop_high"] >= 0) & (kernels["drop"] != 0)
    page = THEMES[theme].diverging_middle
    return go.Heatmap(
        x=mosaic.x_edges,
        y=mosaic.y_edges,
        z=mosaic.spread(held.astype(float).where(held)),
        hoverinfo="skip",
        **gaps,
        colorscale=[[0, page], [1, page]],
        opacity=0.5,
        showscale=False,
    )


def _outlines(mosaic: Mosaic, kernels: pd.DataFrame, theme: str) -> go.Scatter:
    """Return the frames of the kernels that differ from 0 after correction, as one line with gaps."""
    certain = significance(kernels) <= SIGNIFICANT_Q
    xs, ys = [], []
    for tile in mosaic.tiles:
        own = certain.loc[tile.rows.index].to_numpy()
        middle_y, middle_x = (side[own] for side in tile.centres())
        half, gap = tile.zoom / 2, np.full(int(own.sum()), np.nan)
        xs.append(np.stack([middle_x + side * half for side in (-1, 1, 1, -1, -1)] + [gap], axis=1).ravel())
        ys.append(np.stack([middle_y + side * half for side in (-1, -1, 1, 1, -1)] + [gap], axis=1).ravel())
    return go.Scatter(
        x=np.concatenate(xs),
        y=np.concatenate(ys),
        mode="lines",
        line={"color": THEMES[theme].ink, "width": 1.2},
        hoverinfo="skip",
        name=f"differs from 0 (q ≤ {SIGNIFICANT_Q:g})",
        showlegend=False,
    )


def _largest_by_layer(kernels: pd.DataFrame) -> dict[str, str]:
    """Word the D of each layer that is furthest from 0."""
    metric, drop = metric_of(kernels), kernels["drop"].astype(float)
    measured = drop[drop.notna()].abs()
    tops = measured.groupby(kernels.loc[measured.index, "layer"]).idxmax()
    return {str(layer): metric.words(drop[place]) if drop[place] else "0" for layer, place in tops.items()}


def layer_spread(table: pd.DataFrame, *, theme: str = "light", seed: int = 0) -> go.Figure:
    """Draw, by depth, D of every measured kernel and the standard deviation of D in each layer with its interval.

    The bars are 95 % intervals over the layer's kernels: percentile bootstrap drawn from `seed`, beyond 2,000 kernels
    from the fourth moment; a layer with fewer than three measured kernels has none. Paper: Fig. 2, "early layers
    exhibit larger variation".

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 0, 1], "in_channel": [0, 1, 1], "drop": [0.0, 1.0, 2.0]})
    >>> table = table.assign(layer="conv1", depth=0, selection="kernel", metric="top1").reindex(columns=COLUMNS)
    >>> [(trace.name, list(map(float, trace.y))) for trace in layer_spread(table).data]
    [('D of one kernel', [0.0, 1.0, 2.0]), ('standard deviation in the layer', [1.0])]
    """
    kernels = kernel_rows(table).dropna(subset=["drop"])
    if kernels.empty:
        return message_figure(_NOTHING, theme)
    generator = np.random.default_rng(seed)
    spreads = pd.DataFrame([_spread(layer, rows["drop"], generator) for layer, rows in _by_layer(kernels)])
    places = dict(zip(spreads["layer"], range(len(spreads)), strict=True))
    dots = thinned(kernels, generator, "layer")
    metric = metric_of(kernels)
    figure = new_figure(
        theme,
        380,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        yaxis_title_text=drop_title(metric),
        hovermode="closest",
    )
    figure.add_trace(
        go.Scatter(
            x=dots["layer"].map(places) + generator.uniform(-0.2, 0.2, len(dots)),
            y=dots["drop"],
            mode="markers",
            name="D of one kernel" + (f" ({len(dots):,} of {len(kernels):,})" if len(dots) < len(kernels) else ""),
            marker={"size": 4, "color": translucent(CATEGORICAL[8], 0.55)},
            customdata=_keys_of(dots),
            text=_hover_texts(dots),
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=list(range(len(spreads))),
            y=spreads["sd"],
            mode="lines+markers",
            name="standard deviation in the layer",
            line={"color": CATEGORICAL[1], "width": 2},
            marker={"size": 6},
            error_y=error_bars(spreads["sd"], spreads["low"], spreads["high"]),
            text=[
                f"<b>{html.escape(layer)}</b><br>standard deviation {metric.words(sd, signed=False)} {metric.unit}"
                f"<br>95 % interval {metric.words(low, signed=False)} to {metric.words(high, signed=False)}"
                f"<br>{count} kernels"
                for layer, sd, low, high, count in each(spreads, "layer", "sd", "low", "high", "num_kernels")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    ticks = layer_ticks(spreads["layer"].tolist(), most=10)
    figure.update_xaxes(**ticks, tickangle=-45, showgrid=False, zeroline=False)
    figure.update_yaxes(zeroline=True, zerolinecolor=THEMES[theme].muted)
    return figure


def kernel_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that name one kernel each, in network order; the index is their place in `table`."""
    numbered = table.reset_index(drop=True)
    numbered = numbered.dropna(subset=["layer", "out_channel", "in_channel"])
    return numbered.sort_values(["depth", "layer", "out_channel", "in_channel"], kind="stable")


def significance(kernels: pd.DataFrame) -> pd.Series:
    """Return q of every row, or p where a study is too young to have q."""
    return kernels["q_value"].astype(float).fillna(kernels["p_value"].astype(float))


def _shades(kernels: pd.DataFrame, value: Value) -> pd.Series:
    """Return the number that the colour of each kernel shows."""
    drop = kernels["drop"].astype(float)
    if value == "drop":
        return drop
    if value == "significance":
        smallest = 10.0**-_LARGEST_LOG_Q
        return np.sign(drop) * -np.log10(significance(kernels).clip(lower=smallest))
    return 100 * kernels["num_flipped"].astype(float) / kernels["num_images"].astype(float)


def layer_ground(tile: Tile, theme: str) -> dict[str, Any]:
    """Return the grey below a tile, which shows wherever a kernel is hidden or not measured."""
    left, top = tile.left - 0.5, tile.top - 0.5
    right, bottom = left + tile.width, top + tile.height
    colour = THEMES[theme].tile
    return _box(left, top, right, bottom) | {
        "layer": "below",
        "line": {"width": 1, "color": colour},
        "fillcolor": colour,
    }


def layer_name(tile: Tile, mosaic: Mosaic, theme: str, largest: str = "") -> dict[str, Any]:
    """Return the name above a tile, and beside it the words for the layer's largest value."""
    beside = f" <b style='font-size:11px'>{html.escape(largest)}</b>" if largest else ""
    return {
        "x": tile.left - 0.5,
        "y": tile.top - 0.5,
        "text": shorten(tile.layer, max(14, 100 // mosaic.num_columns)) + beside,
        "hovertext": html.escape(tile.layer),
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "borderpad": 0,
        "font": {"size": 12, "color": THEMES[theme].muted},
    }


def _frame(tile: Tile, selected: tuple[str, int, int] | None, theme: str) -> list[dict[str, Any]]:
    """Return the frame of the selected kernel if it is in this tile: a dark line in a light one shows on any colour."""
    if selected is None or selected[0] != tile.layer:
        return []
    if selected[1] not in tile.outs or selected[2] not in tile.ins:
        return []
    top = tile.top - 0.5 + tile.zoom * int(np.searchsorted(tile.outs, selected[1]))
    left = tile.left - 0.5 + tile.zoom * int(np.searchsorted(tile.ins, selected[2]))
    box = _box(left, top, left + tile.zoom, top + tile.zoom)
    lines = ((THEMES[theme].page, 5), (THEMES[theme].accent, 2.5))
    return [box | {"line": {"color": colour, "width": width}} for colour, width in lines]


def _box(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return {"type": "rect", "x0": left, "y0": top, "x1": right, "y1": bottom}


def _add_markers(figure: go.Figure, mosaic: Mosaic, kernels: pd.DataFrame, quantity: str) -> None:
    """Lay an invisible point on every kernel: a heatmap alone tells neither click nor row to Streamlit."""
    centres = [tile.centres() for tile in mosaic.tiles]
    named = kernels.loc[[index for tile in mosaic.tiles for index in tile.rows.index]]
    figure.add_trace(
        clickable(
            np.concatenate([x for _, x in centres]),
            np.concatenate([y for y, _ in centres]),
            _keys_of(named).tolist(),
            _hover_texts(named, quantity),
        )
    )


def _keys_of(kernels: pd.DataFrame) -> np.ndarray:
    """Say of each kernel, for who clicks on it, which it is: layer, output, input channel and row."""
    columns = (kernels["layer"], kernels["out_channel"].astype(int), kernels["in_channel"].astype(int), kernels.index)
    keys = [list(key) for key in zip(*(column.tolist() for column in columns), strict=True)]
    return np.array(keys, dtype=object)


def _hover_texts(kernels: pd.DataFrame, quantity: str = "D") -> list[str]:
    return [
        f"<b>{html.escape(str(layer))}</b><br>output {out_channel:.0f}, input {in_channel:.0f}{words}"
        for (layer, out_channel, in_channel), words in zip(
            each(kernels, "layer", "out_channel", "in_channel"), measurements(kernels, quantity), strict=True
        )
    ]


def measurements(rows: pd.DataFrame, quantity: str = "D") -> list[str]:
    """Word for each row of a study's table what was measured, in a few lines of a hover text."""
    metric = metric_of(rows)
    measured = ("drop", "drop_low", "drop_high", "screened", "num_flipped", "num_images", "q")
    worded = rows.assign(q=significance(rows), screened=screenings(rows))
    different, place = worded_once(worded, *measured)
    words = [
        measurement(drop, low, high, metric, quantity)
        + screened
        + ("" if np.isnan(q) else f"<br>q = {q:.2g}")
        + (f"<br>{flipped:,.0f} of {images:,.0f} images flipped" if images > 0 and flipped == flipped else "")
        for drop, low, high, screened, flipped, images, q in each(different, *measured)
    ]
    return [words[number] for number in place.tolist()]


def _by_layer(kernels: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(layer), rows) for layer, rows in kernels.groupby("layer", sort=False)]


def _spread(layer: str, drops: pd.Series, generator: np.random.Generator) -> dict[str, Any]:
    """Return the standard deviation of D over a layer's kernels with its interval."""
    values = drops.to_numpy(dtype=np.float64)
    count = len(values)
    sd = values.std(ddof=1) if count > 1 else np.nan
    low = high = np.nan
    if 3 <= count <= _LARGEST_BOOTSTRAP:
        low, high = np.quantile(generator.choice(values, size=(1000, count)).std(axis=1, ddof=1), [0.025, 0.975])
    elif count > _LARGEST_BOOTSTRAP and sd > 0:
        # With thousands of kernels the variance is as good as normal, and its own variance is known.
        fourth = np.mean((values - values.mean()) ** 4)
        error = np.sqrt(max(fourth - sd**4, 0) / count) / (2 * sd)
        low, high = max(sd - 1.96 * error, 0.0), sd + 1.96 * error
    return {"layer": layer, "sd": sd, "low": low, "high": high, "num_kernels": count}

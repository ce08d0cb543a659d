"""Saliency: the map of a criterion over the whole network, and how well it agrees with the measured D."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from weanalysis.figures.colours import CATEGORICAL, SEQUENTIAL, THEMES, translucent
from weanalysis.figures.location import layer_ground, layer_name
from weanalysis.figures.mosaic import lay_out
from weanalysis.figures.style import (
    colour_bar,
    drop_title,
    each,
    error_bars,
    layer_ticks,
    measurement,
    message_figure,
    metric_of,
    new_figure,
    thinned,
    worded_once,
)


def saliency_mosaic(
    kernels: pd.DataFrame,
    criterion: str,
    within: str = "network",
    *,
    num_columns: int | None = None,
    theme: str = "light",
) -> go.Figure:
    """Draw a criterion's score of every kernel as one mosaic: rows output, columns input channels, a map a layer.

    `kernels` has a row a kernel with the columns layer, depth, out_channel, in_channel and one called `criterion`. The
    colour is the share of kernels with a lower score, `within` the "network" or the "layer", in percent: scores of
    different criteria have different units, ranks compare. A kernel without a score stays grey. Tiles are as large as
    those of a `location_mosaic` of a 5x5 grid, and in the same order.

    The cells are percentiles among the four kernels, below a strip with the layer's name:

    >>> kernels = pd.DataFrame({"layer": "conv1", "depth": 0, "out_channel": [0, 0, 1, 1], "in_channel": [0, 1, 0, 1]})
    >>> figure = saliency_mosaic(kernels.assign(l1=[0.1, 0.4, 0.2, 0.3]), "l1")
    >>> np.asarray(figure.data[0].z)[-2:].tolist()
    [[25.0, 100.0], [50.0, 75.0]]
    """
    rows = kernels.sort_values(["depth", "layer", "out_channel", "in_channel"], kind="stable").reset_index(drop=True)
    if rows.empty or rows[criterion].isna().all():
        return message_figure(f"{criterion} says nothing of these kernels.", theme)
    scores = rows[criterion].groupby(rows["layer"]) if within == "layer" else rows[criterion]
    ranks = 100 * scores.rank(pct=True)
    mosaic = lay_out(rows, num_columns, small=True)
    figure = new_figure(
        theme,
        mosaic.pixels + 30,
        margin={"l": 2, "r": 2, "t": 28, "b": 2},
        hovermode="closest",
        hoverdistance=-1,
        showlegend=False,
        **mosaic.layout(),
    )
    figure.add_trace(
        go.Heatmap(
            x=mosaic.x_edges,
            y=mosaic.y_edges,
            z=mosaic.spread(ranks),
            hoverinfo="skip",
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=100,
            colorbar=colour_bar(theme, f"rank in the<br>{within}, %", mosaic.pixels),
        )
    )
    figure.update_layout(
        shapes=[layer_ground(tile, theme) for tile in mosaic.tiles],
        annotations=[layer_name(tile, mosaic, theme) for tile in mosaic.tiles],
    )
    centres = [tile.centres() for tile in mosaic.tiles]
    named = rows.loc[[index for tile in mosaic.tiles for index in tile.rows.index]]
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x for _, x in centres]).astype(np.float32),
            y=np.concatenate([y for y, _ in centres]).astype(np.float32),
            mode="text",  # nothing to see, and so nothing to draw
            # Numbers, not a text a kernel: thirty thousand texts would be most of the page.
            customdata=np.column_stack(
                [*(named[name] for name in ("out_channel", "in_channel", criterion)), ranks[named.index]]
            ).astype(np.float32),
            hovertext=np.array([html.escape(str(layer)) for layer in named["layer"]], dtype=object),
            hovertemplate="<b>%{hovertext}</b><br>output %{customdata[0]}, input %{customdata[1]}"
            f"<br>{html.escape(criterion)} = %{{customdata[2]:.3g}}<br>higher than %{{customdata[3]:.1f}} % of the "
            f"{within}<extra></extra>",
        )
    )
    return figure


def score_by_layer(layers: pd.DataFrame, criterion: str, *, theme: str = "light") -> go.Figure:
    """Draw a criterion's score of every whole layer by depth, as `drop_by_layer` draws its D.

    `layers` has a row a layer with the columns layer, depth and one called `criterion`. The axis is logarithmic where
    all scores are above 0.

    >>> layers = pd.DataFrame({"layer": ["conv1", "conv2"], "depth": [0, 1], "l1": [2.0, 30.0]})
    >>> figure = score_by_layer(layers, "l1")
    >>> figure.data[0].y.tolist(), figure.layout.yaxis.type
    ([2.0, 30.0], 'log')
    """
    rows = layers.dropna(subset=["layer", criterion]).sort_values(["depth", "layer"], kind="stable")
    if rows.empty:
        return message_figure(f"{criterion} says nothing of these layers.", theme)
    figure = new_figure(
        theme,
        400,
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        yaxis_title_text=html.escape(criterion),
        hovermode="closest",
        showlegend=False,
    )
    figure.add_trace(
        go.Scatter(
            x=np.arange(len(rows)),
            y=rows[criterion],
            mode="markers",
            marker={"size": 8, "color": THEMES[theme].line},
            text=[
                f"<b>{html.escape(str(layer))}</b><br>{html.escape(criterion)} = {score:.3g}"
                for layer, score in each(rows, "layer", criterion)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    names = rows["layer"].tolist()
    figure.update_xaxes(
        **layer_ticks(names, most=20), tickangle=-45, showgrid=False, zeroline=False, range=[-0.7, len(names) - 0.3]
    )
    if (rows[criterion] > 0).all():
        figure.update_yaxes(type="log", exponentformat="power", zeroline=False)
    return figure


def score_against_drop(
    scored: pd.DataFrame, criterion: str, measured: str = "drop", *, theme: str = "light"
) -> go.Figure:
    """Draw the measured D of every place against its score, coloured by depth.

    `measured` is "drop", D, or "num_flipped", the images flipped, or "size", D without its sign.
    `scored` holds the rows of a study with a column called `criterion`. The scores' axis is logarithmic. Of very many
    places those are drawn that `thinned` keeps.

    >>> from weanalysis.results import COLUMNS
    >>> table = pd.DataFrame({"out_channel": [0, 1], "drop": [0.5, 3.0]})
    >>> table = table.assign(layer="conv1", depth=0, selection="filter", metric="top1").reindex(columns=COLUMNS)
    >>> points = score_against_drop(table.assign(l1=[1.0, 4.0]), "l1").data[0]
    >>> points.x.tolist(), points.y.tolist()
    ([1.0, 4.0], [0.5, 3.0])
    """
    rows = scored.dropna(subset=["drop", criterion])
    rows = rows[rows[criterion] > 0]
    if rows.empty:
        return message_figure(f"No place has both a D and a score above 0 under {criterion}.", theme)
    metric = metric_of(rows)
    rows = thinned(rows, np.random.default_rng(0), "layer").assign(size=lambda kept: kept["drop"].abs())
    titles = {"num_flipped": "images flipped", "size": f"size of D ({metric.unit})"}
    title = titles.get(measured, drop_title(metric))
    counted = ("drop", "drop_low", "drop_high")
    different, place = worded_once(rows, *counted)
    words = [measurement(drop, low, high, metric) for drop, low, high in each(different, *counted)]
    figure = new_figure(
        theme,
        360,
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        xaxis_title_text=f"{html.escape(criterion)} (logarithmic)",
        yaxis_title_text=title,
        hovermode="closest",
        showlegend=False,
    )
    figure.add_trace(
        go.Scatter(
            x=rows[criterion],
            y=rows[measured],
            mode="markers",
            marker={
                "size": 6,
                "opacity": 0.75,
                "color": rows["depth"],
                "colorscale": SEQUENTIAL,
                "colorbar": colour_bar(theme, "depth"),
                # The scale's dark end would vanish on a dark page.
                "line": {"width": 1, "color": THEMES[theme].muted},
            },
            text=np.array(
                [
                    f"<b>{html.escape(str(layer))}</b>"
                    + ("" if np.isnan(out) else f"<br>output {out:.0f}")
                    + ("" if np.isnan(into) else f"<br>input {into:.0f}")
                    + f"<br>{html.escape(criterion)} = {score:.3g}{words[number]}"
                    for (layer, out, into, score), number in zip(
                        each(rows, "layer", "out_channel", "in_channel", criterion), place.tolist(), strict=True
                    )
                ],
                dtype=object,
            ),
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_hline(y=0, line={"color": THEMES[theme].muted, "width": 1})
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure


def agreement_of_criteria(agreement: pd.DataFrame, *, selected: str | None = None, theme: str = "light") -> go.Figure:
    """Draw Spearman's correlation with D of every criterion over the whole network, with 95 % intervals, best first.

    `agreement` has the columns criterion, num_places, spearman, spearman_low, spearman_high, top_overlap and
    top_chance, a row a criterion (`results.statistics.agreement_table`). Random scores lie at the line.

    >>> agreement = pd.DataFrame({"criterion": ["l1", "taylor"], "num_places": 100, "spearman": [0.4, 0.7]})
    >>> agreement = agreement.assign(spearman_low=0.3, spearman_high=0.8, top_overlap=0.4, top_chance=0.1)
    >>> agreement_of_criteria(agreement).data[0].x.tolist()
    [0.4, 0.7]
    """
    rows = agreement.dropna(subset=["spearman"]).sort_values("spearman")
    if rows.empty:
        return message_figure("No criterion can be ranked here: all scores, or all measurements, are equal.", theme)
    figure = _correlations(rows, theme, 90 + 26 * len(rows), horizontal=True, selected=selected)
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[html.escape(name) for name in rows["criterion"]], showgrid=False
    )
    figure.update_xaxes(title_text="Spearman's correlation")
    return figure


def agreement_by_layer(agreement: pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Draw Spearman's correlation with D of one criterion in every layer, by depth, with 95 % intervals.

    `agreement` has the columns of `agreement_of_criteria` and layer, in network order, a row a layer.

    >>> agreement = pd.DataFrame({"layer": ["conv1", "conv2"], "num_places": 100, "spearman": [0.4, 0.7]})
    >>> agreement = agreement.assign(
    ...     criterion="l1", spearman_low=0.3, spearman_high=0.8, top_overlap=0.4, top_chance=0.1
    ... )
    >>> agreement_by_layer(agreement).data[0].y.tolist()
    [0.4, 0.7]
    """
    rows = agreement.dropna(subset=["layer"]).reset_index(drop=True)
    if rows["spearman"].isna().all():
        return message_figure("In no layer can this criterion be ranked: nothing differs there.", theme)
    figure = _correlations(rows, theme, 360, horizontal=False)
    figure.update_xaxes(
        **layer_ticks(rows["layer"].tolist(), most=14),
        tickangle=-45,
        showgrid=False,
        range=[-0.7, len(rows) - 0.3],
    )
    figure.update_yaxes(title_text="Spearman's correlation", range=[-1.05, 1.05])
    return figure


def _correlations(
    rows: pd.DataFrame, theme: str, height: int, horizontal: bool, selected: str | None = None
) -> go.Figure:
    """Draw correlations with their intervals along a list; those whose interval holds 0 are faint."""
    along, across = ("x", "y") if horizontal else ("y", "x")
    colours = [
        CATEGORICAL[1]
        if name == selected
        else THEMES[theme].line
        if low > 0 or high < 0
        else translucent(CATEGORICAL[8], 0.8)
        for name, low, high in each(rows, "criterion", "spearman_low", "spearman_high")
    ]
    figure = new_figure(theme, height, margin={"l": 8, "r": 12, "t": 8, "b": 8}, hovermode="closest", showlegend=False)
    named = rows["layer"].where(rows["layer"].notna(), rows["criterion"]) if "layer" in rows else rows["criterion"]
    wanted = ("named", "num_places", "spearman", "spearman_low", "spearman_high", "top_overlap", "top_chance")
    texts = [
        f"<b>{html.escape(str(name))}</b><br>Spearman {value:+.2f}<br>95 % interval {low:+.2f} to {high:+.2f}"
        f"<br>{num:,.0f} places"
        + ("" if np.isnan(shared) else f"<br>{100 * shared:.0f} % of the top shared, {100 * chance:.0f} % by chance")
        for name, num, value, low, high, shared, chance in each(rows.assign(named=named), *wanted)
    ]
    # A trace a colour: one of a hundred points is made at once, a hundred of one point each take far longer.
    for colour, own in rows.assign(place=np.arange(len(rows)), text=texts).groupby(np.array(colours), sort=False):
        error = error_bars(own["spearman"], own["spearman_low"], own["spearman_high"], width=3)
        figure.add_trace(
            go.Scatter(
                {along: own["spearman"], across: own["place"], f"error_{along}": {**error, "color": colour}},
                mode="markers",
                marker={"size": 8, "color": colour},
                text=own["text"],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    line = {"color": THEMES[theme].muted, "width": 1, "dash": "dash"}
    if horizontal:
        figure.add_vline(x=0, line=line)
    else:
        figure.add_hline(y=0, line=line)
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(zeroline=False)
    return figure

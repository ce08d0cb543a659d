"""Location maps (paper, Fig. 2): where in the network the kernels are that it needs."""

from __future__ import annotations

import choosing
import findings
import improvements
import kernels
import network
import pandas as pd
import pictures
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.figures import Scale, Value
from weanalysis.kinds import kind_of
from weanalysis.tasks import find_metric

VALUES: dict[str, Value] = {"D": "drop", "Significance": "significance", "Flipped images": "flipped"}
SCALES: dict[str, Scale] = {"Shared": "shared", "Per layer": "layer"}

st.title("Location maps")
st.caption(
    "One map a layer, in network order: each cell is one kernel, set to zero. Red kernels were needed.",
    help="Rows are output channels, columns input channels, equidistant in the layer. Paper, section 3.1, Fig. 2.",
)

study = choosing.choose_study("location")
metric = find_metric(study["metric"])
offered = [name for name, value in VALUES.items() if value != "flipped" or metric.counts_images]
with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
    value = st.segmented_control(
        "Colour shows",
        offered,
        default="D",
        required=True,
        key="value",
        bind="query-params",
        help=f"**D**: {metric.meaning.removeprefix('D is ')}, when the kernel is zeroed. **Significance**: q, the "
        f"false discovery rate at which this D differs from zero ({metric.test} test, Benjamini-Hochberg)."
        + (" **Flipped images**: share of images that turned right or wrong." if metric.counts_images else ""),
    )
    scale = st.segmented_control(
        "Colour scale",
        list(SCALES),
        default="Shared",
        required=True,
        key="scale",
        bind="query-params",
        help="**Shared** compares layers; **Per layer** stretches each layer to its own largest value.",
    )
    hide = st.toggle(
        f"Only significant kernels (q ≤ {figures.SIGNIFICANT_Q:g})",
        key="hide",
        bind="query-params",
        help=f"Greys kernels with q > {figures.SIGNIFICANT_Q:g}.",
    )


@shared.live(study["state"] == shared.RUNNING)
def maps() -> None:
    now = reading.again(study)
    rows = reading.table(now)
    findings.headline(now, rows, on_choose=kernels.take_row)
    overview = st.container()
    layers = kernels.page_of_layers(rows)
    # Left to right and line by line; what fits into a gap is drawn up, so that two columns leave none.
    grid = st.grid(columns=3, min_column_width=300, gap="medium", dense=True)
    mosaic = grid.cell(column_span=2)
    with grid.cell():
        position = kernels.choose(
            rows, "A kernel opens here: its weights, its D, its neighbours, and the images that it was needed for."
        )
        if position is not None:
            show_kernel(now, rows.loc[position])
    with overview:  # after the kernel, for which a reader who clicked waits
        at = kernels.chosen()
        network.show(now, rows, at and at[0], on_choose=kernels.take_layer)
    with mosaic:
        shared.show(
            figures.location_mosaic(
                rows,
                VALUES[value],
                SCALES[scale],
                hide,
                layers=layers,
                selected=kernels.chosen(),
                num_columns=shared.columns(None),
                theme=shared.theme(),
            ),
            key="mosaic",
            data=rows,
            name=f"location-{now['name']}",
            alt=f"Importance maps of {rows['layer'].nunique()} layers: {shared.AXES}",
            on_click=lambda: kernels.take_click("mosaic"),
        )
    if position is not None:
        images = grid.cell(column_span="all")
        with grid.cell():
            show_neighbours(rows, position)
    with grid.cell(column_span="all" if position is None else 2):
        show_spread(now, rows)
    with grid.cell(column_span="all"):
        findings.most_important(rows, kind_of(now["kind"]).row, bool(now["stopping"]), on_choose=kernels.take_row)
    if now["state"] != shared.RUNNING:
        with grid.cell(column_span="all"):
            improvements.show(now, on_choose=kernels.take_row)
    if position is not None:
        with images:  # last, since finding them may take a while
            pictures.changed_images(now, rows.loc[position], "changed")


def show_kernel(now: pd.Series, row: pd.Series) -> None:
    layer, out, into = row["layer"], int(row["out_channel"]), int(row["in_channel"])
    shared.measured(row)
    weight = reading.weight(now, layer)
    if weight is None:
        st.caption("The weights of this study are no longer in the cache.")
    else:
        st.caption(f"Its {'×'.join(map(str, weight.shape[2:]))} weights")
        shared.show(
            figures.kernel_weights(weight[out, into], theme=shared.theme()),
            key="weights",
            data=pd.DataFrame(weight[out, into].reshape(-1, weight.shape[-1])),
            name=f"kernel-{layer}-{out}-{into}",
            alt=f"Weights of the kernel from input {into} to output {out} of {layer}",
        )


def show_spread(now: pd.Series, rows: pd.DataFrame) -> None:
    """Show how much D varies in each layer: kernel by kernel, or as the paper does, without the images' noise."""
    st.markdown(
        "## How much D varies, by depth",
        help="Dots are kernels. The line is the standard deviation of D among the kernels of a layer with its "
        "95 % interval; it holds the noise of finitely many images too. "
        "Paper, section 3.1: early layers fluctuate more.",
    )
    as_in_paper = st.toggle(
        "As in the paper: noise taken off, logarithmic",
        key="paper",
        bind="query-params",
        help="Fig. 2: the standard deviation of D by depth. What finitely many images alone make of it is known from "
        "the images, and taken off; a layer that varies by no more has none.",
    )
    if as_in_paper:
        spreads, trend = reading.spreads(now)
        if spreads.empty:
            st.caption("Not known here: it takes an exact study of a metric that counts images, all on the same ones.")
            return
        if trend:
            st.markdown(shared.plain(trend))
        figure, data = figures.spread_by_depth(spreads, metric, theme=shared.theme()), spreads
    else:
        figure = figures.layer_spread(rows, theme=shared.theme())
        data = rows[["layer", "depth", "out_channel", "in_channel", "drop"]]
    shared.show(
        figure,
        key="spread",
        data=data,
        name=f"spread-{now['name']}",
        alt="Spread of D in each layer, by depth",
        on_click=lambda: kernels.take_click("spread"),
    )


def show_neighbours(rows: pd.DataFrame, position: int) -> None:
    row = rows.loc[position]
    layer, out, into = row["layer"], int(row["out_channel"]), int(row["in_channel"])
    st.markdown("## Its neighbours", help="Kernels with the same output or the same input channel; it is the diamond.")
    shared.show(
        figures.kernel_neighbours(rows, layer, out, into, theme=shared.theme()),
        key="neighbours",
        data=rows[(rows["layer"] == layer) & ((rows["out_channel"] == out) | (rows["in_channel"] == into))],
        name=f"neighbours-{layer}-{out}-{into}",
        alt="D of the kernels with the same output or input channel",
    )


maps()

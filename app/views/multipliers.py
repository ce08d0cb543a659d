"""Multipliers (paper, section 4.2): what LWE learned to weigh each kernel by, and whether it knew what matters."""

from __future__ import annotations

import choosing
import curves
import findings
import keeping
import networks
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.kinds import MULTIPLIER, kind_of
from weanalysis.results.contrast import RANKED, ranked_unit
from weanalysis.tasks import Metric, find_metric

st.title("Multipliers")
st.caption(
    "LWE multiplies each kernel by a learned m between 0 and 1: what did training turn up, what down, and was it "
    "right?",
    help="m is the output of a small network that sees the averages of a filter's kernels (equation 1). It is used "
    "in training only; afterwards it is folded into the weights. Paper, sections 3.2 and 4.2.",
)

# Studies keep the multipliers of their network; those of a run without a study are computed from its checkpoint.
studies = {
    str(study["id"]): study
    for _, study in reading.studies().iterrows()
    if kind_of(study["kind"]).needs_multipliers or reading.has_multipliers(study)
}
# What this page is for comes first: the studies that held the multipliers against D.
measured = {number: study for number, study in studies.items() if kind_of(study["kind"]).needs_multipliers}
studies = measured | studies
runs = networks.lwe_runs([run for run in curves.find_curves(reading.cache()) if not run.problem])
if not studies and not runs:
    st.info(
        "No network trained with LWE yet. Train one, and run the study on its checkpoint:", icon=":material/rocket:"
    )
    st.code("weanalysis train --model resnet20 --data digits --excitation lwe", language="bash")
    st.stop()

by_number = reading.labels(pd.DataFrame([*studies.values()])) if studies else {}
labels = {str(number): words for number, words in by_number.items()} | {name: name for name in runs}
source = choosing.choose("Study or run", labels, "study", "study or run", width=640)
if source in studies:
    keeping.offer(studies[source])


def ranks_kernels() -> bool:
    """Tell whether the chosen study ranked single kernels by their m, not input channels by its mean."""
    if source not in studies:
        return False
    return ranked_unit(reading.describe(studies[source]).get("options")) == RANKED["kernel"]


def telling_layer(of_layers: dict[str, np.ndarray]) -> str:
    """Return the first layer whose map shows something: the stem has three columns, or one."""
    return next((layer for layer, values in of_layers.items() if values.shape[1] > 3), next(iter(of_layers)))


def take_click() -> None:
    clicked = st.session_state["spread"].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        st.session_state["layer"] = data[0]


def with_interval(title: str, value: float, low: float, high: float, metric: Metric, how: str) -> None:
    st.metric(
        f"{title} ({metric.unit})",
        metric.words(value),
        f"95 %: {metric.interval(low, high)}",
        delta_color="off",
        delta_arrow="off",
        help=how,
    )


@shared.live(source in studies and studies[source]["state"] == shared.RUNNING)
def lowest_and_highest() -> None:
    """Show what zeroing the channels of low and of high multiplier costs."""
    study = reading.again(studies[source])
    rows = reading.table(study)
    metric, contrast = find_metric(study["metric"]), reading.contrast(study)
    findings.headline(study, rows)
    unit = RANKED["kernel" if ranks_kernels() else "channel"]
    value = "m" if ranks_kernels() else "mean m"
    if contrast:
        with st.container(horizontal=True):
            for name, title, row in (("lowest", "$D_L$", contrast.lowest), ("highest", "$D_H$", contrast.highest)):
                how = (
                    f"{metric.meaning}, when, in every layer at once but the first, the {unit} of the {name} {value} is"
                )
                with_interval(title, row["drop"], row["drop_low"], row["drop_high"], metric, f"{how} zeroed.")
            if (apart := contrast.comparison) is not None:
                how = f"On the same images; p = {apart.p_value:.2g} ({metric.test} test)."
                with_interval("$D_H - D_L$", apart.difference, apart.difference_low, apart.difference_high, metric, how)
    grid = st.grid(columns=2, min_column_width=380, gap="medium")
    with grid.cell():
        st.markdown(
            f"## More and more {unit.split()[-1]}s, in every layer at once",
            help=f"{unit.capitalize()}s are zeroed in the order of their {value}, from either end, and in random "
            "orders beside.",
        )
        shared.show(
            figures.multiplier_curve(rows, unit, theme=shared.theme()),
            key="rank-curve",
            data=rows[rows["fraction"].notna()],
            name=f"rank-curve-{study['name']}",
            alt=f"D against the share of {unit}s zeroed, lowest or highest multiplier first, and random",
        )
    with grid.cell():
        st.markdown("## Layer by layer", help=f"One layer at a time: its {unit} of the lowest and highest {value}.")
        shared.show(
            figures.multiplier_drops(rows, theme=shared.theme()),
            key="drops",
            data=rows[rows["layer"].notna()],
            name=f"d-low-high-{study['name']}",
            alt="D_L and D_H of each layer with intervals",
        )


def learned(of_layers: dict[str, np.ndarray]) -> None:
    """Show the multipliers themselves."""
    means = pd.DataFrame(
        [
            {"layer": layer, "in_channel": channel, "mean_multiplier": mean}
            for layer, values in of_layers.items()
            for channel, mean in enumerate(values.mean(axis=0))
        ]
    )
    st.header("What was learned")
    above = st.container()
    layer = choosing.choose_layer(list(of_layers), first=telling_layer(of_layers), width=420)
    with above:
        st.markdown("### All layers", help="Bands hold all, 90 % and 50 % of a layer's multipliers. Click on a layer.")
        shared.show(
            figures.multiplier_spread(of_layers, selected=layer, theme=shared.theme()),
            key="spread",
            data=means,
            name=f"multipliers-{source}",
            alt="Multipliers of each layer, by depth",
            on_click=take_click,
        )
    grid = st.grid(columns=3, min_column_width=320, gap="medium")
    with grid.cell():
        out, into = of_layers[layer].shape
        st.markdown(f"**Map of {shared.plain(layer)}** ({out} outputs × {into} inputs)")
        shared.show(
            figures.multiplier_map(of_layers[layer], layer, theme=shared.theme()),
            key="map",
            data=pd.DataFrame(of_layers[layer]),
            name=f"multipliers-{source}-{layer}",
            alt=f"Multipliers of {layer}",
        )
    with grid.cell():
        st.markdown("### How its m are distributed")
        shared.show(
            figures.multiplier_histogram(of_layers[layer], theme=shared.theme()),
            key="histogram",
            data=pd.DataFrame({"multiplier": of_layers[layer].ravel()}),
            name=f"histogram-{source}-{layer}",
            alt=f"Histogram of the multipliers of {layer}",
        )
    with grid.cell():
        by_kernel = ranks_kernels()
        st.markdown(
            "**Kernels by their m**" if by_kernel else "**Input channels by their mean m**",
            help="The ends are what $D_L$ and $D_H$ are measured by. The paper ranks channels, where LWE has an m for "
            "every kernel: the mean over the outputs is one reading, single kernels (`--multiplier-of kernel`) the "
            "other.",
        )
        shared.show(
            figures.multiplier_ranks(of_layers[layer], kernels=by_kernel, theme=shared.theme()),
            key="ranks",
            data=pd.DataFrame(of_layers[layer]) if by_kernel else means[means["layer"] == layer],
            name=f"ranks-{source}-{layer}",
            alt=f"Multiplier of each kernel of {layer}"
            if by_kernel
            else f"Mean multiplier of each input channel of {layer}",
        )


if source in studies and kind_of(studies[source]["kind"]).needs_multipliers:
    lowest_and_highest()
elif source in runs:
    st.caption("$D_L$ and $D_H$ are measured by a study:")
    st.code(f"weanalysis ablate --model {runs[source]} --study {MULTIPLIER.name}", language="bash")
if of_layers := reading.multipliers(studies[source]) if source in studies else networks.multipliers(runs[source]):
    learned(of_layers)
else:
    st.caption("The multipliers of this study are no longer in the cache.")

"""Saliency: a criterion's score of what a study zeroed, the measured D beside it, and whether the two agree."""

from __future__ import annotations

from typing import Any

import agreeing
import choosing
import findings
import kernels
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.kinds import KERNEL, SELECTIONS, kind_of, kinds_where
from weanalysis.results.saliency import MappedLayer, SaliencyMaps
from weanalysis.results.statistics import MeasuredColumn
from weanalysis.tasks import find_metric

KERNELS_A_PAGE = 30_000
CHANNELS_A_SIDE = 64  # of a layer's map; larger layers are drawn by equidistant channels
TOP = 0.1
# Scores have no sign, so that what they can find comes first: what changes much, for better or worse.
AGAINST: dict[str, MeasuredColumn] = {"Flipped images": "num_flipped", "Size of D": "size", "D": "drop"}
WITHIN = {"Network": "network", "Layer": "layer"}

st.title("Saliency")
st.caption(
    "Cheap scores beside the measured D: would the score have found the kernels, channels or layers that matter?",
    help="A criterion costs a few passes over the images for the whole network; D costs one evaluation of each kernel, "
    "channel or layer.",
)

kept = reading.saliency()
if not kept:
    st.info("No saliency maps yet. They take a few passes over the images:", icon=":material/rocket_launch:")
    st.code("weanalysis saliency --model resnet20", language="bash")
    st.stop()


def words(about: Any, name: str) -> str:
    few = "" if len(about["criteria"]) > 3 else f" ({', '.join(about['criteria'])})"
    return f"{about['model']} on {about['data']}, {about['num_images']:,} images{few} · {name[:6]}"


by_name = {path.stem: (path, about) for path, about in kept}
labels = {name: words(about, name) for name, (_, about) in by_name.items()}
path, about = by_name[choosing.choose("Saliency maps", labels, "maps", "saliency maps", width=640)]
maps = reading.maps(path)
measured = reading.studies(*kinds_where(lambda kind: kind.scored == "units"))
measured = measured[measured["weights_hash"] == about["weights_hash"]] if len(measured) else measured
usable = [name for name in maps.criteria if name not in about["lacking"]]
with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
    criterion = st.selectbox(
        "Criterion",
        usable,
        index=usable.index("taylor") if "taylor" in usable else 0,
        key="criterion",
        bind="query-params",
        width=220,
    )
    if measured.empty:
        chosen = None
        st.caption("No study of these weights yet.")
    else:
        how = "Studies of kernels, channels and layers of the same weights."
        chosen = choosing.choose_among("Measured by study", measured, "study", width=420, help=how)
        # In which D is read: first-order criteria predict that of the loss by construction.
        chosen = choosing.choose_metric(chosen)
    within = next(iter(WITHIN))
    if chosen is None or any(SELECTIONS[unit].channels for unit in kind_of(chosen["kind"]).units):
        within = st.segmented_control(
            "Rank within",
            list(WITHIN),
            default="Network",
            required=True,
            key="within",
            bind="query-params",
            help="**Network** shows where in the network the score is high; **Layer** the pattern inside each layer.",
        )
st.caption(
    f"**{shared.plain(criterion)}**: {shared.plain(about['formulas'][criterion])}. "
    f"{shared.plain(about['sources'][criterion])}."
    + (f" Missing here: {shared.plain(', '.join(about['lacking']))}." if about["lacking"] else "")
)


def drawn_channels(layer: MappedLayer) -> tuple[np.ndarray, np.ndarray]:
    """Return which output and input channels of a layer are drawn: equidistant ones where a map can't show all."""
    outs, ins = (
        np.unique(np.linspace(0, side - 1, min(side, CHANNELS_A_SIDE)).round().astype(int)) for side in layer.shape
    )
    return outs, ins


def drawn(layer: MappedLayer, maps: SaliencyMaps) -> pd.DataFrame:
    """Return the scores of those of a layer's kernels that are drawn."""
    scores, (outs, ins) = maps.of(criterion, "kernel", layer.name), drawn_channels(layer)
    down, across = np.meshgrid(outs, ins, indexing="ij")
    return pd.DataFrame(
        {
            "layer": layer.name,
            "depth": layer.depth,
            "out_channel": down.ravel(),
            "in_channel": across.ravel(),
            criterion: scores[np.ix_(outs, ins)].ravel(),
        }
    )


def kernel_map() -> None:
    """Show the score of every kernel: of the layers that the study measured, or of all."""
    st.markdown(f"## {shared.plain(criterion)} of every kernel", help="Rows are output, columns input channels.")
    shared.show(
        figures.saliency_mosaic(shown, criterion, WITHIN[within], num_columns=columns, theme=shared.theme()),
        key="criterion-map",
        data=shown,
        name=f"saliency-{about['model']}-{criterion}",
        alt=f"{criterion} of the kernels of {shown['layer'].nunique()} layers: {shared.AXES}",
    )
    if any(max(layer.shape) > CHANNELS_A_SIDE for layer in layers):
        st.caption(f"Layers with more than {CHANNELS_A_SIDE} channels a side are drawn by equidistant ones.")


def show_scores(rows: pd.DataFrame, unit: str) -> None:
    """Show the score of what the study zeroed."""
    if unit == KERNEL.name:
        kernel_map()
        return
    st.markdown(f"## {shared.plain(criterion)} of every {unit}")
    shared.show(
        figures.score_strips(rows, criterion, WITHIN[within], theme=shared.theme())
        if SELECTIONS[unit].channels
        else figures.score_by_layer(rows, criterion, theme=shared.theme()),
        key="criterion-map",
        data=rows,
        name=f"saliency-{about['model']}-{criterion}-{unit}",
        alt=f"{criterion} of the {unit}s of {rows['layer'].nunique()} layers",
    )


def show_measured(study: pd.Series, rows: pd.DataFrame, unit: str) -> None:
    """Show the D that the study measured, in the shape in which the scores are shown."""
    st.markdown("## Measured D", help=f"What zeroing one {unit} costs. What is high or red was needed.")
    if unit == KERNEL.name:
        rows = rows[rows["layer"].isin(shown["layer"].unique())]
        drawn = figures.location_mosaic(rows, num_columns=columns, theme=shared.theme())
    elif SELECTIONS[unit].channels:
        drawn = figures.channel_strips(rows, theme=shared.theme())
    else:
        drawn = figures.drop_by_layer(rows, theme=shared.theme())
    shared.show(
        drawn,
        key="measured",
        data=rows,
        name=f"{study['kind']}-{study['name']}",
        alt=f"Measured D of the {unit}s" + (f": {shared.AXES}" if unit == KERNEL.name else ""),
    )


def show_agreement(scored: pd.DataFrame, study: pd.Series) -> None:
    """Show how well the criteria predict the D of units of one kind, given their rows with the score that is chosen."""
    grid = st.grid(columns=2, min_column_width=380, gap="medium")
    if not (scored["num_images"] > 0).any():
        st.caption("The study has not measured anything yet.")
        return
    with grid.cell(column_span="all"):
        st.header("Agreement with what was measured")
        with st.container(horizontal=True, gap="medium"):
            counts_images = find_metric(study["metric"]).counts_images
            offered = [name for name, column in AGAINST.items() if column != "num_flipped" or counts_images]
            against = st.segmented_control(
                "Compared with",
                offered,
                default=offered[0],
                required=True,
                key="against",
                bind="query-params",
                help="A score has no sign: it says how much hangs on a unit, not which way. **Flipped images**: how "
                "many turned right or wrong. **Size of D**: D for better or worse. **D**: only what makes the network "
                "worse counts as important.",
            )
    state = (*agreeing.state_of(path, study), str(scored["selection"].iloc[0]))
    criteria_at, scatter_at = grid.cell(), grid.cell()
    with scatter_at:
        st.markdown(
            f"### {shared.plain(criterion)} against {against}",
            help="Each point is one place that was zeroed. Of very many, those are drawn whose D differs from 0 or is "
            "extreme, and others at random; the correlations are of all.",
        )
        shared.show(
            figures.score_against_drop(scored, criterion, AGAINST[against], theme=shared.theme()),
            key="scatter",
            data=scored[["layer", "out_channel", "in_channel", "drop", "num_flipped", criterion]],
            name=f"{criterion}-against-d-{study['name']}",
            alt=f"{against} against {criterion}",
        )
    whole = agreeing.of_network(scored, maps, usable, AGAINST[against], TOP, state)
    with criteria_at:
        st.markdown(
            "### All criteria, over the network",
            help="Spearman's rank correlation of score and measurement with its 95 % interval, for which the layers "
            "are the sample (one left out at a time); random scores lie at 0. The images' noise keeps every "
            "correlation below 1.",
        )
        shared.show(
            figures.agreement_of_criteria(whole, selected=criterion, theme=shared.theme()),
            key="criteria",
            data=whole,
            name=f"agreement-{study['name']}",
            alt="Rank correlation of each criterion with what was measured",
        )
    if SELECTIONS[scored["selection"].iloc[0]].channels:  # else a layer has one score, and nothing to be ranked
        with grid.cell():
            of_layers = agreeing.of_layers(scored, maps, criterion, AGAINST[against], TOP, state)
            layer_by_layer(study, pd.concat([whole[whole["criterion"] == criterion], of_layers]))
    with grid.cell():
        st.markdown(f"### The top {TOP:.0%}", help="The share of the highest places that score and measurement name.")
        table_of(whole)


def layer_by_layer(study: pd.Series, own: pd.DataFrame) -> None:
    st.markdown(f"### {shared.plain(criterion)}, layer by layer", help="Grey: the interval holds 0.")
    shared.show(
        figures.agreement_by_layer(own, theme=shared.theme()),
        key="by-layer",
        data=own[own["layer"].notna()],
        name=f"agreement-{criterion}-{study['name']}",
        alt=f"Rank correlation of {criterion} in each layer",
    )


def table_of(whole: pd.DataFrame) -> None:
    ordered = whole.sort_values("spearman", ascending=False)
    st.dataframe(
        pd.DataFrame(
            {
                "criterion": ordered["criterion"],
                "spearman": ordered["spearman"],
                "kendall": ordered["kendall"],
                "shared": 100 * ordered["top_overlap"],
                "chance": 100 * ordered["top_chance"],
                "p": ordered["top_p_value"],
            }
        ),
        hide_index=True,
        placeholder="–",
        column_config={
            "criterion": st.column_config.TextColumn("Criterion"),
            "spearman": st.column_config.NumberColumn("Spearman", format="%+.2f"),
            "kendall": st.column_config.NumberColumn("Kendall", format="%+.2f"),
            "shared": st.column_config.NumberColumn("Shared (%)", format="%.0f"),
            "chance": st.column_config.NumberColumn("By chance (%)", format="%.0f"),
            "p": st.column_config.NumberColumn(
                "p", format="%.2g", help="Of at least that overlap by chance, the places permuted within each layer."
            ),
        },
    )


# Beside a measured grid, the layers that it has: so both pictures have the same tiles.
has_grid = chosen is not None and kind_of(chosen["kind"]).has_kernels
layers = list(maps.layers)
if chosen is None or has_grid:
    of_study = set(reading.describe(chosen).get("layers") or ()) if chosen is not None else set()
    layers = [layer for layer in maps.layers if layer.name in of_study] or layers
    in_order = sorted(layers, key=lambda layer: (layer.depth, layer.name))
    sizes = {layer.name: int(np.prod([len(side) for side in drawn_channels(layer)])) for layer in in_order}
    # Beside a study each layer is drawn twice.
    on_page = kernels.page_of_sizes(sizes, KERNELS_A_PAGE, kernels.LAYERS_A_PAGE // (1 if chosen is None else 2))
    shown = pd.concat([drawn(layer, maps) for layer in layers if layer.name in on_page])
    most = 5 if chosen is None else 3  # two pictures stand side by side, and names need their room
    columns = min(shared.columns(most) or most, shown["layer"].nunique())
if chosen is None:
    kernel_map()
    st.info(
        "No study has measured D of these weights yet, so nothing says how well the score predicts it.",
        icon=":material/rocket_launch:",
    )
    st.code(f"weanalysis ablate --model {about['model']} --data {about['data']}", language="bash")
    st.stop()


@shared.live(chosen["state"] == shared.RUNNING)
def side_by_side() -> None:
    study = reading.again(chosen)
    rows = reading.table(study)
    findings.headline(study, rows)
    units = [name for name in kind_of(study["kind"]).units if (rows["selection"] == name).any()]
    if not units:
        st.caption("The study names nothing that a criterion scores.")
        return
    unit = units[0]
    if len(units) > 1:
        unit = st.segmented_control(
            "Units",
            units,
            default=unit,
            required=True,
            format_func=lambda name: f"{name.capitalize()}s",
            key="unit",
            bind="query-params",
        )
    scored = rows[(rows["selection"] == unit) & rows["layer"].notna()].copy()
    scored[criterion] = maps.scores(criterion, scored)
    grid = st.grid(columns=2, min_column_width=380, gap="medium")
    with grid.cell():
        show_scores(scored, unit)
    measured_at, below = grid.cell(), st.container()

    @shared.live(False)
    def agreement() -> None:  # a part of its own, so that what D is compared with draws no map anew
        show_agreement(scored, study)

    with below:
        agreement()
    with measured_at:  # last, since another criterion changes all but this
        show_measured(study, scored, unit)


side_by_side()

"""Saliency: a criterion's map of every kernel, the measured grid beside it, and whether the two agree."""

from __future__ import annotations

from typing import Any

import choosing
import findings
import kernels
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.kinds import kind_of, kinds_where
from weanalysis.results.saliency import MappedLayer, SaliencyMaps
from weanalysis.results.statistics import MeasuredColumn, agreement_table
from weanalysis.tasks import find_metric

KERNELS_A_PAGE = 30_000
CHANNELS_A_SIDE = 64  # of a layer's map; larger layers are drawn by equidistant channels
TOP = 0.1
# Scores have no sign, so that what they can find comes first: what changes much, for better or worse.
AGAINST: dict[str, MeasuredColumn] = {"Flipped images": "num_flipped", "Size of D": "size", "D": "drop"}
WITHIN = {"Network": "network", "Layer": "layer"}

st.title("Saliency")
st.caption(
    "Cheap scores of every kernel beside the measured D of some: would the score have found what matters?",
    help="A criterion costs a few passes over the images for the whole network; D costs one evaluation a kernel.",
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
    within = st.segmented_control(
        "Rank within",
        list(WITHIN),
        default="Network",
        required=True,
        key="within",
        bind="query-params",
        help="**Network** shows where in the network the score is high; **Layer** the pattern inside each layer.",
    )
    if measured.empty:
        chosen = None
        st.caption("No study of these weights yet.")
    else:
        how = "Studies of kernels, channels and layers of the same weights."
        chosen = choosing.choose_among("Measured by study", measured, "study", width=420, help=how)
        # In which D is read: first-order criteria predict that of the loss by construction.
        chosen = choosing.choose_metric(chosen)
st.caption(
    f"**{shared.plain(criterion)}**: {shared.plain(about['formulas'][criterion])}. "
    f"{shared.plain(about['sources'][criterion])}."
    + (f" Missing here: {shared.plain(', '.join(about['lacking']))}." if about["lacking"] else "")
)


def drawn(layer: MappedLayer, maps: SaliencyMaps) -> pd.DataFrame:
    """Return the scores of a layer's kernels, of equidistant channels where it has more than a map can show."""
    scores = maps.of(criterion, "kernel", layer.name)
    outs, ins = (
        np.unique(np.linspace(0, side - 1, min(side, CHANNELS_A_SIDE)).round().astype(int)) for side in scores.shape
    )
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


def show_map() -> None:
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


def show_agreement(rows: pd.DataFrame, study: pd.Series, grid: Any) -> None:
    """Show, for every kind of unit that the study zeroed, how well the criteria predict its D."""
    scored = rows.copy()
    for name in usable:
        scored[name] = maps.scores(name, rows)
    kinds = list(scored.loc[scored["num_images"] > 0, "selection"].unique())
    if not kinds:
        st.caption("The study has not measured anything yet.")
        return
    kind = kinds[0]
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
            if len(kinds) > 1:
                kind = st.segmented_control(
                    "Units", kinds, default=kinds[0], required=True, key="unit", bind="query-params"
                )
    scored = scored[scored["selection"] == kind]
    agreement = agreement_table(scored, usable, TOP, measured=AGAINST[against])
    whole = agreement[agreement["layer"].isna()]
    own = agreement[agreement["criterion"] == criterion]
    with grid.cell():
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
    with grid.cell():
        st.markdown(f"### {shared.plain(criterion)} against {against}", help="Each point is one place that was zeroed.")
        shared.show(
            figures.score_against_drop(scored, criterion, AGAINST[against], theme=shared.theme()),
            key="scatter",
            data=scored[["layer", "out_channel", "in_channel", "drop", "num_flipped", criterion]],
            name=f"{criterion}-against-d-{study['name']}",
            alt=f"{against} against {criterion}",
        )
    with grid.cell():
        st.markdown(f"### {shared.plain(criterion)}, layer by layer", help="Grey: the interval holds 0.")
        shared.show(
            figures.agreement_by_layer(own, theme=shared.theme()),
            key="by-layer",
            data=own[own["layer"].notna()],
            name=f"agreement-{criterion}-{study['name']}",
            alt=f"Rank correlation of {criterion} in each layer",
        )
    with grid.cell():
        st.markdown(f"### The top {TOP:.0%}", help="The share of the highest places that score and measurement name.")
        table_of(whole)


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
of_study = set(reading.describe(chosen).get("layers") or ()) if has_grid else set()
layers = [layer for layer in maps.layers if layer.name in of_study] or maps.layers
shown = pd.concat([drawn(layer, maps) for layer in layers])
shown = shown[shown["layer"].isin(kernels.page_of_layers(shown, KERNELS_A_PAGE))]
columns = min(shared.columns(5) or 5, shown["layer"].nunique())
if chosen is None:
    show_map()
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
    grid = st.grid(columns=2, min_column_width=380, gap="medium")
    with grid.cell(column_span=1 if has_grid else "all"):
        show_map()
    if has_grid:
        with grid.cell():
            st.markdown("## Measured D", help="Each cell is one kernel of the grid, set to zero. Red was needed.")
            here = rows[rows["layer"].isin(shown["layer"].unique())]
            shared.show(
                figures.location_mosaic(here, num_columns=columns, theme=shared.theme()),
                key="measured",
                data=here,
                name=f"location-{study['name']}",
                alt=f"Measured D of the grid's kernels: {shared.AXES}",
            )
    show_agreement(rows, study, grid)


side_by_side()

"""Two studies side by side: a baseline and its WE-trained twin, or any two that asked the same question."""

from __future__ import annotations

from functools import partial

import choosing
import findings
import kernels
import networks
import pandas as pd
import pictures
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.comparison import StudyComparison
from weanalysis.errors import StudyError
from weanalysis.kinds import DEFAULT, channels_of, kind_of, named
from weanalysis.results.findings import interval_words, sample_words
from weanalysis.tasks import find_metric

SHOWN = 10

st.title("Compare")
st.caption(
    "Do two networks need the same weights, and the same images for it? Differences are second minus first.",
    help="Any two studies of the same kind on the same images, such as those of a baseline and of a network trained "
    "with Weight Excitation. What is said holds for these two networks; what a way of training does takes several "
    "seeds of each. `weanalysis compare` and the report say the same.",
)

studies = reading.studies()
usual = reading.usual_pair(studies)
if usual is None:
    shared.how_to_begin(DEFAULT)
    st.caption("Two studies of the same kind are needed for a comparison.")
    st.stop()
with st.container(horizontal=True):
    first = choosing.choose_among("First", studies, "first", default=usual[0])
    partners = reading.partners(studies, int(first["id"]))
    same_kind = studies[(studies["kind"] == first["kind"]) & (studies["id"] != first["id"])]
    if same_kind.empty:
        st.info(f"There is no other {first['kind']} study to compare it with.", icon=":material/compare_arrows:")
        st.stop()
    # One that cannot be compared is shown, and why, where the address asks for it, or where there is no other.
    asked = same_kind["id"].astype(str) == st.query_params.get("second", "")
    offered = same_kind[same_kind["id"].isin(partners) | asked] if partners else same_kind
    partner = partners[0] if partners else int(same_kind["id"].iloc[0])
    second = choosing.choose_among("Second", offered, "second", default=partner)
    first = choosing.choose_metric(first, second)
first_label, second_label = reading.labels(pd.DataFrame([first, second])).values()
shared.pictured(first_label, second_label)
label_of = {int(first["id"]): first_label, int(second["id"]): second_label}
ways = {label_of[number]: one.way for number, one in reading.identities(pd.DataFrame([first, second])).items()}
colours = figures.colours_by_way(ways)
# By how they were trained, where that tells the two apart.
sides = tuple(ways.values()) if len(set(ways.values()) - {""}) == 2 else ("the first", "the second")


def accuracies(compared: StudyComparison | None) -> None:
    """Show the accuracies of the intact networks, and how they differ on the images that both have seen."""
    intact = compared.intact if compared else reading.accuracies(pd.DataFrame([first, second]))
    with st.container(horizontal=True):
        for study, accuracy in zip((first, second), intact, strict=True):
            metric = compared.measured_in if compared else find_metric(reading.answers_in(study["metric"]))
            st.metric(
                f"{shared.plain(label_of[int(study['id'])])}, {metric.name}",
                f"{metric.words(accuracy, signed=False)} {metric.mark}" if accuracy == accuracy else "not measured",
            )
        if compared is None:
            return
        apart, metric = compared.accuracy, compared.measured_in
        st.metric(
            f"Difference ({metric.unit})",
            metric.words(apart.difference),
            help=("Accuracy" if metric.counts_images else metric.label.capitalize())
            + " of the second minus that of the first, intact, on the same images.",
        )
        tested = "Tango's paired score interval" if metric.counts_images else "Paired"
        test = "McNemar's exact test" if metric.counts_images else metric.test
        st.metric(
            "95 % interval",
            metric.interval(apart.difference_low, apart.difference_high),
            help=f"{tested} on {apart.num_images:,} images. {test}: p = {apart.p_value:.2g}.",
        )


def links() -> None:
    """Lead to either study's own page, at the kernel that is chosen here."""
    if (page := kind_of(first["kind"]).page) is None:
        return
    with st.container(horizontal=True, gap="medium"):
        for study in (first, second):
            st.page_link(
                f"views/{page}.py",
                label=shared.plain(label_of[int(study["id"])]),
                icon=":material/open_in_new:",
                query_params={"study": str(study["id"]), **kernels.address()},
                help="Opens the study.",
                width="content",
            )


def needed(compared: StudyComparison) -> None:
    """Say how much more the second network needs these weights, and what else a reader must know."""
    metric = compared.measured_in
    mean = [metric.words(compared.places[side].mean()) for side in ("first", "second")]
    st.markdown(
        f"## {shared.plain(compared.verdict(sides[0], sides[1]))}",
        help="Each image counts for both networks: the interval of a place combines both D with their correlation over "
        "the images (of one network's two studies it is Tango's); q is from an exact sign-flip test over the images, "
        "with a false discovery rate of 5 % over all places."
        if metric.counts_images
        else "Intervals and q are Student's, over the images' differences, with a false discovery rate of 5 %.",
    )
    st.markdown(
        f"Mean D of {len(compared.places):,} {kind_of(first['kind']).row}s: {mean[0]} and {mean[1]} {metric.unit}; "
        f"second minus first **{metric.words(compared.difference)} {metric.unit}**, 95 % interval "
        f"{metric.interval(compared.difference_low, compared.difference_high)} over {compared.num_images:,} images, "
        f"p = {compared.p_value:.2g}."
    )
    for note in compared.notes:
        st.caption(f":material/info: {shared.plain(note[0].upper() + note[1:])}.")


def maps(compared: StudyComparison | None) -> None:
    """Show both mosaics on one scale, and that of their differences."""
    layers = kernels.page_of_layers(pd.concat([one, two]) if compared is None else compared.places)
    # The differences are what is asked for here, and are drawn while the maps above them are still being made.
    above = st.container()
    if compared is not None:
        difference_map(compared, layers)
    limit = None
    if compared is not None:
        limit = float(compared.places[["first", "second"]].abs().max().max()) or 1.0
    with above:
        grid = st.grid(columns=2, min_column_width=420, gap="medium")
        for key, study, rows in (("mosaic-1", first, one), ("mosaic-2", second, two)):
            with grid.cell():
                st.markdown(f"## {shared.plain(label_of[int(study['id'])])}")
                if not (own := [layer for layer in layers if (rows["layer"] == layer).any()]):
                    st.caption("It has none of these layers.")
                    continue
                shared.show(
                    figures.location_mosaic(
                        rows,
                        layers=own,
                        limit=limit,
                        selected=kernels.chosen(),
                        num_columns=shared.columns(3),
                        theme=shared.theme(),
                    ),
                    key=key,
                    data=rows,
                    name=f"location-{study['name']}",
                    alt=f"Importance maps of {study['name']}: {shared.AXES}",
                    on_click=partial(kernels.take_click, key),
                )


def difference_map(compared: StudyComparison, layers: list[str]) -> None:
    """Show where the two maps differ, and how many of the differences are beyond chance."""
    if (compared.places["screen_low"] < compared.places["screen_high"]).any():
        st.caption(
            "Screened: D of a kernel may be off by what was missed on these images; point at it for its bounds. "
            "Intervals and q of differences do not count that.",
            help=f"{shared.SCREENED}.",
        )
    st.markdown(
        "**Difference of the maps**, second minus first",
        help="Red: the second network needs this kernel more; blue: the first. Grey: one of them has not measured it.",
    )
    hide = st.toggle(
        f"Only significant differences (q ≤ {figures.SIGNIFICANT_Q:g})",
        key="hide",
        bind="query-params",
        help=f"Greys differences with q > {figures.SIGNIFICANT_Q:g}.",
    )
    table = compared.as_table()
    shared.show(
        figures.location_mosaic(
            table,
            layers=layers,
            hide_insignificant=hide,
            selected=kernels.chosen(),
            quantity="difference of D",
            num_columns=shared.columns(None),
            theme=shared.theme(),
        ),
        key="mosaic-difference",
        data=compared.places,
        name=f"difference-{first['name']}-{second['name']}",
        alt=f"Difference of the two importance maps: {shared.AXES}",
        on_click=lambda: kernels.take_click("mosaic-difference"),
    )
    certain = sum(compared.num_certain)
    st.caption(
        f"{certain:,} of {len(table):,} differences have q ≤ {figures.SIGNIFICANT_Q:g}"
        + ("; the others are grey." if hide else ".")
    )


def images_of(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Show the images that either network needs the chosen kernel for."""
    place = kernels.choose(one, "A kernel opens here: the images that either network needs it for.")
    if place is None:
        return
    row = one.loc[place]
    same = (two["layer"] == row["layer"]) & (two["out_channel"] == row["out_channel"])
    other = two[same & (two["in_channel"] == row["in_channel"])]
    grid = st.grid(columns=2, min_column_width=420, gap="medium")
    for key, study, rows in (("images-1", first, one.loc[[place]]), ("images-2", second, other)):
        with grid.cell():
            if rows.empty:
                st.caption(f"{shared.plain(label_of[int(study['id'])])} has not measured this kernel.")
                continue
            metric = find_metric(study["metric"])
            drop, low, high = rows[["drop", "drop_low", "drop_high"]].iloc[0]
            st.markdown(
                f"**{shared.plain(label_of[int(study['id'])])}**: D = {metric.words(drop)} {metric.unit}, "
                f"95 % interval {metric.interval(low, high)}"
            )
            pictures.changed_images(study, rows.iloc[0], key)


@shared.live(False)
def kernel_by_kernel() -> None:
    """Show the maps and what the chosen kernel does: a part of its own, so that a click draws nothing else anew."""
    maps(compared)
    images_of(one, two)


def curves() -> None:
    shared.show(
        figures.magnitude_curves({first_label: one, second_label: two}, colours=colours, theme=shared.theme()),
        key="curves",
        data=pd.concat([one.assign(name=first["name"]), two.assign(name=second["name"])]),
        name=f"magnitude-{first['name']}-{second['name']}",
        alt="D against percentile of both studies",
    )


def difference_strips(compared: StudyComparison) -> None:
    """Show where the channels of the two networks differ; whole layers are in the figures below."""
    table = compared.as_table()
    for selection in table["selection"].unique():
        if channels_of(selection):
            st.markdown(
                f"**Difference of the {selection}s**, second minus first", help="Red: the second needs it more."
            )
            shared.show(
                figures.channel_strips(
                    table[table["selection"] == selection], quantity="difference of D", theme=shared.theme()
                ),
                key=f"difference-{selection.replace(' ', '-')}",
                data=compared.places,
                name=f"difference-{first['name']}-{second['name']}",
                alt=f"Difference of the {selection}s",
            )


def distributions() -> None:
    st.markdown("## Share of ablations costing at least D", help="How much of either network is needed.")
    shared.show(
        figures.drop_distributions({first_label: one, second_label: two}, colours=colours, theme=shared.theme()),
        key="distributions",
        data=pd.concat([one.assign(name=first["name"]), two.assign(name=second["name"])]),
        name="distributions",
        alt="Distribution of D in both studies",
    )


def agreement(compared: StudyComparison) -> None:
    places, correlation = compared.places, compared.agreement
    st.markdown(
        "## Do they agree about what matters?",
        help="Spearman's rank correlation of D over the places that both measured. Places of one layer resemble each "
        "other: with several layers, the interval leaves out one layer at a time. The noise of finitely many images "
        "makes it smaller than that of the true D.",
    )
    if correlation.value == correlation.value:
        interval = figures.interval(correlation.low, correlation.high)
        st.caption(
            f"Rank correlation {correlation.value:+.2f}, 95 % interval {interval} "
            f"({sample_words(places['layer'].nunique())})."
        )
    shared.show(
        figures.drop_agreement(places, first_label, second_label, compared.measured_in, theme=shared.theme()),
        key="agreement",
        data=places,
        name="agreement",
        alt="D of the first study against D of the second",
    )


def largest(compared: StudyComparison) -> None:
    """List the places of the largest differences, with intervals that count with their having been chosen.

    A row that is selected opens: on this page where it has maps, else on that of the study that is needed more there.
    """
    rows, metric = compared.largest(SHOWN), compared.measured_in
    form = f"%+.{metric.decimals}f"
    st.markdown(
        f"**The largest differences**: {interval_words(len(rows), len(compared.places))}",
        help="The largest of many noisy differences is likely too large. Of intervals adjusted for the choice, five in "
        "a hundred of those shown miss the true difference at most.",
    )
    kind = kind_of(first["kind"])
    on_maps, opens = kind.drawing == "maps", bool(kind.page and kind.units)

    def choose() -> None:
        if on_maps and (selected := st.session_state["largest"].selection.rows):
            kernels.take_row(rows.iloc[selected[0]])

    st.dataframe(
        pd.DataFrame(
            {
                "zeroed": [named(row) for row in rows.itertuples()],
                "first": rows["first"],
                "second": rows["second"],
                "difference": rows["difference"],
                "interval": [
                    metric.interval(low, high)
                    for low, high in zip(rows["selected_low"], rows["selected_high"], strict=True)
                ],
                "q": rows["q_value"],
            }
        ),
        key="largest",
        hide_index=True,
        placeholder="–",
        on_select=choose if on_maps else "rerun" if opens else "ignore",
        selection_mode="single-row",
        column_config={
            "zeroed": st.column_config.TextColumn(
                "Zeroed",
                help="Select a row: it is framed in the maps, and its images open below these."
                if on_maps
                else "Select a row to open it."
                if opens
                else None,
            ),
            "first": st.column_config.NumberColumn("D in the first", format=form),
            "second": st.column_config.NumberColumn("D in the second", format=form),
            "difference": st.column_config.NumberColumn(f"Second − first ({metric.unit})", format=form),
            "interval": st.column_config.TextColumn("Interval", help="Widened for the choice of the largest."),
            "q": st.column_config.NumberColumn("q", format="%.2g", help="False discovery rate, Benjamini-Hochberg."),
        },
    )
    if opens and not on_maps and (chosen := st.session_state["largest"].selection.rows):
        row = rows.iloc[chosen[0]]
        study = second if row["difference"] > 0 else first
        st.switch_page(f"views/{kind.page}.py", query_params={"study": str(study["id"]), **findings.address_of(row)})


compared, problem = None, ""
try:
    compared = reading.compare_studies(first, second)
    second = second.copy()
    second["metric"] = compared.metric  # one for both, so that all of the page speaks of the same D
except StudyError as error:
    problem = str(error)
links()
accuracies(compared)
networks.offer_costs({label_of[int(study["id"])]: study for study in (first, second)})
one, two = reading.table(first), reading.table(second)
if compared is None:
    st.info(f"The two cannot be compared: {shared.plain(problem)}.", icon=":material/compare_arrows:")
else:
    needed(compared)
drawing = kind_of(first["kind"]).drawing
if drawing == "maps":
    if compared is not None:
        largest(compared)  # before the maps, in which what is selected here is framed
    kernel_by_kernel()
elif drawing == "curves":
    curves()
elif drawing == "strips" and compared is not None:
    difference_strips(compared)
grid = st.grid(columns=2, min_column_width=420, gap="medium")
with grid.cell():
    distributions()
if compared is not None:
    with grid.cell():
        agreement(compared)
    if drawing != "maps":
        with grid.cell(column_span="all"):
            largest(compared)

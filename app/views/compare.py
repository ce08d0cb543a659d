"""Two studies side by side: a baseline and its WE-trained twin, or any two that asked the same question."""

from __future__ import annotations

import shlex
from functools import partial

import kernels
import networks
import pandas as pd
import pictures
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.errors import StudyError
from weanalysis.results.places import sample_words
from weanalysis.results.statistics import (
    change_matrix,
    common_images,
    compare_correctness,
    compare_maps,
    rank_agreement,
)

COMPARED = ("location", "magnitude")
PLACE = {"location": ["layer", "out_channel", "in_channel"], "magnitude": ["layer", "percentile", "draw"]}

st.title("Compare")
st.caption(
    "Do two networks need the same weights, and the same images for it?",
    help="Any two studies of the same kind on the same images, such as those of a baseline and of a network trained "
    "with Weight Excitation. What is said holds for these two networks; what a way of training does takes several "
    "seeds of each.",
)

found = reading.studies(*COMPARED)
found = found[found["stopping"].isna()]  # each place of such a study was looked at on other images
if len(found) < 2:
    shared.how_to_begin("location")
    st.caption("Two studies of the same kind are needed for a comparison.")
    st.stop()
by_label = {shared.label(study): study for _, study in found.iterrows()}
with st.container(horizontal=True):
    first_label = st.selectbox("First", list(by_label), key="first", bind="query-params")
    first = by_label[first_label]
    others = [name for name, study in by_label.items() if study["kind"] == first["kind"] and name != first_label]
    if not others:
        st.info(f"There is no other {first['kind']} study to compare it with.", icon=":material/compare_arrows:")
        st.stop()
    second = by_label[st.selectbox("Second", others, key="second", bind="query-params")]


def accuracies() -> bool:
    """Compare the intact networks on the images that both have seen; tell whether their images can be paired."""
    one, two = reading.intact(first), reading.intact(second)
    metric = first["metric"]
    if one.empty or two.empty:
        st.caption("One of the two has measured nothing yet.")
        return False
    with st.container(horizontal=True):
        for study, images in ((first, one), (second, two)):
            st.metric(f"{shared.plain(study['name'])}, {metric}", f"{100 * images[metric].mean():.2f} %")
        try:
            paired = paired_images(one, two)
            result = compare_correctness(
                paired["image_id"], paired[f"{metric}_1"], paired["image_id"], paired[f"{metric}_2"]
            )
        except StudyError as error:
            st.caption(f"Their images cannot be paired: {shared.plain(error)}.")
            return False
        st.metric(
            "Difference (points)",
            figures.points(result.difference),
            help="Accuracy of the first minus that of the second, intact, on the same images.",
        )
        st.metric(
            "95 % interval",
            figures.interval(result.difference_low, result.difference_high),
            help=f"Tango's paired score interval on {result.num_images:,} images. "
            f"McNemar's exact test: p = {result.p_value:.2g}.",
        )
    return True


def paired_images(one: pd.DataFrame, two: pd.DataFrame) -> pd.DataFrame:
    """Return the images of both, a row an image; raise StudyError where they are not the same images."""
    if first["data"] != second["data"]:
        raise StudyError(f"one is measured on {first['data']}, the other on {second['data']}")
    common_images(one["image_id"], two["image_id"])
    both = one.merge(two, on="image_id", suffixes=("_1", "_2"))
    if (both["target_1"] != both["target_2"]).any():
        raise StudyError("the labels of their images differ")
    return both


def costs() -> None:
    """Compare what the two networks cost, in training and at inference."""
    if not st.toggle(
        "Compare their costs",
        key="costs",
        bind="query-params",
        help="Parameters in training and at inference, and operations an image. Excitation costs parameters in "
        "training only: it is folded into the weights afterwards. Paper, Table 1.",
    ):
        return
    told = {}
    for label, study in ((first_label, first), (shared.label(second), second)):
        about = reading.describe(study)
        if not about.get("architecture"):
            st.caption(f"Of {shared.plain(study['name'])} it is not known how to build its network.")
            return
        told[label] = networks.costs(about)
    st.dataframe(
        pd.DataFrame(
            {
                "network": list(told),
                "excitation": [found["excitation"] for found in told.values()],
                "training": [found["train_params"] / 1e6 for found in told.values()],
                "inference": [found["inference_params"] / 1e6 for found in told.values()],
                "operations": [found["gflops"] for found in told.values()],
            }
        ),
        hide_index=True,
        column_config={
            "network": st.column_config.TextColumn("Network of"),
            "excitation": st.column_config.TextColumn("Excitation"),
            "training": st.column_config.NumberColumn("Parameters in training (millions)", format="%.4f"),
            "inference": st.column_config.NumberColumn("at inference (millions)", format="%.4f"),
            "operations": st.column_config.NumberColumn(
                "GFLOPs an image", format="%.4f", help="Billions of multiply-accumulates at inference."
            ),
        },
    )
    unknown = [label for label, found in told.items() if found["excitation"] is None]
    if unknown:
        st.caption(
            f"The checkpoint tells what training cost; of {shared.plain(', '.join(unknown))} it is not known here."
        )
    st.caption("Memory and seconds a step are measured by a command:")
    st.code(shlex.join(["weanalysis", "costs", "--model", str(first["model"]), "--excitation", "none,lwe"]))


def pairs_of(one: pd.DataFrame, two: pd.DataFrame) -> pd.DataFrame:
    """Return the places that both have measured: D, the number of images and the row's place in either table."""
    key = PLACE[first["kind"]]
    sides = []
    for name, rows, more in (("first", one, ["depth", "metric"]), ("second", two, [])):
        named = rows.rename(columns={"drop": name, "num_images": f"images_{name}"}).reset_index(names=f"row_{name}")
        sides.append(named[[*key, *more, name, f"images_{name}", f"row_{name}"]])
    return sides[0].merge(sides[1], on=key).dropna(subset=["first", "second"]).reset_index(drop=True)


@st.cache_data(show_spinner="Pairing the images of every place…", max_entries=8)
def tested(ids: tuple[int, int], updated: tuple[float, float], pairs: pd.DataFrame, _studies: tuple) -> pd.DataFrame:
    """Return difference, interval, p and q of the places that both studies measured on all their images so far."""
    seen = [reading.intact(study)["image_id"] for study in _studies]
    whole = pairs[(pairs["images_first"] == len(seen[0])) & (pairs["images_second"] == len(seen[1]))]
    images = common_images(*seen)
    one, two = (
        change_matrix(reading.all_changes(study), images, whole[row])
        for study, row in zip(_studies, ("row_first", "row_second"), strict=True)
    )
    return compare_maps(one, two, same_network=False).set_index(whole.index)


def differences(pairs: pd.DataFrame, test: bool) -> pd.DataFrame:
    """Return the table of a mosaic of differences, first minus second."""
    table = pairs.assign(drop=pairs["first"] - pairs["second"], num_flipped=float("nan"), num_images=0)
    names = {"difference_low": "drop_low", "difference_high": "drop_high", "p_value": "p_value", "q_value": "q_value"}
    table[list(names.values())] = float("nan")
    if test:
        ids = (int(first["id"]), int(second["id"]))
        updated = (float(first["updated"]), float(second["updated"]))
        result = tested(ids, updated, pairs, (first, second))
        table["drop"] = result["difference"].reindex(table.index)
        for source, target in names.items():
            table[target] = result[source].reindex(table.index)
    return table


def maps(one: pd.DataFrame, two: pd.DataFrame, pairs: pd.DataFrame, pairable: bool) -> None:
    """Show both mosaics on one scale, and that of their differences."""
    limit = max(pairs["first"].abs().quantile(0.99), pairs["second"].abs().quantile(0.99)) or 1.0
    layers = kernels.page_of_layers(pairs)
    # The differences are what is asked for here, and are drawn while the maps above them are still being made.
    above = st.container()
    if figures.is_screened(one).any() or figures.is_screened(two).any():
        st.caption(
            "Screened: D of a kernel may be off by what was missed on these images; point at it for its bounds. "
            "Intervals and q of differences do not count that.",
            help=f"{shared.SCREENED}.",
        )
    st.markdown(
        "**Difference of the maps**, first minus second",
        help="Red: the first network needs this kernel more. Each image counts for both networks: the interval "
        "combines both D with their correlation over the images; q is from a sign-flip test over the images.",
    )
    test = pairable and st.toggle(
        "Test every difference",
        key="test",
        bind="query-params",
        help="Pairs the images of every kernel, and greys what cannot be told from zero (q > 0.05).",
    )
    table = differences(pairs, test)
    shared.show(
        figures.location_mosaic(
            table,
            layers=layers,
            hide_insignificant=test,
            selected=kernels.chosen(),
            quantity="difference of D",
            theme=shared.theme(),
        ),
        key="mosaic-difference",
        data=table,
        name=f"difference-{first['name']}-{second['name']}",
        alt="Difference of the two importance maps",
        on_click=lambda: kernels.take_click("mosaic-difference"),
    )
    if test:
        st.caption(
            f"{(table['q_value'] <= figures.SIGNIFICANT_Q).sum():,} of {len(table):,} differences have q ≤ 0.05."
        )
    with above:
        grid = st.grid(columns=2, min_column_width=420, gap="medium")
        for key, study, rows in (("mosaic-1", first, one), ("mosaic-2", second, two)):
            with grid.cell():
                st.markdown(f"**{shared.plain(study['name'])}**")
                shared.show(
                    figures.location_mosaic(
                        rows,
                        layers=layers,
                        limit=limit,
                        selected=kernels.chosen(),
                        num_columns=4,
                        theme=shared.theme(),
                    ),
                    key=key,
                    data=rows,
                    name=f"location-{study['name']}",
                    alt=f"Importance maps of {study['name']}",
                    on_click=partial(kernels.take_click, key),
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
    for key, study, found in (("images-1", first, one.loc[[place]]), ("images-2", second, other)):
        with grid.cell():
            if found.empty:
                st.caption(f"{shared.plain(study['name'])} has not measured this kernel.")
                continue
            drop, low, high = found[["drop", "drop_low", "drop_high"]].iloc[0]
            st.markdown(
                f"**{shared.plain(study['name'])}**: D = {figures.points(drop)} points, 95 % interval "
                f"{figures.interval(low, high)}"
            )
            pictures.changed_images(study, found.iloc[0], key)


@shared.live(False)
def kernel_by_kernel() -> None:
    """Show the maps and what the chosen kernel does: a part of its own, so that a click draws nothing else anew."""
    maps(one, two, pairs, pairable)
    images_of(one, two)


pairable = accuracies()
costs()
one, two = reading.table(first), reading.table(second)
pairs = pairs_of(one, two)
if pairs.empty:
    st.info(
        "The two studies have no place in common: their layers or channels differ.", icon=":material/compare_arrows:"
    )
elif first["kind"] == "location":
    kernel_by_kernel()
else:
    shared.show(
        figures.magnitude_curves({shared.label(first): one, shared.label(second): two}, theme=shared.theme()),
        key="curves",
        data=pd.concat([one.assign(name=first["name"]), two.assign(name=second["name"])]),
        name=f"magnitude-{first['name']}-{second['name']}",
        alt="D against percentile of both studies",
    )
grid = st.grid(columns=2, min_column_width=420, gap="medium")
with grid.cell():
    st.markdown("**How much of either network is needed**", help="Share of the ablations that cost at least a given D.")
    shared.show(
        figures.drop_distributions({shared.label(first): one, shared.label(second): two}, theme=shared.theme()),
        key="distributions",
        data=pd.concat([one.assign(name=first["name"]), two.assign(name=second["name"])]),
        name="distributions",
        alt="Distribution of D in both studies",
    )
with grid.cell():
    agreement = rank_agreement(pairs["first"], pairs["second"], blocks=pairs["layer"])
    st.markdown(
        "**Do they agree about what matters?**",
        help="Spearman's rank correlation of D over the places that both measured. Places of one layer resemble each "
        "other: with several layers, the interval leaves out one layer at a time. The noise of finitely many images "
        "makes it smaller than that of the true D.",
    )
    if agreement.value == agreement.value:
        st.caption(
            f"Rank correlation {agreement.value:+.2f}, 95 % interval {figures.interval(agreement.low, agreement.high)} "
            f"({sample_words(pairs['layer'].nunique())})."
        )
    shared.show(
        figures.drop_agreement(pairs, shared.label(first), shared.label(second), theme=shared.theme()),
        key="agreement",
        data=pairs,
        name="agreement",
        alt="D of the first study against D of the second",
    )

"""Pruning: what accuracy is left over the share of kernels or channels that are gone, by what ranked them."""

from __future__ import annotations

from pathlib import Path

import choosing
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.comparison import identify_network
from weanalysis.results.pruning import PruningCurve, most_pruned
from weanalysis.tasks import METRICS, find_metric

ALLOWED = (0.5, 1.0, 2.0, 5.0)  # points that a reader may be ready to lose
LOSS = "loss"

st.title("Pruning")
st.caption(
    "What is left of the accuracy when the kernels or channels that matter least are taken away: which ranking knows "
    "them?",
    help="`weanalysis prune` ranks all units by a cheap criterion or by the measured D, takes the lowest away at "
    "several sparsities, and measures each pruned network on the same images as the unpruned one. Nothing is trained "
    "afterwards.",
)
kept, problems = reading.pruning()
for problem in problems:
    st.warning(shared.plain(problem), icon=":material/broken_image:")
if not kept:
    st.info(
        "No network has been pruned yet. One command measures a curve by one ranking:", icon=":material/rocket_launch:"
    )
    st.code("weanalysis prune --model resnet20 --by taylor", language="bash")
    st.caption("Those of one network and the same images are drawn in one picture, such as a second one `--by l1`.")
    st.stop()


def name_of(curve: PruningCurve) -> str:
    """Return in words what network a curve is of, what was pruned in it, and on which images it was measured."""
    about = curve.about
    network = identify_network({**about, "name": curve.name}, reading.cache()).network
    over = "over the network" if about["scope"] == "network" else "layer by layer"
    units = f"{curve.table['num_units'].iloc[0]:,.0f} {about['unit']}s of {len(about['layers'])} layers, {over}"
    return f"{network} · {units} · {Path(about['data']).name} · {about['num_images']:,} images"


def choose_curves() -> list[PruningCurve]:
    """Let the reader choose a network with its images, and return its curves: those with most rankings come first."""
    subjects: dict[str, list[PruningCurve]] = {}
    for curve in kept:
        subjects.setdefault(curve.subject, []).append(curve)
    ordered = dict(sorted(subjects.items(), key=lambda pair: -len({one.about["source"] for one in pair[1]})))
    names = {key: name_of(curves[0]) for key, curves in ordered.items()}
    labels = {
        key: name if list(names.values()).count(name) == 1 else f"{name} · {key[:6]}" for key, name in names.items()
    }
    return subjects[choosing.choose("Pruned", labels, "pruned", "pruned network", width=640)]


def tables_of(curves: list[PruningCurve]) -> dict[str, pd.DataFrame]:
    """Return the sparsities that were measured by each ranking; of one measured twice, what is newer."""
    tables: dict[str, pd.DataFrame] = {}
    for curve in curves:  # the newest first
        known = tables.get(source := str(curve.about["source"]))
        both = curve.table if known is None else pd.concat([known, curve.table])
        tables[source] = both.drop_duplicates("sparsity").sort_values("sparsity", ignore_index=True)
    return dict(sorted(tables.items()))


def finding(allowed: float) -> str:
    """Return in one line how much each ranking can take away while no more than `allowed` points are lost."""
    most = {source: most_pruned(table, allowed) for source, table in tables.items()}
    reach = sorted(
        ((100 * row["num_pruned"] / row["num_units"], source) for source, row in most.items() if row is not None),
        reverse=True,
    )
    points = f"{allowed:g} point{'' if allowed == 1 else 's'}"
    if not reach:
        return f"No measured sparsity is sure to cost {points} or less"
    shares = ", ".join(
        f"{share:.0f} %{f' of the {unit}s' if not place else ''} by **{shared.plain(source)}**"
        for place, (share, source) in enumerate(reach)
    )
    none = [f"**{shared.plain(source)}**" for source, row in most.items() if row is None]
    return f"At most {points} lost: {shares}" + (f"; no measured share by {', '.join(none)}" if none else "")


def table() -> None:
    """Show all numbers, a row a ranking and sparsity."""
    every = pd.concat([rows.assign(source=source) for source, rows in tables.items()])
    every = every.sort_values(["sparsity", "source"], kind="stable")
    same_costs = ["gflops"] if unit == "kernel" else []  # kernels set to 0 save none
    loss = METRICS[LOSS]

    def intervals(low: str, high: str, of: object) -> list[str]:
        return [of.interval(*pair) for pair in zip(every[low], every[high], strict=True)]  # type: ignore[attr-defined]

    st.dataframe(
        pd.DataFrame(
            {
                "by": every["source"],
                "pruned": 100 * every["num_pruned"] / every["num_units"],
                "left": 100 * every["num_nonzero"] / about["intact_params"]["num_params"],
                "gflops": every["gflops"],
                "score": every["ablated"],
                "drop": every["drop"],
                "interval": intervals("drop_low", "drop_high", metric),
                "q": every["q_value"],
                "loss": every["loss_drop"],
                "loss_interval": intervals("loss_low", "loss_high", loss),
            }
        ).drop(columns=same_costs),
        key="pruning-table",
        hide_index=True,
        placeholder="–",
        column_config={
            "by": st.column_config.TextColumn("Ranked by"),
            "pruned": st.column_config.NumberColumn(f"{unit.capitalize()}s pruned (%)", format="%.0f"),
            "left": st.column_config.NumberColumn(
                "Parameters left (%)", format="%.1f", help="Those that are not 0, of all in the unpruned network."
            ),
            "gflops": st.column_config.NumberColumn(
                "GFLOPs", format="%.4g", help="Billions of multiply-accumulates an image."
            ),
            "score": st.column_config.NumberColumn(f"{metric.label} ({metric.mark})", format=f"%.{metric.decimals}f"),
            "drop": st.column_config.NumberColumn(f"D ({metric.unit})", format=f"%+.{metric.decimals}f"),
            "interval": st.column_config.TextColumn("95 % interval", help=f"{METHOD}."),
            "q": st.column_config.NumberColumn(
                "q", format="%.2g", help="False discovery rate over the sparsities of one command, Benjamini-Hochberg."
            ),
            "loss": st.column_config.NumberColumn("D of the loss (nats)", format=f"%+.{loss.decimals}f"),
            "loss_interval": st.column_config.TextColumn("95 % interval", help="Student's t over the images."),
        },
    )


def limits() -> None:
    """Say what the curves do not allow to conclude."""
    st.markdown("## What this does not say")
    st.markdown(
        "- Which of two rankings is better: each is compared with the unpruned network, on the same images, and not "
        "with the other. That their intervals overlap or not decides nothing.\n"
        "- How good the pruned network would be after training it further. Nothing was trained here.\n"
        "- How it does elsewhere: where a ranking has seen these images too, as the measured D and all criteria with "
        "gradients or activations have, the curve flatters.\n"
        "- What another network, or another seed, can lose. The intervals are over images alone, and each holds for "
        "its own sparsity."
        + (
            "\n- That anything becomes faster: kernels are set to 0, and shapes stay. Channels are removed for real."
            if unit == "kernel"
            else ""
        )
    )


curves = choose_curves()
about, tables = curves[0].about, tables_of(curves)
unit, metric = str(about["unit"]), find_metric(about["metric"])
METHOD = "Tango's paired score interval" if metric.counts_images else "Linearized, paired over the images"
with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
    shown = st.segmented_control(
        "Show",
        [metric.name, LOSS],
        default=metric.name,
        required=True,
        format_func=lambda name: find_metric(name).label,
        key="shown",
        bind="query-params",
    )
    allowed = st.segmented_control(
        "Points that may be lost",
        ALLOWED,
        default=ALLOWED[2],
        required=True,
        format_func=lambda points: f"{points:g}",
        key="allowed",
        help="For the line below: the largest sparsity at which, as at all smaller ones that were measured, the upper "
        "end of D's 95 % interval is no larger.",
    )
st.markdown(
    f"## {finding(allowed)}",
    help=f"By the upper ends of the 95 % intervals of D ({METHOD}), each for its own sparsity.",
)
intact = metric.words(curves[0].table["intact"].iloc[0], signed=False)
st.markdown(
    f"**{shared.plain(name_of(curves[0]))}** · unpruned {metric.label} {intact} {metric.mark}, "
    f"{about['intact_params']['num_params']:,.0f} parameters"
)
shared.show(
    figures.pruning_curves(tables, unit, metric.name, theme=shared.theme(), loss=shown == LOSS),
    key="pruning",
    data=pd.concat([rows.assign(ranked_by=source) for source, rows in tables.items()]),
    name=f"pruning-{about['model']}-{unit}s",
    alt=f"{find_metric(shown).label} over the share of {unit}s pruned, by ranking",
)
st.caption("Bands are the 95 % intervals of D, laid from what the unpruned network has, the dashed line.")
table()
limits()
with st.expander("How these were measured", icon=":material/terminal:"):
    st.code("\n".join(str(curve.about["command"]) for curve in curves), language="bash")

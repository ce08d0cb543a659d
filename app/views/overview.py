"""What is in the cache: every study, and what runs now."""

from __future__ import annotations

from typing import Any

import curves
import findings
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis.jobs import Jobs
from weanalysis.kinds import kind_of
from weanalysis.training import score_by_epoch, score_words, unreadable_runs

st.title("Overview")
st.caption(
    "Which weights of a trained ConvNet matter, and where are they? Each study sets some weights to zero and "
    "measures the loss of performance **D**.",
    help="D is the metric of the intact network minus that of the ablated one, in percentage points; "
    "positive means that the weights were needed. Paper, section 3.1.",
)

all_studies = reading.studies()
for line in (*reading.unreadable(), *unreadable_runs(reading.cache())):
    st.warning(shared.plain(line), icon=":material/warning:")
runs = [run for run in curves.find_curves(reading.cache()) if run.recipe]
if all_studies.empty and not runs:
    shared.how_to_begin()
    if st.button(
        "Run the demo here",
        type="primary",
        icon=":material/play_arrow:",
        help="Trains a small network on handwritten digits and measures its weights: a few minutes on two cores.",
    ):
        Jobs(reading.cache()).start(["demo", "--no-dashboard"])
        st.switch_page("views/jobs.py")
    st.stop()


FINDINGS_SHOWN = 4


def newest(place: Any) -> None:
    """Say what the newest studies found, each in a line, with a way to its maps and to a comparison."""
    measured = all_studies[all_studies["done"] > 0]
    labels = reading.labels(measured) if len(measured) else {}
    with place:
        for _, study in measured.head(FINDINGS_SHOWN).iterrows():
            kind = kind_of(study["kind"])
            with shared.faults(), st.container(border=True):
                rows = reading.table(study)
                said = findings.sentence(study, rows)
                st.markdown(f"## {said or 'Nothing can be said yet.'}")
                with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
                    st.caption(f"{shared.plain(labels[int(study['id'])])} · {kind.zeroes}", width="content")
                    if kind.page:
                        st.page_link(
                            f"views/{kind.page}.py",
                            label="Look at it",
                            icon=":material/arrow_forward:",
                            query_params={"study": str(study["id"]), **findings.largest_address(rows)},
                        )
                    if reading.partners(all_studies, int(study["id"])):
                        st.page_link(
                            "views/compare.py",
                            label="Compare",
                            icon=":material/compare:",
                            query_params={"first": str(study["id"])},
                        )
        if len(measured) > FINDINGS_SHOWN:
            st.caption(f"The {FINDINGS_SHOWN} studies that changed last; all {len(all_studies):,} stand below.")


def studies() -> None:
    """Search, filter and list the studies; a selected row opens its page."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = st.text_input(
            "Search", key="search", bind="query-params", placeholder="network, data or name", width=320, live=True
        )
        kinds = st.pills(
            "Study", sorted(all_studies["kind"].unique()), selection_mode="multi", key="kind", bind="query-params"
        )
        states = st.pills(
            "State", sorted(all_studies["state"].unique()), selection_mode="multi", key="state", bind="query-params"
        )
    shown = all_studies.assign(intact=reading.accuracies(all_studies))
    for word in (wanted or "").lower().split():
        searched = shown[["name", "measured_as", "note", "model", "weights", "data", "kind"]]
        text = searched.fillna("").astype(str).agg(" ".join, axis=1).str.lower()
        shown = shown[text.str.contains(word, regex=False)]
    if kinds:
        shown = shown[shown["kind"].isin(kinds)]
    if states:
        shown = shown[shown["state"].isin(states)]
    shown = shown.reset_index(drop=True)
    networks = {number: one.network for number, one in reading.identities(all_studies).items()}
    st.caption(f"{len(shown):,} of {len(all_studies):,} studies. Select a row to open its page.")
    # What a window still shows without scrolling comes first; a telephone has room for two.
    columns = ["name", "state", "kind", "model", "intact", "progress", "data", "updated", "num_images", "weights"]
    columns += ["stopping"] if shown["stopping"].notna().any() else []
    columns = columns[:2] if shared.is_narrow() else columns
    picked = st.dataframe(
        pd.DataFrame(
            {
                "name": shown["name"],
                "kind": shown["kind"],
                "model": [networks[number] for number in shown["id"]],
                "weights": shown["weights"],
                "data": shown["data"],
                "intact": shown["intact"],
                "num_images": shown["num_images"],
                "stopping": shown["stopping"].fillna("").astype(str),
                "progress": 100 * shown["done"] / shown["total"].where(shown["total"] > 0),
                "state": shown["state"],
                "updated": pd.to_datetime(shown["updated"], unit="s", utc=True),
            }
        ),
        key="studies",
        column_order=columns,
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "name": st.column_config.TextColumn("Name", width=180 if shared.is_narrow() else "medium"),
            "kind": st.column_config.TextColumn(
                "Study", help="What is zeroed: kernels by location, weights by magnitude…"
            ),
            "model": st.column_config.TextColumn("Network"),
            "data": st.column_config.TextColumn("Data"),
            "weights": st.column_config.TextColumn("Weights"),
            "intact": st.column_config.NumberColumn(
                "Intact (%)", format="%.2f", help="The study's metric of the untouched network, on its images so far."
            ),
            "num_images": st.column_config.NumberColumn("Images", format="localized"),
            "stopping": st.column_config.TextColumn(
                "Stopped", help="The rule that ended ablations early; their intervals are anytime-valid."
            ),
            "progress": st.column_config.ProgressColumn(
                "Done", min_value=0, max_value=100, format="%.0f %%", help="Of all shards of images and ablations."
            ),
            "state": st.column_config.TextColumn("State"),
            "updated": st.column_config.DatetimeColumn("Last change", format="distance"),
        },
    )
    if picked.selection.rows:
        study = shown.iloc[picked.selection.rows[0]]
        if page := kind_of(study["kind"]).page:
            st.switch_page(f"views/{page}.py", query_params={"study": str(study["id"])})
        st.info(
            f"A {study['kind']} study has no page here; `weanalysis report {study['id']} -o report.html` draws it, and "
            f"`weanalysis export {study['id']} -o FILE` writes its table."
        )


def trained() -> None:
    """List the training runs; a selected row opens its curves."""
    st.header("Training runs")
    picked = st.dataframe(
        pd.DataFrame(
            [
                {
                    "run": run.name,
                    "state": run.state,
                    "model": run.recipe.get("model"),
                    "data": run.recipe.get("data"),
                    "excitation": run.recipe.get("excitation"),
                    "best": score_by_epoch(run.frame).max(),
                    "epochs": len(run.frame),
                    "created": pd.Timestamp(run.created) if run.created else pd.NaT,
                }
                for run in runs
            ]
        ),
        key="trained",
        column_order=["run", "state"] if shared.is_narrow() else None,
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "run": st.column_config.TextColumn("Run", width=180 if shared.is_narrow() else "medium"),
            "model": st.column_config.TextColumn("Network"),
            "data": st.column_config.TextColumn("Data"),
            "excitation": st.column_config.TextColumn(
                "Excitation", help="Weight excitation during training: LWE by location, MWE by magnitude."
            ),
            "best": st.column_config.NumberColumn(f"Best {score_words(run.frame for run in runs)} (%)", format="%.2f"),
            "epochs": st.column_config.NumberColumn("Epochs"),
            "state": st.column_config.TextColumn("State"),
            "created": st.column_config.DatetimeColumn("Begun", format="distance"),
        },
    )
    if picked.selection.rows:
        st.switch_page("views/runs.py", query_params={"runs": runs[picked.selection.rows[0]].name})


@shared.live((all_studies["state"] == shared.RUNNING).any())
def running() -> None:
    now = reading.studies()
    for _, study in now[now["state"] == shared.RUNNING].iterrows():
        share = study["done"] / study["total"] if study["total"] else 0.0
        done = f"{study['done']:,} of {study['total']:,} steps" if study["total"] else "starting"
        st.progress(min(share, 1.0), text=f"{shared.plain(study['name'])}: {done}")


if len(all_studies):
    running()
    # Filled last, so that reading tables keeps nothing back.
    above = st.container()
    studies()
if runs:
    trained()
if len(all_studies):
    newest(above)

"""Baseline against Weight Excitation: for each way of training a card of what it brought and cost, and its studies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import curves
import networks
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.comparison import BASELINE, Identity, identify_run
from weanalysis.kinds import kind_of
from weanalysis.results.statistics import compare_runs, mean_of_runs
from weanalysis.tasks import find_metric
from weanalysis.training import score_by_epoch, score_words

CARDS_A_ROW = 3


@dataclass
class Way:
    """The runs of one setting that were trained in one way, whatever their seed, and the studies of their networks."""

    name: str
    runs: list[curves.Curves] = field(default_factory=list)
    studies: list[pd.Series] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """The last score in validation of each finished run, in percent."""
        every = [score_by_epoch(run.frame) for run in self.runs if run.finished]
        return [float(one.iloc[-1]) for one in every if len(one)]


def settings_of(runs: list[curves.Curves], of_run: dict[str, list[pd.Series]]) -> dict[str, dict[str, Way]]:
    """Put runs together whose recipes differ in seed and excitation alone, by setting and way, with their studies."""
    settings: dict[str, dict[str, Way]] = {}
    for run in runs:
        others = {name: value for name, value in run.recipe.items() if name not in ("seed", "excitation")}
        ways = settings.setdefault(json.dumps(others, sort_keys=True, default=str), {})
        way = identify_run(run.name, run.recipe).way
        known = ways.setdefault(way, Way(way))
        known.runs.append(run)
        known.studies.extend(of_run.get(run.name, []))
    return settings


def run_of(study: pd.Series) -> str:
    """Return the name of the run whose network a study is of; empty for a network of no run."""
    checkpoint = reading.describe(study).get("checkpoint")
    return Path(str(checkpoint)).parent.name if checkpoint else ""


def step_milliseconds(way: Way) -> float:
    """Return what a step of training took, the median over epochs and runs; NaN where that is not recorded."""
    steps = [
        np.diff(run.frame["seconds"].to_numpy(float)) / np.diff(run.frame["step"].to_numpy(float))
        for run in way.runs
        if {"seconds", "step"} <= set(run.frame) and len(run.frame) > 1
    ]
    known = np.concatenate([np.empty(0), *steps])
    known = known[np.isfinite(known) & (known > 0)]
    return 1000 * float(np.median(known)) if len(known) else float("nan")


def accuracy(way: Way, baseline: Way | None, score: str) -> None:
    """Show the mean score over seeds, and how it differs from the baseline's; an interval takes three seeds of each."""
    scores = way.scores
    if not scores:
        st.caption("No run of it has ended yet.")
        return
    mean, seeds = mean_of_runs(scores), f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"
    enough = len(scores) >= figures.FEWEST_SEEDS and mean.low == mean.low
    st.metric(
        f"Last {score}, {seeds}",
        f"{mean.value:.2f} %",
        help=f"95 % interval over seeds: {mean.low:.2f} to {mean.high:.2f} %."
        if enough
        else "An interval takes three seeds.",
    )
    if baseline is None or baseline is way or not baseline.scores:
        return
    apart = compare_runs(baseline.scores, scores)
    sure = min(len(scores), len(baseline.scores)) >= figures.FEWEST_SEEDS and apart.low == apart.low
    value, low, high = (find_metric("top1").words(one) for one in (apart.value, apart.low, apart.high))
    reach = f"\\[{low}, {high}\\] (95 %, Welch)" if sure else "(no interval: it takes three seeds)"
    st.markdown(f"**{value} points** {reach} against the {BASELINE}")


def contrast(way: Way) -> None:
    """Show D_L and D_H of the newest multiplier study."""
    for study in way.studies:
        if not kind_of(study["kind"]).needs_multipliers or (known := reading.contrast(study)) is None:
            continue
        metric = find_metric(study["metric"])
        for name, row in (("$D_L$", known.lowest), ("$D_H$", known.highest)):
            interval = metric.interval(row["drop_low"], row["drop_high"])
            st.markdown(f"{name} = **{metric.words(row['drop'])}** {metric.unit}, 95 % {interval}")
        return


def costs(way: Way, count: bool) -> None:
    """Show what training took as it was recorded, and, where it is asked for, how many parameters the network has."""
    parts = []
    if (step := step_milliseconds(way)) == step:
        parts.append(f"{step:,.0f} ms a step (recorded)")
    memory = [float(run.frame["peak_memory_gib"].max()) for run in way.runs if "peak_memory_gib" in run.frame]
    if memory and max(memory) > 0:
        parts.append(f"{max(memory):.2g} GiB at the most")
    if count:
        abouts = [about for one in way.studies if (about := reading.describe(one)).get("architecture")]
        if abouts and abouts[0].get("transform"):
            known = networks.costs(abouts[0])
            training = "" if known["excitation"] is None else f"{known['train_params'] / 1e6:.4f} M in training, "
            parts.append(f"parameters: {training}{known['inference_params'] / 1e6:.4f} M at inference")
        else:
            parts.append("parameters: known once its network has a study")
    if parts:
        st.caption(" · ".join(parts))


def links(way: Way, labels: dict[int, str]) -> None:
    """Lead to the way's curves, to its studies, and to what each can be compared with."""
    st.page_link(
        "views/runs.py",
        label=f"Curves of {len(way.runs)} run{'s' if len(way.runs) > 1 else ''}",
        icon=":material/timeline:",
        query_params=[("runs", run.name) for run in way.runs],
    )
    for study in way.studies:
        kind, number = kind_of(study["kind"]), str(study["id"])
        with st.container(horizontal=True, gap="small"):
            if kind.page:
                st.page_link(
                    f"views/{kind.page}.py",
                    label=f"{kind.name}: {shared.plain(labels[int(number)])}",
                    icon=":material/arrow_forward:",
                    query_params={"study": number},
                )
            if reading.partners(all_studies, int(number)):
                st.page_link(
                    "views/compare.py", label="Compare", icon=":material/compare:", query_params={"first": number}
                )


def heading(ways: dict[str, Way]) -> str:
    """Return what the runs of a setting have in common, in words."""
    first: Identity = identify_run("", next(iter(ways.values())).runs[0].recipe)
    return f"{first.model} on {first.data}"


st.title("Baseline against LWE")
st.caption(
    "A card for each way of training: what it brought, what it cost, and what its network needs.",
    help="Runs whose recipes differ in nothing but seed and excitation stand side by side. A difference has an "
    "interval from three seeds of each on.",
)
runs = [run for run in curves.find_curves(reading.cache()) if run.recipe and not run.problem]
if not runs:
    st.info("No training run yet. Train a baseline and its twin with LWE:", icon=":material/rocket:")
    st.code(
        "weanalysis train --model resnet20 --data digits\n"
        "weanalysis train --model resnet20 --data digits --excitation lwe",
        language="bash",
    )
    st.stop()
all_studies = reading.studies()
of_run: dict[str, list[pd.Series]] = {}
for _, one in all_studies.iterrows():
    of_run.setdefault(run_of(one), []).append(one)
settings = settings_of(runs, of_run)
labels = reading.labels(all_studies) if len(all_studies) else {}
count = st.toggle("Count parameters", key="count", bind="query-params", help="Builds the networks: some seconds.")
for place, ways in enumerate(settings.values()):
    st.header(shared.plain(heading(ways)))
    ordered = sorted(ways.values(), key=lambda way: way.name != BASELINE)
    grid = st.grid(columns=min(CARDS_A_ROW, len(ordered)), min_column_width=320, gap="medium", key=f"cards-{place}")
    for way in ordered:
        with grid.cell(), st.container(border=True), shared.faults():
            st.markdown(f"### {shared.plain(way.name)}")
            accuracy(way, ways.get(BASELINE), score_words(run.frame for run in way.runs))
            contrast(way)
            costs(way, count)
            links(way, labels)

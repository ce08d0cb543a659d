"""Training runs (paper, Figs 4 and 5): how they went, what differs between them, and which epoch was best."""

from __future__ import annotations

from collections import Counter

import choosing
import curves
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.comparison import BASELINE, identify_run
from weanalysis.figures import METRIC_TITLES, X_TITLES, best_epoch
from weanalysis.results.statistics import compare_runs, mean_of_runs
from weanalysis.training import differing_fields, score_by_epoch, score_words, seed_groups, value_word

SHOWN_FIRST = 6
PREFERRED = ("top1", "miou", "loss", "top5", "learning_rate", "peak_memory_gib")

st.title("Training runs")
st.caption(
    "How training went: any number of runs, alone or as the mean over seeds.",
    help="Solid lines are validation, dotted ones training (on augmented images, before each step). "
    "A star is the best epoch. Paper, section 4.2, Figs 4 and 5.",
)


@st.cache_data(show_spinner="Reading the file…", max_entries=32)
def uploaded(name: str, content: bytes) -> curves.Curves:
    return curves.read_upload(name, content)


with st.sidebar, st.expander("Curves from elsewhere", icon=":material/upload_file:"):
    files = st.file_uploader(
        "CSV with an epoch or step column, or a TensorBoard event file",
        accept_multiple_files=True,
        key="uploads",
        help="Stays on this machine. Folders that lie in the cache's runs/ are found by themselves.",
    )
brought = [uploaded(file.name, file.getvalue()) for file in files or []]
curves_of_runs = curves.find_curves(reading.cache()) + brought
for broken in (run for run in curves_of_runs if run.problem):
    st.warning(shared.plain(broken.problem), icon=":material/warning:")
for note in (note for run in curves_of_runs for note in run.notes):
    st.caption(f":material/info: {shared.plain(note)}")
names = [run.name for run in curves_of_runs if not run.problem]
if not names:
    st.info("No training run yet. Train one in a terminal; it appears here while it runs.", icon=":material/rocket:")
    st.code("weanalysis train --model resnet20 --data digits --excitation lwe", language="bash")
    st.stop()

chosen = choosing.choose_several("Runs", names, "runs", "runs", default=names[:SHOWN_FIRST])
known = {run.name: identify_run(run.name, run.recipe) for run in curves_of_runs if run.recipe}
if not chosen:
    st.caption("Choose at least one run.")
    st.stop()


def metrics_of(runs: list[curves.Curves]) -> list[str]:
    """Return what can be drawn, with train_… and val_… as one, the usual ones first."""
    columns = dict.fromkeys(
        column
        for run in runs
        for column in run.frame.columns
        if column not in curves.PLACES and run.frame[column].notna().any()
    )
    shared_names = dict.fromkeys(column.removeprefix("val_").removeprefix("train_") for column in columns)
    known = [name for name in PREFERRED if name in shared_names]
    return known + [name for name in shared_names if name not in known]


def differences(runs: list[curves.Curves]) -> pd.DataFrame:
    """Return the fields of the recipes that are not the same in all runs, a column a run."""
    fields = differing_fields([run.recipe for run in runs])
    return pd.DataFrame(
        {run.name: {name: value_word(run.recipe[name]) for name in fields if name in run.recipe} for run in runs},
        index=pd.Index(fields),
    )


def summary(runs: list[curves.Curves]) -> pd.DataFrame:
    rows = []
    for run in runs:
        scores = score_by_epoch(run.frame)
        best = best_epoch(scores, "top1") if len(scores) else None
        rows.append(
            {
                "run": run.name,
                "best": None if best is None else scores.iloc[best],
                "best_epoch": None if best is None else run.frame.loc[scores.index[best]].get("epoch"),
                "last": None if best is None else scores.iloc[-1],
                "epochs": len(run.frame),
                "minutes": run.frame["seconds"].max() / 60 if "seconds" in run.frame else None,
                "state": run.state,
            }
        )
    return pd.DataFrame(rows)


def way_of(name: str) -> str:
    """Return how a run was trained; empty for what another program trained."""
    return known[name].way if name in known else ""


def words_by_name(runs: list[curves.Curves]) -> dict[str, str]:
    """Return words that tell each run from the others that are drawn: how it was trained, its seed, what differs."""
    words = {run.name: words_of(run, runs) for run in runs}
    count = Counter(words.values())
    return {name: text if count[text] == 1 else f"{text} ({name})" for name, text in words.items()}


def words_of(run: curves.Curves, among: list[curves.Curves]) -> str:
    own = [one for one in among if one.recipe]
    if not run.recipe or len(own) < 2:
        return run.name
    differing = [name for name in differing_fields([one.recipe for one in own]) if name != "excitation"]
    parts = [f"{name.replace('_', ' ')} {value_word(run.recipe[name])}" for name in differing if name in run.recipe]
    words = " · ".join([way_of(run.name), *parts])
    return words


def groups_of(runs: list[curves.Curves]) -> dict[str, list[str]]:
    """Return the names of runs that differ in their seed alone, by the way in which they were trained if that tells."""
    groups = seed_groups({run.name: run.recipe for run in runs})
    ways = {title: way_of(members[0]) or title for title, members in groups.items()}
    return {ways[title] if len(set(ways.values())) == len(ways) else title: groups[title] for title in groups}


def last_rows(runs: dict[str, pd.DataFrame], x: str) -> dict[str, pd.DataFrame]:
    """Return what runs recorded in the last 30 % of the longest; empty where no run has more than a point there."""
    known = {name: frame for name, frame in runs.items() if x in frame}
    begin = 0.7 * max((frame[x].max() for frame in known.values()), default=0)
    last = {name: frame[frame[x] >= begin] for name, frame in known.items()}
    return last if max(map(len, last.values()), default=0) > 1 else {}


def over_seeds(by_title: dict[str, list[str]], table: pd.DataFrame, score: str) -> None:
    """Tell the mean of each group of seeds, and by how much excitation differs from the baseline."""
    finished = table[table["state"] == "finished"].set_index("run")["last"].dropna()
    lasts = {title: [finished[name] for name in members if name in finished] for title, members in by_title.items()}
    for title, values in lasts.items():
        if len(values) > 1:
            mean = mean_of_runs(values)
            reach = (
                f"95 % interval over {len(values)} seeds {mean.low:.2f} to {mean.high:.2f} %"
                if len(values) >= figures.FEWEST_SEEDS and mean.low == mean.low
                else f"over {len(values)} seeds, too few for an interval"
            )
            st.caption(f"{shared.plain(title)}: last {score} {mean.value:.2f} %, {reach}.")
    for title, values in lasts.items():
        if BASELINE not in lasts or title == BASELINE or not values or not lasts[BASELINE]:
            continue
        apart = compare_runs(lasts[BASELINE], values)
        seeds = len(lasts[BASELINE]), len(values)
        reach = (
            f"[{apart.low:+.2f}, {apart.high:+.2f}] (95 %, Welch)"
            if min(seeds) >= figures.FEWEST_SEEDS and apart.low == apart.low
            else "without an interval, which takes three seeds of each"
        )
        st.markdown(
            f"**{shared.plain(title)} − baseline: {apart.value:+.2f} points** {shared.plain(reach)}, "
            f"over {seeds[1]} and {seeds[0]} seeds."
        )


@shared.live(any(not run.finished for run in curves_of_runs))
def drawn() -> None:
    now = [run for run in curves.find_curves(reading.cache()) + brought if run.name in chosen and not run.problem]
    offered = metrics_of(now)
    if not offered:
        st.info("No epoch has ended yet.", icon=":material/hourglass_top:")
        return
    places = [place for place in curves.PLACES if any(place in run.frame for run in now)]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        metric = st.selectbox(
            "Curve", offered, format_func=lambda name: METRIC_TITLES.get(name, name), key="metric", bind="query-params"
        )
        x = st.segmented_control(
            "X axis",
            places,
            default=places[0],
            required=True,
            format_func=lambda name: X_TITLES.get(name, name),
            key="by",
            bind="query-params",
        )
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.95,
            0.0,
            0.05,
            key="smoothing",
            bind="query-params",
            width=200,
            help="The weight of the past in an exponential mean. The raw line stays, paler.",
        )
        grouped = st.toggle("Mean over seeds", key="seeds", bind="query-params", help="Band: range of the runs.")
        training = st.toggle("Show training curves", value=True, key="training", bind="query-params")
    by_title = groups_of(now) if grouped else {}
    groups = {name: title for title, names in by_title.items() for name in names} or None
    named = words_by_name(now)
    titles = by_title or {words: [name] for name, words in named.items()}
    colours = figures.colours_by_way({title: way_of(members[0]) for title, members in titles.items()})

    def show(runs: dict[str, pd.DataFrame], key: str) -> None:
        shared.show(
            figures.training_curves(
                {name if groups else named[name]: frame for name, frame in runs.items()},
                metric,
                x if x in places else places[0],
                smoothing=smoothing,
                groups=groups,
                show_training=training,
                colours=colours,
                theme=shared.theme(),
            ),
            key=key,
            data=pd.concat([frame.assign(run=name) for name, frame in runs.items()]),
            name=f"runs-{metric}" + ("" if key == "curves" else "-last-epochs"),
            alt=f"{METRIC_TITLES.get(metric, metric)} of {len(now)} runs",
        )

    show({run.name: run.frame for run in now}, "curves")
    if last := last_rows({run.name: run.frame for run in now}, x):
        st.markdown("## The last epochs, enlarged", help="The last 30 %, where the lines lie close to each other.")
        show(last, "last-epochs")
    table, score = summary(now), score_words(run.frame for run in now)
    st.dataframe(
        table.dropna(axis=1, how="all"),
        column_order=("run", "best", "state") if shared.is_narrow() else None,
        hide_index=True,
        placeholder="–",
        column_config={
            "run": "Run",
            "best": st.column_config.NumberColumn(f"Best {score} (%)", format="%.2f"),
            "best_epoch": st.column_config.NumberColumn("at epoch", format="%d"),
            "last": st.column_config.NumberColumn(f"Last {score} (%)", format="%.2f"),
            "epochs": st.column_config.NumberColumn("Epochs", help="Epochs (or steps) recorded."),
            "minutes": st.column_config.NumberColumn("Minutes", format="%.1f"),
            "state": "State",
        },
    )
    over_seeds(by_title, table, score)
    if len(now) > 1:
        apart = differences(now)
        st.markdown("## What differs in their recipes", help="Settings that all of these runs share are left out.")
        if len(apart):
            st.dataframe(
                apart.rename_axis("setting").reset_index(),
                hide_index=True,
                placeholder="–",
                column_config={"setting": "Setting"},
            )
        else:
            st.caption("Nothing.")


drawn()

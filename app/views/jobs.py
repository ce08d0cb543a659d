"""Jobs: start a study or a training run from a form, watch it, stop it, take it up again."""

from __future__ import annotations

import math
import shlex
import time
from datetime import timedelta

import click
import curves
import forms
import reading
import shared
import streamlit as st

from weanalysis.cache import storable
from weanalysis.cli import cli
from weanalysis.comparison import identify_run
from weanalysis.errors import StoreError
from weanalysis.jobs import Job, Jobs, complaint, progress, result_of
from weanalysis.kinds import DEFAULT, KINDS, kind_of, options_by_name
from weanalysis.training import Run

# What the choices mean; which there are, the commands say.
WORDS = {
    "study": {kind.name: kind.zeroes for kind in KINDS.values()},
    "excitation": {
        "none": "a baseline",
        "lwe": "by location",
        "mwe": "by magnitude",
        "lwe+mwe": "both",
        "we": "LWE, and MWE on depthwise convolutions",
        "ws": "weight standardization",
        "wn": "weight normalization",
        "sn": "spectral normalization",
    },
}
FIRST = {"model": "resnet20", "data": "digits"}  # what is ready in a few minutes
COLOURS: dict[str, shared.Colour] = {
    "running": "blue",
    "finished": "green",
    "failed": "red",
    "cancelled": "orange",
    "lost": "red",
}
STATES = {"lost": "killed"}
SHOWN = 20
LOG_LINES = 40

jobs = Jobs(reading.cache())

st.title("Jobs")
st.caption(
    "Start a study or a training run here instead of in a terminal. It goes on when this page or the dashboard "
    "is closed.",
    help="A job is the command itself, in a process of its own; what is measured is kept step by step.",
)


def study_command() -> list[str]:
    """Return the command that the form describes."""
    kind = KINDS[st.session_state.get("ablate-study", DEFAULT)]
    own = {option.name: (option.metavar, option.help_with_default) for option in kind.options if option.on_command}
    others = set(options_by_name()) - set(own)
    rows = [["study"], ["model", "weights", "data"], [*own], ["images", "evaluate", "name"]]
    return ["ablate", *forms.fill_in(cli.commands["ablate"], rows, others, FIRST, WORDS, own)]


def training_command() -> list[str]:
    """Return the command that trains what the form describes."""
    rows = [["model", "data", "excitation"], ["preset", "epochs", "seeds", "name"]]
    return ["train", *forms.fill_in(cli.commands["train"], rows, (), FIRST, WORDS)]


def saliency_command() -> list[str]:
    """Return the command that scores the weights that the form describes."""
    return ["saliency", *forms.fill_in(cli.commands["saliency"], [["model", "weights", "data"], ["images"]], (), FIRST)]


def check_command(command: list[str]) -> None:
    """Raise StoreError, in the command line's own words, for options that the command does not have.

    A job's results lie in the cache that is shown here, and nowhere else.
    """
    registered = cli.commands.get(command[0])
    try:
        if registered is not None:
            parsed = registered.make_context(command[0], list(command[1:]), resilient_parsing=False)
            if parsed.params.get("cache") is not None:
                raise StoreError("--cache is not for jobs: they work in the cache that this dashboard shows")
    except click.ClickException as error:
        raise StoreError(error.format_message()) from error
    except click.exceptions.Exit:
        raise StoreError("--help and --version are not for jobs; leave them out") from None


def start(command: list[str]) -> None:
    """Start a job; a mistake in the words of the command is said before any process begins."""
    try:
        check_command(command)
        job = jobs.start(command)
    except StoreError as error:
        st.error(shared.plain(error), icon=":material/error:")
    else:
        st.toast(f"Job {job.id} has begun.", icon=":material/play_arrow:")


def choose_own_network(command: str) -> None:
    """Offer the networks that were trained here, so that nobody has to type where their files lie."""
    own = [run for run in curves.find_curves(reading.cache()) if run.recipe]
    runs = {run.name: run.recipe for run in own if Run(reading.cache().runs / run.name).checkpoint.is_file()}
    if not runs:
        return

    def take() -> None:
        if name := st.session_state[f"{command}-own"]:
            st.session_state[f"{command}-model"] = str(Run(reading.cache().runs / name).checkpoint)
            st.session_state[f"{command}-data"] = str(runs[name].get("data", ""))

    st.selectbox(
        "A network that was trained here",
        list(runs),
        index=None,
        key=f"{command}-own",
        format_func=lambda name: f"{identify_run(name, runs[name]).network} · {runs[name].get('data')} · {name}",
        on_change=take,
        placeholder="none: what is typed below",
        width=640,
    )


FORMS = {"Study": "ablate", "Training": "train", "Saliency": "saliency"}
above = st.container()  # what runs now stands above the form
with st.container(border=True):
    form = st.segmented_control("New", list(FORMS), default="Study", required=True, key="form", bind="query-params")
    kind = FORMS[form]
    with st.container(key=f"form-{kind}"):
        if kind != "train":
            choose_own_network(kind)
        command = {"ablate": study_command, "train": training_command, "saliency": saliency_command}[kind]()
        st.code(shlex.join(["weanalysis", *command]), language="bash", wrap_lines=True)
    if st.button("Start", type="primary", icon=":material/play_arrow:", key="start"):
        start(command)


@shared.live(any(job.active for job in jobs.all()))
def now() -> None:
    for job in (job for job in jobs.all() if job.active):
        show(job)


@shared.live(any(job.active for job in jobs.all()))
def listed() -> None:
    all_jobs = jobs.all()
    for line in jobs.unreadable():
        st.warning(shared.plain(line), icon=":material/warning:")
    if not all_jobs:
        st.caption("No job yet.")
        return
    if st.session_state.get("any-active", False) != any(job.active for job in all_jobs):
        # A first job begins, or the last one ended: the whole page polls, or stops polling.
        st.session_state["any-active"] = any(job.active for job in all_jobs)
        st.rerun()
    ended = [job for job in all_jobs if not job.active]
    for job in ended[:SHOWN]:
        show(job)
    if len(ended) > SHOWN:
        st.caption(f"{len(ended) - SHOWN:,} older jobs are not shown.")


def show(job: Job) -> None:
    log = jobs.log(job.id)
    with st.container(border=True, key=f"job-{job.id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"##### Job {job.id}")
            st.badge(STATES.get(job.state, job.state), color=COLOURS[job.state])
            st.caption(times(job))
        st.code(storable(shlex.join(["weanalysis", *job.command])), language="bash", wrap_lines=True)
        if job.active:
            share, words = progress(log)
            waiting = "stopping after the step in hand…" if job.cancel else words or "beginning…"
            st.progress(0.0 if math.isnan(share) else share, text=shared.plain(waiting))
        elif problem := complaint(log):
            st.error(shared.plain(problem), icon=":material/error:")
        with st.container(horizontal=True, vertical_alignment="center"):
            buttons(job, log)
        with st.expander("Log"):
            st.code("\n".join(log.splitlines()[-LOG_LINES:]) or "Nothing yet.", language=None, wrap_lines=True)


def times(job: Job) -> str:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    lasted = timedelta(seconds=round((job.ended or time.time()) - job.created))
    return f"begun {begun}, {'for' if job.active else 'took'} {lasted}"


def open_result(log: str) -> None:
    """Lead to what a job made, where it is there."""
    made = result_of(log)
    if made is None:
        return
    what, name = made
    if what == "run":
        st.page_link("views/runs.py", label="Open result", icon=":material/open_in_new:", query_params={"runs": name})
        return
    known = reading.studies()
    kinds = known.loc[known["id"].astype(str) == name, "kind"]
    if len(kinds) and (page := kind_of(kinds.iloc[0]).page):
        link = {"study": name}
        st.page_link(f"views/{page}.py", label="Open result", icon=":material/open_in_new:", query_params=link)


def buttons(job: Job, log: str) -> None:
    if not job.active:
        open_result(log)
        if job.state == "failed" and complaint(log) and math.isnan(progress(log)[0]):
            return  # it was refused before anything was done, and would be again
    if job.active:
        if st.button("Cancel", key=f"cancel-{job.id}", icon=":material/stop:", disabled=job.cancel):
            jobs.cancel(job.id)
            st.rerun()
        if job.cancel and st.button(
            "Stop at once",
            key=f"kill-{job.id}",
            icon=":material/dangerous:",
            help="Loses no more than the step in hand.",
        ):
            jobs.kill(job.id)
            st.rerun()
    elif st.button(
        "Run again" if job.state == "finished" else "Resume",
        key=f"again-{job.id}",
        icon=":material/replay:",
        help="The same command; what was measured is not done again.",
    ):
        start(list(job.command))
        st.rerun()


with above:
    now()
listed()

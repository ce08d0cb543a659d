"""Jobs: start a study or a training run from a form, watch it, stop it, take it up again."""

from __future__ import annotations

import math
import shlex
import time
from datetime import timedelta

import click
import forms
import reading
import shared
import streamlit as st

from weanalysis.cache import storable
from weanalysis.cli import cli
from weanalysis.errors import StoreError
from weanalysis.jobs import Job, Jobs, complaint, progress
from weanalysis.kinds import DEFAULT, KINDS, options_by_name

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


with st.container(border=True):
    form = st.segmented_control(
        "New", ["Study", "Training"], default="Study", required=True, key="form", bind="query-params"
    )
    kind = "ablate" if form == "Study" else "train"
    with st.container(key=f"form-{kind}"):
        command = study_command() if form == "Study" else training_command()
        st.code(shlex.join(["weanalysis", *command]), language="bash", wrap_lines=True)
    if st.button("Start", type="primary", icon=":material/play_arrow:"):
        start(command)


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
    for job in all_jobs[:SHOWN]:
        show(job)
    if len(all_jobs) > SHOWN:
        st.caption(f"{len(all_jobs) - SHOWN:,} older jobs are not shown.")


def show(job: Job) -> None:
    log = jobs.log(job.id)
    with st.container(border=True, key=f"job-{job.id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**Job {job.id}**")
            st.badge(STATES.get(job.state, job.state), color=COLOURS[job.state])
            st.caption(times(job))
        st.code(storable(shlex.join(["weanalysis", *job.command])), language="bash", wrap_lines=True)
        if job.active:
            share, words = progress(log)
            waiting = "stopping after the step in hand…" if job.cancel else words or "beginning…"
            st.progress(0.0 if math.isnan(share) else share, text=shared.plain(waiting))
        elif problem := complaint(log):
            st.error(shared.plain(problem), icon=":material/error:")
        with st.container(horizontal=True):
            buttons(job)
        with st.expander("Log"):
            st.code("\n".join(log.splitlines()[-LOG_LINES:]) or "Nothing yet.", language=None, wrap_lines=True)


def times(job: Job) -> str:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    lasted = timedelta(seconds=round((job.ended or time.time()) - job.created))
    return f"begun {begun}, {'for' if job.active else 'took'} {lasted}"


def buttons(job: Job) -> None:
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


listed()

"""Jobs: start any of the commands from a form, watch it, stop it, take it up again, open what it made."""

from __future__ import annotations

import math
import shlex
import time
from datetime import timedelta
from pathlib import Path

import commands
import estimates
import reading
import shared
import streamlit as st

from weanalysis.cache import storable
from weanalysis.errors import WeanalysisError
from weanalysis.jobs import RESUMABLE, Job, Jobs, complaint, progress, result_of
from weanalysis.kinds import kind_of

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
OPEN = {"label": "Open result", "icon": ":material/open_in_new:"}

jobs = Jobs(reading.cache())

st.title("Jobs")
st.caption(
    "Start a command here instead of in a terminal. It goes on when this page or the dashboard is closed.",
    help="A job is the command itself, in a process of its own; what is measured is kept step by step.",
)


def start(command: list[str]) -> None:
    """Start a job; what can never work is said before any process begins."""
    try:
        commands.check(command)
        if command[0] == "report":
            reading.cache().reports.mkdir(parents=True, exist_ok=True)
        job = jobs.start(command)
    except (WeanalysisError, OSError) as error:
        st.error(shared.plain(error), icon=":material/error:")
    else:
        st.toast(f"Job {job.id} has begun.", icon=":material/play_arrow:")


def show_estimate(command: list[str]) -> None:
    """Say how long the command will take, and how that is known, or that nothing is."""
    try:
        parsed = commands.parse(command)
    except WeanalysisError:
        return  # what is wrong is said when it is started
    known = parsed and estimates.estimate(command[0], parsed.params, jobs.all())
    st.caption(known.words() if known else "No estimate yet: nothing like it has been run here.")


above = st.container()  # what runs now stands above the form
with st.container(border=True):
    form = st.segmented_control(
        "New", list(commands.FORMS), default="Study", required=True, key="form", bind="query-params"
    )
    kind = commands.FORMS[form]
    with st.container(key=f"form-{kind}"):
        command = commands.ask(kind)
        st.code(shlex.join(["weanalysis", *command]), language="bash", wrap_lines=True)
        show_estimate(command)
    if st.button("Start", type="primary", icon=":material/play_arrow:", key="start"):
        start(command)


# Of one moment: by two looks, a job that ends in between would stand in both lists, which Streamlit refuses.
running = {job.id for job in jobs.all() if job.active}


def begin_anew_if_changed(all_jobs: list[Job]) -> None:
    """Run the whole page again, which polls as long as a job runs, before a job is shown that moves to another list."""
    if running != {job.id for job in all_jobs if job.active}:
        st.rerun()


@shared.live(bool(running))
def now() -> None:
    all_jobs = jobs.all()
    begin_anew_if_changed(all_jobs)
    for job in all_jobs:
        if job.id in running:
            show(job)


@shared.live(bool(running))
def listed() -> None:
    all_jobs = jobs.all()
    for line in jobs.unreadable():
        st.warning(shared.plain(line), icon=":material/warning:")
    if not all_jobs:
        st.caption("No job yet.")
        return
    begin_anew_if_changed(all_jobs)
    ended = [job for job in all_jobs if job.id not in running]
    for job in ended[:SHOWN]:
        show(job)
    if len(ended) > SHOWN:
        st.caption(f"{len(ended) - SHOWN:,} older jobs are not shown.")


def show(job: Job) -> None:
    log = jobs.log(job.id)
    with st.container(border=True, key=f"job-{job.id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"## Job {job.id}")
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


def open_result(job: Job, log: str) -> None:
    """Lead to what a job made, where it is there."""
    what, name = result_of(log) or ("", "")
    compared = _sides_of(job)
    if what == "run":
        link("runs", runs=name)
    elif what == "study" and (page := _page_of_study(name)):
        link(page, study=name)
    elif what == "maps":
        link("saliency", maps=name)
    elif what == "report" and Path(name).is_file():
        st.download_button(OPEN["label"], Path(name).read_bytes, Path(name).name, "text/html", icon=OPEN["icon"])
    elif job.command[0] == "prune" and (Path(__file__).parent / "pruning.py").is_file():
        link("pruning")
    elif all(side.startswith("study:") for side in compared) and compared:
        link("compare", **dict(zip(("first", "second"), (side[len("study:") :] for side in compared), strict=False)))
    else:
        with st.popover(OPEN["label"], icon=OPEN["icon"], width="content"):
            st.code("\n".join(log.splitlines()[-LOG_LINES:]), language=None)


def link(page: str, **query: str) -> None:
    st.page_link(f"views/{page}.py", label=OPEN["label"], icon=OPEN["icon"], query_params=query)


def _sides_of(job: Job) -> list[str]:
    """Return what a comparison is of, as its command names it."""
    try:
        parsed = commands.parse(list(job.command)) if job.command[0] == "compare" else None
    except WeanalysisError:
        return []
    return [str(parsed.params[side]) for side in ("first", "second")] if parsed else []


def _page_of_study(number: str) -> str | None:
    known = reading.studies()
    kinds = known.loc[known["id"].astype(str) == number, "kind"]
    return kind_of(kinds.iloc[0]).page if len(kinds) else None


def why_never(job: Job, log: str) -> str:
    """Say why the same command would fail again; nothing where it may work."""
    if job.state == "failed" and complaint(log) and math.isnan(progress(log)[0]):
        return complaint(log)  # it was refused before anything was done
    try:
        commands.check(list(job.command))
    except WeanalysisError as error:
        return str(error)
    return ""


def buttons(job: Job, log: str) -> None:
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
        return
    if job.state == "finished":
        open_result(job, log)
    if reason := why_never(job, log):
        if reason != complaint(log):
            st.caption(f"It cannot be run again: {shared.plain(reason)}")
        return
    goes_on = job.state != "finished" and job.command[0] in RESUMABLE
    if st.button(
        "Resume" if goes_on else "Run again",
        key=f"again-{job.id}",
        icon=":material/replay:",
        help="The same command; what was measured is not done again." if job.command[0] in RESUMABLE else None,
    ):
        start(list(job.command))
        st.rerun()


with above:
    now()
listed()

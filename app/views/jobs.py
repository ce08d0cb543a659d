"""Jobs: start a study or a training run from a form, watch it, stop it, take it up again."""

from __future__ import annotations

import math
import shlex
import time
from datetime import timedelta

import click
import reading
import shared
import streamlit as st

from weanalysis.cli import cli
from weanalysis.errors import StoreError
from weanalysis.jobs import Job, Jobs, complaint, progress
from weanalysis.training.recipe import PRESETS

STUDIES = {
    "location": "kernels, by where they are",
    "magnitude": "single weights, by their size",
    "channel": "whole filters and input channels",
    "layer": "whole layers",
    "multiplier": "input channels, by LWE's multiplier",
}
EXCITATIONS = {
    "none": "a baseline",
    "lwe": "by location",
    "mwe": "by magnitude",
    "lwe+mwe": "both",
    "we": "LWE, and MWE on depthwise convolutions",
    "ws": "weight standardization",
    "wn": "weight normalization",
    "sn": "spectral normalization",
}
COLOURS: dict[str, shared.Colour] = {
    "running": "blue",
    "finished": "green",
    "failed": "red",
    "cancelled": "orange",
    "lost": "red",
}
WORDS = {"lost": "killed"}
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
    """Return the command that the form describes; options at their defaults are left out, as one would type it."""
    kind = st.selectbox(
        "What to zero",
        list(STUDIES),
        format_func=lambda kind: f"{kind}: {STUDIES[kind]}",
        key="job-kind",
        help="The study. Paper, section 3.1 (location, magnitude) and 4.2 (multiplier).",
    )
    with st.container(horizontal=True):
        model = st.text_input(
            "Network",
            "resnet20",
            key="job-model",
            help="A torchvision network, timm:NAME, a built-in one (resnet20 to resnet110, vgg19_cifar, "
            "resnext29_16x64d), or a checkpoint file of this program.",
        )
        weights = st.text_input("Weights", "auto", key="job-weights", help="auto, none, a torchvision name, or a file.")
        data = st.text_input(
            "Data",
            "digits",
            key="job-data",
            help="digits, imagefolder:DIR, imagenet:DIR, cifar10[:DIR], cifar100[:DIR] or hf:NAME.",
        )
    command = ["ablate", "--model", model.strip(), "--data", data.strip()]
    if weights.strip() != "auto":
        command += ["--weights", weights.strip()]
    if kind != "location":
        command += ["--study", kind]
    with st.container(horizontal=True):
        if kind == "location":
            grid = st.text_input("Grid", "5x5", key="job-grid", help="Output x input channels of each layer, or all.")
            command += ["--grid", grid.strip()] if grid.strip() != "5x5" else []
        if kind == "magnitude":
            percentiles = st.text_input("Percentiles", "1-100", key="job-percentiles", help="Such as 50,75,90-100.")
            command += ["--percentiles", percentiles.strip()] if percentiles.strip() != "1-100" else []
            scope = st.selectbox(
                "Scope",
                ["network", "layer"],
                key="job-scope",
                help="Every layer at once (the paper's), or one at a time.",
            )
            command += ["--scope", scope] if scope != "network" else []
            repeats = st.number_input(
                "Repeats", 1, 100, 1, key="job-repeats", help="Weights nearest to each percentile."
            )
            command += ["--repeats", str(repeats)] if repeats != 1 else []
        images = st.number_input(
            "Images", 1, value=None, placeholder="all", key="job-images", help="Drawn by the seed."
        )
        command += ["--images", str(images)] if images else []
        name = st.text_input("Name", "", key="job-name", placeholder="chosen for you", help="A name for the study.")
        command += ["--name", name.strip()] if name.strip() else []
    return command


def training_command() -> list[str]:
    """Return the command that trains what the form describes."""
    with st.container(horizontal=True):
        model = st.text_input("Network", "resnet20", key="train-model", help="As for a study; trained from scratch.")
        data = st.text_input("Data", "digits", key="train-data", help="As for a study; its training images.")
        excitation = st.selectbox(
            "Excitation",
            list(EXCITATIONS),
            format_func=lambda kind: f"{kind}: {EXCITATIONS[kind]}",
            key="train-excitation",
            help="What is done to the weights while they are trained. Nothing of it is left at inference.",
        )
    command = ["train", "--model", model.strip(), "--data", data.strip()]
    if excitation != "none":
        command += ["--excitation", excitation]
    with st.container(horizontal=True):
        recipe = st.selectbox(
            "Recipe",
            ["chosen by the data", *PRESETS],
            key="train-recipe",
            help="Epochs, learning rates and so on, from the paper; each can be changed under “More options”.",
        )
        command += ["--recipe", recipe] if recipe in PRESETS else []
        epochs = st.number_input("Epochs", 1, value=None, placeholder="the recipe's", key="train-epochs")
        command += ["--epochs", str(epochs)] if epochs else []
        seeds = st.text_input("Seeds", "0", key="train-seeds", help="One run for each, such as 0-4.")
        command += ["--seeds", seeds.strip()] if seeds.strip() != "0" else []
    return command


def more_options(command: list[str]) -> list[str]:
    """Return the command with whatever else the reader typed; end the page at quotes that are not closed."""
    more = st.text_input(
        "More options",
        "",
        key=f"more-{command[0]}",
        placeholder={"ablate": "--layers 'layer1.*' --metric top5", "train": "--attention se --lr 0.05"}[command[0]],
        help=f"Anything else that `weanalysis {command[0]} --help` lists.",
    )
    try:
        return command + shlex.split(more)
    except ValueError as error:
        st.error(f"More options: {shared.plain(error)}.", icon=":material/error:")
        st.stop()


def check_command(command: list[str]) -> None:
    """Raise StoreError, in the command line's own words, for options that the command does not have."""
    found = cli.commands.get(command[0])
    try:
        if found is not None:
            found.make_context(command[0], list(command[1:]), resilient_parsing=False)
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
    command = more_options(study_command() if form == "Study" else training_command())
    st.code(shlex.join(["weanalysis", *command]), language="bash")
    if st.button("Start", type="primary", icon=":material/play_arrow:"):
        start(command)


@shared.live(any(job.active for job in jobs.all()))
def listed() -> None:
    found = jobs.all()
    if not found:
        st.caption("No job yet.")
        return
    if st.session_state.get("any-active", False) != any(job.active for job in found):
        # A first job begins, or the last one ended: the whole page polls, or stops polling.
        st.session_state["any-active"] = any(job.active for job in found)
        st.rerun()
    for job in found[:SHOWN]:
        show(job)
    if len(found) > SHOWN:
        st.caption(f"{len(found) - SHOWN:,} older jobs are not shown.")


def show(job: Job) -> None:
    log = jobs.log(job.id)
    with st.container(border=True, key=f"job-{job.id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**Job {job.id}**")
            st.badge(WORDS.get(job.state, job.state), color=COLOURS[job.state])
            st.caption(times(job))
        st.code(shlex.join(["weanalysis", *job.command]), language="bash", wrap_lines=True)
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

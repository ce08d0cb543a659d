"""The forms of the page of jobs: what each command is asked, with the networks, runs and studies that are here."""

from __future__ import annotations

from pathlib import Path

import click
import curves
import forms
import reading
import shared
import streamlit as st

from weanalysis.cache import safe_name
from weanalysis.cli import checks, cli
from weanalysis.comparison import identify_run
from weanalysis.errors import StoreError
from weanalysis.kinds import DEFAULT, KINDS, options_by_name
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
FORMS = {
    "Study": "ablate",
    "Training": "train",
    "Saliency": "saliency",
    "Pruning": "prune",
    "Comparison": "compare",
    "Report": "report",
}


def ask(command: str) -> list[str]:
    """Show the form of a command, and return the command that it describes."""
    return _ASKED[command]()


def parse(command: list[str]) -> click.Context | None:
    """Return a command as click parses it; None for one that is none of the command line's.

    Raises StoreError, in the command line's own words, for options that it does not have. A job's results lie in the
    cache that is shown here, and nowhere else.
    """
    registered = cli.commands.get(command[0])
    if registered is None:
        return None
    try:
        parsed = registered.make_context(command[0], list(command[1:]), resilient_parsing=False)
    except click.ClickException as error:
        raise StoreError(error.format_message()) from error
    except click.exceptions.Exit:
        raise StoreError("--help and --version are not for jobs; leave them out") from None
    if parsed.params.get("cache") is not None:
        raise StoreError("--cache is not for jobs: they work in the cache that this dashboard shows")
    return parsed


def check(command: list[str]) -> None:
    """Raise a WeanalysisError for a command that can never do its work, as far as that is told at once."""
    parsed = parse(command)
    if parsed is not None:
        checks.check_start(parsed, reading.cache())


def _study() -> list[str]:
    _choose_own_network("ablate")
    kind = KINDS[st.session_state.get("ablate-study", DEFAULT)]
    own = {option.name: (option.metavar, option.help_with_default) for option in kind.options if option.on_command}
    others = set(options_by_name()) - set(own)
    rows = [["study"], ["model", "weights", "data"], [*own], ["images", "evaluate", "name"]]
    return ["ablate", *forms.fill_in(cli.commands["ablate"], rows, others, FIRST, WORDS, own)]


def _training() -> list[str]:
    rows = [["model", "data", "excitation"], ["preset", "epochs", "seeds", "name"]]
    return ["train", *forms.fill_in(cli.commands["train"], rows, (), FIRST, WORDS)]


def _saliency() -> list[str]:
    _choose_own_network("saliency")
    return ["saliency", *forms.fill_in(cli.commands["saliency"], [["model", "weights", "data"], ["images"]], (), FIRST)]


def _pruning() -> list[str]:
    _choose_own_network("prune")
    rows = [["model", "weights", "data"], ["by", "unit", "scope", "sparsity"], ["study", "images", "output"]]
    return ["prune", *forms.fill_in(cli.commands["prune"], rows, (), FIRST)]


def _comparison() -> list[str]:
    known, sides = _sides(), []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for side in ("first", "second"):
            chosen = st.selectbox(
                side.capitalize(),
                list(known),
                index=None,
                key=f"compare-{side}",
                format_func=lambda name: known.get(name, name),
                accept_new_options=True,
                placeholder="a study, a run, or the path of a checkpoint",
                help="Differences are second minus first.",
            )
            sides.append(chosen or "")
    options = forms.fill_in(cli.commands["compare"], [["data", "metric", "images", "every_seed"]])
    return ["compare", *filter(None, sides), *options]


def _report() -> list[str]:
    known = _sides()
    chosen = st.multiselect(
        "Studies and runs",
        list(known),
        key="report-named",
        format_func=lambda name: known.get(name, name),
        placeholder="one or several",
    )
    options = forms.fill_in(cli.commands["report"], [["title", "metric"]], ["output"])
    name = safe_name("-".join(chosen))[:80] or "report"
    return ["report", *chosen, *options, "--output", str(reading.cache().reports / f"{name}.html")]


_ASKED = {
    "ablate": _study,
    "train": _training,
    "saliency": _saliency,
    "prune": _pruning,
    "compare": _comparison,
    "report": _report,
}


def _sides() -> dict[str, str]:
    """Return what can be compared or reported on, by what a command calls it, with words that tell it from others."""
    table = reading.studies()
    labels = reading.labels(table) if len(table) else {}
    studies = {f"study:{number}": words for number, words in labels.items()}
    runs = [run for run in curves.find_curves(reading.cache()) if run.recipe]
    return studies | {f"run:{run.name}": f"run {_words(run)}" for run in runs}


def _words(run: curves.Curves) -> str:
    return f"{identify_run(run.name, run.recipe).network} · {run.recipe.get('data')} · {run.name}"


def _choose_own_network(command: str) -> None:
    """Offer the networks that were trained or studied here, so that nobody has to type where their files lie."""
    networks = _own_networks()
    if not networks:
        return

    def take() -> None:
        if path := st.session_state[f"{command}-own"]:
            st.session_state[f"{command}-model"] = path
            st.session_state[f"{command}-data"] = networks[path][1]

    st.selectbox(
        "A network that was trained here",
        list(networks),
        index=None,
        key=f"{command}-own",
        format_func=lambda path: networks[path][0],
        on_change=take,
        placeholder="none: what is typed below",
        width=640,
    )


def _own_networks() -> dict[str, tuple[str, str]]:
    """Return the checkpoints of runs and of studies that are still there: by path what they are, and their images."""
    networks: dict[str, tuple[str, str]] = {}
    for run in (run for run in curves.find_curves(reading.cache()) if run.recipe):
        kept, data = Run(reading.cache().runs / run.name), str(run.recipe.get("data", ""))
        for path, which in ((kept.checkpoint, ""), (kept.best_checkpoint, " · its best epoch")):
            if path.is_file():
                networks.setdefault(str(path), (f"{_words(run)}{which}", data))
    for _, study in reading.studies().iterrows():
        about = reading.describe(study)
        path = Path(str(about.get("checkpoint") or ""))
        if about.get("checkpoint") and path.is_file():
            networks.setdefault(str(path), (f"{study['model']} · {study['data']} · {path}", str(study["data"])))
    return networks


def title(command: str) -> str:
    """Return what the forms call a command."""
    return next((words for words, name in FORMS.items() if name == command), shared.plain(command))

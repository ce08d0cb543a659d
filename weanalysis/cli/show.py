"""`weanalysis list`, `export` and `dashboard`: what there is, and how to look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weanalysis.cli.options import cache_option, json_option
from weanalysis.errors import StoreError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from weanalysis.cache import Cache

LIST_HELP = """List studies, runs, curves of pruning, models or data sources.

\b
Examples:
  weanalysis list                 the studies in the cache
  weanalysis list models          every network that --model knows
  weanalysis list runs --json
  weanalysis list pruning         the curves that `weanalysis prune` left
"""

EXPORT_HELP = """Write a study's table to a file: .parquet, .csv or .json.

STUDY is its number or name, as `weanalysis list` shows it.

\b
Examples:
  weanalysis export 3 -o resnet50.parquet
  weanalysis export resnet20-digits-location -o map.csv
"""

DASHBOARD_HELP = """Open the dashboard over the cache in a browser. It reads what studies write, also while they run.

\b
Examples:
  weanalysis dashboard
  weanalysis dashboard --port 8600 --cache /data/cache
  weanalysis dashboard --address 0.0.0.0 --host gpu.example.org --no-open
"""


# What is listed, and a line for each that is there but cannot be read.
Listing = tuple[list[dict[str, Any]], list[str]]


def _studies(cache: Any) -> Listing:
    import numpy as np

    from weanalysis.results import Store, to_json_rows

    if not cache.results.is_file():
        return [], []
    with Store.open(cache.results) as store:
        columns = [
            "id",
            "name",
            "kind",
            "model",
            "weights",
            "data",
            "metric",
            "state",
            "num_images",
            "done",
            "total",
            "stopping",
            "note",
        ]
        studies = store.studies()
        studies["state"] += np.where(studies["outdated"].astype(bool), " (by an older version: measure it again)", "")
        return to_json_rows(studies[columns]), list(store.unreadable().values())


def _runs(cache: Any) -> Listing:
    from weanalysis.results import to_json_rows
    from weanalysis.training import list_runs, unreadable_runs

    return to_json_rows(list_runs(cache)), unreadable_runs(cache)


def _pruning(cache: Any) -> Listing:
    from weanalysis.results.export import to_json_value
    from weanalysis.results.pruning import list_curves

    curves, problems = list_curves(cache)
    fields = ("model", "weights", "data", "by", "source", "unit", "scope", "num_images", "created", "command")
    rows = [
        {
            "name": curve.name,
            **{field: to_json_value(curve.about[field]) for field in fields},
            "sparsities": curve.table["sparsity"].tolist(),
        }
        for curve in curves
    ]
    return rows, problems


def _models(cache: Any) -> Listing:
    from weanalysis.models import list_models

    return list_models(), []


def _data(cache: Any) -> Listing:
    from weanalysis.data import list_sources

    return list_sources(), []


LISTINGS = {"studies": _studies, "runs": _runs, "pruning": _pruning, "models": _models, "data": _data}


@click.command("list", help=LIST_HELP)
@click.argument("what", default="studies", metavar="[studies|runs|pruning|models|data]")
@json_option
@cache_option
def list_(what: str, as_json: bool, cache: str | None) -> None:
    import json

    from weanalysis.cache import find_cache
    from weanalysis.cli.display import open_console

    if what not in LISTINGS:
        raise StoreError(unknown_name("listing", what, LISTINGS))
    opened = find_cache(cache)
    rows, problems = LISTINGS[what](opened)
    for line in problems:
        click.echo(f"note: {line}", err=True)
    if as_json:
        click.echo(json.dumps({what: rows}, allow_nan=False, default=str))
        return
    if not rows:
        begin = "prune --model resnet20" if what == "pruning" else "demo"
        click.echo(f"no {what} in {opened.root} yet; begin with `weanalysis {begin}`")
        return
    print_listing(open_console(), what, rows, opened)


# Columns that hold sentences or lists, which wrap at words.
_PROSE = frozenset({"what", "needs"})

Laid = tuple["pd.DataFrame", dict[str, str]]


def print_listing(console: Console, what: str, rows: list[dict[str, Any]], cache: Cache) -> None:
    """Print a listing as a table that fits the terminal: no name is broken, and what all have in common stands below.

    In a pipe every column is there, and nothing is cut.
    """
    import pandas as pd
    from rich.markup import escape
    from rich.table import Table

    shown = pd.DataFrame([{name: _shown(value) for name, value in row.items()} for row in rows]).astype(str)
    shown, common = _LAYOUTS.get(what, lambda rows, shown, cache: (shown, {}))(rows, shown, cache)
    left_out: list[str] = []
    if console.is_terminal:
        shown, left_out = _fitting(shown, console.width)
    table = Table(box=None, pad_edge=False)
    for column in shown.columns:
        # Prose goes on below itself; of the others no word is broken.
        table.add_column(str(column).replace("_", " "), no_wrap=column not in _PROSE)
    for cells in shown.itertuples(index=False):
        table.add_row(*map(escape, cells))
    console.print(table)
    if common:
        console.print(f"all: {', '.join(f'{name} {value}' for name, value in common.items())}", markup=False)
    if left_out:
        console.print(f"not shown here: {', '.join(left_out)} (a wider terminal, or --json)", markup=False)


def _fitting(shown: pd.DataFrame, width: int) -> tuple[pd.DataFrame, list[str]]:
    """Leave columns out, the last first, until a table fits; its first two, and running text at its end, stay."""
    left_out: list[str] = []

    def needed(table: pd.DataFrame) -> int:
        return sum(max(len(str(column)), *map(len, table[column])) + 2 for column in table.columns)

    while len(shown.columns) > 2 and needed(shown) > width and not _PROSE & set(shown):
        left_out.insert(0, str(shown.columns[-1]).replace("_", " "))
        shown = shown.iloc[:, :-1]
    return shown, left_out


def _without_constants(shown: pd.DataFrame, candidates: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Take the columns away that say the same in every row of several; return what they say."""
    if len(shown) < 2:
        return shown, {}
    constant = {name: shown[name].iloc[0] for name in candidates if shown[name].nunique() == 1}
    said = {name: value for name, value in constant.items() if value not in ("", "none")}
    return shown.drop(columns=list(constant)), said


def _study_columns(
    rows: list[dict[str, Any]], shown: pd.DataFrame, cache: Cache
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Lay out studies: which network and training each is of comes before its name."""
    from weanalysis.comparison import distinct_words, identify_study
    from weanalysis.results import Store

    with Store.open(cache.results) as store:
        words = distinct_words(identify_study(store.describe(int(row["id"])), cache) for row in rows)
    measured = [f"{row['done']:,} of {row['total']:,}" for row in rows]
    shown = shown.assign(study=[words[int(row["id"])] for row in rows], done=measured)
    columns = ["id", "kind", "study", "state", "data", "metric", "done", "name", "model", "weights", "stopping"]
    # A note may have several lines; most studies have none.
    shown["note"] = [" ".join(str(row["note"] or "").split()) for row in rows]
    columns += ["note"] if shown["note"].any() else []
    return _without_constants(shown[columns], ["data", "metric", "state", "model", "weights", "stopping"])


def _run_columns(rows: list[dict[str, Any]], shown: pd.DataFrame, cache: Cache) -> Laid:
    """Lay out training runs: dates are short, and paths are for --json."""
    shown = shown.assign(
        epochs=[f"{row['epochs'] or 0:g} of {row['total_epochs'] or 0:g}" for row in rows],
        begun=[f"{date:%Y-%m-%d %H:%M}" if (date := _date(row["created"])) else "" for row in rows],
        minutes=["" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}" for row in rows],
        best_top1=["" if row["best_top1"] is None else f"{row['best_top1']:.2f}" for row in rows],
    )
    columns = ["run", "excitation", "seed", "best_top1", "epochs", "state", "begun", "model", "data", "minutes"]
    columns += ["attention", "norm"]
    return _without_constants(shown[columns], ["state", "model", "data", "attention", "norm"])


def _pruning_columns(rows: list[dict[str, Any]], shown: pd.DataFrame, cache: Cache) -> Laid:
    """Lay out curves of pruning: the name, by which one is deleted, and the ranking come first."""
    made = [f"{datetime.fromtimestamp(row['created']):%Y-%m-%d %H:%M}" for row in rows]
    shown = shown.assign(
        sparsities=[f"{min(row['sparsities']):g} to {max(row['sparsities']):g}" for row in rows], made=made
    )
    columns = ["name", "source", "unit", "scope", "num_images", "sparsities", "model", "data", "made", "weights"]
    return _without_constants(shown[columns], ["unit", "scope", "num_images", "sparsities", "model", "data", "weights"])


def _date(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


_LAYOUTS: dict[str, Callable[..., Laid]] = {
    "studies": _study_columns,
    "runs": _run_columns,
    "pruning": _pruning_columns,
}


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


@click.command(help=EXPORT_HELP)
@click.argument("study", metavar="STUDY")
@click.option("--output", "-o", required=True, metavar="FILE", help="A .parquet, .csv or .json file.")
@click.option("--metric", metavar="METRIC", help="Another metric than the study was run for, such as loss.")
@cache_option
def export(study: str, output: str, metric: str | None, cache: str | None) -> None:
    from weanalysis.cache import find_cache
    from weanalysis.results import Store, export_table

    with Store.open(find_cache(cache).results) as store:
        study_id = store.find(study)
        table = store.table(study_id, metric)
        path = export_table(table, Path(output), store.describe(study_id))
    click.echo(f"{len(table):,} rows of study {study_id} are in {path}")


@click.command(help=DASHBOARD_HELP)
@click.option("--port", type=int, default=8501, show_default=True)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; 0.0.0.0 lets other machines in, with the token that is printed.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Also answer to this name, as behind a proxy or in a container; can be repeated.",
)
@click.option("--open/--no-open", "open_browser", default=True, show_default=True, help="Open a browser.")
@cache_option
@click.pass_context
def dashboard(
    ctx: click.Context, port: int, address: str, hosts: tuple[str, ...], open_browser: bool, cache: str | None
) -> None:
    from weanalysis.cache import find_cache
    from weanalysis.dashboard import launch

    ctx.exit(launch(find_cache(cache).ready(), port, address, open_browser, hosts))

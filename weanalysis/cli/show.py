"""`weanalysis list`, `export` and `dashboard`: what there is, and how to look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weanalysis.cli.options import cache_option, json_option
from weanalysis.errors import StoreError, unknown_name

LIST_HELP = """List studies, runs, models or data sources.

\b
Examples:
  weanalysis list                 the studies in the cache
  weanalysis list models          every network that --model knows
  weanalysis list runs --json
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
        ]
        studies = store.studies()
        studies["state"] += np.where(studies["outdated"].astype(bool), " (by an older version: measure it again)", "")
        return to_json_rows(studies[columns]), list(store.unreadable().values())


def _runs(cache: Any) -> Listing:
    from weanalysis.results import to_json_rows
    from weanalysis.training import list_runs, unreadable_runs

    return to_json_rows(list_runs(cache)), unreadable_runs(cache)


def _models(cache: Any) -> Listing:
    from weanalysis.models import list_models

    return list_models(), []


def _data(cache: Any) -> Listing:
    from weanalysis.data import list_sources

    return list_sources(), []


LISTINGS = {"studies": _studies, "runs": _runs, "models": _models, "data": _data}


@click.command("list", help=LIST_HELP)
@click.argument("what", default="studies", metavar="[studies|runs|models|data]")
@json_option
@cache_option
def list_(what: str, as_json: bool, cache: str | None) -> None:
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from weanalysis.cache import find_cache

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
        click.echo(f"no {what} in {opened.root} yet; begin with `weanalysis demo`")
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_shown(value)) for value in row.values()))
    # A pipe has no width: nothing is cut there.
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=400)).print(table)


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

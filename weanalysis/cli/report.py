"""`weanalysis report`: one page about studies and runs, to keep or to pass on."""

from __future__ import annotations

from typing import Any

import click

from weanalysis.cli.options import cache_option, json_option, quiet_option

REPORT_HELP = """Write one self-contained HTML page about studies and training runs.

Each STUDY is a study (its number or name) or a run (its name or folder); "study:NAME" and "run:NAME" tell apart what
has the same name. The page holds question, setting, provenance, figures, tables, and what the intervals allow to say,
no more. Two studies of one kind are also compared, second minus first. It needs no network, and can be mailed.

\b
Examples:
  weanalysis report 3 -o report.html
  weanalysis report resnet20-digits-location resnet20-digits-lwe-location -o compared.html
  weanalysis report 3 4 RUN OTHER_RUN -o all.html --title "Kernels of ResNet-20"
  weanalysis report 3 -o report.html --figures figures --formats svg,pdf
"""


@click.command(help=REPORT_HELP, short_help="Write one HTML page about studies and training runs.")
@click.argument("named", metavar="STUDY...", nargs=-1, required=True)
@click.option("--output", "-o", required=True, metavar="FILE", help="The page to write, a .html file.")
@click.option("--title", metavar="TEXT", help="Its title (default: what it is about).")
@click.option("--metric", metavar="METRIC", help="Another metric than the studies were run for, such as loss.")
@click.option(
    "--figures",
    "pictures",
    metavar="DIR",
    help="Also write every figure into this folder; needs kaleido (pip install 'weanalysis[images]') and Chromium.",
)
@click.option("--formats", default="png,svg,pdf", show_default=True, metavar="LIST", help="Formats of --figures.")
@json_option
@quiet_option
@cache_option
def report(**given: Any) -> None:
    import json

    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher
    from weanalysis.report import write_report

    with Watcher(given["quiet"]) as watcher:
        written = write_report(
            given["named"],
            given["output"],
            cache=find_cache(given["cache"]),
            title=given["title"],
            metric=given["metric"],
            pictures=given["pictures"],
            formats=[part.strip().lower() for part in given["formats"].split(",") if part.strip()],
        )
        for note in written.notes:
            watcher.say(note)
    if given["as_json"]:
        click.echo(json.dumps(written.summary(), allow_nan=False))
        return
    size = written.path.stat().st_size / 2**20
    click.echo(f"The report is in {written.path} ({size:.1f} MiB); any browser opens it.")
    if written.figures:
        click.echo(f"{len(written.figures):,} pictures are in {written.figures[0].parent}")

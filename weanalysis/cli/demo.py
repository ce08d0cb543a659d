"""`weanalysis demo`: the main job on the embedded digits, from nothing to a dashboard."""

from __future__ import annotations

import click

from weanalysis.cli.options import cache_option, quiet_option

DEMO_HELP = """Train a baseline and an LWE network on handwritten digits, run the three studies, open the dashboard.

Needs no download and no GPU, and takes a few minutes on two cores. What is there already is not done again.

\b
Examples:
  weanalysis demo
  weanalysis demo --no-dashboard
"""

MODEL = "resnet20"

# A third of the test split: a map is there in less than a minute, and a study can be extended to all images later.
NUM_IMAGES = 250

PERCENTILES = "5,10,15,20,25,30,35,40,45,50,55,60,65,70,75,80,85,90,95,100"


@click.command(help=DEMO_HELP, short_help="Train on handwritten digits, run the studies, show them.")
@click.option("--dashboard/--no-dashboard", "open_dashboard", default=True, help="Open the dashboard at the end.")
@click.option("--port", type=int, default=8501, show_default=True, help="Where the dashboard listens.")
@quiet_option
@cache_option
def demo(open_dashboard: bool, port: int, quiet: bool, cache: str | None) -> None:
    from rich.console import Console

    from weanalysis.ablation import ablate
    from weanalysis.cache import find_cache
    from weanalysis.cli.compare import print_comparison
    from weanalysis.cli.display import Watcher
    from weanalysis.cli.summary import print_in, print_study
    from weanalysis.comparison import compare
    from weanalysis.dashboard import launch
    from weanalysis.loading import load_data
    from weanalysis.models import load_network
    from weanalysis.training import Recipe, train

    opened = find_cache(cache).ready()
    console = Console(highlight=False)
    with Watcher(quiet) as watcher:
        runs = {}
        for excitation in ("none", "lwe"):
            recipe = Recipe.from_preset("digits", model=MODEL, excitation=excitation)
            runs[excitation] = train(recipe, opened, wait=True, progress=watcher.training)
            watcher.rest()
        models = {excitation: load_network(str(run.checkpoint)) for excitation, run in runs.items()}
        data = load_data("digits", num_images=NUM_IMAGES, model=models["none"], cache=opened)
        for excitation, kind, options in (
            ("none", "magnitude", {"percentiles": PERCENTILES, "repeats": 3}),
            ("none", "location", {"grid": "5x5"}),
            ("lwe", "location", {"grid": "5x5"}),
            ("lwe", "multiplier", {}),
        ):
            name = f"{MODEL}-{'baseline' if excitation == 'none' else excitation}-digits-{kind}"
            table = ablate(
                models[excitation],
                data,
                kind,
                name=name,
                cache=opened,
                report=watcher.study,
                say=watcher.say,
                **options,
            )
            watcher.rest()
            print_study(console, table, opened, shown=3)
            if kind == "location":
                print_in(console, opened, int(table.attrs["study_id"]), "loss", shown=3)
        console.print()
        print_comparison(console, compare(runs["none"].name, runs["lwe"].name, cache=opened))
    if open_dashboard:
        console.print()
        launch(opened, port, open_browser=True)

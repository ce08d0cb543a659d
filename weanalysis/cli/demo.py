"""`weanalysis demo`: the main job on the embedded digits, from nothing to a dashboard."""

from __future__ import annotations

from dataclasses import dataclass

import click

from weanalysis.cli.options import cache_option, quiet_option
from weanalysis.errors import StudyError, unknown_name

DEMO_HELP = """Train a baseline and an LWE network on handwritten digits, run the three studies, open the dashboard.

With --task segmentation the networks classify each pixel of scenes of several digits. Needs no download and no GPU, and
takes a few minutes on two cores. What is there already is not done again.

\b
Examples:
  weanalysis demo
  weanalysis demo --task segmentation
  weanalysis demo --no-dashboard
"""

# A third of the test split: a map is there in less than a minute, and a study can be extended to all images later.
NUM_IMAGES = 250

PERCENTILES = "5,10,15,20,25,30,35,40,45,50,55,60,65,70,75,80,85,90,95,100"


@dataclass(frozen=True)
class Demo:
    """What is trained on what, by which recipe; on how many images; and in which metric location is told too."""

    model: str
    data: str
    recipe: str
    also: str
    most_images: int


TASKS = {
    "classification": Demo("resnet20", "digits", "digits", "loss", 250),
    "segmentation": Demo("fcn_resnet20", "digit-scenes", "scenes", "pixel-accuracy", 120),
}


@click.command(help=DEMO_HELP, short_help="Train on handwritten digits, run the studies, show them.")
@click.option(
    "--task", default="classification", show_default=True, metavar="|".join(TASKS), help="What the networks learn."
)
@click.option("--dashboard/--no-dashboard", "open_dashboard", default=True, help="Open the dashboard at the end.")
@click.option("--port", type=int, default=8501, show_default=True, help="Where the dashboard listens.")
@quiet_option
@cache_option
def demo(task: str, open_dashboard: bool, port: int, quiet: bool, cache: str | None) -> None:
    from weanalysis.ablation import ablate
    from weanalysis.cache import find_cache
    from weanalysis.cli.compare import print_comparison
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.cli.summary import print_in, print_study
    from weanalysis.comparison import compare
    from weanalysis.dashboard import launch
    from weanalysis.loading import load_data
    from weanalysis.models import load_network
    from weanalysis.training import Recipe, train

    if task not in TASKS:
        raise StudyError(unknown_name("task", task, TASKS))
    shown, opened, console = TASKS[task], find_cache(cache).ready(), open_console()
    with Watcher(quiet) as watcher:
        runs = {}
        for excitation in ("none", "lwe"):
            recipe = Recipe.from_preset(shown.recipe, model=shown.model, data=shown.data, excitation=excitation)
            runs[excitation] = train(recipe, opened, wait=True, progress=watcher.training)
            watcher.rest()
        models = {excitation: load_network(str(run.checkpoint)) for excitation, run in runs.items()}
        num_images = min(NUM_IMAGES, shown.most_images)
        data = load_data(shown.data, num_images=num_images, model=models["none"], cache=opened)
        for excitation, kind, options in (
            ("none", "magnitude", {"percentiles": PERCENTILES, "repeats": 3}),
            ("none", "location", {"grid": "5x5"}),
            ("lwe", "location", {"grid": "5x5"}),
            ("lwe", "multiplier", {}),
        ):
            table = ablate(
                models[excitation],
                data,
                kind,
                name=f"{shown.model}-{'baseline' if excitation == 'none' else excitation}-{shown.data}-{kind}",
                cache=opened,
                report=watcher.study,
                say=watcher.say,
                **options,
            )
            watcher.rest()
            print_study(console, table, opened, shown=3)
            if kind == "location":
                print_in(console, opened, int(table.attrs["study_id"]), shown.also, shown=3)
        console.print()
        print_comparison(console, compare(runs["none"].name, runs["lwe"].name, cache=opened))
    if open_dashboard:
        console.print()
        launch(opened, port, open_browser=True)

"""`weanalysis compare`: two networks, two groups of runs, or two studies side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from weanalysis.cli.options import cache_option, json_option, quiet_option
from weanalysis.errors import StudyError
from weanalysis.tasks import METRICS, Metric, find_metric

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from weanalysis.comparison import NetworkComparison, StudyComparison
    from weanalysis.results.statistics import Estimate

COMPARE_HELP = """Compare two networks, two groups of training runs, or two studies. Differences are B minus A.

A and B are each a run (its name or folder), a checkpoint file of this program, several of these with commas, or a
study (its number or name). Networks are run over the same images: the interval of two networks is over images and
speaks of these two only; with several runs a side it is over runs, and speaks of how they were trained. Of two
studies, D is compared place by place. "run:NAME" and "study:NAME" tell apart what has the same name.

\b
Examples:
  weanalysis compare resnet20-digits-33d7dbca resnet20-digits-lwe-5c1f07aa
  weanalysis compare resnet20-digits-33d7dbca resnet20-digits-lwe-5c1f07aa --every-seed --reach 95,98
  weanalysis compare a.safetensors b.safetensors --data imagefolder:photos/test --json
  weanalysis compare 1 2
"""

# Curves longer than this are shown at evenly spread epochs.
MOST_EPOCHS = 12


@click.command(help=COMPARE_HELP, short_help="Compare two networks, two groups of runs, or two studies.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--data", "-d", metavar="DATA", help="Images to compare networks on (default: those that both were validated on)."
)
@click.option("--metric", metavar="|".join(METRICS), help="What is compared (default: top1, or the studies' own).")
@click.option(
    "--reach",
    metavar="LIST",
    help="Accuracies in percent, such as 90,95, for which to tell the epochs it "
    "took (default: the highest that all runs reached).",
)
@click.option("--every-seed", is_flag=True, help="With a run, take all finished runs that differ in the seed alone.")
@click.option("--images", type=int, metavar="N", help="Only N images (default: all).")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda:N.")
@click.option("--batch-size", type=int, default=100, show_default=True, metavar="N", help="Images at a time.")
@json_option
@quiet_option
@cache_option
def compare(**given: Any) -> None:
    import json

    from rich.progress import Progress

    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.comparison import compare as run
    from weanalysis.results.export import to_json_value

    if given["batch_size"] < 1:
        raise StudyError(f"--batch-size {given['batch_size']} is not allowed; give 1 or more")
    with (
        Watcher(given["quiet"]) as watcher,
        Progress(console=watcher.console, transient=True, disable=not watcher.console.is_terminal) as progress,
    ):
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(f"running {name}", total=total)
            progress.update(tasks[name], completed=done)

        comparison = run(
            given["first"],
            given["second"],
            given["data"],
            metric=given["metric"],
            reach=_levels(given["reach"]),
            every_seed=given["every_seed"],
            num_images=given["images"],
            device=given["device"],
            batch_size=given["batch_size"],
            cache=find_cache(given["cache"]),
            report=report,
        )
        for note in comparison.notes:
            watcher.say(note)
    if given["as_json"]:
        click.echo(json.dumps(to_json_value(comparison.summary()), allow_nan=False))
        return
    print_comparison(open_console(), comparison)


def print_comparison(console: Console, comparison: NetworkComparison | StudyComparison) -> None:
    """Print what `weanalysis.compare` found, and what it speaks of."""
    from weanalysis.comparison import StudyComparison

    if isinstance(comparison, StudyComparison):
        _print_studies(console, comparison)
    else:
        _print_networks(console, comparison)


def _levels(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise StudyError(f"--reach {text!r} is malformed: give percents, such as 90,95") from None


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _apart(comparison: Any, metric: Metric) -> str:
    """Word a difference in the unit of a metric, with its interval where it has one."""
    value, low, high = (
        f"{each:+.{metric.decimals}f}"
        for each in (comparison.difference, comparison.difference_low, comparison.difference_high)
    )
    words = f"{value} {metric.unit}"
    return words if math.isnan(comparison.difference_low) else f"{words}, 95 % interval {low} to {high}"


def _correlation(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f}, 95 % interval {estimate.low:+.2f} to {estimate.high:+.2f}"


def _shown(value: float, form: str = ".4g") -> str:
    return "" if math.isnan(value) else format(value, form)


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples()


def _print_networks(console: Console, comparison: NetworkComparison) -> None:
    metric = find_metric(comparison.metric)
    console.print(f"\nA: {comparison.first}\nB: {comparison.second}\n", markup=False, soft_wrap=True)
    means = [
        f"{sum(side.accuracy) / len(side.accuracy):.{metric.decimals}f} {metric.mark}" for side in comparison.sides
    ]
    console.print(
        f"{metric.label} on {comparison.num_images:,} images of {comparison.data}: A {means[0]}, B {means[1]}",
        markup=False,
    )
    difference = f"[bold]B minus A: {_apart(comparison, metric)}[/bold]"
    if comparison.is_of_two_networks:
        interval, test = ("Tango", "McNemar's exact") if metric.counts_images else (metric.test, "its")
        console.print(f"{difference} ({interval}, paired by image); {test} p = {comparison.p_value:.2g}")
        if metric.counts_images:
            console.print(f"Images that one alone has right: A {comparison.alone[0]:.0f}, B {comparison.alone[1]:.0f}.")
        console.print(
            "This speaks of these two networks only. What a way of training does takes several runs a side: train "
            "with --seeds 0-4, then compare with --every-seed.",
        )
    else:
        runs = " and ".join(str(len(side.members)) for side in comparison.sides)
        test = "" if math.isnan(comparison.p_value) else f" (Welch, over {runs} runs); p = {comparison.p_value:.2g}"
        console.print(f"{difference}{test}")
        for name, side in zip("AB", comparison.sides, strict=True):
            values = ", ".join(f"{value:.{metric.decimals}f}" for value in side.accuracy)
            console.print(f"{name}: {values} {metric.mark}")
    _print_facts(console, comparison)
    _print_curves(console, comparison)


def _print_facts(console: Console, comparison: NetworkComparison) -> None:
    table = _table("", "A", "B", "B / A")

    def add(name: str, first: float, second: float, form: str) -> None:
        if not (math.isnan(first) and math.isnan(second)):
            table.add_row(name, _shown(first, form), _shown(second, form), _shown(second / first, ".3f"))

    for row in _rows(comparison.reached):
        add(f"epochs to {row.accuracy:.2f} % (validation)", row.first, row.second, ".1f")
    add("training step (s)", *comparison.step_s, ".4f")
    add("peak memory of training (GiB)", *comparison.memory_gib, ".2f")
    first, second = comparison.costs.loc["first"], comparison.costs.loc["second"]
    add("parameters in training (M)", first["train_params"] / 1e6, second["train_params"] / 1e6, ".3f")
    add("parameters at inference (M)", first["inference_params"] / 1e6, second["inference_params"] / 1e6, ".3f")
    add("GFLOPs of an image", first["gflops"], second["gflops"], ".4f")
    if table.row_count:
        console.print()
        console.print(table)
    for row in _rows(comparison.reached):
        missing = [
            f"{name}: {got} of {len(side.runs)} runs"
            for name, got, side in zip("AB", (row.first_runs, row.second_runs), comparison.sides, strict=True)
            if got < len(side.runs)
        ]
        if missing:
            console.print(f"{row.accuracy:g} % was not reached by all ({'; '.join(missing)} did).")
    if not all(map(math.isnan, comparison.step_s)):
        console.print(
            "Step time and memory are what the runs recorded (on the CPU, memory of the whole process): "
            "compare those of one machine.",
        )
    if comparison.recipes:
        listed = "; ".join(f"{name}: {one!r} in A, {two!r} in B" for name, (one, two) in comparison.recipes.items())
        console.print(f"Their recipes differ in {listed}.", markup=False)


def _print_curves(console: Console, comparison: NetworkComparison) -> None:
    curves = comparison.curves
    if curves.empty:
        return
    step = math.ceil(len(curves) / MOST_EPOCHS)
    mark = find_metric(comparison.metric).mark
    table = _table("epoch", f"A ({mark})", f"B ({mark})", "B - A")
    for row in _rows(curves[(len(curves) - 1) % step :: step]):
        table.add_row(
            f"{row.epoch:.0f}",
            _shown(row.first, ".2f"),
            _shown(row.second, ".2f"),
            _shown(row.second - row.first, "+.2f"),
        )
    what = "accuracy" if find_metric(comparison.metric).counts_images else comparison.metric
    console.print(f"\nValidation {what} by epoch" + (" (means over runs)" if not comparison.is_of_two_networks else ""))
    console.print(table)


def _print_studies(console: Console, comparison: StudyComparison, shown: int = 5) -> None:
    from weanalysis.kinds import named
    from weanalysis.results.findings import FALSE_DISCOVERY_RATE, interval_words, sample_words

    places, metric = comparison.places, comparison.measured_in
    console.print(f"\n[bold]{comparison.verdict('A', 'B')}[/bold]")
    console.print(f"\nA: {comparison.first}\nB: {comparison.second}\n", markup=False, soft_wrap=True)
    console.print(
        f"Mean D of {len(places):,} places on {comparison.num_images:,} images: A {places['first'].mean():.3f}, B "
        f"{places['second'].mean():.3f}"
    )
    console.print(
        f"[bold]B minus A: {_apart(comparison, metric)}[/bold] (over images), p = {comparison.p_value:.2g}; positive: "
        "B needs these weights more",
    )
    intact_a, intact_b = (f"{value:.{metric.decimals}f} {metric.mark}" for value in comparison.intact)
    test = "(Tango), McNemar's exact p" if metric.counts_images else f"({metric.test}), p"
    console.print(
        f"Intact {metric.name}: A {intact_a}, B {intact_b}; B minus A {_apart(comparison.accuracy, metric)} {test} = "
        f"{comparison.accuracy.p_value:.2g}",
    )
    agreement = comparison.agreement
    if not math.isnan(agreement.value):
        console.print(
            f"Rank correlation of D: {_correlation(agreement)} ({sample_words(places['layer'].nunique())})",
        )
    table = _table("zeroed", "D in A", "D in B", r"B - A \[interval]", "q")
    largest = comparison.largest(shown)
    for row in _rows(largest):
        star = "*" if row.q_value <= FALSE_DISCOVERY_RATE else " "
        table.add_row(
            named(row),
            *(f"{value:+.{metric.decimals}f}" for value in (row.first, row.second)),
            "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(
                row.difference, row.selected_low, row.selected_high, d=metric.decimals
            ),
            f"{row.q_value:.2g}{star}",
        )
    chosen = interval_words(len(largest), len(places))
    console.print(f"\nLargest differences: {chosen}; * beyond chance")
    console.print(table)
    if metric.counts_images:
        _print_images(console, comparison, shown)
    console.print("\nThis speaks of these two networks only.")


def _print_images(console: Console, comparison: StudyComparison, shown: int) -> None:
    from rich.markup import escape

    in_both, in_a, in_b = comparison.num_lost
    console.print(
        f"\nImages that are lost where some place is zeroed: {in_both:,} in both networks, {in_a:,} in A alone, "
        f"{in_b:,} in B alone.",
    )
    table = _table("image", "class", "places in A", "places in B")
    for row in _rows(comparison.most_apart(shown)):
        table.add_row(str(row.image_id), escape(row.name), str(row.first), str(row.second))
    if len(comparison.images):
        console.print("Lost by the most different numbers of places:")
        console.print(table)

"""Write docs/digits.md: what LWE training changes on handwritten digits, over several seeds.

    python benchmarks/seeds.py --seeds 0-4

For each seed a baseline and an LWE network are trained; then their accuracies are compared, and the multiplier study
(§4.2 of the paper) measures D_L and D_H of each LWE network. Intervals are over seeds: they speak of the training, not
of one network. What is in the cache already (--cache) is neither trained nor measured again.
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from weanalysis.ablation import ablate
from weanalysis.cache import find_cache, write_atomically
from weanalysis.cli.train import parse_seeds
from weanalysis.comparison import compare
from weanalysis.loading import load_data
from weanalysis.models import load_network
from weanalysis.results.statistics import Estimate, mean_of_runs
from weanalysis.training import Recipe, Run, train

PAGE = """# Baseline and LWE on handwritten digits, over seeds

Made by one command, which trains and measures what the cache does not hold yet:

<!-- not run: takes an hour -->
```sh
{command}
```

{model}, the recipe `digits` ({epochs:g} epochs), {num_seeds} seeds of each network, {num_images:,} test images.
Intervals are 95 % and over seeds (Student's t; Welch's for the difference). {today}, {machine}, torch {torch}.

| | mean over seeds | each seed |
| --- | --- | --- |
{rows}

D_L and D_H: in every layer at once, the one unit with the lowest, or the highest, multiplier is zeroed; *random* is one
unit of each layer drawn at random (mean of {num_draws} draws). The first convolution is left out, by choice. "Layer by
layer" does the same in one layer at a time and averages over the {num_layers} layers. The paper ranks channels, and LWE
has a multiplier for every kernel, so that there are two readings: *channels* are input channels, ranked by the mean of
their kernels' multipliers over the outputs; *kernels* are single ones, ranked by their own (`--multiplier-of kernel`).
"A tenth" zeroes that share of all units in every layer at once.
"""


def main() -> None:
    """Train, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--seeds", default="0-4", help="such as 0-4")
    parser.add_argument("--cache", help="where runs and results are kept")
    parser.add_argument("--output", "-o", type=Path, default=Path("docs/digits.md"))
    given = parser.parse_args()
    cache, seeds = find_cache(given.cache).ready(), parse_seeds(given.seeds)

    def trained(excitation: str) -> list[Run]:
        recipes = [Recipe.from_preset("digits", model=given.model, excitation=excitation, seed=seed) for seed in seeds]
        return [train(recipe, cache, progress=lambda report: say(report.note)) for recipe in recipes]

    sides = trained("none"), trained("lwe")
    comparison = compare(*([run.name for run in runs] for runs in sides), cache=cache)
    values: dict[str, list[float]] = {}
    for run in sides[1]:
        model = load_network(str(run.checkpoint))
        data = load_data("digits", model=model, cache=cache)
        for unit in ("channel", "kernel"):
            name = f"{run.name}-multiplier" + ("-of-kernel" if unit == "kernel" else "")
            table = ablate(
                model, data, "multiplier", multiplier_of=unit, fractions=(0.1,), cache=cache, name=name, say=say
            )
            say(f"{run.name}, {unit}s: D_L {table.attrs['d_low']:.2f}, D_H {table.attrs['d_high']:.2f}")
            add_drops(values, table, unit)
            num_draws = int((table["fraction"].isna() & (table["selection"] == "random")).sum())
            num_layers = table["layer"].nunique()

    rows = [
        table_row(f"top-1 of the {name} (%)", mean_of_runs(side.accuracy), side.accuracy, "{:.2f}")
        for name, side in zip(("baseline", "LWE network"), comparison.sides, strict=True)
    ]
    difference = Estimate(comparison.difference, comparison.difference_low, comparison.difference_high)
    rows.append(table_row("LWE minus baseline (points)", difference, (), "{:+.2f}"))
    rows += [table_row(f"{name} (points)", mean_of_runs(each), each, "{:+.2f}") for name, each in values.items()]
    page = PAGE.format(
        command=shlex.join(["python", "benchmarks/seeds.py", "--model", given.model, "--seeds", given.seeds]),
        model=given.model,
        epochs=sides[0][0].recipe["epochs"],
        num_seeds=len(seeds),
        num_images=comparison.num_images,
        today=date.today(),
        machine=platform.machine(),
        torch=torch.__version__,
        rows="\n".join(rows),
        num_draws=num_draws,
        num_layers=num_layers,
    )
    write_atomically(given.output, page.encode())
    print(page)


def add_drops(values: dict[str, list[float]], table: pd.DataFrame, unit: str) -> None:
    """Append what one network's multiplier study says to the values of each row."""
    single = table[table["fraction"].isna()]
    means = single[single["layer"].notna()].groupby("selection")["drop"].mean()
    at_once = single[single["layer"].isna()]
    tenth = table[table["fraction"] == 0.1]
    random, low, high = (at_once[at_once["selection"] == name]["drop"] for name in ("random", "lowest", "highest"))
    of_tenth = tenth.groupby("selection")["drop"].mean()
    for name, value in (
        ("D_L, all layers at once", low.iloc[0]),
        ("random, all layers at once", random.mean()),
        ("D_H, all layers at once", high.iloc[0]),
        ("D_H - D_L, all layers at once", high.iloc[0] - low.iloc[0]),
        ("D_L, layer by layer", means["lowest"]),
        ("D_H, layer by layer", means["highest"]),
        ("D_H - D_L, layer by layer", means["highest"] - means["lowest"]),
        ("a tenth, lowest first", of_tenth["lowest"]),
        ("a tenth, random", of_tenth["random"]),
        ("a tenth, highest first", of_tenth["highest"]),
    ):
        values.setdefault(f"{unit}s: {name}", []).append(float(value))


def table_row(name: str, mean: Estimate, each: tuple[float, ...] | list[float], form: str) -> str:
    """A row of a table: the mean with its interval, and each value."""
    return f"| {name} | {interval_words(mean, form)} | {', '.join(map(form.format, each))} |"


def interval_words(mean: Estimate, form: str) -> str:
    """A mean with its interval, where it has one."""
    value = form.format(mean.value)
    return value if math.isnan(mean.low) else f"{value} [{form.format(mean.low)}, {form.format(mean.high)}]"


def say(line: str) -> None:
    """Print a line beside the page."""
    if line:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()

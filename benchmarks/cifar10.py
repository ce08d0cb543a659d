"""Write docs/cifar10.md: what each excitation changes in a ResNet-20 on CIFAR-10 pictures, over several seeds.

    python -m benchmarks.cifar10 --data DIR --jobs 2                # hours; the same command goes on where it stopped
    python -m benchmarks.cifar10 --data DIR --only-page             # the page from what is there so far

DIR has train/ and test/ with one folder of pictures a class. For each seed, a baseline and a network of each
excitation are trained with one recipe; seed by seed, so that what is there is comparable whenever it is stopped. Then
the multiplier study (section 4.2 of the paper) measures D_L and D_H of the networks that have multipliers. Intervals
are over seeds. What is in the cache already (--cache) is neither trained nor measured again.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.seeds import add_drops, interval_words, say, table_row
from weanalysis.ablation import ablate
from weanalysis.cache import Cache, find_cache, write_atomically
from weanalysis.cli.train import parse_seeds
from weanalysis.loading import load_data
from weanalysis.models import load_network
from weanalysis.orphans import end_with
from weanalysis.results.statistics import Estimate, compare_runs, mean_of_runs
from weanalysis.training import Recipe, Run, TrainingProgress, train
from weanalysis.training.runs import run_folder

# Weight standardization is a part of LWE and of MWE, so that it stands beside the baseline.
EXCITATIONS = ("none", "lwe", "mwe", "lwe+mwe", "ws")
WITH_MULTIPLIERS = ("lwe", "lwe+mwe")

PAGE = """# What excitation changes on CIFAR-10, over seeds

Made by one command, which trains and measures what the cache does not hold yet:

<!-- not run: needs data -->
```sh
{command}
```

ResNet-20, {epochs:g} epochs, batch 128, SGD with Nesterov momentum, one cosine from a learning rate of 0.1 after a
warm-up, weight decay 5e-4, crops and flips, bfloat16 (autocast); the same for all five. **The pictures were saved as
JPEG**, those to train on and those to test on, so that no accuracy here compares with those that are published, and a
recipe of so few epochs is not the paper's. Intervals are 95 % and over seeds (Student's t; Welch's for differences).
{today}, {machine}, torch {torch}.

{state}

## Accuracy after the last epoch

| | mean over seeds | each seed |
| --- | --- | --- |
{accuracies}

{told_apart}

## By epoch

Top-1 on the test pictures (%), mean over the runs that are finished, and its interval.

{curves}

## D_L, D_H and random

{drops}
"""

DROPS = """On {images:,} test pictures; [digits.md](digits.md) says how to read the rows. In every layer at once, or
layer by layer, the one unit with the lowest (D_L) or the highest multiplier (D_H) is zeroed, or one at random.
"""


def recipe_of(data: str, excitation: str, seed: int, epochs: float) -> Recipe:
    """One recipe for all, in which the excitation and the seed alone differ."""
    return Recipe(
        model="resnet20",
        data=f"imagefolder:{data}",
        excitation=excitation,
        epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        nesterov=True,
        schedule="cosine",
        warmup_epochs=min(2, epochs / 4),
        weight_decay=5e-4,
        augmentation="pad-crop-flip",
        mixed_precision="bf16",
        seed=seed,
    )


def _word(excitation: str) -> str:
    return "baseline" if excitation == "none" else excitation


def _begin_worker(parent: int, threads: int) -> None:
    end_with(parent)
    torch.set_num_threads(threads)


def _train(recipe: Recipe, recipes: list[Recipe], cache: Cache, jobs: int) -> None:
    """Train one of the runs, with a line an epoch that says how long all of them will take."""
    first, last = TrainingProgress(recipe.run_name, 1, recipe.epochs, 0, 0), math.nan

    def tell(report: TrainingProgress) -> None:
        nonlocal first, last
        if report.note:
            say(f"{report.run}: {report.note}")
        if math.isnan(first.seconds) and report.step:
            first = report
        if report.step > first.step and not math.isnan(report.val_top1) and report.val_top1 != last:
            last = report.val_top1
            each = (report.seconds - first.seconds) / (report.step - first.step)
            done = sum(len(run_folder(cache, one.run_name).metrics()) for one in recipes)
            left = sum(one.epochs for one in recipes) - done
            hours = left * report.num_steps / report.num_epochs * each / jobs / 3600
            share = report.step / report.num_steps
            say(f"{report.run}: {share:.0%} trained, top-1 {last:.2f} %, all runs done in {hours:.1f} h")

    train(recipe, cache, device="cpu", num_workers=0, progress=tell)


def train_all(recipes: list[Recipe], cache: Cache, jobs: int, threads: int) -> None:
    """Train what is not finished, in the order given, `jobs` at a time."""
    waiting = [recipe for recipe in recipes if not run_folder(cache, recipe.run_name).finished]
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker, (os.getpid(), threads)) as pool:
        for done in [pool.submit(_train, recipe, recipes, cache, jobs) for recipe in waiting]:
            done.result()


def measure_drops(
    run: Run, data: str, num_images: int, cache: Cache, jobs: int, values: dict[str, list[float]]
) -> None:
    """Append D_L, D_H and random of one network to the values of each row."""
    model = load_network(str(run.checkpoint))
    images = load_data(f"imagefolder:{data}", model=model, num_images=num_images, cache=cache)
    for unit in ("channel", "kernel"):
        table = ablate(
            model,
            images,
            "multiplier",
            multiplier_of=unit,
            fractions=(0.1,),
            cache=cache,
            jobs=jobs,
            name=f"{run.name}-multiplier-of-{unit}",
            say=say,
        )
        add_drops(values, table, unit)


def _top1(runs: dict[str, list[Run]]) -> dict[str, list[float]]:
    """The accuracies after the last epoch, of the kinds of which a run is finished."""
    return {
        kind: [float(run.metrics()["val_top1"].iloc[-1]) for run in of_kind]
        for kind, of_kind in runs.items()
        if of_kind
    }


def _differences(top1: dict[str, list[float]]) -> dict[str, Estimate]:
    """What each excitation adds to the baseline's accuracy, and to that of weight standardization alone."""
    return {
        f"{kind} minus {other}": compare_runs(top1[other], values)
        for other in ("baseline", "ws")
        for kind, values in top1.items()
        if other in top1 and kind not in ("baseline", other)
    }


def _accuracies(top1: dict[str, list[float]]) -> Iterable[str]:
    for kind, values in top1.items():
        yield table_row(f"top-1 of {kind} (%)", mean_of_runs(values), values, "{:.2f}")
    for name, difference in _differences(top1).items():
        yield table_row(f"{name} (points)", difference, (), "{:+.2f}")


def _told_apart(top1: dict[str, list[float]]) -> str:
    """A sentence on which differences their intervals tell from 0."""
    differences = _differences(top1)
    known = {name: one for name, one in differences.items() if not math.isnan(one.low)}
    if not known:
        return "No difference can be told yet: an interval needs two runs of either kind."
    apart = ", ".join(f"{name} ({one.value:+.2f})" for name, one in known.items() if one.low > 0 or one.high < 0)
    return (
        f"Of {len(known)} differences with an interval, these are told from 0 (not corrected for their number): "
        f"{apart or 'none'}."
    )


def _under_way(recipes: list[Recipe], cache: Cache) -> str:
    """What is known of the runs that are begun and not finished: of one seed, and not of the last epoch."""
    parts = []
    for recipe in recipes:
        run = run_folder(cache, recipe.run_name)
        rows = run.metrics()
        if len(rows) and not run.finished:
            top1 = ", ".join(f"{value:.2f}" for value in rows["val_top1"])
            parts.append(f"{_word(recipe.excitation)}, seed {recipe.seed}: {len(rows)} epochs, top-1 {top1} %")
    return f" Under way: {'; '.join(parts)}." if parts else ""


def _curves(runs: dict[str, list[Run]]) -> Iterable[str]:
    there = {
        kind: [run.metrics()["val_top1"].to_list() for run in of_kind] for kind, of_kind in runs.items() if of_kind
    }
    if not there:
        yield "No run is finished yet."
        return
    yield "| epoch | " + " | ".join(there) + " |"
    yield "| --- |" + " --- |" * len(there)
    for epoch in range(max((len(curve) for curves in there.values() for curve in curves), default=0)):
        means = [mean_of_runs([curve[epoch] for curve in curves]) for curves in there.values()]
        cells = [interval_words(mean, "{:.2f}") for mean in means]
        yield f"| {epoch + 1} | " + " | ".join(cells) + " |"


def _drops(values: dict[str, dict[str, list[float]]], num_images: int) -> Iterable[str]:
    yield DROPS.format(images=num_images)
    for kind, rows in values.items():
        yield f"### {kind}\n\n| | mean over seeds | each seed |\n| --- | --- | --- |"
        for name, each in rows.items():
            yield table_row(f"{name} (points)", mean_of_runs(each), each, "{:+.2f}")
        yield ""


def _state(runs: dict[str, list[Run]], num_recipes: int, threads: int) -> str:
    """How far this is, and what it took."""
    results = [result for of_kind in runs.values() for run in of_kind if (result := run.result)]
    hours = sum(result["seconds"] for result in results) / 3600
    each = ", ".join(f"{kind} {len(of_kind)}" for kind, of_kind in runs.items())
    line = f"{len(results)} of {num_recipes} runs are finished ({each}), {hours:.1f} hours of {threads}-threaded work."
    return line + (f" Tested on {results[0]['num_images']:,} pictures." if results else "")


def main() -> None:
    """Train, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/ and test/")
    parser.add_argument("--seeds", default="0-2", help="such as 0-2")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="networks that are trained at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--drop-images", type=int, default=2000, help="test pictures on which D is measured")
    parser.add_argument("--only-page", action="store_true", help="train nothing more")
    parser.add_argument("--cache", help="where runs and results are kept")
    parser.add_argument("--output", "-o", type=Path, default=Path("docs/cifar10.md"))
    given = parser.parse_args()
    cache = find_cache(given.cache).ready()
    recipes = [
        recipe_of(given.data, kind, seed, given.epochs) for seed in parse_seeds(given.seeds) for kind in EXCITATIONS
    ]
    if not given.only_page:
        train_all(recipes, cache, given.jobs, given.threads)
    runs: dict[str, list[Run]] = {_word(kind): [] for kind in EXCITATIONS}
    for recipe in recipes:
        run = run_folder(cache, recipe.run_name)
        runs[_word(recipe.excitation)] += [run] if run.finished else []
    values: dict[str, dict[str, list[float]]] = {}
    for kind in WITH_MULTIPLIERS:
        for run in runs[kind]:
            measure_drops(run, given.data, given.drop_images, cache, given.jobs, values.setdefault(kind, {}))
    state = f"**{_state(runs, len(recipes), given.threads)}**{_under_way(recipes, cache)}"
    top1 = _top1(runs)
    page = PAGE.format(
        command=f"python -m benchmarks.cifar10 --data DIR --epochs {given.epochs:g} --seeds {given.seeds}",
        epochs=given.epochs,
        today=date.today(),
        machine=platform.machine(),
        torch=torch.__version__,
        state=state,
        accuracies="\n".join(_accuracies(top1)),
        told_apart=_told_apart(top1),
        curves="\n".join(_curves(runs)),
        drops="\n".join(_drops(values, given.drop_images)) if values else "Not measured yet.",
    )
    write_atomically(given.output, page.encode())
    print(page)


if __name__ == "__main__":
    main()

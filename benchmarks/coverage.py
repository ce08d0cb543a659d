"""Whether the bounds of a screened study hold what it missed, over many ablations that do hide something.

    python benchmarks/coverage.py --model resnet20 --weights FILE --data imagefolder:DIR --grid 10x10 --images 10000

A study that computed every pair would take hours to show a few hundred ablations that a screened one gets wrong. So
each shard is screened twice: as a study does it, and with so many times as many of its riskiest pairs computed
(--reference, a share of all pairs); the flips of both are taken for all there are. How many the reference may miss
itself, by its own law of errors, is printed: it should be few beside those that the study missed.
"""

from __future__ import annotations

import argparse
import os
from typing import Any
from unittest import mock

import joblib
import numpy as np
import torch
from evaluation import SHARD, flips

from weanalysis.ablation import Evaluator, studies
from weanalysis.ablation.evaluate import ScreenSettings, risk
from weanalysis.ablation.preparation import prepare_on
from weanalysis.loading import load_data, load_model
from weanalysis.results.statistics import hidden_flips, screen_bounds
from weanalysis.results.store import SCREENED


def screened_twice(
    evaluators: tuple[Evaluator, Evaluator], data: Any, start: int, ablations: tuple, share: float
) -> dict[str, np.ndarray]:
    """Return what a shard's study found, its screen, and what the reference found: (A,) each."""
    images, targets = data.batch(start, start + SHARD)
    screened = evaluators[0].measure(images, targets, ablations, start)
    with mock.patch.object(risk, "PILOT_SHARE", share):
        reference = evaluators[1].measure(images, targets, ablations, start)
    flipped, more = (flips([one], len(ablations)) for one in (screened, reference))
    true = np.where(more != 0, more, flipped)  # both are exact; what neither computed is taken for no flip
    layers = np.unique([ablation.layer for ablation in ablations], return_inverse=True)[1]
    return {
        "lost": (flipped > 0).sum(1),
        "gained": (flipped < 0).sum(1),
        "true_lost": (true > 0).sum(1),
        "true_gained": (true < 0).sum(1),
        "hidden": reference.screen.may_lose + reference.screen.may_gain,
        "layers": layers,
        **{name: getattr(screened.screen, name) for name in SCREENED},
    }


def work(given: argparse.Namespace, starts: list[int]) -> list[dict[str, np.ndarray]]:
    """Screen some shards twice in a process of its own."""
    torch.set_num_threads(1)
    model = load_model(given.model, given.weights, None, given.data)
    data = load_data(given.data, given.mean, given.std, None, given.images, 0, model)
    model = prepare_on(model, data).model
    ablations = tuple(studies.location(model.net, given.grid).ablations)
    evaluators = tuple(
        Evaluator(model.net, "screened", screen=ScreenSettings("top1", wanted)) for wanted in (given.max_error, 1e9)
    )
    results = []
    for start in starts:
        results.append(screened_twice(evaluators, data, start, ablations, given.reference))
        print(f"images {start:,} to {start + SHARD:,} done", flush=True)
    return results


def tell(shards: list[dict[str, np.ndarray]], shards_each: int) -> None:
    """Print, for studies of so many shards, how many ablations are inexact and how many of them within bounds."""
    inexact = inside = 0
    largest, total, count = 0.0, 0.0, 0
    num_images = shards_each * SHARD
    for low in range(0, len(shards) - shards_each + 1, shards_each):
        study = {key: sum(shard[key] for shard in shards[low : low + shards_each]) for key in shards[0]}
        hidden = hidden_flips({name: study[name] for name in SCREENED}, shards[0]["layers"])
        bounds = screen_bounds(study["lost"], study["gained"], num_images, hidden)
        true = (study["true_lost"] - study["true_gained"]) / num_images
        error = np.abs(true - (study["lost"] - study["gained"]) / num_images)
        wrong = error > 1e-9
        holds = (bounds[0] <= true + 1e-9) & (true <= bounds[1] + 1e-9)
        inexact, inside = inexact + int(wrong.sum()), inside + int((holds & wrong).sum())
        largest, total, count = max(largest, 100 * error.max()), total + 100 * error.sum(), count + len(error)
    print(
        f"studies of {num_images:,} images: {inexact:,} of {count:,} ablations inexact, {inside:,} of them within "
        f"their bounds ({inside / max(1, inexact):.1%}); largest error {largest:.2f}, mean "
        f"{total / count:.4f} points"
    )


def main() -> None:
    """Screen every shard twice, and print what the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="auto", help="a file of weights, where --model is a name")
    parser.add_argument("--data", required=True)
    for side in ("mean", "std"):
        parser.add_argument(f"--{side}", type=lambda text: tuple(map(float, text.split(","))), metavar="R,G,B")
    parser.add_argument("--grid", default="5x5")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--max-error", type=float, default=0.1)
    parser.add_argument("--reference", type=float, default=0.12, metavar="SHARE")
    given = parser.parse_args()
    starts = list(range(0, given.images - SHARD + 1, SHARD))
    jobs = os.cpu_count() or 1
    parts = joblib.Parallel(n_jobs=jobs)(joblib.delayed(work)(given, starts[one::jobs]) for one in range(jobs))
    shards = [parts[place % jobs][place // jobs] for place in range(len(starts))]
    pairs = len(shards) * SHARD * len(shards[0]["lost"])
    screened, true = (
        sum(shard[one].sum() + shard[two].sum() for shard in shards)
        for one, two in (("lost", "gained"), ("true_lost", "true_gained"))
    )
    print(
        f"{given.model} ({given.weights}), {given.grid}, {len(starts) * SHARD:,} images, {len(shards[0]['lost']):,} "
        f"kernels, --max-error {given.max_error:g}: {pairs:,} pairs, "
        f"{sum(shard['num_evaluated'].sum() for shard in shards) / pairs:.2%} computed; {int(true - screened):,} of "
        f"{int(true):,} flips missed; the reference computed {given.reference:.0%} and may miss "
        f"{sum(shard['hidden'].sum() for shard in shards):.1f} more"
    )
    for shards_each in dict.fromkeys((min(8, len(shards)), 1)):
        tell(shards, shards_each)


if __name__ == "__main__":
    main()

"""Whether intervals of D hold 95 % in metrics that count no images: images of a kept study, drawn again and again.

    python benchmarks/metric_intervals.py --cache cache --study 1 --metric loss
    python benchmarks/metric_intervals.py --cache cache --study 1 --metric macro-f1
    python benchmarks/metric_intervals.py --cache cache --study 2 --metric miou --every 10

What a study has kept of each image under each ablation is taken for all images that there are. From these, `--images`
are drawn with replacement, `--draws` times for each ablation, and the interval from them is held to D on all. Losses
are skewed: most images change next to nothing, and a few a lot. Functions of all answers are no sums, and D of an
ablation that changes few answers comes in steps: so these are told apart by how many answers are expected to change; of
masks, in how many images pixels do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from weanalysis.cache import find_cache
from weanalysis.results import Store
from weanalysis.results.statistics import linear_change, mean_change
from weanalysis.tasks import Metric, find_metric

# D and the bounds of its interval from these images, and the share of answers that change among all.
Measure = Callable[[np.ndarray], tuple[float, float, float]]

_STEPS = (0, 2, 5, 10, 30, np.inf)


def means(store: Store, study: int, metric: Metric) -> Iterator[tuple[int, float, Measure]]:
    """For each ablation: how many images there are, what share of them changes, and how its D is measured."""
    for position in range(len(store.table(study, metric.name))):
        kept = store.value_changes(study, position, metric.statistic)
        changes = metric.worse * (kept["after"] - kept["before"])

        def measure(images: np.ndarray, changes: np.ndarray = changes) -> tuple[float, float, float]:
            drawn = changes[images]
            mean, low, high, _ = mean_change(len(drawn), drawn.sum(), (drawn**2).sum())
            return float(mean), float(low), float(high)

        yield len(changes), 1.0, measure


def aggregates(store: Store, study: int, metric: Metric) -> Iterator[tuple[int, float, Measure]]:
    """The same for a metric that is a function of all answers."""
    aggregate = metric.aggregate
    assert aggregate is not None
    for _, before, after in store.answers(study, metric.statistic):
        changed = after.changed_from(before).mean(1)
        for row, share in enumerate(changed.tolist()):
            sides = [before, after.of_networks([row])]

            def measure(images: np.ndarray, sides: list[Any] = sides) -> tuple[float, float, float]:
                parts = (one.of_images(images) for one in sides)
                drop, low, high, _ = linear_change(*map(aggregate, parts), metric.worse)
                return float(drop[0]), float(low[0]), float(high[0])

            yield len(after), share, measure


def misses(measure: Measure, total: int, num_images: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often an interval lies below D on all images, above it, and is missing: shares of the draws."""
    true = measure(np.arange(total))[0]
    bounds = np.array([measure(rng.integers(total, size=num_images))[1:] for _ in range(num_draws)])
    there = ~np.isnan(bounds).any(1)
    if not there.any():
        return np.array([np.nan, np.nan, 1.0])
    low, high = bounds[there].T
    # Rounding is no miss where nothing changes.
    return np.array([(high < true - 1e-9).mean(), (low > true + 1e-9).mean(), 1 - there.mean()])


def main() -> None:
    """Print how often the interval holds, over all ablations of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--study", type=int, required=True)
    parser.add_argument("--metric", default="loss")
    parser.add_argument("--images", default="250,2000", help="sizes of the samples")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--every", type=int, default=1, help="Take every so many ablations.")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with Store.open(find_cache(given.cache).results) as store:
        store.describe(given.study)
        metric = find_metric(given.metric)
        measured = list((means if metric.aggregate is None else aggregates)(store, given.study, metric))[:: given.every]
    print(f"{metric.label}: {len(measured)} ablations, {measured[0][0]:,} images, {given.draws} draws of each")
    for num_images in map(int, given.images.split(",")):
        found = np.array([misses(measure, total, num_images, given.draws, rng) for total, _, measure in measured])
        expected = num_images * np.array([changed for _, changed, _ in measured])
        steps = _STEPS if metric.aggregate is not None else (0, np.inf)
        for low, high in pairwise(steps):
            some = found[(expected >= low) & (expected < high) & (found[:, 2] < 1)]
            if not len(some):
                continue
            held = 1 - some[:, 0] - some[:, 1]
            which = "" if len(steps) == 2 else f", {low:g} to {high:g} answers changed"
            print(
                f"{num_images} images{which}: {held.mean():.1%} hold over {len(some)} ablations ({held.min():.1%} of "
                f"the worst, {np.quantile(held, 0.05):.1%} at the 5 % quantile); {some[:, 0].mean():.1%} lie below, "
                f"{some[:, 1].mean():.1%} above; {some[:, 2].mean():.1%} missing"
            )


if __name__ == "__main__":
    main()

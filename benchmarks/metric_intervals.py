"""Whether intervals of D hold 95 % in metrics that count no images: images of a kept study, drawn again and again.

    python benchmarks/metric_intervals.py --cache cache --study 1 --metric loss
    python benchmarks/metric_intervals.py --cache cache --study 1 --metric macro-f1
    python benchmarks/metric_intervals.py --cache cache --study 2 --metric miou --every 10
    python benchmarks/metric_intervals.py --simulate many-classes
    python benchmarks/metric_intervals.py --simulate calibrated

What a study has kept of each image under each ablation is taken for all images that there are. From these, `--images`
are drawn with replacement, `--draws` times for each ablation, and the interval from them is held to D on all. Losses
are skewed: most images change next to nothing, and a few a lot. Functions of all answers are no sums, and D of an
ablation that changes few answers comes in steps: so these are told apart by how many answers are expected to change; of
masks, in how many images pixels do. `--added` takes another size than one image (100 points) for what an interval
allows for changes that were not seen.

`--simulate` needs no study, and shows where an interval of such a function is left out, and why: networks of many
classes, with few images of each, for `macro-f1`; a network whose confidence is exactly its accuracy, for `ece`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from weanalysis.cache import find_cache
from weanalysis.results import Store
from weanalysis.results.statistics import linear_change, mean_change
from weanalysis.tasks import Metric, find_metric
from weanalysis.tasks.aggregates import NUM_BINS, Answers, Linearized, calibration_error, macro_f1

# D and the bounds of its interval from these images, and how many answers change among them.
Measure = Callable[[np.ndarray], tuple[float, float, float, int]]

_STEPS = (0, 2, 5, 10, 30, np.inf)

# Images of which the truth of a calibrated network is computed.
_MANY_IMAGES = 2_000_000


@dataclass(frozen=True)
class Held:
    """Of intervals from many samples: the shares that lie below the true D and above it, and those that are missing.

    `unchanged` is the share of the samples in which no answer changes.
    """

    below: float
    above: float
    missing: float
    unchanged: float

    @property
    def share(self) -> float:
        return 1 - self.below - self.above

    @classmethod
    def of(cls, true: float, measured: list[tuple[float, float, float, int]]) -> Held:
        """Compare intervals with the true D; what is missing counts apart."""
        _, low, high, changed = np.array(measured).T
        there = ~(np.isnan(low) | np.isnan(high))
        if not there.any():
            return cls(np.nan, np.nan, 1.0, float((changed == 0).mean()))
        # Rounding is no miss where nothing changes.
        below, above = (high[there] < true - 1e-9).mean(), (low[there] > true + 1e-9).mean()
        return cls(float(below), float(above), float(1 - there.mean()), float((changed == 0).mean()))


# Images of a study ---------------------------------------------------------------------------------------------------


def means(store: Store, study: int, metric: Metric) -> Iterator[tuple[int, float, Measure]]:
    """For each ablation: how many images there are, what share of them changes, and how its D is measured."""
    for position in range(len(store.table(study, metric.name))):
        kept = store.value_changes(study, position, metric.statistic)
        changes = metric.worse * (kept["after"] - kept["before"])

        def measure(images: np.ndarray, changes: np.ndarray = changes) -> tuple[float, float, float, int]:
            drawn = changes[images]
            mean, low, high, _ = mean_change(len(drawn), drawn.sum(), (drawn**2).sum())
            return float(mean), float(low), float(high), np.count_nonzero(drawn)

        yield len(changes), 1.0, measure


def aggregates(store: Store, study: int, metric: Metric, added: float | None) -> Iterator[tuple[int, float, Measure]]:
    """The same for a metric that is a function of all answers."""
    aggregate = metric.aggregate
    assert aggregate is not None
    for _, before, after in store.answers(study, metric.statistic):
        changed = after.changed_from(before).mean(1)
        for row, share in enumerate(changed.tolist()):
            sides = [before, after.of_networks([row])]

            def measure(images: np.ndarray, sides: list[Any] = sides) -> tuple[float, float, float, int]:
                parts = [one.of_images(images) for one in sides]
                first, second = map(aggregate, parts)
                if added is not None:
                    first, second = (replace(each, one_image=added) for each in (first, second))
                drop, low, high, _ = linear_change(first, second, metric.worse)
                changed = np.count_nonzero(parts[1].changed_from(parts[0]))
                return float(drop[0]), float(low[0]), float(high[0]), changed

            yield len(after), share, measure


def held_on(measure: Measure, total: int, num_images: int, num_draws: int, rng: np.random.Generator) -> Held:
    """How intervals from images drawn among all of a study's hold its D."""
    true = measure(np.arange(total))[0]
    return Held.of(true, [measure(rng.integers(total, size=num_images)) for _ in range(num_draws)])


def of_a_study(given: argparse.Namespace, rng: np.random.Generator) -> None:
    """Print how often the interval holds, over all ablations of a study."""
    with Store.open(find_cache(given.cache).results) as store:
        store.describe(given.study)
        metric = find_metric(given.metric)
        if metric.aggregate is None:
            measured = list(means(store, given.study, metric))[:: given.every]
        else:
            measured = list(aggregates(store, given.study, metric, given.added))[:: given.every]
    print(f"{metric.label}: {len(measured)} ablations, {measured[0][0]:,} images, {given.draws} draws of each")
    for num_images in map(int, given.images.split(",")):
        helds = [held_on(measure, total, num_images, given.draws, rng) for total, _, measure in measured]
        expected = num_images * np.array([changed for _, changed, _ in measured])
        steps = _STEPS if metric.aggregate is not None else (0, np.inf)
        for low, high in pairwise(steps):
            some = [one for one, count in zip(helds, expected, strict=True) if low <= count < high and one.missing < 1]
            if some:
                which = "" if len(steps) == 2 else f", {low:g} to {high:g} answers changed"
                print(f"{num_images} images{which}: {_in_words(some)}")


def _in_words(helds: list[Held]) -> str:
    share = np.array([one.share for one in helds])
    below, above, missing, unchanged = (
        np.mean([getattr(one, name) for one in helds]) for name in ("below", "above", "missing", "unchanged")
    )
    return (
        f"{share.mean():.1%} hold over {len(helds)} ablations ({share.min():.1%} of the worst, "
        f"{np.quantile(share, 0.05):.1%} at the 5 % quantile); {below:.1%} lie below, {above:.1%} above; {missing:.1%} "
        f"missing; no answer changes in {unchanged:.0%} of the samples"
    )


# Simulations ---------------------------------------------------------------------------------------------------------


def many_classes(given: argparse.Namespace, rng: np.random.Generator) -> None:
    """Print how intervals of macro-F1 hold with few images a class, also where they are left out."""
    print("macro-F1 of networks with 75 % accuracy of which a share of answers changes, to all classes or to some")
    for num_classes, per_class in ((100, 20), (100, 5), (1000, 10), (1000, 2)):
        targets = np.repeat(np.arange(num_classes), per_class)
        for share in (0.02, 0.2):
            for num_taken in (num_classes, num_classes // 20):
                measured, sound = [], []
                right = rng.beta(6, 2, num_classes)
                taken = rng.choice(num_classes, num_taken, replace=False)
                true = _true_macro_f1(right, 0, taken) - _true_macro_f1(right, share, taken)
                for _ in range(given.draws):
                    is_right = rng.random(len(targets)) < right[targets]
                    beside = (targets + rng.integers(1, _BESIDE + 1, len(targets))) % num_classes
                    answers = np.where(is_right, targets, beside)
                    changed = rng.random(len(targets)) < share
                    after = np.where(changed, rng.choice(taken, len(targets)), answers)
                    first, second = (macro_f1(Answers(targets, one[None])) for one in (answers, after))
                    measured.append(_whatever_is_sound(first, second, -1))
                    sound.append(bool(first.is_sound[0]))
                print(
                    f"{num_classes:,} classes, {per_class} images each, {share:.0%} change to {num_taken:,}, D "
                    f"{true:.2f} points: {_in_shares(Held.of(true, measured), sound)}",
                    flush=True,
                )


# A wrong answer is one of so many classes beside the right one.
_BESIDE = 4


def _true_macro_f1(right: np.ndarray, share: float, taken: np.ndarray) -> float:
    """In percent, of equally frequent classes, each `right` so often, of which a `share` changes to one of some."""
    wrong = (1 - share) * (1 - right) / _BESIDE
    to_taken = np.bincount(taken, minlength=len(right)) * share / len(taken)
    hits = (1 - share) * right + to_taken
    predicted = (1 - share) * right + sum(np.roll(wrong, step) for step in range(1, _BESIDE + 1))
    return float(100 * (2 * hits / (1 + predicted + to_taken * len(right))).mean())


def _in_shares(held: Held, sound: list[bool]) -> str:
    return (
        f"{held.share:.1%} hold, {held.below:.1%} lie below, {held.above:.1%} above; the program gives "
        f"{np.mean(sound):.0%} of them"
    )


def _whatever_is_sound(first: Linearized, second: Linearized, worse: int) -> tuple[float, float, float, int]:
    """D and its interval as if it could be relied on; the last number says nothing here."""
    sides = (replace(one, is_sound=np.ones(1, bool)) for one in (first, second))
    drop, low, high, _ = linear_change(*sides, worse)
    return float(drop[0]), float(low[0]), float(high[0]), 1


# What is left of the chance to be right where an ablation changes an answer.
_RIGHT_IF_CHANGED = 0.1


def calibrated(given: argparse.Namespace, rng: np.random.Generator) -> None:
    """Print how intervals of the calibration error hold where the intact network has none, also where left out."""
    print(
        "ECE of a network whose confidence is its accuracy; an ablation moves confidence and changes a share of answers"
    )
    for num_images in map(int, given.images.split(",")):
        for share, moved in ((0.0, 0.1), (0.02, 0.1), (0.1, 0.3)):
            chance, confidence = _confidences(_MANY_IMAGES, moved, rng)
            true = _ece(confidence, (1 - share) * chance + share * _RIGHT_IF_CHANGED)
            assert _ece(chance, chance) == 0, "the intact network is calibrated"
            measured, sound = [], []
            for _ in range(given.draws):
                chance, confidence = _confidences(num_images, moved, rng)
                right = rng.random(num_images) < chance
                changed = rng.random(num_images) < share
                right_after = np.where(changed, rng.random(num_images) < _RIGHT_IF_CHANGED, right)
                first, second = _calibration(right, chance), _calibration(right_after, confidence)
                measured.append(_whatever_is_sound(first, second, 1))
                sound.append(bool(first.is_sound[0] & second.is_sound[0]))
            print(
                f"{num_images:,} images, {share:.0%} change, D {true:.2f} points: "
                f"{_in_shares(Held.of(true, measured), sound)}",
                flush=True,
            )


def _confidences(num_images: int, moved: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How sure the intact network is of each image, which is its chance to be right, and how sure the ablated one."""
    chance = 0.2 + 0.8 * rng.beta(3, 1, num_images)
    odds = np.log(chance / np.maximum(1 - chance, 1e-12)) + moved * rng.standard_normal(num_images)
    return chance, 1 / (1 + np.exp(-odds))


def _ece(confidence: np.ndarray, chance: np.ndarray) -> float:
    """In percent, of images that are right by chance: the mean over bins of |mean confidence − mean chance|."""
    place = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return float(100 * np.abs(np.bincount(place, confidence - chance)).sum() / len(confidence))


def _calibration(right: np.ndarray, confidence: np.ndarray) -> Linearized:
    """The calibration error of images of which each is right or not."""
    return calibration_error(Answers(np.ones(len(right), int), right[None].astype(int), confidence[None]))


SIMULATIONS = {"many-classes": many_classes, "calibrated": calibrated}


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--study", type=int)
    asked.add_argument("--simulate", choices=list(SIMULATIONS))
    parser.add_argument("--cache")
    parser.add_argument("--metric", default="loss")
    parser.add_argument("--images", default="250,2000", help="sizes of the samples")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--every", type=int, default=1, help="Take every so many ablations.")
    parser.add_argument("--added", type=float, help="points that an image may turn unseen by (default: the metric's)")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    if given.simulate:
        SIMULATIONS[given.simulate](given, rng)
    else:
        of_a_study(given, rng)


if __name__ == "__main__":
    main()

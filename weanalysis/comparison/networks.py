"""Two networks, or two groups of training runs, on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from weanalysis.ablation import Evaluator
from weanalysis.ablation.behaviour import Conduct
from weanalysis.ablation.copies import copied
from weanalysis.ablation.evaluate import choose_output
from weanalysis.ablation.inputs import as_model
from weanalysis.ablation.preparation import run_forward
from weanalysis.ablation.setup import class_names
from weanalysis.cache import Cache
from weanalysis.comparison.difference import Difference
from weanalysis.comparison.sides import Member
from weanalysis.data import GivenImages, ImageData
from weanalysis.errors import DataError, StudyError, WeanalysisError
from weanalysis.excitation import costs
from weanalysis.loading import load_data
from weanalysis.models import Model
from weanalysis.results.statistics import (
    Comparison,
    Estimate,
    chance_note,
    compare_correctness,
    compare_linear,
    compare_runs,
    compare_values,
)
from weanalysis.tasks import SEGMENTATION, Metric, find_metric, listed_metrics
from weanalysis.tasks.aggregates import Answers, Linearized
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.pixels import PixelCounts
from weanalysis.tasks.segmentation import Segmentation
from weanalysis.training import Run, differing_fields
from weanalysis.training.recipe import whole_spec

COUNTED = ("train_params", "inference_params", "gflops")

Images = ImageData | GivenImages

# (what is being looked at, images done, images in all)
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Side:
    """The networks of one side, and their accuracies on the images in percent, or what else the metric is."""

    members: tuple[Member, ...]
    accuracy: tuple[float, ...]

    @property
    def name(self) -> str:
        """The names of all members."""
        return ",".join(member.name for member in self.members)

    @property
    def runs(self) -> list[Run]:
        """The training runs among the members."""
        return [member.run for member in self.members if member.run is not None]


@dataclass(frozen=True, kw_only=True)
class NetworkComparison(Difference):
    """Two networks, or two groups of networks, on the same images.

    With one network a side, `difference` has Tango's paired score interval and McNemar's exact p-value over images,
    or what the metric has instead, and speaks of these two networks; `alone` counts the images that the first, and the
    second, alone has right (NaN where the metric counts none). With several, it is the difference of the means with
    Welch's interval and test over the runs, and `alone` is NaN.

    `curves` has a row an epoch: epoch, first, second (validation accuracy, the mean over runs). `reached` has a row
    for each accuracy asked for: accuracy, first, second (the epochs it took, the mean over runs, NaN unless all got
    there), first_runs, second_runs (how many did). `step_s` and `memory_gib` are seconds of a training step and peak
    memory as the runs of each side recorded them. `costs` has a row a side: train_params, inference_params, gflops.
    `recipes` names the values in which the sides' recipes differ: field -> (first, second).

    Of two networks the first answers the darkest colour, the second the brightest, which is right:

    >>> from torch import eye, nn
    >>> from weanalysis import compare
    >>> models = []
    >>> for name, sign in (("darkest", -1), ("brightest", 1)):
    ...     net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    ...     net[0].weight.data = sign * eye(3)[:, :, None, None]
    ...     models.append(Model(name, net, {"source": "module", "name": name}, "made", num_classes=3))
    >>> compared = compare(*models, [(eye(3)[k % 3][:, None, None].expand(3, 4, 4), k % 3) for k in range(12)])
    >>> compared.difference, compared.alone, compared.num_images
    (100.0, (0.0, 12.0), 12)
    """

    sides: tuple[Side, Side]
    data: str
    alone: tuple[float, float]
    curves: pd.DataFrame
    reached: pd.DataFrame
    step_s: tuple[float, float]
    memory_gib: tuple[float, float]
    costs: pd.DataFrame
    recipes: dict[str, tuple[Any, Any]]

    @property
    def is_of_two_networks(self) -> bool:
        """Whether there is one network a side, so that the interval is over images, not over runs."""
        return all(len(side.members) == 1 for side in self.sides)


def data_of(members: Sequence[Member]) -> str:
    """Return the images that all were trained for; raise DataError where none or several are known."""
    known = {member.name: member.data for member in members}
    specs = {whole_spec(spec): name for name, spec in known.items() if spec}
    if not specs:
        raise DataError(f"{members[0].name} does not say which images it was trained for; name some with --data")
    if len(specs) > 1:
        listed = ", ".join(f"{name} on {spec}" for spec, name in list(specs.items())[:4])
        raise DataError(
            f"the networks were trained on different images ({listed}); name those to compare them on with --data"
        )
    return next(iter(specs))


@dataclass(frozen=True)
class _Answers:
    """What a network answers on each image, in terms of a metric, and what it costs.

    `numbers` (N,) is whether each image is right, or its number; `linear` is there for a function of all answers.
    """

    ids: np.ndarray
    numbers: np.ndarray
    linear: Linearized | None
    value: float
    costs: dict[str, float]
    notes: list[str]


@dataclass
class NetworkRunner:
    """Runs networks over the same images: `data` as `load_data` takes it, or images that are there."""

    data: str | Images
    metric: str
    num_images: int | None
    device: str
    batch_size: int
    cache: Cache
    report: Report | None

    def at(self, member: Member, with_costs: bool) -> _Answers:
        """Find out which images a network has right; raise WeanalysisError, with its name, where it cannot say."""
        model = member.load(self.cache)
        try:
            metric = find_metric(self.metric)
            if model.num_classes and model.num_classes <= max(1, metric.guesses):
                raise StudyError(f"metric {metric.name} says nothing of {model.num_classes} classes; use top1")
            images = self.data
            if isinstance(images, str):
                images = load_data(images, num_images=self.num_images, model=model, cache=self.cache)
            if not metric.is_own and images.task not in metric.tasks:
                raise StudyError(
                    f"metric {metric.name} is one of {' and '.join(metric.tasks)}, and {images.spec} is data of "
                    f"{images.task}: choose from {listed_metrics(images.task)}"
                )
            answers, correct, values = self._answers(as_model(model), images, member.name)
        except WeanalysisError as error:
            raise type(error)(f"{member.name}: {error}") from error
        notes = [*model.notes, *getattr(images, "notes", ()), *self._notes(member, images.fingerprint)]
        right = (metric if metric.counts_images else find_metric("top1")).right(correct)
        num_classes = 0 if images.task == SEGMENTATION else model.num_classes
        if note := chance_note(int(right.sum()), len(right), num_classes, max(1, metric.guesses)):
            notes.append(f"{member.name}: {note}")
        counted = _count_costs(model, images) if with_costs else dict.fromkeys(COUNTED, math.nan)
        linear = None if metric.aggregate is None else metric.aggregate(answers)
        numbers = right if metric.counts_images or linear else values[metric.statistic]
        value = 100 * float(right.mean()) if metric.counts_images else float(numbers.mean())
        value = value if linear is None else float(linear.values[0])
        return _Answers(np.asarray(images.ids), numbers, linear, value, counted, notes)

    def _answers(self, model: Model, images: Images, name: str) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
        """What a network answers, the bits of correctness (N,), and the numbers of each image by statistic."""
        evaluator = _evaluator(model, images, self.device)
        decided, targets = [], []
        for start in range(0, len(images), self.batch_size):
            batch = images.batch(start, start + self.batch_size)
            decided.append(evaluator.intact(*batch))
            targets.append(batch[1].numpy())
            if self.report:
                self.report(name, start + len(batch[1]), len(images))
        predictions, correct = (
            np.concatenate([getattr(one, name).cpu().numpy() for one in decided]) for name in ("predictions", "correct")
        )
        values = {
            name: np.concatenate([one.values[name].cpu().numpy() for one in decided]) for name in decided[0].values
        }
        if decided[0].pixels is not None:
            counts = np.concatenate([one.pixels.cpu().numpy() for one in decided if one.pixels is not None])
            classes = class_names(images, counts.shape[2])
            return PixelCounts(counts[:, 0], counts[None, :, 1], counts[None, :, 2], classes), correct, values
        return Answers(np.concatenate(targets), predictions[None], values["confidence"][None]), correct, values

    def _notes(self, member: Member, fingerprint: str) -> list[str]:
        run, notes = member.run, []
        if run is None:
            return []
        if not run.finished:
            notes.append(f"{run.name} is not finished: this is its network after {len(run.metrics())} epochs")
        whole = isinstance(self.data, str) and whole_spec(self.data) == run.recipe.get("data")
        if whole and run.description.get("val_images") != fingerprint:
            notes.append(f"these are not the images that {run.name} was validated on: they have changed since")
        return notes


def _evaluator(model: Model, images: Images, device: str) -> Evaluator:
    """What runs a network; a few images tell whether its outputs are probabilities, and which they are."""
    some, targets = images.batch(0, min(8, len(images)))
    if images.task != SEGMENTATION:
        outputs = Evaluator(model.net, "naive").logits(some)
        return Evaluator(model.net, "naive", device, task=Classification.of(outputs))
    path, _ = choose_output(run_forward(copied(model.net), some), model.num_classes, None, of_pixels=True)
    outputs = Evaluator(model.net, "naive", conduct=Conduct(output=path)).logits(some)
    Segmentation().check(outputs, targets)
    task = Segmentation(Classification.of(outputs).probabilities)
    return Evaluator(model.net, "naive", device, task=task, conduct=Conduct(output=path))


def _count_costs(model: Model, images: Images) -> dict[str, float]:
    """Count parameters and operations; NaN where the network does not train on such images."""
    shape = tuple(images.batch(0, 1)[0].shape[1:])
    try:
        counted = costs(model.net, input_shape=shape, batch_size=2, repeats=1)
    except WeanalysisError:
        return dict.fromkeys(COUNTED, math.nan)
    return {name: counted[name] for name in COUNTED}


def compare_networks(
    one: list[Member], two: list[Member], runner: NetworkRunner, reach: Sequence[float]
) -> NetworkComparison:
    """Compare what stands on either side, running each network over the images once."""
    answers: dict[str | int, _Answers] = {}
    for member in (*one, *two):
        if member.key not in answers:
            # The networks of one side are alike, and counting takes a training step.
            answers[member.key] = runner.at(member, with_costs=member in (one[0], two[0]))
    first, second = (
        Side(tuple(members), tuple(answers[member.key].value for member in members)) for members in (one, two)
    )
    notes = list(dict.fromkeys(note for answer in answers.values() for note in answer.notes))
    notes += [line for side in (first, second) for line in _odd_members(side)]
    alone = (math.nan, math.nan)
    before, after = answers[one[0].key], answers[two[0].key]
    if len(one) == len(two) == 1:
        paired = _paired(before, after, find_metric(runner.metric))
        estimate = Estimate(paired.difference, paired.difference_low, paired.difference_high, paired.p_value)
        if find_metric(runner.metric).counts_images:
            right = before.numbers, after.numbers
            alone = (float(np.sum(right[0] & ~right[1])), float(np.sum(right[1] & ~right[0])))
    else:
        estimate = compare_runs(first.accuracy, second.accuracy)
        if math.isnan(estimate.low):
            notes.append("an interval over runs needs at least two on either side, whose accuracies are not all equal")
    curves, reached = _training_course(first, second, runner.metric, reach)
    if reach and curves.empty:
        notes.append("neither side is a run of this cache, so there are no curves to tell epochs from")
    return NetworkComparison(
        first=first.name,
        second=second.name,
        metric=runner.metric,
        difference=estimate.value,
        difference_low=estimate.low,
        difference_high=estimate.high,
        p_value=estimate.p_value,
        num_images=len(before.ids),
        notes=notes,
        sides=(first, second),
        data=runner.data if isinstance(runner.data, str) else runner.data.spec,
        alone=alone,
        curves=curves,
        reached=reached,
        step_s=(_mean(map(_step_seconds, first.runs)), _mean(map(_step_seconds, second.runs))),
        memory_gib=(_mean(map(_peak_memory, first.runs)), _mean(map(_peak_memory, second.runs))),
        costs=pd.DataFrame([before.costs, after.costs], index=pd.Index(["first", "second"])),
        recipes=_differing_values(first, second),
    )


def _paired(before: _Answers, after: _Answers, metric: Metric) -> Comparison:
    """Compare two networks on the same images: second minus first, in the metric itself."""
    if before.linear is not None and after.linear is not None:
        return compare_linear(before.linear, after.linear, 1)
    sides = (before.ids, before.numbers), (after.ids, after.numbers)
    return compare_values(*sides) if not metric.counts_images else compare_correctness(*sides[0], *sides[1])


def _odd_members(side: Side) -> list[str]:
    """Tell where the runs of one side differ in more than the seed."""
    odd = sorted(set(differing_fields([run.recipe for run in side.runs])) - {"seed"})
    if not odd:
        return []
    return [f"the runs {side.name} differ in {', '.join(odd)}, so their spread is not that of the seed alone"]


def _differing_values(first: Side, second: Side) -> dict[str, tuple[Any, Any]]:
    if not first.runs or not second.runs:
        return {}
    one, two = first.runs[0].recipe, second.runs[0].recipe
    ignored = {"seed"} if max(len(first.members), len(second.members)) > 1 else set()
    return {name: (one.get(name), two.get(name)) for name in differing_fields([one, two]) if name not in ignored}


def _training_course(
    first: Side, second: Side, metric: str, reach: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lay the runs' validation accuracies side by side, and find the epochs in which each level was reached."""
    column = f"val_{metric}"
    by_side = [
        [metrics[column].dropna() for run in side.runs if column in (metrics := run.metrics().set_index("epoch"))]
        for side in (first, second)
    ]
    means = [pd.concat(runs, axis=1).mean(axis=1) if runs else pd.Series(dtype=float) for runs in by_side]
    curves = pd.DataFrame(dict(zip(("first", "second"), means, strict=True))).rename_axis("epoch").reset_index()
    every = [curve for runs in by_side for curve in runs]
    if not reach and find_metric(metric).counts_images and all(by_side) and all(len(curve) for curve in every):
        reach = [min(curve.max() for curve in every)]
    rows = []
    for accuracy in reach:
        row = {"accuracy": float(accuracy)}
        for name, runs in zip(("first", "second"), by_side, strict=True):
            epochs = [float(curve.index[curve >= accuracy][0]) for curve in runs if (curve >= accuracy).any()]
            row[name] = _mean(epochs) if len(epochs) == len(runs) else math.nan
            row[f"{name}_runs"] = len(epochs)
        rows.append(row)
    columns = ["accuracy", "first", "second", "first_runs", "second_runs"]
    return curves, pd.DataFrame(rows, columns=columns)


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else math.nan


def _step_seconds(run: Run) -> float:
    """Seconds of a training step, validation's share included: the median over epochs."""
    metrics = run.metrics()
    seconds, steps = (np.diff(metrics[name].to_numpy(float), prepend=0) for name in ("seconds", "step"))
    return float(np.median(seconds / steps)) if len(steps) else math.nan


def _peak_memory(run: Run) -> float:
    metrics = run.metrics()
    return float(metrics["peak_memory_gib"].max()) if len(metrics) else math.nan

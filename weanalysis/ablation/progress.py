"""How far a running study has come and what it shows so far, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.schedule import Task
from weanalysis.ablation.studies import Study
from weanalysis.results import Store
from weanalysis.tasks import METRICS, Metric


@dataclass(frozen=True)
class Status:
    """How far a study has come, for whoever watches: `done` and `total` count (ablation, shard) pairs.

    `metric` is the study's, or where that follows from all answers at once top-1, or the loss. `counts` holds, per
    ablation, num_images and what the metric follows from: num_correct (intact), lost and gained, or the
    sums of `Store.moments`. `jobs` processes measure now, with a `scheduler` those of its workers that can.

    What a caller prints who gives `ablate` a function to `report` to:

    >>> from weanalysis import ablate
    >>> from torch import nn, rand
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> seen = []
    >>> table = ablate(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "channel", report=seen.append)
    >>> f"{seen[-1].done} of {seen[-1].total} in the metric {seen[-1].metric.name}"
    '7 of 7 in the metric top1'
    """

    study: Study
    study_id: int
    name: str
    metric: Metric
    done: int
    total: int
    reused: int
    seconds: float
    seconds_left: float
    jobs: int
    counts: dict[str, np.ndarray]
    scheduler: str | None = None


class Tally:
    """Counts of a running study, so that what was found so far can be shown without reading the store."""

    def __init__(self, store: Store, study_id: int, metric: Metric, ids: np.ndarray):
        self.answers_in = metric if metric.counts_images else METRICS["top1"]
        # What follows from all answers at once is not told on the way: top-1 stands for it, of pixels the loss.
        stands_for = METRICS["loss"] if metric.statistic == "pixels" else self.answers_in
        self.shown = self._metric = stands_for if metric.aggregate is not None else metric
        _, first, self._of_place = np.unique(ids, return_index=True, return_inverse=True)
        answers = store.counts(study_id, self.answers_in.name)
        counts = answers if self.shown.counts_images else store.moments(study_id, self.shown.statistic)
        self._counts = {name: values[first] for name, values in counts.items()}
        self._answers = {name: answers[name][first] for name in ("num_images", "num_correct")}

    @property
    def intact_answers(self) -> tuple[int, int]:
        """Of how many images the intact network is right, and of how many it is known: of the most for any ablation."""
        place = int(self._answers["num_images"].argmax())
        return int(self._answers["num_correct"][place]), int(self._answers["num_images"][place])

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """The counts of every place of the plan."""
        return {name: values[self._of_place] for name, values in self._counts.items()}

    def add(self, task: Task, measured: Measured) -> None:
        """Count in what a task measured."""
        index = self._of_place[np.array(task.places)]
        before = self.answers_in.right(measured.intact_correct)
        self._answers["num_images"][index] += len(before)
        self._answers["num_correct"][index] += int(before.sum())
        self._counts["num_images"][index] += len(before)
        if not self._metric.counts_images:
            values = measured.values[self._metric.statistic]
            changes = values.changes.astype(np.float64)
            self._counts["intact"][index] += values.intact.sum(dtype=np.float64)
            self._counts["change"][index] += changes.sum(1)
            self._counts["squares"][index] += (changes**2).sum(1)
            return
        of_change = np.repeat(index, measured.counts)
        was, now = before[measured.positions], self._metric.right(measured.correct)
        for name, changed in (("lost", was & ~now), ("gained", ~was & now)):
            self._counts[name] += np.bincount(of_change[changed], minlength=len(self._counts[name]))
        self._counts["num_correct"][index] += int(before.sum())


class Progress:
    """Counts the (ablation, shard) pairs that are done, and guesses the time that is left.

    `costs` are the parts of a forward pass that each ablation of the study repeats: the time that a task takes is taken
    to go with them. `left` are the tasks that are yet to be done, of `total` pairs; what else there is was `reused`.
    `cost_left` is in forward passes of an image.
    """

    def __init__(self, costs: Sequence[float], left: Sequence[Task], total: int):
        self._costs = costs
        self._began, self._cost_done, self.cost_left = time.perf_counter(), 0.0, self._cost(left)
        self.total, self.done = total, total - sum(len(task.places) for task in left)
        self.reused = self.done

    def _cost(self, tasks: Sequence[Task]) -> float:
        return sum(self._costs[place] * (task.stop - task.start) for task in tasks for place in task.places)

    def recount(self, left: Sequence[Task], total: int) -> None:
        """Take it that these tasks are left now: a rule may have settled ablations, or answers were dropped."""
        self.cost_left, self.total = self._cost(left), total
        self.done = total - sum(len(task.places) for task in left)

    def add(self, task: Task) -> None:
        """Count in a task that was done."""
        cost = self._cost([task])
        self.done += len(task.places)
        self._cost_done, self.cost_left = self._cost_done + cost, self.cost_left - cost

    @property
    def seconds(self) -> float:
        """How long the study has been measuring."""
        return time.perf_counter() - self._began

    @property
    def seconds_left(self) -> float:
        """How long it will go on measuring; NaN before the first task is done."""
        return self.seconds / self._cost_done * self.cost_left if self._cost_done else float("nan")

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left."""
        return self.done == self.total

"""A study as it is run: tasks go out, what they measured goes into the store, and whoever watches is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weanalysis.ablation import schedule
from weanalysis.ablation.evaluate import Evaluator, Measured
from weanalysis.ablation.folding import few
from weanalysis.ablation.schedule import StopRequest, Work
from weanalysis.ablation.stopping import Need, Needs
from weanalysis.ablation.studies import Ablation, Study
from weanalysis.results.statistics import StoppingRule, chance_note
from weanalysis.results.store import Store, shards_of
from weanalysis.tasks import METRICS, Metric

# Of each number of an image, such as the loss, a study keeps the change under every ablation for so many pairs of them,
# 2 bytes each; beyond that, for those images of each ablation and shard that changed most (6 bytes each).
MOST_NUMBERS_KEPT = 2**26


class Interrupted(KeyboardInterrupt):
    """A study that was asked to stop; what was measured is kept, and `done` of `total` tasks' work is in the store."""

    def __init__(self, study_id: int, done: int, total: int):
        super().__init__(f"stopped with {done} of {total} measurements done")
        self.study_id, self.done, self.total = study_id, done, total


@dataclass
class Status:
    """How far a study has come, for whoever watches: `done` and `total` count (ablation, shard) pairs.

    `counts` holds, per ablation, num_images and what the metric follows from: num_correct (intact), lost and gained, or
    the sums of `Store.moments`.
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


class _Tally:
    """Counts of a running study, so that what was found so far can be shown without reading the store."""

    def __init__(self, store: Store, study_id: int, metric: Metric, ids: np.ndarray):
        self._metric = metric
        _, first, self._of_place = np.unique(ids, return_index=True, return_inverse=True)
        self.answers_in = metric if metric.counts_images else METRICS["top1"]
        answers = store.counts(study_id, self.answers_in.name)
        counts = answers if metric.counts_images else store.moments(study_id, metric.statistic)
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

    def add(self, task: schedule.Task, measured: Measured) -> None:
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


@dataclass
class Execution:
    """Measures what a study lacks in the store. Call `run` once.

    `num_images` in `shards` of `shard_size`; `seconds_per_image` is what a forward pass takes here. `choose_jobs` is
    asked with what is to be measured, `report` called as results come, `say` with lines for a person.
    """

    store: Store
    study: Study
    study_id: int
    context_id: int
    name: str
    metric: Metric
    work: Work
    evaluator: Evaluator
    rule: StoppingRule | None
    shard_size: int
    seconds_per_image: float
    num_classes: int
    choose_jobs: Callable[[list[schedule.Task], list[float]], int]
    report: Callable[[Status], None] | None
    say: Callable[[str], None]
    reused: int = 0
    jobs: int = 1
    doubt: str | None = None
    distrusted: dict[str, str] = field(default_factory=dict)

    @property
    def _most_kept(self) -> int | None:
        """Of how many images of a shard the change of a number is kept for each ablation; None: of all."""
        num_numbers = len(self.study.ablations) * len(self.work.data)
        if num_numbers <= MOST_NUMBERS_KEPT:
            return None
        return max(1, MOST_NUMBERS_KEPT * self.shard_size // num_numbers)

    def run(self) -> int:
        """Measure all that is missing; return how many ablations the stopping rule settled. Raises Interrupted."""
        self._ids = self.store.ablation_ids(self.study_id)
        self._needs = self._new_needs()
        self._vet()
        self._costs = [self.evaluator.cost(ablation) for ablation in self.study.ablations]
        tasks, self._total = self._cut(self._needs.left()), self._needs.num_needed
        self._count_done(tasks)
        self.reused = self._done
        self.jobs = self.choose_jobs(tasks, self._costs)
        self._tally = _Tally(self.store, self.study_id, self.metric, self._ids)
        self._cost_done, self._began = 0.0, time.perf_counter()
        self._tell()
        stop, state = StopRequest(self.say), "failed"
        try:
            with stop.listening():
                while self._needs.left() and not stop.asked:
                    self._measure(stop)
            self._doubt_guesses()
            state = "complete" if self._done == self._total else "stopped"
        except KeyboardInterrupt:
            stop.asked = True
            state = "complete" if self._done == self._total else "stopped"
        finally:
            self.store.set_state(self.study_id, state, self._done, self._total)
        # A stop that was asked for while the last task ran ends whatever calls this, though nothing is missing.
        if stop.asked or state == "stopped":
            raise Interrupted(self.study_id, self._done, self._total)
        return self._needs.num_settled

    def _new_needs(self) -> Needs:
        shards = shards_of(len(self.work.data), self.shard_size)
        return Needs(self.store, self.study_id, shards, self.rule)

    def _vet(self) -> None:
        """Hold the fast way to the naive one before anything is measured with it, and say what comes of that."""
        if self._needs.left():
            self.evaluator.vet(self.study.ablations)
            self.store.annotate(self.study_id, {"evaluation_note": self.evaluator.note})
        if self.evaluator.note:
            self.say(self.evaluator.note)
        touched = {layer for ablation in self.study.ablations for layer in ablation.layers}
        self._distrust({layer: why for layer, why in self.evaluator.distrusted.items() if layer in touched})
        if self.work.mode == "screened":
            num_exact = sum(not self.evaluator.can_screen(ablation) for ablation in self.study.ablations)
            if num_exact:
                self.say(
                    f"{num_exact:,} of {len(self.study.ablations):,} ablations are computed on all images: what "
                    "they do cannot be predicted, since they zero a whole layer, several layers at once, or one "
                    "that is called more than once"
                )

    def _distrust(self, layers: Mapping[str, str]) -> None:
        """Measure layers the naive way from now on."""
        new = {layer: why for layer, why in layers.items() if layer not in self.distrusted}
        if not new:
            return
        self.distrusted |= new
        for why in dict.fromkeys(new.values()):
            self.say(f"measured the naive way: {few([layer for layer in new if new[layer] == why])} ({why})")

    def _cut(self, todo: list[Need]) -> list[schedule.Task]:
        return [
            task
            for shard, places in todo
            for task in schedule.cut(
                places.tolist(), self._costs, *shard, self.seconds_per_image, self.study.ablations, self.work.mode
            )
        ]

    def _cost_of(self, tasks: list[schedule.Task]) -> float:
        return sum(self._costs[place] * (task.stop - task.start) for task in tasks for place in task.places)

    def _count_done(self, tasks: list[schedule.Task]) -> None:
        self._total, self._cost_left = self._needs.num_needed, self._cost_of(tasks)
        self._done = self._total - sum(len(task.places) for task in tasks)

    def _measure(self, stop: StopRequest) -> None:
        """Go once over what is missing, round by round where a rule may settle ablations on the way."""
        needs = self._needs
        for todo in needs.rounds(self.jobs):
            for task, measured in self._results(todo, stop):
                self._take(task, measured)
                if self._needs is not needs:  # some answers were dropped: a rule has to look at the others again
                    return
            self._count_done(self._cut(needs.left()))

    def _results(self, todo: list[Need], stop: StopRequest) -> Iterator[tuple[schedule.Task, Measured]]:
        evaluator = self.evaluator if self.jobs == 1 else None
        return schedule.run(self.work, self._cut(todo), self.jobs, stop, self.distrusted, evaluator)

    def _take(self, task: schedule.Task, measured: Measured) -> None:
        """Keep what a task measured; drop what was measured before of a layer on which the fast way failed in it."""
        known = set(self.distrusted)
        self._distrust(measured.distrusted)
        touched = {layer for ablation in task.ablations for layer in ablation.layers}
        if not touched.isdisjoint(self.distrusted.keys() - measured.distrusted.keys()):
            return  # it was begun before that was known, and is measured again
        if new := measured.distrusted.keys() - known:
            self._drop(new)
        places = list(task.places)
        self._done += len(places)
        self.store.write(
            self.context_id,
            self._ids[places],
            self.work.data.ids[task.start : task.stop],
            measured,
            self.study_id,
            self._done,
            self._total,
            self._most_kept,
        )
        self._tally.add(task, measured)
        self._doubt_guesses()
        cost = self._cost_of([task])
        self._cost_done, self._cost_left = self._cost_done + cost, self._cost_left - cost
        self._tell()

    def _doubt_guesses(self) -> None:
        """Say, as soon as it is seen, that the intact network does no better than guessing."""
        if self.doubt is None:
            num_correct, num_images = self._tally.intact_answers
            self.doubt = chance_note(num_correct, num_images, self.num_classes, self._tally.answers_in.guesses)
            if self.doubt:
                self.say(self.doubt)

    def _drop(self, layers: Any) -> None:
        """Forget what is kept of some layers' ablations, which the fast way may have measured wrongly."""

        def is_of(ablation: Ablation) -> bool:
            return not layers.isdisjoint(ablation.layers)

        ids = self._ids[[place for place, one in enumerate(self.study.ablations) if is_of(one)]]
        if num_shards := self.store.forget(self.context_id, ids):
            self.say(f"what was measured of {few(sorted(layers))} before is measured again ({num_shards} shards)")
            self._needs = self._new_needs()
            self._tally = _Tally(self.store, self.study_id, self.metric, self._ids)
            self._count_done(self._cut(self._needs.left()))

    def _tell(self) -> None:
        if self.report is None:
            return
        seconds = time.perf_counter() - self._began
        left = seconds / self._cost_done * self._cost_left if self._cost_done else float("nan")
        self.report(
            Status(
                self.study,
                self.study_id,
                self.name,
                self.metric,
                self._done,
                self._total,
                self.reused,
                seconds,
                left,
                self.jobs,
                self._tally.counts,
            )
        )

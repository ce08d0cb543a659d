"""A study as it is run: tasks go out, what they measured goes into the results file, and whoever watches is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from weanalysis.ablation import schedule
from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.folding import few
from weanalysis.ablation.progress import Progress, Status
from weanalysis.ablation.record import StudyRecord
from weanalysis.ablation.repetition import Repetition
from weanalysis.ablation.schedule import Executor, StopRequest, Task
from weanalysis.ablation.setup import Setup
from weanalysis.ablation.stopping import Need
from weanalysis.errors import StudyError
from weanalysis.results.statistics import chance_note


class Interrupted(KeyboardInterrupt):
    """A study that was asked to stop; what was measured is kept, and `done` of `total` tasks' work is in the store."""

    def __init__(self, study_id: int, done: int, total: int):
        super().__init__(f"stopped with {done} of {total} measurements done")
        self.study_id, self.done, self.total = study_id, done, total


@dataclass(frozen=True)
class Outcome:
    """A study that was measured: rows that its rule settled, pairs that were known before, and what is doubted."""

    num_settled: int
    reused: int
    doubt: str | None


class NaiveLayers:
    """The layers that are measured the naive way, each with the reason; a person is told of those that come."""

    def __init__(self, say: Callable[[str], None]):
        self.reasons: dict[str, str] = {}
        self._say = say

    def add(self, layers: Mapping[str, str]) -> None:
        """Measure these layers the naive way from now on."""
        new = {layer: why for layer, why in layers.items() if layer not in self.reasons}
        self.reasons |= new
        for why in dict.fromkeys(new.values()):
            self._say(f"measured the naive way: {few([layer for layer in new if new[layer] == why])} ({why})")


def execute(
    setup: Setup, record: StudyRecord, report: Callable[[Status], None] | None, say: Callable[[str], None]
) -> Outcome:
    """Measure all that a study lacks in the results file.

    `report` is called as results come, `say` with lines for a person. Raises Interrupted.
    """
    naive = NaiveLayers(say)
    _vet(setup, record, naive, say)
    return _Execution(setup, record, naive, report, say).run()


def _vet(setup: Setup, record: StudyRecord, naive: NaiveLayers, say: Callable[[str], None]) -> None:
    """Hold the fast way to the naive one before anything is measured with it, and say what comes of that."""
    evaluator, ablations = setup.evaluator, setup.study.ablations
    if record.needs().left():
        evaluator.vet(ablations)
        record.annotate({"evaluation_note": evaluator.note})
    if evaluator.note:
        say(evaluator.note)
    touched = {layer for ablation in ablations for layer in ablation.layers}
    naive.add({layer: why for layer, why in evaluator.distrusted.items() if layer in touched})
    if setup.work.mode == "screened" and (num_exact := sum(not evaluator.can_screen(one) for one in ablations)):
        say(
            f"{num_exact:,} of {len(ablations):,} ablations are computed on all images: what they do cannot be "
            "predicted, since they zero a whole layer, several layers at once, or one that is called more than once"
        )


class _Execution:
    """Goes over what is missing until nothing is. Call `run` once."""

    def __init__(
        self,
        setup: Setup,
        record: StudyRecord,
        naive: NaiveLayers,
        report: Callable[[Status], None] | None,
        say: Callable[[str], None],
    ):
        self._setup, self._record, self._naive, self._report, self._say = setup, record, naive, report, say
        self._needs, self._tally = record.needs(), record.tally()
        self._costs = [setup.evaluator.cost(ablation) for ablation in setup.study.ablations]
        self._progress = Progress(self._costs, self._cut(self._needs.left()), self._needs.num_needed)
        self._doubt: str | None = None
        self._repetition = Repetition(setup, record.repeated, say)
        self._batch_size = setup.work.batch_size

    def run(self) -> Outcome:
        """Measure all that is missing. Raises Interrupted."""
        progress = self._progress
        stop, state = StopRequest(self._say), "failed"
        try:
            with stop.listening(), self._executor() as executor:
                self._tell(executor)
                while self._needs.left() and not stop.asked:
                    self._measure(executor, stop)
            self._doubt_guesses()
            state = "complete" if progress.is_complete else "stopped"
        except KeyboardInterrupt:
            stop.ask()
            state = "complete" if progress.is_complete else "stopped"
        finally:
            self._record.set_state(state, progress.done, progress.total)
        # A stop that was asked for while the last task ran ends whatever calls this, though nothing is missing.
        if stop.asked or state == "stopped":
            raise Interrupted(self._record.study_id, progress.done, progress.total)
        return Outcome(self._needs.num_settled, progress.reused, self._doubt)

    def _executor(self) -> AbstractContextManager[Executor]:
        """Who measures: this process, others, or a scheduler's workers. Raises DeviceError."""
        setup, say = self._setup, self._say
        settings, left = setup.settings, self._cut(self._needs.left())
        if not left or settings.scheduler is None:
            work = setup.work
            jobs = schedule.choose_jobs(
                work.devices,
                work.net is None,
                settings.jobs,
                len(left),
                self._progress.cost_left,
                setup.seconds_per_image,
                say,
            )
            return schedule.open_executor(work, jobs, evaluator=setup.evaluator if jobs == 1 else None, say=say)
        return schedule.open_executor(
            setup.work, scheduler=settings.scheduler, longest_away=settings.scheduler_wait, say=say
        )

    def _cut(self, todo: list[Need]) -> list[Task]:
        setup = self._setup
        return [
            task
            for shard, places in todo
            for task in schedule.cut(
                places.tolist(),
                self._costs,
                *shard,
                setup.seconds_per_image,
                setup.study.ablations,
                setup.work.mode,
            )
        ]

    def _recount(self) -> None:
        self._progress.recount(self._cut(self._needs.left()), self._needs.num_needed)

    def _measure(self, executor: Executor, stop: StopRequest) -> None:
        """Go once over what is missing, round by round where a rule may settle ablations on the way."""
        needs = self._needs
        for todo in needs.rounds(max(1, executor.num_workers)):
            for task, measured in schedule.measure_all(executor, self._cut(todo), stop, self._naive.reasons):
                self._take(task, measured)
                self._tell(executor)
                if self._needs is not needs:  # some answers were dropped: a rule has to look at the others again
                    return
            self._recount()

    def _take(self, task: Task, measured: Measured) -> None:
        """Keep what a task measured; drop what was measured before of a layer on which the fast way failed in it."""
        known = set(self._naive.reasons)
        self._naive.add(measured.distrusted)
        touched = {layer for ablation in task.ablations for layer in ablation.layers}
        if not touched.isdisjoint(self._naive.reasons.keys() - measured.distrusted.keys()):
            return  # it was begun before that was known, and is measured again
        if new := measured.distrusted.keys() - known:
            self._drop(new)
        self._refuse_no_numbers(measured)
        if 0 < measured.batch_size < self._batch_size:
            self._batch_size = measured.batch_size
            self._say(f"memory was short: {self._batch_size} images are run at once where it was")
        self._progress.add(task)
        self._record.write(task, measured, self._progress.done, self._progress.total)
        self._tally.add(task, measured)
        if self._repetition.add(task, measured):
            self._record.annotate({"repeated": self._repetition.about})
        self._doubt_guesses()

    def _refuse_no_numbers(self, measured: Measured) -> None:
        """Raise StudyError where the metric has no number of an image for the intact network."""
        metric = self._setup.metric
        if metric.statistic in measured.values:
            intact = measured.values[metric.statistic].intact
            # A loss is infinite where the target has no chance at all.
            (places,) = np.nonzero(~np.isfinite(intact) if metric.is_own else np.isnan(intact))
            if len(places):
                image = measured.start + int(places[0])
                why = "" if metric.is_own else " (its outputs are no probabilities, and those of the first images are)"
                raise StudyError(
                    f"the {metric.statistic} of image {image} is no finite number for the intact network{why}, so "
                    f"that {metric.name} cannot be told: give a network, or a metric, that has a number for every image"
                )

    def _doubt_guesses(self) -> None:
        """Say, as soon as it is seen, that the intact network does no better than guessing."""
        if self._doubt is None:
            num_correct, num_images = self._tally.intact_answers
            guesses = self._tally.answers_in.guesses
            self._doubt = chance_note(num_correct, num_images, self._setup.num_classes, guesses)
            if self._doubt:
                self._say(self._doubt)

    def _drop(self, layers: Collection[str]) -> None:
        """Forget what is kept of some layers' ablations, which the fast way may have measured wrongly."""
        if num_shards := self._record.forget(layers):
            self._say(f"what was measured of {few(sorted(layers))} before is measured again ({num_shards} shards)")
            self._needs, self._tally = self._record.needs(), self._record.tally()
            self._recount()

    def _tell(self, executor: Executor) -> None:
        if self._report is None:
            return
        setup, progress = self._setup, self._progress
        self._report(
            Status(
                study=setup.study,
                study_id=self._record.study_id,
                name=setup.name,
                metric=self._tally.shown,
                done=progress.done,
                total=progress.total,
                reused=progress.reused,
                seconds=progress.seconds,
                seconds_left=progress.seconds_left,
                jobs=executor.num_workers,
                scheduler=setup.settings.scheduler,
                counts=self._tally.counts,
            )
        )

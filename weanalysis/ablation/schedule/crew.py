"""Processes that measure tasks for the one that runs a study: who has what in hand, and what if that goes wrong."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.schedule.executor import Lost
from weanalysis.ablation.schedule.stops import StopRequest
from weanalysis.ablation.schedule.tasks import Task
from weanalysis.ablation.schedule.work import Answer, LacksWork, Parcel, Unfit, Work

# How often it is looked whether all are well.
LOOK_SECONDS = 1.0

# A task on which so many processes died, or never answered, is given up.
MOST_DEATHS = 3

# A process is taken to hang beyond so many times what its task should take, judged by the slowest so far, and never
# before so many seconds, since it may be reading images, nor before those others where it may have just been started.
PATIENCE, LEAST_PATIENCE_SECONDS, LEAST_START_SECONDS = 20.0, 120.0, 300.0


@dataclass(eq=False)
class Errand:
    """A task on its way: how often a process died of it, and for how many seconds it has been in somebody's hand.

    `asked_by` is the process that asked for the work, which it then carries; `place` is whatever its executor notes of
    where it is.
    """

    task: Task
    deaths: int = 0
    waited: float = 0.0
    asked_by: str | None = None
    carries_work: bool = False
    place: Any = None

    def begin(self, place: Any) -> None:
        """It is sent now, to this place, with the work where that was asked for."""
        self.waited, self.carries_work, self.place = 0.0, self.asked_by is not None, place
        self.asked_by = None

    def wait(self, seconds: float) -> None:
        """It has been in somebody's hand for so many more seconds."""
        self.waited += seconds

    def ask(self, process: str) -> None:
        """A process that has it lacks the work."""
        self.asked_by = process

    def die(self, times: int) -> None:
        """So many more processes died of it."""
        self.deaths += times


class Crew(ABC):
    """Hands out tasks, one to each process, and takes back what comes of them.

    A process that lacks the work of the study says so, and is sent it with its task: once, however many tasks follow.
    """

    def __init__(self, work: Work, say: Callable[[str], None]):
        self._work, self._say = work, say
        self._packed: Parcel | None = None
        self._in_hand: dict[Any, Errand] = {}
        self._back: deque[Errand] = deque()
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._slowness = float(os.cpu_count() or 1)
        self._num_timed = 0
        self._looked = time.monotonic()

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many processes can measure, now."""

    @property
    def _room(self) -> int:
        """How many tasks may be in hand."""
        return self.num_workers

    @abstractmethod
    def _submit(self, errand: Errand) -> Any:
        """Send a task, with the work where it was asked for, and have it begin; return its future."""

    @abstractmethod
    def _failed(self, errand: Errand, error: BaseException) -> Exception | None:
        """What to answer for a task of which no process gave an answer; None where it is sent again."""

    @abstractmethod
    def _refused(self, errand: Errand, unfit: Unfit) -> Exception | None:
        """What to answer for a task that a process cannot measure; None where it is sent again."""

    @abstractmethod
    def _replace(self, hanging: list[Errand]) -> Iterator[tuple[Errand, Exception]]:
        """Take these tasks from processes that do not answer, put them back, and yield those that are given up."""

    @abstractmethod
    def _drop(self) -> None:
        """Have nobody go on with what is in hand."""

    def _answer(self, future: Any) -> Answer:
        """What a process answered; raises what came in between."""
        return future.result()

    @abstractmethod
    def _look_around(self, stop: StopRequest) -> None:
        """See who is there; called before tasks are handed out."""

    @property
    def _parcel(self) -> Parcel:
        if self._packed is None:
            self._packed = Parcel.of(self._work)
        return self._packed

    def run(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[tuple[Task, Measured | Exception]]:
        """Measure tasks, each of which is asked for when somebody is free for it, and yield each as it is done."""
        source: Iterator[Task] | None = iter(tasks)
        try:
            while True:
                self._look_around(stop)
                if not stop.asked:
                    source = self._hand_out(source)
                is_over = stop.asked or (source is None and not self._back)
                if is_over and (not self._in_hand or (stop.asked and not self.num_workers)):
                    return
                for errand, outcome in self._take_back():
                    yield errand.task, outcome
        finally:
            if self._in_hand:
                self._drop()
                self._in_hand.clear()
            self._back.clear()

    def _hand_out(self, source: Iterator[Task] | None) -> Iterator[Task] | None:
        """Give everybody who is free a task; return where more come from, None where none does."""
        while len(self._in_hand) < self._room:
            if self._back:
                errand = self._back.popleft()
            elif source is not None and (task := next(source, None)) is not None:
                errand = Errand(task)
            else:
                return None
            future = self._submit(errand)
            self._in_hand[future] = errand
            future.add_done_callback(self._ended.put)
        return source

    def _take_back(self) -> Iterator[tuple[Errand, Measured | Exception]]:
        """Wait for somebody to be done, though not for long; then see to those who should have been long ago."""
        with suppress(Empty):
            future = self._ended.get(timeout=LOOK_SECONDS)
            if (errand := self._in_hand.pop(future, None)) is not None:  # else it was given to another meanwhile
                outcome = self._outcome(errand, future)
                if outcome is not None:
                    yield errand, outcome
        now = time.monotonic()
        # A machine that slept, or a process that was halted, has not waited.
        passed, self._looked = min(now - self._looked, 2 * LOOK_SECONDS), now
        for errand in self._in_hand.values():
            errand.wait(passed)
        hanging = [errand for errand in self._in_hand.values() if errand.waited > self._patience(errand)]
        if hanging:
            yield from self._replace(hanging)

    def _outcome(self, errand: Errand, future: Any) -> Measured | Exception | None:
        """What came of a task; None where it is to be sent again."""
        try:
            answer = self._answer(future)
        except (Exception, CancelledError) as error:
            return self._failed(errand, error)
        if isinstance(answer, LacksWork):
            errand.ask(answer.process)
            self._back.appendleft(errand)
            return None
        if isinstance(answer, Unfit):
            return self._refused(errand, answer)
        if isinstance(answer, Measured):
            self._learn(errand.task, answer)
        return answer

    def _learn(self, task: Task, measured: Measured) -> None:
        """Keep how slow the slowest task was, by what it should have taken."""
        if task.seconds > 0:
            slowness = measured.seconds / task.seconds
            self._slowness = max(self._slowness, slowness) if self._num_timed else max(1.0, slowness)
            self._num_timed += 1

    def _patience(self, errand: Errand) -> float:
        least = LEAST_PATIENCE_SECONDS if errand.carries_work else LEAST_START_SECONDS
        return max(least, PATIENCE * self._slowness * errand.task.seconds)

    def _died(self, errand: Errand, how: str, times: int = 1) -> Lost | None:
        """Count processes that were lost with a task, which is put back unless these were too many."""
        errand.die(times)
        if errand.deaths >= MOST_DEATHS:
            return Lost(f"{errand.deaths} of them {how}")
        self._back.append(errand)
        return None

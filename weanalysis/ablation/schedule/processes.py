"""The processes of loky, which comes with joblib: on this machine, one a core or one a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor, process_executor

from weanalysis.ablation.schedule.crew import Crew, Errand
from weanalysis.ablation.schedule.stops import StopRequest, deaf_to_stops, ignore_stops
from weanalysis.ablation.schedule.tasks import Task
from weanalysis.ablation.schedule.work import WORKPLACE, Answer, Parcel, Unfit, Work
from weanalysis.errors import DeviceError
from weanalysis.memory import keep_freed_memory
from weanalysis.orphans import end_with

# Processes that have nothing to do stay so long for the next study of the same program.
_IDLE_SECONDS = 300

# What libraries take the number of their threads from, where the user has not set it.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# After so many collapses one takes half as many processes: what one of them needs may be there, and for all not.
_MOST_COLLAPSES = 3

# Processes that end at once, however often they are started, will not be there.
_MOST_STARTS = 5


def _begin(parent: int) -> None:
    """What a process does before its first task.

    Loky ends a process that has grown by 300 MB since its first call, which here is the question for the work, before
    there is a network or an image: it would end after nearly every task, and the next one import torch anew.
    """
    vars(process_executor)["_MAX_MEMORY_LEAK_SIZE"] = float("inf")
    ignore_stops()
    end_with(parent)
    keep_freed_memory()


def _measure(key: str, task: Task, threads: int, parcel: Parcel | None) -> Answer:
    return WORKPLACE.measure(key, task, threads, parcel, str(os.getpid()))


class Processes(Crew):
    """Processes on this machine, which stay for the next study; those that die or hang are replaced."""

    def __init__(self, work: Work, jobs: int, say: Callable[[str], None]):
        super().__init__(work, say)
        self._jobs = jobs
        self._threads = max(1, (joblib.cpu_count(only_physical_cores=True) or 1) // jobs)
        self._executor: Any = None
        self._num_started = 0
        self._num_collapses = 0

    @property
    def num_workers(self) -> int:
        return self._jobs

    @property
    def _room(self) -> int:
        """One where a task may have cost a process its life: alone, it is known which one does.

        When one process dies, loky gives up all of them, so that those beside it are under suspicion too.
        """
        errands = [*self._in_hand.values(), *self._back]
        return 1 if any(errand.deaths for errand in errands) else self._jobs

    def _look_around(self, stop: StopRequest) -> None:
        """Nobody joins or leaves: those that die are replaced."""

    def _submit(self, errand: Errand) -> Future[Answer]:
        parcel = None if errand.asked_by is None else self._parcel
        room = 1 if errand.deaths else self._room
        with deaf_to_stops():
            for _ in range(_MOST_STARTS):
                if self._executor is None or self._num_started < room:
                    self._start(room)
                try:
                    future = self._executor.submit(_measure, self._work.key, errand.task, self._threads, parcel)
                except (BrokenExecutor, RuntimeError):
                    self._executor = None  # one that died while it had nothing to do, or that another study shut down
                    continue
                errand.begin(self._executor)
                return future
        raise DeviceError("processes cannot be started; run the same command again with --jobs 1")

    def _start(self, number: int) -> None:
        """Have so many processes, of which those that are there already are some."""
        threads = max(joblib.cpu_count() // self._jobs, 1)
        self._num_started = number
        self._executor = get_reusable_executor(
            max_workers=number,
            timeout=_IDLE_SECONDS,
            initializer=_begin,
            initargs=(os.getpid(),),
            env={name: os.environ.get(name, str(threads)) for name in _THREADS},
        )

    def _failed(self, errand: Errand, error: BaseException) -> Exception | None:
        if not isinstance(error, BrokenExecutor):
            assert isinstance(error, Exception)
            return error
        if errand.place is self._executor:
            self._executor = None
            self._num_collapses += not errand.deaths  # one that is alone under suspicion says nothing of the others
            self._say("a worker process died, most likely for lack of memory: it is replaced, and its task done again")
            if not errand.deaths and self._num_collapses % _MOST_COLLAPSES == 0 and self._jobs > 1:
                self._jobs //= 2
                self._say(f"{self._jobs} process{'es' * (self._jobs > 1)} from now on, since others keep dying")
        return self._died(errand, "died")

    def _refused(self, errand: Errand, unfit: Unfit) -> Exception | None:
        return DeviceError(f"a worker process cannot begin: {unfit.reason}")

    def _replace(self, hanging: list[Errand]) -> Iterator[tuple[Errand, Exception]]:
        longest = max(errand.waited for errand in hanging)
        self._say(f"a worker process has not answered for {longest:,.0f} s: it is replaced, and its task done again")
        self._drop()
        errands = list(self._in_hand.values())
        self._in_hand.clear()
        for errand in errands:
            if errand not in hanging:
                self._back.append(errand)
            elif (lost := self._died(errand, "did not answer")) is not None:
                yield errand, lost

    def _drop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, kill_workers=True)
            self._executor = None

    def close(self) -> None:
        """Leave the processes to the next study, or to themselves: they end after a while without work."""

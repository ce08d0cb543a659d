"""The seam: tasks in; out come each of them with what was measured, or with the error that came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch

from weanalysis.ablation.evaluate import Evaluator, Measured
from weanalysis.ablation.schedule.stops import StopRequest
from weanalysis.ablation.schedule.tasks import Task
from weanalysis.ablation.schedule.work import Work, Worker
from weanalysis.errors import DeviceError, WeanalysisError


class Lost(Exception):
    """What comes of a task on which processes died again and again; the others go on without it."""


class Executor(Protocol):
    """Who measures the tasks of one work; leaving it as a context lets go of whatever it holds.

    >>> from torch import nn, rand
    >>> from weanalysis.ablation import make_study
    >>> from weanalysis.ablation.schedule import Task, Work, open_executor
    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.data import GivenImages
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = GivenImages([(rand(3, 4, 4), k % 2) for k in range(8)])
    >>> work = Work("key", net, None, None, images, "exact", "float32", 4, ("cpu",), find_cache("cache"))
    >>> task = Task(0, 8, (0, 1), tuple(make_study("channel", net, side="out").ablations))
    >>> with open_executor(work) as executor:
    ...     [(done is task, measured.stop) for done, measured in executor.run([task], StopRequest())]
    [(True, 8)]
    """

    @property
    def num_workers(self) -> int:
        """How many tasks are measured at once, now."""
        ...

    def run(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[tuple[Task, Measured | Exception]]:
        """Measure tasks, each of which is asked for when somebody is free for it, and yield each as it is done.

        Tasks that are given up once a stop was asked for are not yielded.
        """
        ...

    def close(self) -> None:
        """Let go of whatever is held for the work."""
        ...


class InThisProcess:
    """One task after the other, by the process that runs the study; errors are raised where they come up."""

    num_workers = 1

    def __init__(self, work: Work, evaluator: Evaluator | None = None):
        self._worker = Worker(work, work.devices[0], evaluator)

    def run(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[tuple[Task, Measured | Exception]]:
        """Measure tasks in their order."""
        for task in tasks:
            yield task, self._worker.run(task, torch.get_num_threads())

    def close(self) -> None:
        """Nothing is held that does not go with this object."""


def measure_all(
    executor: Executor, tasks: Iterable[Task], stop: StopRequest, distrusted: Mapping[str, str] | None = None
) -> Iterator[tuple[Task, Measured]]:
    """Measure the tasks and yield each as it is done.

    Layers that are `distrusted` by the time a task begins are measured the naive way in it.
    A stop that is asked for ends it after the tasks in hand. Raises the WeanalysisError of a task, or DeviceError
    where a process failed; a task on which processes died is named once the others are done.

    >>> from weanalysis.ablation.schedule import open_executor
    >>> from weanalysis.ablation.studies import channel
    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.data import GivenImages
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    >>> images = GivenImages([(torch.rand(3, 4, 4), k % 3) for k in range(8)])
    >>> work = Work("mine", net, None, None, images, "exact", "float32", 8, ("cpu",), find_cache("cache"))
    >>> tasks = [Task(start, start + 4, (0,), channel(net).ablations[:1]) for start in (0, 4)]
    >>> with open_executor(work) as executor:
    ...     [(measured.start, measured.stop) for _, measured in measure_all(executor, tasks, StopRequest())]
    [(0, 4), (4, 8)]
    """

    def waiting() -> Iterator[Task]:
        for task in tasks:
            if stop.asked:
                return
            yield replace(task, distrusted=dict(distrusted or {}))

    lost: list[str] = []
    for task, outcome in executor.run(waiting(), stop):
        if isinstance(outcome, WeanalysisError):
            raise outcome
        if isinstance(outcome, Lost):
            lost.append(f"{named(task)} ({outcome})")
        elif isinstance(outcome, Exception):
            raise DeviceError(
                f"a worker process failed on images {task.start} to {task.stop - 1}: "
                f"{type(outcome).__name__}: {outcome}; finished shards are kept"
            ) from outcome
        else:
            yield task, outcome
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DeviceError(
            f"workers died, most likely for lack of memory, of {'; '.join(lost[:3])}{more}; all other measurements "
            "are kept: run the same command again with fewer --jobs, or a smaller --batch-size or --shard-size"
        )


def named(task: Task) -> str:
    """Word which task it is."""
    layers = list(dict.fromkeys(layer for ablation in task.ablations for layer in ablation.layers))
    of = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more layers" if len(layers) > 3 else "")
    return f"{len(task.places):,} ablations of {of} on images {task.start} to {task.stop - 1}"

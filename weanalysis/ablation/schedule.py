"""Who measures what, when: tasks of one shard and some ablations, done in this process or in joblib's, one a GPU."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import filelock
import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from torch import Tensor, nn

from weanalysis.ablation.behaviour import NUM_PROBES, Conduct
from weanalysis.ablation.evaluate import Evaluator, Measured, Mode, ScreenSettings
from weanalysis.ablation.studies import Ablation
from weanalysis.cache import Cache
from weanalysis.devices import DTYPES
from weanalysis.errors import DeviceError, WeanalysisError
from weanalysis.memory import keep_freed_memory
from weanalysis.orphans import end_with
from weanalysis.tasks.numbers import OutputTask

# A task should end soon enough for progress to be seen and for Ctrl-C to be answered, and last long enough
# for the intact forward pass and the decoding that it begins with not to count.
TASK_SECONDS = 20.0

# What asks a study to stop: Ctrl-C, and what a batch system sends before it takes the machine away.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Fewer ablations than this would not repay the passes over the intact network that every task begins with.
TASK_ABLATIONS = 16

# A screened task has so many ablations whatever they cost, since its threshold depends on which they are.
SCREENED_ABLATIONS = 2048

# Below this estimate, processes would spend longer importing torch than measuring.
WORTH_PROCESSES_SECONDS = 20.0


@dataclass(frozen=True)
class Work:
    """What every task of a study shares: the network, the images, how to evaluate, and what outputs and targets mean.

    `net` is the network itself, or None where `architecture` and the file `weights` rebuild it.
    `key` tells one work from another within a process.
    """

    key: str
    net: nn.Module | None
    architecture: dict[str, Any] | None
    weights: Path | None
    data: Any
    mode: Mode
    dtype: str
    batch_size: int
    devices: tuple[str, ...]
    cache: Cache
    screen: ScreenSettings | None = None
    conduct: Conduct = field(default_factory=Conduct)
    output_task: OutputTask | None = None

    def load(self) -> nn.Module:
        """Return the network: the one at hand, or built and read from its file."""
        if self.net is not None:
            return self.net
        from weanalysis.models import build, read_state_dict

        assert self.architecture is not None and self.weights is not None
        net = build(self.architecture)
        net.load_state_dict(read_state_dict(self.weights)[0])
        return net


@dataclass(frozen=True)
class Task:
    """Ablations to measure on the images `start` … `stop`−1; `places` are their positions in the study.

    `distrusted` are layers that are measured the naive way, each with the reason.
    """

    start: int
    stop: int
    places: tuple[int, ...]
    ablations: tuple[Ablation, ...]
    distrusted: dict[str, str] = field(default_factory=dict)


def cut(
    places: Sequence[int],
    costs: Sequence[float],
    start: int,
    stop: int,
    seconds_per_image: float,
    ablations: Sequence[Ablation],
    mode: Mode,
) -> list[Task]:
    """Cut a shard's ablations into tasks of about TASK_SECONDS, from the measured cost of one forward pass.

    Screened ones are cut by number alone, so that a study that goes on after a stop is cut as before.
    """
    if mode == "screened":
        parts = [places[low : low + SCREENED_ABLATIONS] for low in range(0, len(places), SCREENED_ABLATIONS)]
        return [Task(start, stop, tuple(part), tuple(ablations[p] for p in part)) for part in parts]
    tasks: list[Task] = []
    chosen: list[int] = []
    seconds = 0.0
    for place in places:
        cost = costs[place] * seconds_per_image * (stop - start)
        if len(chosen) >= TASK_ABLATIONS and seconds + cost > TASK_SECONDS:
            tasks.append(Task(start, stop, tuple(chosen), tuple(ablations[p] for p in chosen)))
            chosen, seconds = [], 0.0
        chosen.append(place)
        seconds += cost
    if chosen:
        tasks.append(Task(start, stop, tuple(chosen), tuple(ablations[p] for p in chosen)))
    return tasks


def choose_jobs(
    work: Work,
    asked: int | None,
    num_tasks: int,
    num_passes: float,
    seconds_per_image: float,
    say: Callable[[str], None],
) -> int:
    """How many processes: one a GPU; on the CPU one a core where the study is long enough to repay their start.

    `asked` is what the user wants (None: chosen). The tasks take as long as `num_passes` forward passes of an image.
    """
    if work.devices != ("cpu",):
        if asked is not None and asked > len(work.devices):
            say(f"{len(work.devices)} processes instead of {asked}: one a GPU")
        return max(1, min(len(work.devices), num_tasks, asked or len(work.devices)))
    if asked is not None:
        return max(1, min(asked, num_tasks))
    if work.net is not None:
        return 1
    seconds = seconds_per_image * num_passes
    cores = joblib.cpu_count(only_physical_cores=True) or 1
    jobs = 1 if seconds < WORTH_PROCESSES_SECONDS else max(1, min(cores, num_tasks))
    if num_tasks:
        shared = f"{jobs} processes of one thread" if jobs > 1 else "one process"
        say(
            f"a forward pass takes {1000 * seconds_per_image:.1f} ms an image here: about {seconds / jobs:,.0f} s in "
            f"{shared}"
        )
    return jobs


class StopRequest:
    """Turns the first Ctrl-C into a flag that is looked at between tasks; the second one interrupts at once.

    `say` is called with a line for a person when the first one comes, since a task in hand takes its time.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._asked = False
        self._say = say

    @property
    def asked(self) -> bool:
        """Whether one is to stop when what is in hand is done."""
        return self._asked

    def ask(self) -> None:
        """Have it stop when what is in hand is done."""
        self._asked = True

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen within the block; only the main thread can, elsewhere Ctrl-C keeps its meaning."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def on_signal(_number: int, _frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self.ask()
            with suppress(RuntimeError):  # a signal that comes in the middle of a print may not print
                self._say("stopping when the measurements in hand are done; press Ctrl-C again to stop at once")

        previous = {number: signal.signal(number, on_signal) for number in _STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Worker:
    """A process's own network and the images of the shard in hand, kept from task to task."""

    def __init__(self, work: Work, device: str, evaluator: Evaluator | None = None):
        self.work = work
        self.evaluator = evaluator or Evaluator(
            work.load(),
            work.mode,
            device,
            DTYPES[work.dtype],
            work.batch_size,
            work.screen,
            work.dtype == "tf32",
            work.conduct,
            work.data.batch(0, NUM_PROBES)[0],
            task=work.output_task,
        )
        self._shard: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def run(self, task: Task, threads: int) -> Measured:
        span = (task.start, task.stop)
        if self._shard is None or self._shard[0] != span:
            self._shard = None
            self._shard = (span, self.work.data.batch(task.start, task.stop, threads))
        images, targets = self._shard[1]
        self.evaluator.distrust(task.distrusted)
        return self.evaluator.measure(images, targets, task.ablations, task.start)


_worker: _Worker | None = None
_claims: list[filelock.BaseFileLock] = []


def _claim(work: Work) -> str:
    """Give this process a GPU of its own: the first one whose lock no other process of the study holds."""
    if len(work.devices) == 1:
        return work.devices[0]
    for device in work.devices:
        lock = filelock.FileLock(work.cache.lock_file(f"{work.key}-{device.replace(':', '-')}"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        _claims.append(lock)
        return device
    return work.devices[os.getpid() % len(work.devices)]


def _begin_worker(parent: int) -> None:
    """What a process of joblib's does before its first task."""
    end_with(parent)
    keep_freed_memory()


def _run_in_worker(work: Work, task: Task, threads: int) -> tuple[Task, Measured | Exception]:
    """Measure a task in a process of joblib's; an error comes back as a value, so that none is lost."""
    global _worker
    for number in _STOP_SIGNALS:  # the parent hears them, and lets the task in hand finish
        signal.signal(number, signal.SIG_IGN)
    try:
        torch.set_num_threads(threads)
        if _worker is None or _worker.work.key != work.key:
            _worker = _Worker(work, _claim(work))
        return task, _worker.run(task, threads)
    except Exception as error:
        # The traceback stays here; its text goes along, for whoever asks for it.
        error.add_note(traceback.format_exc())
        return task, error


def _deaf_to_stops(start: Callable[[], Any]) -> Any:
    """Call what starts processes so that they never hear Ctrl-C or SIGTERM, not even before their first task.

    A terminal, and a batch system, sends it to all processes, and one that dies of it takes the others with it. They
    inherit that it is blocked; this process hears one that comes meanwhile right afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows.
        return start()
    resource_tracker.ensure_running()  # multiprocessing's own helper, whose start would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    work: Work,
    tasks: Sequence[Task],
    jobs: int,
    stop: StopRequest,
    distrusted: Mapping[str, str] | None = None,
    evaluator: Evaluator | None = None,
) -> Iterator[tuple[Task, Measured]]:
    """Measure the tasks with `jobs` processes (1: in this one) and yield each as it is done.

    Layers that are `distrusted` by the time a task begins are measured the naive way in it.
    A stop that is asked for ends it after the tasks in hand. Raises the WeanalysisError of a task, or DeviceError
    where a process died.
    """
    if jobs == 1:
        worker = _Worker(work, work.devices[0], evaluator)
        for task in tasks:
            if stop.asked:
                return
            yield task, worker.run(replace(task, distrusted=dict(distrusted or {})), torch.get_num_threads())
        return
    threads = max(1, (joblib.cpu_count(only_physical_cores=True) or 1) // jobs)

    def waiting() -> Iterator[Any]:
        for task in tasks:
            if stop.asked:
                return
            yield joblib.delayed(_run_in_worker)(work, replace(task, distrusted=dict(distrusted or {})), threads)

    parallel = joblib.Parallel(
        n_jobs=jobs,
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=jobs,
        max_nbytes=None,
        initializer=_begin_worker,
        initargs=(os.getpid(),),
    )
    try:
        for task, outcome in _deaf_to_stops(lambda: parallel(waiting())):
            if isinstance(outcome, WeanalysisError):
                raise outcome
            if isinstance(outcome, Exception):
                raise DeviceError(
                    f"a worker process failed on images {task.start} to {task.stop - 1}: "
                    f"{type(outcome).__name__}: {outcome}; finished shards are kept"
                ) from outcome
            yield task, outcome
    except TerminatedWorkerError as error:
        raise DeviceError(
            "a worker process died, most likely for lack of memory; finished shards are kept: "
            f"run the same command again with --jobs {max(1, jobs // 2)}"
        ) from error

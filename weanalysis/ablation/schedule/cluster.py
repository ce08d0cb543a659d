"""The workers of a Dask scheduler, on whatever hosts: they may join, leave and die while a study runs."""

from __future__ import annotations

import asyncio
import json
import logging
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weanalysis.ablation.schedule.crew import LOOK_SECONDS, MOST_DEATHS, Crew, Errand
from weanalysis.ablation.schedule.stops import StopRequest
from weanalysis.ablation.schedule.tasks import Task
from weanalysis.ablation.schedule.work import ANY_GPU, WORKPLACE, Answer, Parcel, Unfit, Work
from weanalysis.errors import DeviceError, one_line
from weanalysis.memory import keep_freed_memory

# How long a scheduler is looked for in the beginning, and how long it may be away later: seconds.
FIRST_WAIT, LONGEST_AWAY = 10.0, 60.0

# How long it may take to answer a question, and workers that have just joined.
_ANSWER_SECONDS, _CHECK_SECONDS = 30.0, 5.0

# How long a study that ends waits for workers to hear of it: one of them may have died just now.
_LEAVE_SECONDS = 2.0

_HOW_TO_START = (
    "start one with `dask scheduler --scheduler-file FILE`, and workers with `dask worker`; see docs/cluster.md"
)


def _measure(key: str, task: Task, parcel: Parcel | None) -> Answer:
    """What a worker does with a task."""
    from distributed import get_worker

    if parcel is not None:
        keep_freed_memory()
    worker = get_worker()
    return WORKPLACE.measure(key, task, worker.state.nthreads, parcel, worker.address)


async def _leave(key: str) -> None:
    """What a worker does when a study ends, beside whatever it is at."""
    WORKPLACE.leave(key)


@dataclass(eq=False)
class Sent:
    """How the scheduler knows a task: its `key`, which `workers` may have it (None: any), and how many died of it."""

    key: str
    workers: set[str] | None
    deaths: int = 0

    def die(self, times: int) -> None:
        """So many more workers died of it."""
        self.deaths += times


class Cluster(Crew):
    """The workers of one scheduler, whoever has started them; this process alone keeps what they measure.

    `scheduler` is its address or the file that says it, which is read again when it went away: an allocation of a batch
    system may have ended, and the next one have another address. Raises DeviceError where it is not there, or away for
    longer than `longest_away` seconds.
    """

    def __init__(self, work: Work, scheduler: str, longest_away: float | None, say: Callable[[str], None]):
        # A worker has GPUs of its own, which need not be called what those are called here.
        is_cuda = work.devices[0].startswith("cuda")
        super().__init__(replace(work, devices=ANY_GPU) if is_cuda else work, say)
        self._scheduler = scheduler
        self._longest_away = LONGEST_AWAY if longest_away is None else longest_away
        self._workers: set[str] = set()
        self._checked: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._num_sent = 0
        self._killed: Counter[str] = Counter()  # keys of tasks, each as often as a worker that had it in hand died
        self._seen: tuple[int, int] | None = None
        self._next_look = 0.0
        for name in ("distributed", "distributed.client"):  # what goes wrong there is said here, in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client = self._connect(FIRST_WAIT if longest_away is None else longest_away, lambda: False)

    @property
    def num_workers(self) -> int:
        return len(self._fit)

    @property
    def _fit(self) -> set[str]:
        return self._workers - self._unfit.keys()

    # The scheduler ----------------------------------------------------------------------------------------------------

    def _connect(self, seconds: float, is_stopped: Callable[[], bool]) -> Any:
        """Return a client of the scheduler, which is looked for as long as that."""
        from distributed import Client

        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                address = scheduler_address(self._scheduler)
                timeout = max(1.0, min(_ANSWER_SECONDS, left))
                client = Client(address, timeout=timeout, set_as_default=False, name="weanalysis")
                client.subscribe_topic("all", self._hear)
                self._take_stock(client)
                return client
            except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
                why = error
            if time.monotonic() >= deadline or is_stopped() or isinstance(why, DeviceError):
                raise DeviceError(
                    f"there is no scheduler at {self._scheduler} ({one_line(why, 200) or type(why).__name__}), looked "
                    f"for during {seconds:,.0f} s: {_HOW_TO_START}; what was measured is kept"
                ) from why
            time.sleep(LOOK_SECONDS)

    def _hear(self, event: tuple[float, Any]) -> None:
        """What the scheduler says of its workers; the client's own thread calls it.

        A worker that was lost in the middle of a task is counted here, since the scheduler has others do the task and
        tells of it only when it gives up, after as many deaths as it was configured to allow.
        """
        said = event[1]
        if isinstance(said, dict) and said.get("action") == "remove-worker" and not said.get("expected"):
            tasks = said.get("processing-tasks")
            self._killed.update(tasks if isinstance(tasks, set | list | tuple | frozenset) else ())
            self._ended.put(None)  # so that whoever waits for a task looks at once

    def _count_deaths(self, errand: Errand) -> None:
        """Count the workers that are known to have died of a task since that was asked last."""
        if times := self._killed.pop(errand.place.key, 0):
            errand.place.die(times)
            errand.die(times)

    def _look_around(self, stop: StopRequest) -> None:
        """See which workers are there, and find the scheduler again where it is gone."""
        for future, errand in self._in_hand.items():
            self._count_deaths(errand)
            if errand.deaths >= MOST_DEATHS:
                future.cancel()  # whose error comes back like any other
        if time.monotonic() < self._next_look and self._client.status == "running":
            return
        try:
            if self._client.status != "running":
                raise OSError("the connection is lost")
            self._take_stock(self._client)
        except OSError:
            self._find_again(stop)
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._refuse_if_none_is_fit()

    def _find_again(self, stop: StopRequest) -> None:
        """Connect to a scheduler that went away, or to the one in its place; what was in hand is sent again."""
        self._say(f"the scheduler at {self._scheduler} is away: it is looked for during {self._longest_away:,.0f} s")
        for errand in self._in_hand.values():
            self._count_deaths(errand)
        self._back.extend(self._in_hand.values())
        self._in_hand.clear()
        self._workers = set()
        self._client.close(timeout=1)
        if not stop.asked:
            self._client = self._connect(self._longest_away, lambda: stop.asked)
            self._say("the scheduler is there again: what was in hand is measured again")

    def _take_stock(self, client: Any) -> None:
        """Ask the scheduler which workers there are, and those that are new what they have."""
        self._workers = set(client.nthreads(callback_timeout=_ANSWER_SECONDS))
        self._unfit = {worker: why for worker, why in self._unfit.items() if worker in self._workers}
        self._checked &= self._workers
        self._check_new(client)
        for errand in [one for one in self._in_hand.values() if one.place.workers is not None]:
            if not errand.place.workers & self._workers:
                self._take_away(errand)
                self._back.append(errand)
        seen = len(self._workers), len(self._fit)
        if seen != self._seen:
            if not self._fit and not self._unfit:
                self._say(f"no worker has joined {self._scheduler} yet, or all have left: waiting for some")
            elif self._seen is not None:
                self._say(f"{len(self._fit)} worker{'s' * (len(self._fit) != 1)} now")
            self._seen = seen

    def _check_new(self, client: Any) -> None:
        """Leave out those who have joined without weanalysis."""
        if new := sorted(self._fit - self._checked):
            # The standard library's function: what is ours cannot even be named where it is missing.
            question = pkgutil.resolve_name, "weanalysis:__name__"
            try:
                there = client.run(*question, workers=new, on_error="return", callback_timeout=_CHECK_SECONDS)
            except OSError:
                there = {}  # one is too busy, or gone again: what is wrong with the others shows with their tasks
            for worker, answer in there.items():
                if isinstance(answer, ImportError):
                    self._leave_out(worker, f"weanalysis cannot be imported there ({one_line(answer, 200)})")
            self._checked |= set(new)

    def _leave_out(self, worker: str, reason: str) -> None:
        if worker not in self._unfit:
            self._unfit[worker] = reason
            self._say(f"the worker {worker} is left out: {reason}")

    def _refuse_if_none_is_fit(self) -> None:
        was_fit = self._num_timed > 0  # then others of the kind may come back
        if self._workers and not self._fit and not was_fit and not self._in_hand:
            worker, reason = next(iter(self._unfit.items()))
            raise DeviceError(
                f"none of the {len(self._workers)} workers of {self._scheduler} can measure this; {worker}: {reason}. "
                "Install what is said to differ, and keep data and cache (--cache DIR) in folders that all hosts have "
                "under the same path"
            )

    # Tasks ------------------------------------------------------------------------------------------------------------

    def _submit(self, errand: Errand) -> Any:
        allowed = self._fit if self._unfit else None
        parcel, others_may = None, False
        if errand.asked_by is not None and errand.asked_by in self._fit:
            try:
                parcel = self._client.scatter(
                    self._parcel, workers=[errand.asked_by], hash=False, direct=False, timeout=_ANSWER_SECONDS
                )
                allowed, others_may = {errand.asked_by}, True
            except (OSError, ValueError):
                parcel = None  # it has left meanwhile, and another one will ask
        self._num_sent += 1
        key = f"weanalysis-{self._work.key[:16]}-{self._client.id}-{self._num_sent}"
        errand.begin(Sent(key, None if others_may or allowed is None else set(allowed)))
        return self._client.submit(
            _measure,
            self._work.key,
            errand.task,
            parcel,
            key=key,
            workers=None if allowed is None else sorted(allowed),
            allow_other_workers=others_may,
            pure=False,
        )

    def _answer(self, future: Any) -> Answer:
        return future.result(timeout=_ANSWER_SECONDS)

    def _failed(self, errand: Errand, error: BaseException) -> Exception | None:
        from distributed.scheduler import KilledWorker

        self._count_deaths(errand)
        is_there = self._client.status == "running"
        is_cancelled = isinstance(error, (CancelledError, asyncio.CancelledError))
        if isinstance(error, KilledWorker):
            return self._died(errand, "died", max(0, error.allowed_failures + 1 - errand.place.deaths))
        if is_cancelled and errand.carries_work and is_there:  # what a worker is sent is with it alone
            return self._died(errand, "died", 0 if errand.place.deaths else 1)
        if is_cancelled or isinstance(error, OSError) or not is_there:
            # The scheduler went away, or a worker with what it had measured, or too many died of it.
            return self._died(errand, "died", 0)
        assert isinstance(error, Exception)
        if isinstance(error, ImportError):  # a worker that has just joined, and is seen to lack it in a moment
            return self._died(errand, "could not begin")
        return error

    def _refused(self, errand: Errand, unfit: Unfit) -> Exception | None:
        self._leave_out(unfit.process, unfit.reason)
        self._back.append(errand)
        return None

    def _take_away(self, errand: Errand) -> None:
        """Have nobody go on with a task."""
        self._count_deaths(errand)
        (future,) = [one for one, its in self._in_hand.items() if its is errand]
        del self._in_hand[future]
        future.cancel()

    def _replace(self, hanging: list[Errand]) -> Iterator[tuple[Errand, Exception]]:
        keys = {future.key: errand for future, errand in self._in_hand.items() if errand in hanging}
        try:
            busy = self._client.sync(self._client.scheduler.processing, callback_timeout=_ANSWER_SECONDS)
        except OSError:
            busy = {}  # the scheduler is away, which is seen to with the next look
        for worker, tasks in busy.items():
            if not keys.keys().isdisjoint(tasks):
                self._leave_out(worker, "it has not answered for far longer than its task should take")
        for errand in hanging:
            self._take_away(errand)
            if (lost := self._died(errand, "did not answer")) is not None:
                yield errand, lost

    def _drop(self) -> None:
        if self._client.status == "running":
            self._client.cancel(list(self._in_hand), force=True)

    def close(self) -> None:
        """Let the workers forget the study, and the scheduler this process."""
        if self._client.status == "running":
            # Whatever comes of a worker that is leaving too: the next study makes it forget.
            with suppress(Exception):
                self._client.run(
                    _leave, self._work.key, workers=sorted(self._fit), wait=False, callback_timeout=_LEAVE_SECONDS
                )
        self._client.close(timeout=5)


def scheduler_address(scheduler: str) -> str:
    """Return the address that is given, or that the scheduler file which is given holds; raise DeviceError."""
    if "://" in scheduler:
        return scheduler
    path = Path(scheduler).expanduser()
    if not path.exists() and ":" in scheduler and "/" not in scheduler:
        return f"tcp://{scheduler}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError("there is no such file") from error
    try:
        address = json.loads(text)["address"]
    except (ValueError, KeyError, TypeError):
        address = None
    if not isinstance(address, str) or "://" not in address:
        if text.strip():
            raise DeviceError(
                f"{scheduler} is no scheduler file: give what `dask scheduler --scheduler-file FILE` writes, or an "
                "address such as tcp://HOST:8786"
            )
        raise FileNotFoundError("it is being written")
    return address

"""What every task of a study shares, and the process that has it at hand from one task to the next."""

from __future__ import annotations

import os
import pickle
import platform
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import torch
from joblib.externals.loky.backend.reduction import dumps
from torch import Tensor, nn

from weanalysis.ablation.behaviour import NUM_PROBES, Conduct
from weanalysis.ablation.evaluate import Evaluator, Measured, Mode, ScreenSettings
from weanalysis.ablation.schedule.tasks import Task
from weanalysis.cache import Cache
from weanalysis.devices import DTYPES
from weanalysis.errors import DeviceError
from weanalysis.tasks.numbers import OutputTask
from weanalysis.versions import versions

# In place of the names of devices: whichever CUDA device a process finds where it runs.
ANY_GPU = ("cuda",)


@dataclass(frozen=True)
class Work:
    """What every task of a study shares: the network, the images, how to evaluate, and what outputs and targets mean.

    `net` is the network itself, or None where `architecture` and the file `weights` rebuild it.
    `key` tells one work from another within a process.

    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.data import GivenImages
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    >>> images = GivenImages([(torch.rand(3, 4, 4), k % 3) for k in range(8)])
    >>> work = Work("mine", net, None, None, images, "exact", "float32", 8, ("cpu",), find_cache("cache"))
    >>> work.load() is net, tuple(work.data.batch(0, 8)[0].shape)
    (True, (8, 3, 4, 4))
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


class Worker:
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
        """Measure a task; raise whatever the network, the images or the device give cause for."""
        span = (task.start, task.stop)
        if self._shard is None or self._shard[0] != span:
            self._shard = None
            self._shard = (span, self.work.data.batch(task.start, task.stop, threads))
        images, targets = self._shard[1]
        self.evaluator.distrust(task.distrusted)
        return self.evaluator.measure(images, targets, task.ablations, task.start)


# Another process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """A work as it is sent, once to every process that asks for it; `made_by` are the versions that packed it."""

    content: bytes
    made_by: dict[str, str]

    @classmethod
    def of(cls, work: Work) -> Parcel:
        """Pack a work: what is reached by a path, such as weights and pictures, goes as that path."""
        return cls(bytes(dumps(work)), versions())


@dataclass(frozen=True)
class LacksWork:
    """What a process answers that has not been sent the work of a task; `process` is what its executor calls it."""

    process: str


@dataclass(frozen=True)
class Unfit:
    """What a process answers that cannot measure what is asked, and why; others may."""

    process: str
    reason: str


Answer = Measured | Exception | LacksWork | Unfit


class Workplace:
    """What a process that works for a study keeps from task to task: the one worker of the work in hand."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._claimed: filelock.BaseFileLock | None = None
        # A process of several threads still has one network, which is in one state at a time.
        self._lock = threading.Lock()

    def measure(self, key: str, task: Task, threads: int, parcel: Parcel | None, process: str) -> Answer:
        """Measure a task of the work `key`, with `parcel` where it was asked for; errors come back, none is raised."""
        with self._lock:
            if parcel is not None and (reason := self._take_up(parcel, key)):
                return Unfit(process, reason)
            if self._worker is None or self._worker.work.key != key:
                return LacksWork(process)
            try:
                torch.set_num_threads(threads)
                return self._worker.run(task, threads)
            except Exception as error:
                # The traceback stays here; its text goes along, for whoever asks for it.
                error.add_note(traceback.format_exc())
                return error

    def leave(self, key: str) -> None:
        """Let go of a work, and of the device that was claimed for it, unless it is being measured."""
        if self._lock.acquire(blocking=False):
            try:
                if self._worker is not None and self._worker.work.key == key:
                    self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        self._worker = None
        if self._claimed is not None:
            self._claimed.release()
            self._claimed = None

    def _take_up(self, parcel: Parcel, key: str) -> str | None:
        """Get ready for the work of a parcel, unless it is in hand; return why that cannot be."""
        if self._worker is not None and self._worker.work.key == key:
            return None
        self._let_go()
        if other := other_versions(parcel.made_by, versions()):
            return other
        try:
            work: Work = pickle.loads(parcel.content)
            self._worker = Worker(work, self._claim(work))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _claim(self, work: Work) -> str:
        """Give this process a GPU of its own: the first one whose lock no other process of the study holds."""
        devices = work.devices
        if devices == ANY_GPU:
            devices = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
            if not devices:
                raise DeviceError("this host has no CUDA device")
        if len(devices) == 1:
            return devices[0]
        for device in devices:
            name = f"{work.key}-{platform.node()}-{device.replace(':', '-')}"
            lock = filelock.FileLock(work.cache.lock_file(name))
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            self._claimed = lock
            return device
        return devices[os.getpid() % len(devices)]


#: This process's, where it works for a study that another one runs.
WORKPLACE = Workplace()

# What must be the same in two processes for what they measure to be one study's.
_MUST_AGREE = ("weanalysis", "torch", "python")


def other_versions(wanted: dict[str, str], there: dict[str, str]) -> str | None:
    """Word what is of another version `there`; None where nothing is that matters.

    Of torch, builds for different devices are alike ("2.13.0+cpu"); of Python, patches are.
    """
    differing = [
        f"{name} {there.get(name, 'is missing')} there, {wanted[name]} here"
        for name in _MUST_AGREE
        if name in wanted and _release(name, there.get(name, "")) != _release(name, wanted[name])
    ]
    return "; ".join(differing) or None


def _release(name: str, version: str) -> str:
    return version.rpartition(".")[0] if name == "python" else version.partition("+")[0]

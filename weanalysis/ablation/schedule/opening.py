"""Which executor a study gets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing

from weanalysis.ablation.evaluate import Evaluator
from weanalysis.ablation.schedule.executor import Executor, InThisProcess
from weanalysis.ablation.schedule.work import Work
from weanalysis.errors import DeviceError


def open_executor(
    work: Work,
    jobs: int = 1,
    scheduler: str | None = None,
    longest_away: float | None = None,
    evaluator: Evaluator | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> AbstractContextManager[Executor]:
    """Return who measures a work: this process (with its `evaluator`), `jobs` processes, or a scheduler's workers.

    `scheduler` is a Dask scheduler's address or file, which may be away for `longest_away` seconds. Raises DeviceError
    where there is none, or Dask is not installed.

    >>> from torch import nn, rand
    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.data import GivenImages
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    >>> images = GivenImages([(rand(3, 4, 4), k % 3) for k in range(8)])
    >>> work = Work("mine", net, None, None, images, "exact", "float32", 8, ("cpu",), find_cache("cache"))
    >>> with open_executor(work) as executor:
    ...     type(executor).__name__, executor.num_workers
    ('InThisProcess', 1)
    """
    if scheduler is not None:
        try:
            from weanalysis.ablation.schedule.cluster import Cluster
        except ImportError as error:
            raise DeviceError(f"a scheduler needs Dask ({error}): pip install 'weanalysis[cluster]'") from error
        return closing(Cluster(work, scheduler, longest_away, say))
    if jobs == 1:
        return closing(InThisProcess(work, evaluator))
    from weanalysis.ablation.schedule.processes import Processes

    return closing(Processes(work, jobs, say))

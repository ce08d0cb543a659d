"""What there is to do, cut into tasks that end soon enough, and how many processes that is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import joblib

from weanalysis.ablation.evaluate import Mode
from weanalysis.ablation.studies import Ablation

# A task should end soon enough for progress to be seen and for Ctrl-C to be answered, and last long enough
# for the intact forward pass and the decoding that it begins with not to count.
TASK_SECONDS = 20.0

# Fewer ablations than this would not repay the passes over the intact network that every task begins with.
TASK_ABLATIONS = 16

# A screened task has so many ablations whatever they cost, since its threshold depends on which they are.
SCREENED_ABLATIONS = 2048

# Below this estimate, processes would spend longer importing torch than measuring.
WORTH_PROCESSES_SECONDS = 20.0


@dataclass(frozen=True)
class Task:
    """Ablations to measure on the images `start` … `stop`−1; `places` are their positions in the study.

    `distrusted` are layers that are measured the naive way, each with the reason. By the cost of a forward pass where
    the study was prepared it takes `seconds`.

    >>> from weanalysis.ablation.studies import Part
    >>> task = Task(0, 250, (7,), (Ablation((Part("conv1", (3,)),), "filter", 27),))
    >>> task.ablations[0].key, task.stop - task.start
    ('conv1[3;*]', 250)
    """

    start: int
    stop: int
    places: tuple[int, ...]
    ablations: tuple[Ablation, ...]
    distrusted: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


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

    Forty ablations, each of which repeats half a forward pass of 10 ms on 250 images:

    >>> from weanalysis.ablation.studies import Part
    >>> ablations = [Ablation((Part("conv1", (k,)),), "filter", 27) for k in range(40)]
    >>> tasks = cut(range(40), [0.5] * 40, 0, 250, 0.01, ablations, "exact")
    >>> [len(task.places) for task in tasks], tasks[0].seconds
    ([16, 16, 8], 20.0)
    """
    seconds = [costs[place] * seconds_per_image * (stop - start) for place in places]

    def task(low: int, high: int) -> Task:
        part = tuple(places[low:high])
        return Task(start, stop, part, tuple(ablations[p] for p in part), seconds=sum(seconds[low:high]))

    if mode == "screened":
        return [task(low, low + SCREENED_ABLATIONS) for low in range(0, len(places), SCREENED_ABLATIONS)]
    tasks: list[Task] = []
    low, so_far = 0, 0.0
    for high in range(len(places)):
        if high - low >= TASK_ABLATIONS and so_far + seconds[high] > TASK_SECONDS:
            tasks.append(task(low, high))
            low, so_far = high, 0.0
        so_far += seconds[high]
    return [*tasks, task(low, len(places))] if low < len(places) else tasks


def choose_jobs(
    devices: tuple[str, ...],
    is_rebuilt: bool,
    asked: int | None,
    num_tasks: int,
    num_passes: float,
    seconds_per_image: float,
    say: Callable[[str], None],
) -> int:
    """How many processes: one a GPU; on the CPU one a core where the study is long enough to repay their start.

    `asked` is what the user wants (None: chosen), which on the CPU is one where the network cannot be built anew
    (`is_rebuilt`). The tasks take as long as `num_passes` forward passes of an image.

    >>> choose_jobs(("cpu",), True, None, 40, 500, 0.002, print)
    a forward pass takes 2.0 ms an image here: about 1 s in one process
    1
    >>> choose_jobs(("cuda:0", "cuda:1"), True, 4, 40, 500, 0.002, print)
    2 processes instead of 4: one a GPU
    2
    """
    if devices != ("cpu",):
        if asked is not None and asked > len(devices):
            say(f"{len(devices)} processes instead of {asked}: one a GPU")
        return max(1, min(len(devices), num_tasks, asked or len(devices)))
    if asked is not None:
        return max(1, min(asked, num_tasks))
    if not is_rebuilt:
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

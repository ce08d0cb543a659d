"""The main job: a network, images and a study go in; the measured importance of weights comes out, kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import filelock
import pandas as pd
from torch import nn

from weanalysis.ablation.evaluate import Mode
from weanalysis.ablation.execution import Outcome, execute
from weanalysis.ablation.progress import Status
from weanalysis.ablation.record import StudyRecord
from weanalysis.ablation.settings import SHARD_SIZE, check_settings
from weanalysis.ablation.setup import Request, Setup, set_up
from weanalysis.ablation.studies import Study
from weanalysis.cache import Cache, find_cache
from weanalysis.errors import StoreError
from weanalysis.kinds import DEFAULT, kind_called
from weanalysis.models import Model
from weanalysis.provenance import called_as
from weanalysis.results import Store
from weanalysis.results.contrast import lowest_and_highest
from weanalysis.results.store import Writer
from weanalysis.tasks import CLASSIFICATION, default_metric
from weanalysis.tasks.own import OwnMetric


def ablate(
    model: Model | nn.Module,
    data: Any,
    study: Study | str = DEFAULT,
    evaluate: Mode = "exact",
    metric: str | OwnMetric | None = None,
    *,
    cache: Cache | str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    jobs: int | None = None,
    batch_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    name: str | None = None,
    until_ci: float | None = None,
    until_significant: bool = False,
    max_error: float = 0.1,
    forward_seed: int | None = None,
    output: str | int | None = None,
    scheduler: str | None = None,
    scheduler_wait: float | None = None,
    report: Callable[[Status], None] | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure the decrease in performance D of every ablation of a study, and keep it in the cache.

    `model`: a `Model` or any `nn.Module` whose output is (images, classes) logits, or (images, classes, H, W) for
    masks; only copies of it are run.
    `data`: an `ImageData`, or any map-style dataset of (FloatTensor(3, H, W), class index). `metric`: a name (None:
    top1, of masks miou), or what `weanalysis.metric` makes of a function; with one, targets may be any numbers instead
    of a class index, and with one of segmentation they are masks (H, W) of class indices, 255 where there is none.
    `study`: a `Study`, or the name of one with its `options`. `jobs`: processes on the CPU (None: chosen; one a GPU on
    several GPUs).
    `until_ci`: leave an ablation alone once its interval is at most so many points wide; `until_significant`: once
    its D is told from 0, corrected for the number of ablations; with both, whichever comes first. Intervals and
    p-values then hold under that stopping, and are wider than those for a number of images fixed beforehand.
    `max_error`: with evaluate "screened", the largest error of D on these images that is wanted, in points.
    `forward_seed`: for a network that draws random numbers in its forward pass, from where it draws them alike in every
    pass; one whose answers hang on the other images of a batch is measured in batches of `batch_size`, if given.
    `scheduler`: the address of a Dask scheduler, or its scheduler file, whose workers measure instead of `jobs`; it may
    be away for `scheduler_wait` seconds (None: 10 in the beginning, 60 later).
    `output`: the name or the place of the logits, where a network returns several tensors that could be them.
    Returns one row an ablation with the columns of `results.COLUMNS`; drops are in the unit of `metric`,
    positive where the ablated network is worse (§3.1 of the paper). The table's `attrs` hold study_id, name,
    intact, num_images, seconds, how many answers were checked the naive way (num_checked of num_answers) and what came
    of those that were measured twice, in batches of two sizes (`repeated`), and in `doubt` a line where the intact
    network only guesses. Work already in the cache is not repeated. `report` is called as results come, `say` with
    lines for a person. Raises WeanalysisError for unusable input, Interrupted after Ctrl-C.

    A network that answers the brightest colour, and what each of its filters is worth:

    >>> from torch import eye, nn
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net[0].weight.data = eye(3)[:, :, None, None]
    >>> images = [((1 + eye(3)[k % 3])[:, None, None].expand(3, 4, 4), k % 3) for k in range(12)]
    >>> ablate(net, images, "channel", side="out")["drop"].round(1).tolist()
    [33.3, 33.3, 33.3]
    """
    command = called_as(ablate, locals(), **options)
    say = say or (lambda line: None)
    settings = check_settings(
        evaluate,
        default_metric(getattr(data, "task", CLASSIFICATION)) if metric is None else metric,
        device,
        dtype,
        jobs,
        batch_size,
        shard_size,
        until_ci,
        until_significant,
        max_error,
        forward_seed,
        scheduler,
        scheduler_wait,
    )
    if isinstance(study, str):
        kind_called(study).check_options(options)
    cache = (cache if isinstance(cache, Cache) else find_cache(cache)).ready()
    setup = set_up(Request(model, data, study, options, name, output, command), settings, cache, say)
    with (
        _only_writer(cache, setup.key, setup.name),
        Writer.open(cache.results, say) as writer,
        Store.open(cache.results) as store,
    ):
        _say_outdated(store, setup.name, say)
        record = StudyRecord(writer, store, setup)
        return _finished_table(setup, record, execute(setup, record, report, say))


def _say_outdated(store: Store, name: str, say: Callable[[str], None]) -> None:
    """Say that a study of this name is measured again where an older engine measured it."""
    if old := store.outdated(name):
        say(
            f"the study {name} (number {', '.join(str(number) for number, _ in old)}) was measured by an older "
            "version, whose answers could be wrong for some networks: it is measured again, under a new number"
        )


def _finished_table(setup: Setup, record: StudyRecord, outcome: Outcome) -> pd.DataFrame:
    """The table of a study that was measured, with what else is to be told of it in its `attrs`."""
    store, study_id = record.store, record.study_id
    table = store.table(study_id, setup.metric.name)
    most_seen = table.loc[table["num_images"].idxmax()]
    table.attrs = {
        "study_id": study_id,
        "name": setup.name,
        "intact": float(most_seen["intact"]),
        "num_images": int(most_seen["num_images"]),
        "stopping": setup.about["stopping"],
        "num_settled": outcome.num_settled,
        "seconds": time.perf_counter() - setup.began,
        "reused": outcome.reused,
        "doubt": outcome.doubt,
        **store.agreement(study_id),
        **(contrast.summary() if (contrast := lowest_and_highest(store, study_id, table=table)) else {}),
    }
    return table


def _only_writer(cache: Cache, key: str, name: str) -> filelock.BaseFileLock:
    """Hold the study for this process; raise StoreError where another one is at it. Killed processes let go."""
    lock = filelock.FileLock(cache.lock_file(f"study-{key}"))
    try:
        cache.locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(
            f"another process is working on the study {name!r} in {cache.root}; watch it with "
            "`weanalysis list studies`, or wait until it is done and run the command again"
        ) from None
    except OSError as error:
        raise StoreError(
            f"{cache.locks} cannot be written ({error.strerror or error}); make room, or choose another "
            "cache with --cache DIR"
        ) from error
    return lock

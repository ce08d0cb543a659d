"""The main job: a network, images and a study go in; the measured importance of weights comes out, kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn

from weanalysis.ablation import schedule
from weanalysis.ablation.behaviour import NUM_PROBES
from weanalysis.ablation.evaluate import KEPT_BYTES, Evaluator, Mode, ScreenSettings
from weanalysis.ablation.execution import Execution, Status
from weanalysis.ablation.inputs import as_model, checkpoint_of, excitation_kind, multipliers_of
from weanalysis.ablation.preparation import Prepared, classes_of, prepare
from weanalysis.ablation.schedule import Work
from weanalysis.ablation.studies import Ablation, Study, find_layers, make_study
from weanalysis.cache import Cache, find_cache
from weanalysis.data import as_images, check_targets
from weanalysis.devices import DTYPES, find_devices
from weanalysis.errors import StoreError, StudyError, unknown_name
from weanalysis.kinds import DEFAULT, kind_called
from weanalysis.models import Model, save_checkpoint
from weanalysis.provenance import called_as
from weanalysis.results.contrast import lowest_and_highest
from weanalysis.results.multipliers import save_multipliers
from weanalysis.results.statistics import StoppingRule
from weanalysis.results.store import Store, content_key
from weanalysis.tasks import find_metric
from weanalysis.versions import versions

EVALUATIONS = ("exact", "screened", "naive")

SHARD_SIZE = 250

# Below this estimate, processes would spend longer importing torch than measuring.
WORTH_PROCESSES_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """How a study is run, checked: see `ablate` for what each means."""

    evaluate: Mode
    metric: str
    devices: tuple[str, ...]
    dtype: str
    jobs: int | None
    batch_size: int | None
    shard_size: int
    rule: StoppingRule | None
    screen: ScreenSettings | None
    forward_seed: int | None


def ablate(
    model: Model | nn.Module,
    data: Any,
    study: Study | str = DEFAULT,
    evaluate: Mode = "exact",
    metric: str = "top1",
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
    report: Callable[[Status], None] | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure the decrease in performance D of every ablation of a study, and keep it in the cache.

    `model`: a `Model` or any `nn.Module` whose output is (images, classes) logits; only copies of it are run.
    `data`: an `ImageData`, or any map-style dataset of (FloatTensor(3, H, W), class index). `study`: a `Study`, or
    the name of one with its `options`. `jobs`: processes on the CPU (None: chosen; one a GPU on several GPUs).
    `until_ci`: leave an ablation alone once its interval is at most so many points wide; `until_significant`: once
    its D is told from 0, corrected for the number of ablations; with both, whichever comes first. Intervals and
    p-values then hold under that stopping, and are wider than those for a number of images fixed beforehand.
    `max_error`: with evaluate "screened", the largest error of D on these images that is wanted, in points.
    `forward_seed`: for a network that draws random numbers in its forward pass, from where it draws them alike in every
    pass; one whose answers hang on the other images of a batch is measured in batches of `batch_size`, if given.
    `output`: the name or the place of the logits, where a network returns several tensors that could be them.
    Returns one row an ablation with the columns of `results.COLUMNS`; drops are percentage points of `metric`,
    positive where the ablated network is worse (§3.1 of the paper). The table's `attrs` hold study_id, name,
    intact, num_images, seconds, how many answers were checked the naive way (num_checked of num_answers), and in
    `doubt` a line where the intact network only guesses. Work already in the cache is not repeated. `report` is called
    as results come, `say` with lines for a person. Raises WeanalysisError for unusable input, Interrupted after Ctrl-C.

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
        metric,
        device,
        dtype,
        jobs,
        batch_size,
        shard_size,
        until_ci,
        until_significant,
        max_error,
        forward_seed,
    )
    if isinstance(study, str):
        kind_called(study).check_options(options)
    cache = (cache if isinstance(cache, Cache) else find_cache(cache)).ready()
    given, images = as_model(model), as_images(data)
    # Multipliers are read before they are folded away; all else is measured on the weights the network computes with.
    if isinstance(study, str):
        study = make_study(study, given.net, **options)
    if settings.rule:
        # Part of the question, so that this study does not change the table of the one without a rule.
        study = replace(study, options={**study.options, **settings.rule.options})
    check_ablations(study.ablations, given.net)
    learned = multipliers_of(given)
    made_by = {"command": command, "checkpoint": checkpoint_of(given), "excitation": excitation_kind(given)}
    began = time.perf_counter()
    probes, targets = images.batch(0, min(NUM_PROBES, len(images)))
    touched = {layer for ablation in study.ablations for layer in ablation.layers}
    own = model.net if isinstance(model, Model) else model
    classes = classes_of(given, images)
    prepared = prepare(given, touched, probes, forward_seed, batch_size, own, output, classes)
    for note in (*study.notes, *prepared.notes):
        say(note)
    return _measure(
        settings, prepared, images, study, name, cache, learned, made_by, began, (probes, targets), report, say
    )


def _measure(
    settings: Settings,
    prepared: Prepared,
    images: Any,
    study: Study,
    name: str | None,
    cache: Cache,
    learned: dict[str, torch.Tensor],
    made_by: dict[str, str | None],
    began: float,
    probes: tuple[torch.Tensor, torch.Tensor],
    report: Callable[[Status], None] | None,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """Measure a study of a prepared network, and return its table."""
    model, conduct, screen = prepared.model, prepared.conduct, settings.screen
    evaluator = Evaluator(
        model.net,
        settings.evaluate,
        settings.devices[0],
        DTYPES[settings.dtype],
        screen=screen,
        tf32=settings.dtype == "tf32",
        conduct=conduct,
        probes=probes[0],
    )
    num_classes = evaluator.logits(probes[0]).shape[1]
    metric = find_metric(settings.metric)
    if num_classes <= metric.guesses:
        raise StudyError(f"metric {metric.name} says nothing of a network with {num_classes} classes; use top1")
    check_targets(images, num_classes)
    seconds_per_image = _time_forward(evaluator, *probes)
    evaluator.batch_size = settings.batch_size or _fitting_batch(evaluator, probes[0], study.ablations)
    context = _context(settings, prepared, images, evaluator.batch_size)
    name = name or _name_of(settings, model, images, study)
    weights_file = _keep_weights(cache, model, learned)
    with _only_writer(cache, content_key([context, study.key]), name), Store.open(cache.results) as store:
        if old := store.outdated(name):
            say(
                f"the study {name} (number {', '.join(str(number) for number, _ in old)}) was measured by an older "
                "version, whose answers could be wrong for some networks: it is measured again, under a new number"
            )
        context_id = store.context(context)
        plan = [(ablation.key, _labels(ablation)) for ablation in study.ablations]
        about = {**_about(settings, prepared, images, study, evaluator.note), **made_by}
        study_id = store.begin_study(context_id, study.key, study.kind, name, settings.metric, len(images), plan, about)
        work = Work(
            content_key([context, weights_file.name, evaluator.batch_size]),
            None if prepared.is_rebuilt else model.net,
            model.architecture,
            weights_file,
            images,
            settings.evaluate,
            settings.dtype,
            evaluator.batch_size,
            settings.devices,
            cache,
            screen,
            conduct,
        )

        def choose_jobs(tasks: list[schedule.Task], costs: list[float]) -> int:
            return _choose_jobs(
                settings.jobs, settings.devices, tasks, costs, seconds_per_image, prepared.is_rebuilt, say
            )

        execution = Execution(
            store,
            study,
            study_id,
            context_id,
            name,
            metric,
            work,
            evaluator,
            settings.rule,
            settings.shard_size,
            seconds_per_image,
            num_classes,
            choose_jobs,
            report,
            say,
        )
        num_settled = execution.run()
        table = store.table(study_id, settings.metric)
        most_seen = table.loc[table["num_images"].idxmax()]
        table.attrs = {
            "study_id": study_id,
            "name": name,
            "intact": float(most_seen["intact"]),
            "num_images": int(most_seen["num_images"]),
            "stopping": about["stopping"],
            "num_settled": num_settled,
            "seconds": time.perf_counter() - began,
            "reused": execution.reused,
            "doubt": execution.doubt,
            **store.agreement(study_id),
            **(contrast.summary() if (contrast := lowest_and_highest(store, study_id, table=table)) else {}),
        }
        return table


def _context(settings: Settings, prepared: Prepared, images: Any, batch_size: int) -> dict[str, Any]:
    """All that answers depend on: results of the same context, ablation and shard are never measured twice.

    The kind of device is in it, since the same dtype is another arithmetic there. The version of torch is not: what
    another version rounds differently are near ties, a study of days would be lost with an upgrade, and the store
    refuses a shard whose intact answers are not those that it knows; it stands in what is said of the study.
    """
    conduct, model = prepared.conduct, prepared.model
    return {
        "architecture": model.architecture,
        "weights_hash": model.weights_hash,
        "fingerprint": images.fingerprint,
        "seed": images.seed,
        "shard_size": settings.shard_size,
        "dtype": settings.dtype,
        "evaluate": settings.evaluate,
        "device": torch.device(settings.devices[0]).type,
        **({"screen": asdict(settings.screen)} if settings.screen else {}),
        **({"output": list(conduct.output)} if conduct.output else {}),
        **({"forward_seed": conduct.seed, "batch_size": batch_size} if conduct.fixed_batches else {}),
    }


def _name_of(settings: Settings, model: Model, images: Any, study: Study) -> str:
    asked = [*str(settings.rule or "").split(), *(["screened"] if settings.screen else [])]
    return "-".join([model.name, images.spec.partition(":")[0], study.kind, *asked])


def _about(settings: Settings, prepared: Prepared, images: Any, study: Study, evaluation_note: str) -> dict[str, Any]:
    """What is said of a study, beside what its answers depend on."""
    model = prepared.model
    return {
        "model": model.name,
        "weights": model.weights,
        "data": images.spec,
        "options": study.options,
        "layers": list(study.layers),
        "skipped": [list(pair) for pair in study.skipped],
        "notes": [*study.notes, *prepared.notes],
        "classes": list(model.classes or getattr(images, "classes", None) or ()),
        "transform": images.transform.describe() if images.transform else None,
        "evaluation_note": evaluation_note,
        "stopping": str(settings.rule) if settings.rule else None,
        "versions": versions(),
    }


def _keep_weights(cache: Cache, model: Model, learned: dict[str, torch.Tensor]) -> Path:
    """Keep the weights that are ablated, and LWE's multipliers, where other processes and the dashboard find them."""
    path = cache.weights_file(model.weights_hash)
    if not path.is_file():
        save_checkpoint(path, model.net, model.architecture, {"name": model.name})
    if learned:
        save_multipliers(cache, model.weights_hash, {name: m.cpu().numpy() for name, m in learned.items()})
    return path


def check_settings(
    evaluate: Mode,
    metric: str,
    device: str,
    dtype: str,
    jobs: int | None,
    batch_size: int | None,
    shard_size: int,
    until_ci: float | None,
    until_significant: bool,
    max_error: float,
    forward_seed: int | None = None,
) -> Settings:
    """Check what a study is asked to be; raise StudyError or DeviceError for what is wrong.

    It needs no network, so that nothing is trained or loaded for settings that cannot be.
    """
    counts_images = find_metric(metric).counts_images
    if evaluate not in EVALUATIONS:
        raise StudyError(unknown_name("evaluation", evaluate, EVALUATIONS))
    if dtype not in DTYPES:
        raise StudyError(unknown_name("dtype", dtype, DTYPES))
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs {jobs} is not allowed: give 1 or more")
    if shard_size < 1 or (batch_size is not None and batch_size < 1):
        raise StudyError("shard size and batch size must be at least 1")
    if not 0 < max_error <= 100:
        raise StudyError(f"a largest error of {max_error:g} points is not allowed: give more than 0, at most 100")
    if forward_seed is not None and not 0 <= forward_seed < 2**31:
        raise StudyError(f"forward seed {forward_seed} is not allowed: give a whole number from 0 to 2147483647")
    rule = StoppingRule(until_ci, until_significant) if until_ci is not None or until_significant else None
    if rule and evaluate not in ("exact", "naive"):
        raise StudyError(f"--{rule} needs measured answers: use --evaluate exact, not {evaluate}")
    if not counts_images and rule:
        raise StudyError(
            f"--{rule} needs a metric in which images are right or wrong (top1, top5), not {metric}: an interval that "
            "holds however often it is looked at is proven for those alone; leave the rule out"
        )
    if not counts_images and evaluate == "screened":
        raise StudyError(
            f"--evaluate screened leaves out images whose answer cannot change, and their {metric} does: use "
            "--evaluate exact, or --metric top1"
        )
    devices = find_devices(device)
    if dtype == "tf32" and not devices[0].startswith("cuda"):
        raise StudyError(f"dtype tf32 is arithmetic of NVIDIA GPUs, and the device is {devices[0]}: use float32")
    screen = ScreenSettings(metric, max_error) if evaluate == "screened" else None
    return Settings(evaluate, metric, devices, dtype, jobs, batch_size, shard_size, rule, screen, forward_seed)


def check_ablations(ablations: Sequence[Ablation], net: nn.Module) -> None:
    """Raise StudyError for an ablation of a layer, a channel or a rank that the network does not have."""
    if not ablations:
        raise StudyError("the study has no ablations, so there is nothing to measure")
    shapes = {one.name: (*one.shape, one.num_weights) for one in find_layers(net)}
    for part in (part for ablation in ablations for part in ablation.parts):
        if part.layer not in shapes:
            raise StudyError(unknown_name("layer", part.layer, shapes))
        num_out, num_in, num_weights = shapes[part.layer]
        sides = ((part.out_channels, num_out, "output"), (part.in_channels, num_in, "input"))
        for channels, count, word in sides:
            if wrong := [one for one in channels or () if not 0 <= one < count]:
                raise StudyError(f"{part.layer} has no {word} channel {wrong[0]}: its weight's are 0 to {count - 1}")
        if part.ranks is not None and not 1 <= part.ranks[0] <= part.ranks[1] <= num_weights:
            raise StudyError(
                f"{part.layer} has no weights of ranks {part.ranks[0]} to {part.ranks[1]}: it has "
                f"{num_weights:,}, counted from 1"
            )


def _time_forward(evaluator: Evaluator, images: torch.Tensor, targets: torch.Tensor) -> float:
    """Seconds that one image's forward pass takes here: the fastest of three, since the first warms up."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        evaluator.intact(images, targets)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(images)


def _fitting_batch(evaluator: Evaluator, images: torch.Tensor, ablations: tuple[Ablation, ...]) -> int:
    """The largest batch, up to 50 images on a CPU and 250 on a GPU, whose kept activations stay within bounds."""
    most = 50 if evaluator.device.type == "cpu" else 250
    kept = evaluator.kept_bytes(images[:1], ablations)
    return most if kept == 0 else int(np.clip(KEPT_BYTES // kept, 1, most))


def _choose_jobs(
    asked: int | None,
    devices: tuple[str, ...],
    tasks: list[schedule.Task],
    costs: list[float],
    seconds_per_image: float,
    rebuildable: bool,
    say: Callable[[str], None],
) -> int:
    """How many processes: one a GPU; on the CPU one a core where the study is long enough to repay their start."""
    if devices != ("cpu",):
        if asked is not None and asked > len(devices):
            say(f"{len(devices)} processes instead of {asked}: one a GPU")
        return max(1, min(len(devices), len(tasks), asked or len(devices)))
    if asked is not None:
        return max(1, min(asked, len(tasks)))
    if not rebuildable:
        return 1
    seconds = seconds_per_image * sum(costs[p] * (task.stop - task.start) for task in tasks for p in task.places)
    cores = joblib.cpu_count(only_physical_cores=True) or 1
    jobs = 1 if seconds < WORTH_PROCESSES_SECONDS else max(1, min(cores, len(tasks)))
    if tasks:
        shared = f"{jobs} processes of one thread" if jobs > 1 else "one process"
        say(
            f"a forward pass takes {1000 * seconds_per_image:.1f} ms an image here: about {seconds / jobs:,.0f} s in "
            f"{shared}"
        )
    return jobs


def _labels(ablation: Ablation) -> Mapping[str, Any]:
    return {
        "layer": ablation.layer,
        "depth": ablation.depth,
        "selection": ablation.selection,
        "out_channel": ablation.out_channel,
        "in_channel": ablation.in_channel,
        "percentile": ablation.percentile,
        "fraction": ablation.fraction,
        "draw": ablation.draw,
        "num_weights": ablation.num_weights,
    }


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

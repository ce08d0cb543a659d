"""The main job: a network, images and a study go in; the measured importance of weights comes out, kept."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import filelock
import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn

from weanalysis.ablation import schedule
from weanalysis.ablation.evaluate import KEPT_BYTES, Evaluator, Measured, Mode, ScreenSettings
from weanalysis.ablation.inputs import UNNAMED_SOURCE, as_images, as_model, folded, multipliers_of
from weanalysis.ablation.schedule import StopRequest, Work
from weanalysis.ablation.stopping import Need, Needs
from weanalysis.ablation.studies import STUDIES, Ablation, Study, make_study
from weanalysis.cache import Cache, find_cache
from weanalysis.devices import DTYPES, find_devices
from weanalysis.errors import StoreError, StudyError, unknown_name
from weanalysis.models import Model, save_checkpoint
from weanalysis.results.multipliers import save_multipliers
from weanalysis.results.statistics import StoppingRule
from weanalysis.results.store import METRICS, Store, content_key, shards_of
from weanalysis.versions import versions

EVALUATIONS = ("exact", "screened", "naive")

SHARD_SIZE = 250

# Below this estimate, processes would spend longer importing torch than measuring.
WORTH_PROCESSES_SECONDS = 20.0


class Interrupted(KeyboardInterrupt):
    """A study that was asked to stop; what was measured is kept, and `done` of `total` tasks' work is in the store."""

    def __init__(self, study_id: int, done: int, total: int):
        super().__init__(f"stopped with {done} of {total} measurements done")
        self.study_id, self.done, self.total = study_id, done, total


@dataclass
class Status:
    """How far a study has come, for whoever watches: `done` and `total` count (ablation, shard) pairs.

    `counts` holds, per ablation and in the metric, the arrays num_images, num_correct (intact), lost and gained.
    """

    study: Study
    study_id: int
    name: str
    metric: str
    done: int
    total: int
    reused: int
    seconds: float
    seconds_left: float
    jobs: int
    counts: dict[str, np.ndarray]


class _Tally:
    """Counts of a running study, so that what was found so far can be shown without reading the store."""

    def __init__(self, store: Store, study_id: int, metric: str, ids: np.ndarray):
        self.bit = METRICS[metric]
        _, first, self._of_place = np.unique(ids, return_index=True, return_inverse=True)
        self._counts = {name: values[first] for name, values in store.counts(study_id, metric).items()}

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """The counts of every place of the plan."""
        return {name: values[self._of_place] for name, values in self._counts.items()}

    def add(self, task: schedule.Task, measured: Measured) -> None:
        """Count in what a task measured."""
        index = self._of_place[np.array(task.places)]
        of_change = np.repeat(index, measured.counts)
        before = (measured.targets == measured.predictions) if self.bit == 1 else measured.top5
        was, now = before[measured.positions], (measured.correct & self.bit).astype(bool)
        for name, changed in (("lost", was & ~now), ("gained", ~was & now)):
            self._counts[name] += np.bincount(of_change[changed], minlength=len(self._counts[name]))
        self._counts["num_images"][index] += len(before)
        self._counts["num_correct"][index] += int(before.sum())


def ablate(
    model: Model | nn.Module,
    data: Any,
    study: Study | str = "location",
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
    report: Callable[[Status], None] | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure the decrease in performance D of every ablation of a study, and keep it in the cache.

    `model`: a `Model` or any `nn.Module` whose output is (images, classes) logits; its weights are not touched.
    `data`: an `ImageData`, or any map-style dataset of (FloatTensor(3, H, W), class index). `study`: a `Study`, or
    the name of one with its `options`. `jobs`: processes on the CPU (None: chosen; one a GPU on several GPUs).
    `until_ci`: leave an ablation alone once its interval is at most so many points wide; `until_significant`: once
    its D is told from 0, corrected for the number of ablations; with both, whichever comes first. Intervals and
    p-values then hold under that stopping, and are wider than those for a number of images fixed beforehand.
    `max_error`: with evaluate "screened", the largest error of D on these images that is wanted, in points.
    Returns one row an ablation with the columns of `results.COLUMNS`; drops are percentage points of `metric`,
    positive where the ablated network is worse (§3.1 of the paper). The table's `attrs` hold study_id, name,
    intact, num_images and seconds. Work already in the cache is not repeated. `report` is called as results
    come, `say` with lines for a person. Raises WeanalysisError for unusable input, Interrupted after Ctrl-C.
    """
    say = say or (lambda line: None)
    devices, rule, screen = check_settings(evaluate, metric, device, dtype, jobs, batch_size, shard_size, until_ci,
                                           until_significant, max_error)  # fmt: skip
    if isinstance(study, str) and study not in STUDIES:
        raise StudyError(unknown_name("study", study, STUDIES))
    cache = (cache if isinstance(cache, Cache) else find_cache(cache)).ready()
    given, images = as_model(model), as_images(data)
    # Multipliers are read before they are folded away; all else is measured on the weights the network computes with.
    if isinstance(study, str):
        study = make_study(study, given.net, **options)
    if rule:
        # Part of the question, so that this study does not change the table of the one without a rule.
        study = replace(study, options={**study.options, **rule.options})
    learned = multipliers_of(given)
    model = folded(given)
    for note in study.notes:
        say(note)

    began = time.perf_counter()
    evaluator = Evaluator(model.net, evaluate, devices[0], DTYPES[dtype], screen=screen, tf32=dtype == "tf32")
    first_images, first_targets = images.batch(0, min(16, len(images)))
    num_classes = evaluator.logits(first_images).shape[1]
    if metric == "top5" and num_classes <= 5:
        raise StudyError(f"metric top5 says nothing of a network with {num_classes} classes; use top1")
    seconds_per_image = _time_forward(evaluator, first_images, first_targets)
    evaluator.probe(first_images, first_targets, study.ablations)
    if evaluator.note:
        say(evaluator.note)
    evaluator.batch_size = batch_size or _fitting_batch(evaluator, first_images, study.ablations)
    costs = [evaluator.cost(ablation) for ablation in study.ablations]
    if screen and (num_exact := sum(not evaluator.can_screen(ablation) for ablation in study.ablations)):
        say(f"{num_exact:,} of {len(study.ablations):,} ablations are computed on all images: what they do cannot be "
            "predicted, since they zero a whole layer, several layers at once, or one that is called more than once")

    settings = {
        "architecture": model.architecture, "weights_hash": model.weights_hash, "fingerprint": images.fingerprint,
        "seed": images.seed, "shard_size": shard_size, "dtype": dtype, "evaluate": evaluate,
        **({"screen": asdict(screen)} if screen else {}),
    }  # fmt: skip
    asked = [*str(rule or "").split(), *(["screened"] if screen else [])]
    name = name or "-".join([model.name, images.spec.partition(":")[0], study.kind, *asked])
    about = {
        "model": model.name, "weights": model.weights, "data": images.spec, "options": study.options,
        "layers": list(study.layers), "skipped": [list(pair) for pair in study.skipped], "notes": list(study.notes),
        "classes": list(model.classes or ()), "transform": images.transform.describe() if images.transform else None,
        "command": shlex.join(["weanalysis", *sys.argv[1:]]), "evaluation_note": evaluator.note,
        "stopping": str(rule) if rule else None, "versions": versions(),
    }  # fmt: skip
    weights_file = cache.weights / f"{model.weights_hash}.safetensors"
    if not weights_file.is_file():
        save_checkpoint(weights_file, model.net, model.architecture, {"name": model.name})
    if learned:
        save_multipliers(cache, model.weights_hash, {name: m.cpu().numpy() for name, m in learned.items()})

    with _only_writer(cache, content_key([settings, study.key]), name), Store.open(cache.results) as store:
        context_id = store.context(settings)
        plan = [(ablation.key, _labels(ablation)) for ablation in study.ablations]
        study_id = store.begin_study(context_id, study.key, study.kind, name, metric, len(images), plan, about)
        ids = store.ablation_ids(study_id)
        shards = shards_of(len(images), shard_size)
        needs = Needs(store, study_id, shards, rule)

        def cut(todo: list[Need]) -> list[schedule.Task]:
            return [
                task for shard, places in todo
                for task in schedule.cut(places.tolist(), costs, *shard, seconds_per_image, study.ablations, evaluate)
            ]  # fmt: skip

        def cost_of(tasks: list[schedule.Task]) -> float:
            return sum(costs[place] * (task.stop - task.start) for task in tasks for place in task.places)

        tasks, total = cut(needs.left()), needs.num_needed
        reused = done = total - sum(len(task.places) for task in tasks)
        rebuildable = model.architecture.get("source") != UNNAMED_SOURCE
        jobs = _choose_jobs(jobs, devices, tasks, costs, seconds_per_image, rebuildable, say)
        work = Work(
            content_key([settings, weights_file.name, evaluator.batch_size]), None if rebuildable else model.net,
            model.architecture, weights_file, images, evaluate, dtype, evaluator.batch_size, devices, cache.locks,
            screen,
        )  # fmt: skip
        tally = _Tally(store, study_id, metric, ids)
        cost_left, cost_done, measuring = cost_of(tasks), 0.0, time.perf_counter()
        stop = StopRequest(say)

        def status() -> Status:
            seconds = time.perf_counter() - measuring
            left = seconds / cost_done * cost_left if cost_done else float("nan")
            return Status(study, study_id, name, metric, done, total, reused, seconds, left, jobs, tally.counts)

        if report:
            report(status())
        state = "failed"
        try:
            with stop.listening():
                for todo in needs.rounds(jobs):
                    for task, measured in schedule.run(work, cut(todo), jobs, stop, evaluator if jobs == 1 else None):
                        done += len(task.places)
                        places = list(task.places)
                        store.write(context_id, ids[places], images.ids[task.start : task.stop], measured,
                                    study_id, done, total)  # fmt: skip
                        tally.add(task, measured)
                        cost_done, cost_left = cost_done + cost_of([task]), cost_left - cost_of([task])
                        if report:
                            report(status())
                    tasks, total = cut(needs.left()), needs.num_needed
                    done, cost_left = total - sum(len(task.places) for task in tasks), cost_of(tasks)
            state = "complete" if done == total else "stopped"
        except KeyboardInterrupt:
            state = "stopped"
        finally:
            store.set_state(study_id, state, done, total)
        if state == "stopped":
            raise Interrupted(study_id, done, total)
        table = store.table(study_id, metric)
        most_seen = table.loc[table["num_images"].idxmax()]
        table.attrs = {
            "study_id": study_id, "name": name, "intact": float(most_seen["intact"]),
            "num_images": int(most_seen["num_images"]), "stopping": about["stopping"], "num_settled": needs.num_settled,
            "seconds": time.perf_counter() - began, "reused": reused, **store.agreement(study_id),
            **(_lowest_and_highest(store, study_id, table) if study.kind == "multiplier" else {}),
        }  # fmt: skip
        return table


def check_settings(
    evaluate: Mode, metric: str, device: str, dtype: str, jobs: int | None, batch_size: int | None, shard_size: int,
    until_ci: float | None, until_significant: bool, max_error: float,
) -> tuple[tuple[str, ...], StoppingRule | None, ScreenSettings | None]:  # fmt: skip
    """Return the devices, the stopping rule and what is screened for; raise StudyError or DeviceError for a wrong one.

    It needs no network, so that nothing is trained or loaded for settings that cannot be.
    """
    if metric not in METRICS:
        raise StudyError(unknown_name("metric", metric, METRICS))
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
    rule = StoppingRule(until_ci, until_significant) if until_ci is not None or until_significant else None
    if rule and evaluate not in ("exact", "naive"):
        raise StudyError(f"--{rule} needs measured answers: use --evaluate exact, not {evaluate}")
    devices = find_devices(device)
    if dtype == "tf32" and not devices[0].startswith("cuda"):
        raise StudyError(f"dtype tf32 is arithmetic of NVIDIA GPUs, and the device is {devices[0]}: use float32")
    return devices, rule, ScreenSettings(metric, max_error) if evaluate == "screened" else None


def _lowest_and_highest(store: Store, study_id: int, table: pd.DataFrame) -> dict[str, Any]:
    """D_L and D_H of all layers at once, with intervals, and their difference on the same images (§4.2)."""
    everywhere = table[table["layer"].isna() & table["fraction"].isna()]
    found: dict[str, Any] = {}
    places = []
    for key, selection in (("d_low", "lowest"), ("d_high", "highest")):
        row = everywhere[everywhere["selection"] == selection].iloc[0]
        places.append(int(row.name))
        found |= {key: row["drop"], f"{key}_interval": [row["drop_low"], row["drop_high"]]}
    contrast = store.compare(study_id, places[0], places[1])
    return found | {
        "d_high_minus_d_low": contrast.difference,
        "d_high_minus_d_low_interval": [contrast.difference_low, contrast.difference_high],
        "d_high_minus_d_low_p_value": contrast.p_value,
    }


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
    asked: int | None, devices: tuple[str, ...], tasks: list[schedule.Task], costs: list[float],
    seconds_per_image: float, rebuildable: bool, say: Callable[[str], None],
) -> int:  # fmt: skip
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
        say(f"a forward pass takes {1000 * seconds_per_image:.1f} ms an image here: about {seconds / jobs:,.0f} s in "
            f"{shared}")
    return jobs


def _labels(ablation: Ablation) -> Mapping[str, Any]:
    return {
        "layer": ablation.layer, "depth": ablation.depth, "selection": ablation.selection,
        "out_channel": ablation.out_channel, "in_channel": ablation.in_channel, "percentile": ablation.percentile,
        "fraction": ablation.fraction, "draw": ablation.draw, "num_weights": ablation.num_weights,
    }  # fmt: skip


def _only_writer(cache: Cache, key: str, name: str) -> filelock.BaseFileLock:
    """Hold the study for this process; raise StoreError where another one is at it. Killed processes let go."""
    lock = filelock.FileLock(cache.locks / f"study-{key}.lock")
    try:
        cache.locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(f"another process is working on the study {name!r} in {cache.root}; watch it with "
                         "`weanalysis list studies`, or wait until it is done and run the command again") from None
    except OSError as error:
        raise StoreError(f"{cache.locks} cannot be written ({error.strerror or error}); make room, or choose another "
                         "cache with --cache DIR") from error
    return lock

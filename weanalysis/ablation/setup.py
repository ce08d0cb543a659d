"""From what a caller gives to all that a study is measured with, before anything of it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import NUM_PROBES
from weanalysis.ablation.evaluate import BATCH_SIZE, Evaluator
from weanalysis.ablation.graph import outline
from weanalysis.ablation.inputs import as_model, checkpoint_of, excitation_kind, multipliers_of
from weanalysis.ablation.preparation import Prepared, classes_of, prepare
from weanalysis.ablation.schedule import Work
from weanalysis.ablation.settings import Settings
from weanalysis.ablation.studies import Study, check_ablations, make_study
from weanalysis.cache import Cache
from weanalysis.data import GivenImages, GivenTargets, ImageData, as_images, check_targets
from weanalysis.devices import DTYPES
from weanalysis.errors import StudyError
from weanalysis.models import Model, save_checkpoint
from weanalysis.results.multipliers import save_multipliers
from weanalysis.results.store import content_key
from weanalysis.tasks import (
    IOU_OF_CLASS,
    NUMBERS,
    SEGMENTATION,
    Metric,
    described,
    listed_metrics,
)
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.numbers import Numbers, OutputTask
from weanalysis.tasks.segmentation import Segmentation
from weanalysis.versions import versions


@dataclass(frozen=True)
class Request:
    """What a caller of `ablate` asks to be measured; see there. `command` words the whole call."""

    model: Model | nn.Module
    data: Any
    study: Study | str
    options: dict[str, Any]
    name: str | None
    output: str | int | None
    command: str


@dataclass(frozen=True)
class Setup:
    """All that a study is measured with, known before it is measured.

    `context` is all that answers depend on, `about` what else is said of the study, and `work` what its tasks share.
    A forward pass takes `seconds_per_image` here; `began` is when the preparation did.
    """

    settings: Settings
    study: Study
    images: ImageData | GivenImages
    metric: Metric
    num_classes: int
    evaluator: Evaluator
    seconds_per_image: float
    name: str
    context: dict[str, Any]
    about: dict[str, Any]
    work: Work
    cache: Cache
    began: float

    @property
    def key(self) -> str:
        """What tells this study from every other, whatever the number of images."""
        return content_key([self.context, self.study.key])


def set_up(request: Request, settings: Settings, cache: Cache, say: Callable[[str], None]) -> Setup:
    """Prepare the network, and find out how it is to be measured; raise WeanalysisError where it cannot be.

    The network's weights, and LWE's multipliers, are kept in the cache.
    """
    began = time.perf_counter()
    given, images = as_model(request.model), as_images(request.data, _targets_for(settings))
    # Multipliers are read before they are folded away; all else is measured on the weights the network computes with.
    study, learned = _study_of(request, settings, given), multipliers_of(given)
    made_by = {"command": request.command, "checkpoint": checkpoint_of(given), "excitation": excitation_kind(given)}
    probes, targets = images.batch(0, min(NUM_PROBES, len(images)))
    prepared = _prepared(request, settings, given, images, study, probes)
    for note in (*study.notes, *prepared.notes):
        say(note)
    task = _output_task(settings, prepared, images)
    evaluator = _evaluator(settings, prepared, task, probes)
    outputs = evaluator.logits(probes)
    num_classes = _checked_classes(settings, images, task, outputs, targets)
    seconds_per_image = _time_forward(evaluator, probes, targets)
    if settings.batch_size is None:
        evaluator.fit_batch(probes, study.ablations)
    context = _context(settings, prepared, images, evaluator.batch_size)
    return Setup(
        settings=settings,
        study=study,
        images=images,
        metric=settings.metric,
        num_classes=num_classes,
        evaluator=evaluator,
        seconds_per_image=seconds_per_image,
        name=request.name or _name_of(settings, prepared.model, images, study),
        context=context,
        about={**_about(settings, prepared, images, study, evaluator, outputs.shape), **made_by},
        work=_work(
            settings, prepared, images, evaluator, context, cache, _keep_weights(cache, prepared.model, learned)
        ),
        cache=cache,
        began=began,
    )


def _targets_for(settings: Settings) -> str | None:
    """What the targets of a data set of the caller's may be, by the metric; None: class indices."""
    if settings.own is not None:
        return NUMBERS
    return SEGMENTATION if settings.metric.tasks == (SEGMENTATION,) else None


def _study_of(request: Request, settings: Settings, given: Model) -> Study:
    """The study that is asked for, of ablations that the network has."""
    study = request.study
    if isinstance(study, str):
        study = make_study(study, given.net, **request.options)
    if settings.rule:
        # Part of the question, so that this study does not change the table of the one without a rule.
        study = replace(study, options={**study.options, **settings.rule.options})
    check_ablations(study.ablations, given.net)
    return study


def _prepared(
    request: Request, settings: Settings, given: Model, images: ImageData | GivenImages, study: Study, probes: Tensor
) -> Prepared:
    """A copy of the network that can be ablated; `given` holds a copy already, which the caller's is told from."""
    own = request.model.net if isinstance(request.model, Model) else request.model
    touched = {layer for ablation in study.ablations for layer in ablation.layers}
    return prepare(
        given,
        touched,
        probes,
        settings.forward_seed,
        settings.batch_size,
        own,
        request.output,
        classes_of(given, images),
        settings.own is not None and images.task != SEGMENTATION,
        images.task == SEGMENTATION,
    )


def _output_task(settings: Settings, prepared: Prepared, images: ImageData | GivenImages) -> OutputTask:
    """What the network's outputs and the targets mean: classes of images or pixels, or whatever an own metric reads.

    With such a metric, outputs that are no logits of several classes mean what it makes of them.
    """
    task, metric = images.task, settings.metric
    if not metric.is_own and task != NUMBERS and task not in metric.tasks:
        raise StudyError(
            f"metric {metric.name} is one of {' and '.join(metric.tasks)}, and {images.spec} is data of {task}: choose "
            f"from {listed_metrics(task)}"
        )
    if task == SEGMENTATION:
        return Segmentation(prepared.conduct.probabilities, settings.own)
    if isinstance(images, GivenTargets) and settings.own is None:
        raise StudyError(
            f"the targets of {images.spec} are no class indices, so that {settings.metric.name} cannot be told: "
            "give a metric of your own (weanalysis.metric)"
        )
    are_logits = len(prepared.output_shape) == 1 and prepared.output_shape[0] > 1
    if settings.own is not None and (isinstance(images, GivenTargets) or not are_logits):
        return Numbers(settings.own)
    return Classification(prepared.conduct.probabilities, settings.own)


def _checked_classes(
    settings: Settings, images: ImageData | GivenImages, task: OutputTask, outputs: Tensor, targets: Tensor
) -> int:
    """How many classes the network has, 0 where images have none; raise WeanalysisError where that does not fit."""
    if isinstance(task, Segmentation):
        return _checked_masks(settings, images, outputs, targets)
    if isinstance(task, Numbers):
        task.own.check(outputs, targets)
        return 0
    num_classes, metric = outputs.shape[1], settings.metric
    if not metric.is_own and num_classes <= max(1, metric.guesses):
        raise StudyError(
            f"metric {metric.name} says nothing of a network with {num_classes} "
            + ("class; give a metric of your own" if num_classes == 1 else "classes; use top1")
        )
    check_targets(images, num_classes)
    if settings.own is not None:
        settings.own.check(outputs, targets)
    return num_classes


def _checked_masks(settings: Settings, images: ImageData | GivenImages, outputs: Tensor, targets: Tensor) -> int:
    """0, since no image has a class; raise WeanalysisError where masks, metric and network do not fit each other."""
    Segmentation().check(outputs, targets)
    name, classes = settings.metric.name, class_names(images, outputs.shape[1])
    if name.startswith(IOU_OF_CLASS) and name.removeprefix(IOU_OF_CLASS) not in classes:
        raise StudyError(f"metric {name}: no class is called so; choose from {', '.join(classes)}")
    if settings.own is not None:
        settings.own.check(outputs, targets)
    return 0


def class_names(images: ImageData | GivenImages, num_classes: int) -> tuple[str, ...]:
    """The names of the classes of pixels: the data's, or their numbers."""
    names = tuple(getattr(images, "classes", None) or ())
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))


def _evaluator(settings: Settings, prepared: Prepared, output_task: OutputTask, probes: Tensor) -> Evaluator:
    return Evaluator(
        prepared.model.net,
        settings.evaluate,
        settings.devices[0],
        DTYPES[settings.dtype],
        settings.batch_size or BATCH_SIZE,
        screen=settings.screen,
        tf32=settings.dtype == "tf32",
        conduct=prepared.conduct,
        probes=probes,
        task=output_task,
    )


def _time_forward(evaluator: Evaluator, images: Tensor, targets: Tensor) -> float:
    """Seconds that one image's forward pass takes here: the fastest of three, since the first warms up."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        evaluator.intact(images, targets)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(images)


def _served(images: ImageData | GivenImages) -> list[Any]:
    """What tells apart data of the same contents: how many are served, from which folder, written when."""
    parts = [getattr(images, name, None) for name in ("pictures", "masks")]
    return [len(images), *([str(getattr(one, "root", "")), getattr(one, "states", None)] for one in parts)]


def _work(
    settings: Settings,
    prepared: Prepared,
    images: ImageData | GivenImages,
    evaluator: Evaluator,
    context: dict[str, Any],
    cache: Cache,
    weights_file: Path,
) -> Work:
    return Work(
        # A process that is used again must not go on with another metric, or with images that lie elsewhere.
        key=content_key([context, weights_file.name, evaluator.batch_size, settings.metric.name, _served(images)]),
        net=None if prepared.is_rebuilt else prepared.model.net,
        architecture=prepared.model.architecture,
        weights=weights_file,
        data=images,
        mode=settings.evaluate,
        dtype=settings.dtype,
        batch_size=evaluator.batch_size,
        devices=settings.devices,
        cache=cache,
        screen=settings.screen,
        conduct=prepared.conduct,
        output_task=evaluator.network.task,
    )


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


def _about(
    settings: Settings, prepared: Prepared, images: Any, study: Study, evaluator: Evaluator, outputs: torch.Size
) -> dict[str, Any]:
    """What is said of a study, beside what its answers depend on."""
    model = prepared.model
    classes = list(model.classes or getattr(images, "classes", None) or ())
    task, task_name = evaluator.network.task, None
    if isinstance(task, Segmentation):
        classes, task_name = list(class_names(images, outputs[1])), SEGMENTATION
    elif isinstance(task, Numbers):
        task_name = NUMBERS
    return {
        "model": model.name,
        "weights": model.weights,
        "data": images.spec,
        "options": study.options,
        "layers": list(study.layers),
        "skipped": [list(pair) for pair in study.skipped],
        "notes": [*study.notes, *prepared.notes],
        "classes": classes,
        "num_classes": None if task_name == NUMBERS else outputs[1],
        "transform": images.transform.describe() if images.transform else None,
        "evaluation_note": evaluator.note,
        "stopping": str(settings.rule) if settings.rule else None,
        "task": task_name,
        "own_metrics": [described(settings.metric)] if settings.own else [],
        "versions": versions(),
        # For a picture of the network, which the pages cannot trace themselves.
        "outline": outline(twin.graph) if (twin := evaluator.network.twin) else None,
    }


def _keep_weights(cache: Cache, model: Model, learned: dict[str, torch.Tensor]) -> Path:
    """Keep the weights that are ablated, and LWE's multipliers, where other processes and the dashboard find them."""
    path = cache.weights_file(model.weights_hash)
    if not path.is_file():
        save_checkpoint(path, model.net, model.architecture, {"name": model.name})
    if learned:
        save_multipliers(cache, model.weights_hash, {name: m.cpu().numpy() for name, m in learned.items()})
    return path

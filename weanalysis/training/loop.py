"""The training loop: a recipe and a cache in, a run folder out, the same network however often it was stopped."""

from __future__ import annotations

import atexit
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from weanalysis.cache import Cache, find_cache, is_full, write_atomically
from weanalysis.data import ArrayTransform, ImageData, MaskData, fit_classes, load_data, task_of_data
from weanalysis.errors import DeviceError, TrainingError, unknown_name
from weanalysis.training.images import augmentations_for
from weanalysis.training.network import make_network
from weanalysis.training.optimization import OPTIMIZERS, SCHEDULES
from weanalysis.training.progress import ProgressCallback, silent
from weanalysis.training.recipe import Recipe
from weanalysis.training.runs import Run, run_folder
from weanalysis.training.session import Session
from weanalysis.versions import versions

# The workers of a process that was killed hold its lock until they notice, which torch lets take five seconds.
_LOCK_PATIENCE_S = 8


def train(
    recipe: Recipe,
    cache: Cache | None = None,
    *,
    name: str | None = None,
    resume: bool = True,
    wait: bool = False,
    device: str = "auto",
    num_workers: int | None = None,
    save_every_s: float = 300,
    skip_bad_images: bool = False,
    progress: ProgressCallback = silent,
) -> Run:
    """Train a network and return its run; continue an unfinished run, and return a finished one at once.

    The state is kept after each epoch, after every `save_every_s` seconds, and on Ctrl-C (which raises
    KeyboardInterrupt with a line on how to continue). On the CPU, with as many threads, a run that was stopped, also
    by SIGKILL, ends bit for bit like one that was not. `device` is auto, cpu, cuda or cuda:N; started by `torchrun` on
    one shared cache, all processes train one network together. `num_workers` processes decode images; none of this
    changes which images are seen, or how they are augmented.

    The run is called `name`, else after its recipe. `resume=False` begins anew and replaces what was there. `wait`
    waits for another process that trains the same run. `skip_bad_images` leaves out files that are no pictures.

    Raises:
        TrainingError: names that the recipe has wrong, images that cannot be trained on, a run of that name with
            another recipe or other images, another process at work on it, or a loss that is no number.
        DataError, ModelError, ExcitationError, DeviceError: what the recipe names cannot be had.

    >>> recipe = Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=0.1, warmup_epochs=0)
    >>> train(recipe, device="cpu").finished
    True
    """
    for kind, choice, registry in (
        ("optimizer", recipe.optimizer, OPTIMIZERS),
        ("schedule", recipe.schedule, SCHEDULES),
        ("augmentation", recipe.augmentation, augmentations_for(task_of_data(recipe.data))),
    ):
        if choice not in registry:
            raise TrainingError(unknown_name(kind, choice, registry))
    cache = (cache or find_cache()).ready()
    run = run_folder(cache, name or recipe.run_name)
    accelerator = _accelerator(recipe, device)
    gpus = [accelerator.device] if accelerator.device.type == "cuda" else []
    with _only_one(cache, run, wait, accelerator), torch.random.fork_rng(devices=gpus), _room_for(run):
        train_data, val_data = _load_images(recipe, cache, skip_bad_images)
        net, architecture, image_size = make_network(recipe, train_data)
        train_data, val_data = (
            replace(data, transform=data.transform.adjusted(image_size=image_size)) for data in (train_data, val_data)
        )
        _check_batches(recipe, len(train_data), accelerator.num_processes)
        if accelerator.is_main_process:
            _claim(run, recipe, train_data, val_data, resume)
        accelerator.wait_for_everyone()
        if not run.finished:
            session = Session(run, recipe, accelerator, net, architecture, train_data, val_data, progress)
            session.train(num_workers, save_every_s)
    return run


def _accelerator(recipe: Recipe, device: str) -> Accelerator:
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"the device {device!r} cannot train; give auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if (number and not number.isdigit()) or int(number or 0) >= count:
            raise DeviceError(f"the device {device} does not exist; this machine has {count} CUDA devices")
        torch.cuda.set_device(int(number or 0))
    if PartialState._shared_state and PartialState().num_processes == 1:
        # Accelerate keeps the first run's device and precision for the whole process.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    alone = not torch.distributed.is_initialized()
    accelerator = Accelerator(
        cpu=kind == "cpu",
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.accumulation_steps,
    )
    if alone and torch.distributed.is_initialized():
        # The threads that processes talk by must end before the process does, or it may abort at its very end.
        atexit.register(_leave_the_others)
    if recipe.mixed_precision == "fp16" and accelerator.scaler is None:
        raise TrainingError(f"mixed precision fp16 does not train on {accelerator.device}; give bf16 or no")
    return accelerator


@contextlib.contextmanager
def _only_one(cache: Cache, run: Run, wait: bool, accelerator: Accelerator) -> Iterator[None]:
    """Let one process (with its helpers) at a time work on a run."""
    if not accelerator.is_main_process:
        yield
        return
    cache.locks.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(cache.lock_file(f"run-{run.name}"), timeout=-1 if wait else _LOCK_PATIENCE_S):
            yield
    except filelock.Timeout as error:
        raise TrainingError(
            f"another process is training the run {run.name}; wait for it, or give this one another seed or name"
        ) from error


@contextlib.contextmanager
def _room_for(run: Run) -> Iterator[None]:
    """Say in one line that a disk is full; every file of a run is written whole or not at all."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise TrainingError(
            f"the run {run.name} cannot be written ({error.strerror}); what was kept is intact: make room, and the "
            "same command continues it"
        ) from error


def _load_images(recipe: Recipe, cache: Cache, skip_bad_images: bool) -> tuple[ImageData, ImageData]:
    """Load training and validation images with the training images' classes."""
    train_data, val_data = (
        load_data(
            recipe.data,
            recipe.mean,
            recipe.std,
            recipe.image_size,
            split=split,
            cache=cache,
            skip_bad_images=skip_bad_images,
            frames=recipe.frames,
            sampling=recipe.sampling,
        )
        for split in ("train", "test")
    )
    if isinstance(train_data, MaskData):
        return train_data, val_data
    if isinstance(train_data.transform, ArrayTransform) and recipe.augmentation != "none":
        raise TrainingError(
            f"{recipe.data} has arrays, which no augmentation suits; give --augmentation none, or --recipe signals"
        )
    if len(train_data) == 0:
        raise TrainingError(f"{recipe.data} has no training images; give data with images of at least two classes")
    seen = np.unique(train_data.targets)
    if len(seen) < 2:
        raise TrainingError(
            f"all {len(train_data)} training images of {recipe.data} are of class {train_data.classes[seen[0]]!r}; "
            "at least two classes are needed to train"
        )
    unknown = sorted(set(val_data.classes) - set(train_data.classes))
    if unknown:
        raise TrainingError(
            f"{recipe.data} has {', '.join(map(repr, unknown[:4]))} among its validation classes, but not among its "
            "training classes; both need the same class names"
        )
    known = SimpleNamespace(num_classes=len(train_data.classes), classes=train_data.classes)
    return train_data, fit_classes(val_data, known)


def _check_batches(recipe: Recipe, num_images: int, num_processes: int) -> None:
    if recipe.batch_size > num_images:
        raise TrainingError(
            f"the batch size {recipe.batch_size} is larger than the {num_images} training images of {recipe.data}; "
            f"give {num_images} or less"
        )
    if recipe.batch_size % (recipe.accumulation_steps * num_processes):
        raise TrainingError(
            f"the batch size {recipe.batch_size} cannot be split evenly over {num_processes} processes times "
            f"{recipe.accumulation_steps} accumulation steps; give a multiple of both"
        )


def _claim(run: Run, recipe: Recipe, train_data: ImageData, val_data: ImageData, resume: bool) -> None:
    """Make the run's folder, or see that the one that is there is of this recipe and these images."""
    if not resume:
        for file in run.files:
            file.unlink(missing_ok=True)
    images = {"train_images": train_data.fingerprint, "val_images": val_data.fingerprint}
    if not run.recipe_file.is_file():
        description: dict[str, Any] = {
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "recipe": recipe.to_json(),
            "image_size": train_data.transform.image_size,
            **images,
            "versions": versions(),
        }
        write_atomically(run.recipe_file, json.dumps(description, indent=1).encode())
        return
    description = run.description
    differences = recipe.differences(Recipe.from_json(description["recipe"]))
    hint = "give this run another name, or begin anew with resume off"
    if differences:
        raise TrainingError(f"the run {run.name} has another recipe ({'; '.join(differences)}); {hint}")
    if any(description.get(key) != value for key, value in images.items()):
        raise TrainingError(f"the images of {recipe.data} are not those that the run {run.name} began with; {hint}")


def _leave_the_others() -> None:
    """Leave the group of processes that trained together."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""Training images: augmentation, and batches that depend on the recipe alone, not on workers, processes or restarts."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision.transforms import InterpolationMode, v2

from weanalysis.data import AnyTransform, ArrayTransform, ClipTransform, ImageData, MaskData
from weanalysis.training.masks import MASK_AUGMENTATIONS, MEMORY_LIMIT_BYTES, TrainingMasks


@dataclass(frozen=True)
class Augmentation:
    """A random change of training images: `make(image_size, interpolation)` gives the torchvision v2 transform.

    It is applied to ByteTensors (3, image_size, image_size), or with `whole_picture` to the picture as it lies in
    the source, which it must bring to that size. All frames of a clip (T, 3, H, W) are changed alike; with `moments`
    they are also drawn (`clips.places_of`), else taken from the middle.
    """

    make: Callable[[int, InterpolationMode], Callable[[Any], Any]]
    whole_picture: bool = False
    moments: bool = False


# To add one: enter it here. None that flips may be used for digits.
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(lambda size, mode: v2.Identity()),
    # He et al.'s for CIFAR: 4 pixels of border at 32.
    "pad-crop-flip": Augmentation(
        lambda size, mode: v2.Compose([v2.RandomCrop(size, padding=max(1, size // 8)), v2.RandomHorizontalFlip()])
    ),
    # What has become of He et al.'s for ImageNet: a random part of 8 to 100 % of the picture.
    "resized-crop-flip": Augmentation(
        lambda size, mode: v2.Compose(
            [v2.RandomResizedCrop(size, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()]
        ),
        whole_picture=True,
    ),
    "clip-crop-flip": Augmentation(
        lambda size, mode: v2.Compose(
            [v2.RandomResizedCrop(size, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()]
        ),
        whole_picture=True,
        moments=True,
    ),
    # For clips in which left and right are not the same.
    "clip-crop": Augmentation(
        lambda size, mode: v2.RandomResizedCrop(size, interpolation=mode, antialias=True),
        whole_picture=True,
        moments=True,
    ),
    "shift-rotate": Augmentation(
        lambda size, mode: v2.RandomAffine(10, translate=(0.1, 0.1), interpolation=InterpolationMode.BILINEAR)
    ),
}


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images of `data` before normalization: `[index, seed]` is (ByteTensor(3, H, W), class index).

    The augmentation of an image depends on that seed alone. Clips are ByteTensors (T, 3, H, W), arrays FloatTensors.
    """

    def __init__(self, data: ImageData, augmentation: Augmentation) -> None:
        self.data = data
        self.whole_picture, self.moments = augmentation.whole_picture, augmentation.moments
        transform = data.transform
        self.augment: Callable[[Any], Any] = v2.Identity()
        if not isinstance(transform, ArrayTransform):
            self.augment = augmentation.make(transform.image_size, InterpolationMode(transform.interpolation))
        fits = len(data) * _num_bytes(transform) <= MEMORY_LIMIT_BYTES
        self.pixels = None
        if fits and not self.whole_picture and not self.moments:
            self.pixels = torch.stack([data.transform.pixels(data.picture(index)) for index in range(len(data))])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image = self.augment(self._image(index))
        if isinstance(image, Image.Image):
            image = v2.functional.pil_to_tensor(image)
        return image, int(self.data.targets[index])

    def _image(self, index: int) -> Tensor | Image.Image:
        if self.pixels is not None:
            return self.pixels[index]
        picture, transform = self.data.picture(index), self.data.transform
        if isinstance(transform, ClipTransform) and (self.moments or self.whole_picture):
            drawn = torch.rand(transform.num_frames) if self.moments else None
            frames = transform.chosen(picture, drawn)
            if self.whole_picture:
                return torch.stack([v2.functional.pil_to_tensor(frame) for frame in frames])
            return torch.stack([transform.frame_pixels(frame) for frame in frames])
        return picture if self.whole_picture else transform.pixels(picture)


def _num_bytes(transform: AnyTransform) -> int:
    """What an input takes before it is normalized."""
    return math.prod(transform.stored_shape) * transform.dtype.itemsize


def training_images(data: ImageData, augmentation: str) -> TrainingImages | TrainingMasks:
    """The training images of a run, with masks where the data has them."""
    if isinstance(data, MaskData):
        return TrainingMasks(data, MASK_AUGMENTATIONS[augmentation])
    return TrainingImages(data, AUGMENTATIONS[augmentation])


def augmentations_for(task: str) -> Mapping[str, Any]:
    """The augmentations by name that there are for a task's images."""
    return MASK_AUGMENTATIONS if task == MaskData.task else AUGMENTATIONS


class Batches(Sampler[list[tuple[int, int]]]):
    """This process's share of every micro-batch of a run from an optimizer step on, as (index, seed) draws.

    Each epoch is a permutation drawn from (seed, epoch), cut to whole steps of `batch_size` images; each step is
    `accumulation_steps` micro-batches; each micro-batch is split evenly over `num_processes`.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        steps: range,
        accumulation_steps: int = 1,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_images, self.batch_size, self.seed, self.steps = num_images, batch_size, seed, steps
        self.accumulation_steps = accumulation_steps
        self.process, self.num_processes = process, num_processes

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = self.num_images // self.batch_size
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in self.steps:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
                order_epoch = epoch
            chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
            for micro in np.split(chosen, self.accumulation_steps):
                share = micro[self.process :: self.num_processes]
                yield [(int(index), derived_seed(self.seed, epoch, int(index))) for index in share]


def derived_seed(*numbers: int) -> int:
    """Mix whole numbers into a seed for torch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def training_loader(
    images: TrainingImages | TrainingMasks, batches: Batches, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Serve the batches; worker processes prepare them ahead."""
    return _loader(images, num_workers, pin_memory, batch_sampler=batches)


def validation_loader(
    data: ImageData, batch_size: int, num_workers: int, pin_memory: bool, process: int, num_processes: int
) -> DataLoader:
    """Serve this process's share of all images as the study of a network serves them, in order."""
    share = range(process, len(data), num_processes)
    if len(data) * 4 * math.prod(data.transform.stored_shape) <= MEMORY_LIMIT_BYTES:
        kept: Dataset = _Kept([data[index] for index in share])
        return _loader(kept, 0, pin_memory, batch_size=batch_size)
    return _loader(torch.utils.data.Subset(data, list(share)), num_workers, pin_memory, batch_size=batch_size)


class _Kept(Dataset[tuple[Tensor, Any]]):
    def __init__(self, samples: list[tuple[Tensor, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.samples[index]


def default_num_workers(num_processes: int = 1) -> int:
    """The cores that each process can have, eight at most."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, num_cores // num_processes))


def _loader(dataset: Dataset, num_workers: int, pin_memory: bool, **batching: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_interrupts,
        **batching,
    )


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the training process decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

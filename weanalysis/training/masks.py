"""Training images with masks: the augmentations that change both alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from weanalysis.data import MaskData
from weanalysis.data.masks import VOID

# Datasets whose resized pixels take less than this are kept in memory.
MEMORY_LIMIT_BYTES = 512 * 2**20

# What is new beyond a border: black in a picture, void in its mask.
_FILL: dict[Any, Any] = {tv_tensors.Image: 0, tv_tensors.Mask: VOID}


@dataclass(frozen=True)
class MaskAugmentation:
    """A random change of pictures and their masks: `make(image_size)` gives the torchvision v2 transform of both.

    It is applied after the resizing of the data's transform, or with `whole_picture` to what lies in the source, whose
    shorter side has been brought to `resize_size` of that transform; it must then cut out image_size x image_size.
    """

    make: Callable[[int], Callable[..., Any]]
    whole_picture: bool = False


def _crop(size: int) -> v2.Transform:
    return v2.RandomCrop(size, pad_if_needed=True, fill=_FILL)


# To add one: enter it here. None that flips may be used for digits.
MASK_AUGMENTATIONS: dict[str, MaskAugmentation] = {
    "none": MaskAugmentation(lambda size: v2.Identity()),
    "shift-rotate": MaskAugmentation(
        lambda size: v2.RandomAffine(
            10, translate=(0.1, 0.1), interpolation=InterpolationMode.BILINEAR, fill=dict(_FILL)
        )
    ),
    # DeepLabv3's on VOC (L.-C. Chen et al., 2017, section 4.1): scaled by 0.5 to 2, cropped, flipped.
    "scale-crop-flip": MaskAugmentation(
        lambda size: v2.Compose([_RandomScale(), _crop(size), v2.RandomHorizontalFlip()]), whole_picture=True
    ),
    # VainF's DeepLabV3Plus-Pytorch on Cityscapes.
    "crop-jitter-flip": MaskAugmentation(
        lambda size: v2.Compose([_crop(size), v2.ColorJitter(0.5, 0.5, 0.5), v2.RandomHorizontalFlip()]),
        whole_picture=True,
    ),
}


class _RandomScale(v2.Transform):
    """Resize both by one factor, drawn evenly from 0.5 to 2."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        factor = float(torch.empty(()).uniform_(0.5, 2.0))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return functional.resize(inpt, params["size"], antialias=True)


class TrainingMasks(Dataset[tuple[Tensor, Tensor]]):
    """Augmented images of `data` before normalization: `[index, seed]` is (ByteTensor(3, H, W), LongTensor(H, W)).

    The augmentation of an image and its mask depends on that seed alone.
    """

    def __init__(self, data: MaskData, augmentation: MaskAugmentation) -> None:
        self.data, self.whole_picture = data, augmentation.whole_picture
        size = data.transform.image_size
        self.augment = augmentation.make(size)
        self.pixels: Tensor | None = None
        self._masks: Tensor | None = None
        if not self.whole_picture and len(data) * 11 * size**2 <= MEMORY_LIMIT_BYTES:
            self.pixels = torch.stack([data.transform.pixels(data.picture(index)) for index in range(len(data))])
            self._masks = torch.stack([data.mask(index) for index in range(len(data))])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        image, mask = self._pair(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, mask = self.augment(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def _pair(self, index: int) -> tuple[Tensor, Tensor]:
        data, transform = self.data, self.data.transform
        if self.pixels is not None and self._masks is not None:
            return self.pixels[index], self._masks[index]
        if not self.whole_picture:
            return transform.pixels(data.picture(index)), data.mask(index)
        image = tv_tensors.Image(functional.pil_to_tensor(data.picture(index)))
        mask = tv_tensors.Mask(data.indices(torch.from_numpy(data.raw_mask(index).copy()).long()))
        shorter = [transform.resize_size or transform.image_size]
        return functional.resize(image, shorter, antialias=True), functional.resize(mask, shorter)

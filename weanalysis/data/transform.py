"""From a picture to a network's input: a plain description that is hashed, stored and carried out alike everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from weanalysis.data.decoding import Unreadable, to_rgb
from weanalysis.errors import DataError, unknown_name

RGB = tuple[float, float, float]
INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)


@dataclass(frozen=True)
class Transform:
    """Resize, crop the centre, scale to [0, 1] and normalise: PIL picture -> FloatTensor(3, image_size, image_size).

    `resize_size` is what the shorter side becomes before the crop, or with `squash` what both sides become; without
    it the whole picture is resized straight to image_size x image_size, and one of that size is not resampled.
    Raises DataError for values that make no transform.

    >>> transform = Transform(image_size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> transform(Image.new("RGB", (2, 2), (255, 0, 0)))[:, 0, 0].tolist()
    [1.0, -1.0, -1.0]
    >>> Transform(0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    Traceback (most recent call last):
        ...
    weanalysis.errors.DataError: image_size is 0; give a whole number of pixels, 1 or more
    """

    image_size: int
    mean: RGB
    std: RGB
    resize_size: int | None = None
    interpolation: str = "bilinear"
    squash: bool = False

    kind: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        for name in ("image_size", "resize_size"):
            value = getattr(self, name)
            if name == "resize_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError(f"{name} is {value!r}; give a whole number of pixels, 1 or more")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise DataError(f"std is {_listed(self.std)}; each of its three numbers must be greater than 0")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(unknown_name("interpolation", str(self.interpolation), INTERPOLATIONS))

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.normalize(self.pixels(picture))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in which inputs are kept until they are normalized."""
        return 3, self.image_size, self.image_size

    @property
    def dtype(self) -> torch.dtype:
        """The type of numbers in which inputs are kept until they are normalized."""
        return torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input of the network."""
        return self.stored_shape

    def pixels(self, picture: Image.Image) -> Tensor:
        """Return the resized and cropped RGB picture as a ByteTensor(3, image_size, image_size); raise DataError.

        >>> transform.pixels(Image.new("RGB", (4, 4), (255, 0, 51)))[:, 0, 0].tolist()
        [255, 0, 51]
        """
        mode = InterpolationMode(self.interpolation)
        try:
            picture = picture if picture.mode == "RGB" else to_rgb(picture)
        except Unreadable as error:
            raise DataError(f"the picture has {error}") from error
        if self.resize_size is None:
            picture = functional.resize(picture, [self.image_size, self.image_size], mode, antialias=True)
        else:
            size = [self.resize_size, self.resize_size] if self.squash else [self.resize_size]
            picture = functional.resize(picture, size, mode, antialias=True)
            picture = functional.center_crop(picture, [self.image_size, self.image_size])
        return functional.pil_to_tensor(picture)

    def mask(self, labels: np.ndarray, void: int) -> Tensor:
        """Resize and crop a mask, uint8 (H, W), as `pixels` does its picture: LongTensor(image_size, image_size).

        Each pixel has the label of the nearest one; what a crop adds beyond the border is `void`.

        >>> transform.mask(np.array([[0, 0, 1, 1]] * 4, np.uint8), void=255).tolist()
        [[0, 1], [0, 1]]
        """
        picture, nearest = Image.fromarray(labels), InterpolationMode.NEAREST
        if self.resize_size is None:
            resized = functional.resize(picture, [self.image_size, self.image_size], nearest)
            return functional.pil_to_tensor(resized)[0].long()
        size = [self.resize_size, self.resize_size] if self.squash else [self.resize_size]
        whole = functional.pil_to_tensor(functional.resize(picture, size, nearest)).long()
        # A crop pads with zeros.
        return functional.center_crop(whole - void, [self.image_size, self.image_size])[0] + void

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale a ByteTensor(..., 3, H, W) to [0, 1], subtract `mean`, divide by `std`: FloatTensor(..., 3, H, W).

        >>> pixels = torch.tensor([255, 0, 102], dtype=torch.uint8).reshape(3, 1, 1)
        >>> [round(value, 1) for value in transform.normalize(pixels).flatten().tolist()]
        [1.0, -1.0, -0.2]
        """
        # Divided, not multiplied by 1/255 as v2.functional.to_dtype does: published weights were evaluated on the
        # former, and the two differ in the last bit.
        scaled = pixels.to(torch.float32).div_(255)
        return functional.normalize(scaled, list(self.mean), list(self.std), inplace=True)

    def describe(self) -> dict[str, Any]:
        """Return the JSON description from which `from_description` makes this transform again.

        >>> transform.describe()
        {'image_size': 2, 'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5], 'resize_size': None,
         'interpolation': 'bilinear', 'squash': False}
        """
        description = asdict(self)
        return {**description, "mean": list(self.mean), "std": list(self.std)}

    def with_image_size(self, image_size: int) -> Transform:
        """Return the transform for another input size; what is cut off the border stays the same share.

        >>> larger = Transform(224, transform.mean, transform.std, resize_size=256).with_image_size(448)
        >>> larger.image_size, larger.resize_size
        (448, 512)
        """
        resized = replace(self, image_size=image_size)
        if self.resize_size is None:
            return resized
        return replace(resized, resize_size=max(1, round(self.resize_size * image_size / self.image_size)))

    def adjusted(
        self,
        image_size: int | None = None,
        mean: RGB | None = None,
        std: RGB | None = None,
        frames: int | None = None,
        sampling: str | None = None,
    ) -> Transform:
        """Return the transform with the parts that are given; raise DataError for those that it does not have.

        >>> transform.adjusted(image_size=8).image_size
        8
        >>> transform.adjusted(frames=4)
        Traceback (most recent call last):
            ...
        weanalysis.errors.DataError: pictures have no frames to choose from; leave --frames and --sampling out, or give
        clips
        """
        if self.kind == "pictures" and (frames, sampling) != (None, None):
            raise DataError("pictures have no frames to choose from; leave --frames and --sampling out, or give clips")
        resized = self if image_size is None else self.with_image_size(image_size)
        return replace(resized, mean=self.mean if mean is None else mean, std=self.std if std is None else std)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Transform:
        """Return the transform that `describe` described; raise DataError where the description is not one.

        >>> Transform.from_description(transform.describe()) == transform
        True
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(description, Mapping) or not {"image_size", "mean", "std"} <= set(description) <= known:
            raise DataError(f"{description!r} describes no transform; it needs image_size, mean and std")
        return cls(**description)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Transform:
        """Return torchvision's `ImageClassification` preset (`weights.transforms()`), equal to it bit for bit.

        >>> from weanalysis._torchvision import torchvision
        >>> made = Transform.from_torchvision(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms())
        >>> made.image_size, made.resize_size, made.mean
        (224, 256, (0.485, 0.456, 0.406))
        """
        return cls(
            image_size=int(preset.crop_size[0]),
            resize_size=int(preset.resize_size[0]),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Transform:
        """Return timm's evaluation transform for a configuration of `timm.data.resolve_model_data_config`.

        Raises DataError for networks that read other than square RGB pictures, or that pad them with a border.

        >>> config = {"input_size": (3, 224, 224), "crop_pct": 0.875, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        >>> Transform.from_timm(config).resize_size
        256
        """
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise DataError(f"the network reads {channels}x{height}x{width} pictures; only 3xSxS is supported")
        crop_mode = config.get("crop_mode") or "center"
        if crop_mode not in ("center", "squash"):
            raise DataError(
                f"the network's pictures are cropped by {crop_mode!r}; only center and squash are supported"
            )
        return cls(
            image_size=height,
            resize_size=math.floor(height / (config.get("crop_pct") or 0.875)),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config.get("interpolation") or "bilinear",
            squash=crop_mode == "squash",
        )


def _three_numbers(name: str, values: Sequence[float]) -> RGB:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{name} is {values!r}; give three numbers, one each for red, green and blue")
    return numbers[0], numbers[1], numbers[2]


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)

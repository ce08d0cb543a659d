"""Any map-style dataset of labelled images, checked item by item before anything is measured on it."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weanalysis.data.images import ImageData
from weanalysis.errors import DataError

_FLOAT32 = np.dtype(np.float32)
_PACK = struct.Struct("<q").pack


@dataclass(eq=False)
class GivenImages:
    """Any map-style dataset of (FloatTensor(3, H, W), class index), in its own order, known by its contents.

    Every item is looked at: `targets[i]` is the class index of the i-th. Raises DataError that names the first item
    that is not such a pair, or whose image has another shape than the others.

    >>> given = GivenImages([(torch.zeros(3, 8, 8), 1), (torch.ones(3, 8, 8), 0)])
    >>> images, targets = given.batch(0, 2)
    >>> tuple(images.shape), targets.tolist(), given.fingerprint[:8]
    ((2, 3, 8, 8), [1, 0], 'a6505e68')
    >>> GivenImages([(torch.zeros(3, 8, 8), 1), (torch.ones(3, 9, 8), 0)])
    Traceback (most recent call last):
        ...
    weanalysis.errors.DataError: item 1 of list has an image of 3 x 9 x 8, the first one of 3 x 8 x 8; resize or crop
    them to one size
    """

    dataset: Any
    spec: str = "dataset"
    seed: int = 0
    transform: None = None
    task: ClassVar[str] = "classification"
    fingerprint: str = field(init=False)
    ids: np.ndarray = field(init=False)
    targets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = self._count()
        hashed, targets, shape = hashlib.sha256(), [], None
        add, is_finite = hashed.update, math.isfinite
        pack, plain = self._shortcuts()
        for index in range(count):
            item = self._read(index)
            if (pair := plain(item, shape)) is None:
                pair = self._checked(index, item)
                if shape not in (None, pair[0].shape):
                    sizes = f"an image of {_size(pair[0])}, the first one of {_size(shape)}"
                    raise DataError(f"{self._named(index)} has {sizes}; resize or crop them to one size")
                shape = pair[0].shape
            pixels, target = pair
            flat = pixels.ravel()
            # A sum of squares is found fast, and may be infinite though no pixel is.
            if not is_finite(flat.dot(flat)) and not np.isfinite(pixels).all():
                raise DataError(f"{self._named(index)} has pixels that are NaN or infinite; give finite ones")
            add(flat)  # type: ignore[arg-type]
            add(pack(target))
            targets.append(target)
        self.fingerprint, self.ids = hashed.hexdigest(), np.arange(count)
        self._keep(targets)

    def _shortcuts(self) -> tuple[Callable[[Any], bytes], Callable[[Any, Any], tuple[np.ndarray, Any] | None]]:
        """What makes bytes of a target, and pixels and target of an item that is like nearly all.

        Functions, since one more call for each item would be a twentieth of the time that small images take.
        """
        return _PACK, _plain

    def _keep(self, targets: list[Any]) -> None:
        self.targets = np.array(targets, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int, num_threads: int = 1) -> tuple[Tensor, Tensor]:
        """Return images [start, stop) as FloatTensor(N, 3, H, W) and LongTensor(N)."""
        indices = range(start, min(stop, len(self)))
        try:
            images = torch.stack([self.dataset[index][0] for index in indices]).detach().cpu()
        # Each item was well when it was looked at first: which one no longer is, is found out by looking again.
        except Exception:
            checked = [self._checked(index, self._read(index)) for index in indices]
            images = torch.from_numpy(np.stack([pixels for pixels, _ in checked]))
        return images, self._targets_of(indices)

    def _targets_of(self, indices: range) -> Tensor:
        return torch.from_numpy(self.targets[indices.start : indices.stop].copy())

    def _count(self) -> int:
        wanted = "give what load_data returns, or a map-style dataset whose items are (tensor, class index)"
        name = type(self.dataset).__name__
        if not hasattr(self.dataset, "__getitem__") or isinstance(self.dataset, (str, bytes, Mapping)):
            raise DataError(f"{name} is no data set of images: {wanted}")
        try:
            count = len(self.dataset)
        except TypeError as error:
            raise DataError(f"{name} is no data set of images, since it has no length: {wanted}") from error
        if count == 0:
            raise DataError(f"{name} is empty: {wanted}")
        return count

    def _named(self, index: int) -> str:
        return f"item {index} of {type(self.dataset).__name__}"

    def _read(self, index: int) -> Any:
        try:
            return self.dataset[index]
        # What a user's own dataset raises may be anything; which item it was is what nobody else can say.
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise DataError(f"{self._named(index)} cannot be read ({type(error).__name__}: {why})") from error

    def _checked(self, index: int, item: Any) -> tuple[np.ndarray, Any]:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{self._named(index)} is {_parts(item)}; give (image, class index)")
        return self._image(index, item[0]), self._target(index, item[1])

    def _image(self, index: int, image: Any) -> np.ndarray:
        if not isinstance(image, Tensor):
            named = self._named(index)
            raise DataError(
                f"{named} has {_what(image)} for an image; give a float32 tensor (3, H, W), such as "
                "torchvision's transforms make"
            )
        if image.dtype is not torch.float32 or image.layout is not torch.strided or image.is_meta or image.is_nested:
            wanted = "give a dense float32 tensor (3, H, W)"
            raise DataError(f"{self._named(index)} has {_what(image)} for an image; {wanted}")
        if image.dim() < 2 or image.numel() == 0:
            raise DataError(f"{self._named(index)} has an image of {_size(image)}; give a tensor (3, H, W)")
        return image.detach().cpu().resolve_neg().numpy()

    def _target(self, index: int, target: Any) -> Any:
        plain = _as_index(target)
        if plain is None:
            wanted = "give a class index, a whole number from 0 (other targets need a metric of your own)"
            raise DataError(f"{self._named(index)} has {_what(target)} for a target; {wanted}")
        if not 0 <= plain < 2**31:
            raise DataError(f"{self._named(index)} has the target {plain}; give a class index, a whole number from 0")
        return int(plain)


@dataclass(eq=False)
class GivenTargets(GivenImages):
    """A map-style dataset whose targets are no class indices: numbers, or tensors of one shape, for a metric to read.

    `targets` are 0 for all; `batch` returns the real ones, (N, ...). Raises DataError for an item that has none.

    >>> given = GivenTargets([(torch.zeros(3, 8, 8), torch.tensor([1.0, 0.0])), (torch.ones(3, 8, 8), torch.ones(2))])
    >>> given.batch(0, 2)[1].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """

    task: ClassVar[str] = "numbers"
    _rows: Tensor = field(init=False)

    def _keep(self, targets: list[Any]) -> None:
        self.targets = np.zeros(len(targets), np.int64)
        shapes = {(target.shape, target.dtype) for target in targets}
        if len(shapes) > 1:
            listed = " and ".join(sorted(f"{kind} ({', '.join(map(str, shape))})" for shape, kind in shapes)[:2])
            raise DataError(f"{type(self.dataset).__name__} has targets of several kinds ({listed}); give all alike")
        self._rows = torch.from_numpy(np.stack(targets))

    def _targets_of(self, indices: range) -> Tensor:
        return self._rows[indices.start : indices.stop].clone()

    def _shortcuts(self) -> tuple[Callable[[Any], bytes], Callable[[Any, Any], tuple[np.ndarray, Any] | None]]:
        return (lambda target: f"{target.dtype}{target.shape}".encode() + target.tobytes()), lambda item, shape: None

    def _target(self, index: int, target: Any) -> np.ndarray:
        plain = target.detach().cpu() if isinstance(target, Tensor) and not target.is_meta else target
        try:
            array = np.array(np.float32(plain) if isinstance(plain, float) else plain)
        except (TypeError, ValueError, RuntimeError):
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{self._named(index)} has {_what(target)} for a target; give a number or a tensor of numbers"
            )
        return array


@dataclass(eq=False)
class GivenMasks(GivenTargets):
    """A map-style dataset whose targets are masks: class indices (H, W) of the image's size, 255 where there is none.

    Raises DataError for an item whose mask is of another kind or size.

    >>> given = GivenMasks([(torch.zeros(3, 2, 2), torch.tensor([[0, 1], [1, 255]]))])
    >>> given.batch(0, 1)[1].tolist()
    [[[0, 1], [1, 255]]]
    """

    task: ClassVar[str] = "segmentation"

    def _target(self, index: int, target: Any) -> np.ndarray:
        mask = super()._target(index, target)
        if mask.ndim != 2 or mask.dtype.kind not in "iu":
            raise DataError(f"{self._named(index)} has {_what(target)} for a mask; give whole numbers (H, W)")
        return mask.astype(np.int64)

    def _checked(self, index: int, item: Any) -> tuple[np.ndarray, Any]:
        image, mask = super()._checked(index, item)
        if image.shape[-2:] != mask.shape:
            raise DataError(
                f"{self._named(index)} has an image of {_size(image)} and a mask of {_size(mask)}; give a class for "
                "each of its pixels"
            )
        return image, mask


def as_images(data: Any, targets: str | None = None) -> ImageData | GivenImages:
    """Return an ImageData as it is, and wrap any other map-style dataset. Raises DataError for anything else.

    With `targets` "segmentation" these are masks; with "numbers" those of a dataset whose first target is no class
    index may be anything that is numbers.

    >>> as_images([(torch.zeros(3, 8, 8), 1)]).targets.tolist()
    [1]
    >>> as_images(3)
    Traceback (most recent call last):
        ...
    weanalysis.errors.DataError: int is no data set of images: give what load_data returns, or a map-style dataset whose
    items are (tensor, class index)
    """
    if isinstance(data, (ImageData, GivenImages)):
        return data
    if targets == GivenMasks.task:
        return GivenMasks(data)
    if targets == GivenTargets.task and hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data):
        try:
            first = data[0]
        except Exception:  # said by the wrapper, which looks at each item
            first = None
        if isinstance(first, (tuple, list)) and len(first) == 2 and _as_index(first[1]) is None:
            return GivenTargets(data)
    return GivenImages(data)


def _as_index(target: Any) -> int | None:
    """The whole number that a target is; None for anything else."""
    plain = target.detach().cpu().numpy() if isinstance(target, Tensor) and not target.is_meta else target
    if isinstance(plain, np.ndarray) and plain.size == 1 and plain.dtype.kind in "iu":
        plain = plain.item()
    # A bool is a whole number in Python, a label of one of two classes nowhere.
    return int(plain) if isinstance(plain, (int, np.integer)) and not isinstance(plain, (bool, np.bool_)) else None


def check_targets(images: ImageData | GivenImages, num_outputs: int) -> None:
    """Raise DataError where an image's class index is none of the network's `num_outputs` outputs.

    >>> check_targets(GivenImages([(torch.zeros(3, 8, 8), 4)]), num_outputs=3)
    Traceback (most recent call last):
        ...
    weanalysis.errors.DataError: image 0 of dataset has the class index 4, and the network has 3 outputs: give indices
    from 0 to 2
    """
    beyond = np.flatnonzero((images.targets < 0) | (images.targets >= num_outputs))
    if len(beyond):
        first = int(beyond[0])
        more = f" (and {len(beyond) - 1:,} more such)" if len(beyond) > 1 else ""
        raise DataError(
            f"image {first} of {images.spec} has the class index {images.targets[first]}{more}, and the "
            f"network has {num_outputs} outputs: give indices from 0 to {num_outputs - 1}"
        )


def _plain(item: Any, shape: tuple[int, ...] | None) -> tuple[np.ndarray, int] | None:
    """Return pixels and target of an item that is like nearly all; None for one that needs a closer look."""
    if type(item) is not tuple or len(item) != 2:
        return None
    image, target = item
    if type(image) is not Tensor or type(target) is not int or not 0 <= target < 2**31:
        return None
    try:
        pixels = image.numpy()
    except (RuntimeError, TypeError):  # with gradients, on a GPU, sparse, without storage
        return None
    return (pixels, target) if pixels.dtype is _FLOAT32 and pixels.shape == shape else None


def _size(image: Tensor | np.ndarray | tuple[int, ...]) -> str:
    shape = image if isinstance(image, tuple) else image.shape
    return " x ".join(map(str, shape)) or "no dimension"


def _parts(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        listed = ", ".join(_what(part) for part in item[:5]) + (", ..." if len(item) > 5 else "")
        return f"of {len(item)} parts ({listed})"
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} with {', '.join(map(str, list(item)[:5]))}"
    return _what(item)


def _what(value: Any) -> str:
    """Say what a value is: its type, and its shape, or itself where it is short."""
    if isinstance(value, (Tensor, np.ndarray)):
        layout = getattr(value, "layout", torch.strided)
        kind = "" if layout == torch.strided else f"{layout} "
        shape = "" if getattr(value, "is_nested", False) else f" ({', '.join(map(str, value.shape))})"
        return f"a {kind}{value.dtype} {type(value).__name__.lower()}{shape}"
    if value is None:
        return "None"
    if isinstance(value, (str, bool, int, float)):
        return f"{type(value).__name__} {value!r:.40}"
    return f"a {type(value).__name__}"

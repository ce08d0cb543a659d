"""Inputs that are arrays, of any number of dimensions: signals, images of many channels, volumes."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import torch
from torch import Tensor

from weanalysis.data.pictures import Examined, digest, hashed, printable
from weanalysis.errors import DataError

MOST_SIDE, MOST_SIDES = 2**31, 4
_MOST_CLASSES = 1_000_000
_WANTED = "give an .npz file with x (N, C, ...), what the network reads, and y (N,), the class of each"


@dataclass(frozen=True)
class ArrayTransform:
    """Arrays as they are: an array of this `shape` -> FloatTensor of the same, channels first.

    Raises DataError for a shape that is none, and an array of another.

    >>> transform = ArrayTransform((1, 4))
    >>> transform(np.arange(4).reshape(1, 4))
    tensor([[0., 1., 2., 3.]])
    >>> transform(np.zeros((2, 4)))
    Traceback (most recent call last):
        ...
    weanalysis.errors.DataError: the network reads arrays of 1 x 4, and this one is 2 x 4; make them alike when the file
    is written
    """

    shape: tuple[int, ...]

    kind: ClassVar[str] = "arrays"
    image_size: ClassVar[None] = None

    def __post_init__(self) -> None:
        sides = self.shape if isinstance(self.shape, (tuple, list)) else ()
        plain = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
        if not 1 <= len(sides) <= MOST_SIDES or len(plain) < len(sides) or not all(1 <= n <= MOST_SIDE for n in plain):
            raise DataError(f"the shape {self.shape!r} is none; give channels and 1 to 3 sides, each 1 or more")
        object.__setattr__(self, "shape", tuple(plain))

    def __call__(self, picture: np.ndarray) -> Tensor:
        return self.pixels(picture)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in which inputs are kept until they are normalized."""
        return self.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of numbers in which inputs are kept until they are normalized."""
        return torch.float32

    def pixels(self, picture: np.ndarray) -> Tensor:
        """Return the array as a FloatTensor; raise DataError where it has another shape."""
        if picture.shape != self.shape:
            raise DataError(
                f"the network reads arrays of {_sides(self.shape)}, and this one is {_sides(picture.shape)}; make them "
                "alike when the file is written"
            )
        return torch.from_numpy(np.array(picture, np.float32))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the numbers as they are."""
        return pixels

    def describe(self) -> dict[str, Any]:
        """Return the JSON description from which this transform is made again."""
        return {"shape": list(self.shape)}

    def adjusted(self, **given: Any) -> ArrayTransform:
        """Return the same; raise DataError where anything is to be changed."""
        asked = [name for name, value in given.items() if value is not None]
        if asked:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise DataError(f"arrays are taken as they are, so that {options} cannot be; scale x when it is written")
        return self


@dataclass(frozen=True, eq=False)
class Arrays:
    """Inputs of an array (N, C, ...); `numbers` are what their labels say."""

    name: str
    array: np.ndarray
    numbers: np.ndarray

    kind: ClassVar[str] = "arrays"

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> np.ndarray:
        return self.array[index]

    def label(self, index: int) -> str:
        return f"{self.name} #{self.numbers[index]}"

    def examine(self, index: int, decode: bool) -> Examined:
        row = np.ascontiguousarray(self.array[index])
        identity = digest([hashed(row.tobytes()), str(row.dtype), list(row.shape)])
        with np.errstate(over="ignore"):
            finite = bool(np.isfinite(row.astype(np.float32, copy=False)).all())
        return Examined(identity, None, None if finite else "it has numbers that are NaN, infinite or beyond float32")

    def listing(self) -> str | None:
        return None

    def take(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.name, self.array[indices], self.numbers[indices])


@dataclass(frozen=True)
class ReadArrays:
    """What a file of arrays holds of a split."""

    inputs: Arrays
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: list[str]

    @property
    def transform(self) -> ArrayTransform:
        """The transform for networks that come without one: arrays as they are."""
        return ArrayTransform(tuple(self.inputs.array.shape[1:]))


def read_arrays(place: str, split: str) -> ReadArrays:
    """Read an .npz file: x_train, y_train, x_test and y_test, or x and y for both splits; `classes` may name them.

    x (N, C, ...) is what the network reads, of any real numbers; y (N,) are class indices from 0, or names. Raises
    DataError for anything else, for more than the memory holds, and for objects, which would be pickles.
    """
    path = Path(place).expanduser()
    if not place:
        raise DataError(f"arrays needs a file: arrays:FILE.npz; {_WANTED}")
    with _opened(path) as file:
        names = {name.removesuffix(".npy") for name in file.namelist()}
        own = {f"x_{split}", f"y_{split}"} <= names
        keys = (f"x_{split}", f"y_{split}") if own else ("x", "y")
        missing = [key for key in keys if key not in names]
        if missing:
            has = ", ".join(sorted(names)[:6]) or "nothing"
            raise DataError(f"{printable(path)} has no {missing[0]} (it has {printable(has)}); {_WANTED}")
        x, y = (_array(file, key, path) for key in keys)
        labelled = [key for key in ("y", "y_train", "y_test") if key in names] if own else ["y"]
        every = np.concatenate([_labels(y if key == keys[1] else _array(file, key, path), path) for key in labelled])
        given = _array(file, "classes", path) if "classes" in names else None
    notes = []
    if x.ndim == 2:
        notes.append(f"x of {printable(path)} has no side for channels: each row is taken as a signal of one")
        x = x[:, None]
    if not 3 <= x.ndim <= 1 + MOST_SIDES or x.dtype.kind not in "biuf" or 0 in x.shape:
        raise DataError(
            f"x of {printable(path)} is {x.dtype} of {_sides(x.shape)}; {_WANTED}, with 1 to 3 sides behind C"
        )
    labels = _labels(y, path)
    if len(labels) != len(x):
        raise DataError(f"{printable(path)} has {len(x):,} inputs and {len(labels):,} classes; give one for each")
    if not own and split == "train":
        notes.append(f"{printable(path)} has no x_train, so that all of x is taken for training, and for testing too")
    classes, numbers = _classes(labels, every, given, path)
    return ReadArrays(Arrays(printable(path.name), x, np.arange(len(x))), numbers, classes, notes)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "it is no .npz file, or a damaged one"
        raise DataError(f"{printable(path)} cannot be read ({why}); {_WANTED}") from error


def _array(file: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    """Read one array, whose header says that it holds no objects and fits the memory."""
    name = f"{key} of {printable(path)}"
    with _damaged_if_it_fails(name), file.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise DataError(f"{name} holds {dtype} values, which are not read; {_WANTED}")
    needed, free = math.prod(shape) * dtype.itemsize, psutil.virtual_memory().available // 2
    if needed > free:
        raise DataError(
            f"{name} takes {needed / 2**30:.1f} GiB, and half of the free memory is {free / 2**30:.1f}; give fewer, or "
            "in fewer bits"
        )
    with _damaged_if_it_fails(name), file.open(f"{key}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def _damaged_if_it_fails(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name} is no array, or a damaged one; {_WANTED}") from error


def _labels(y: np.ndarray, path: Path) -> np.ndarray:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "iuUS":
        raise DataError(
            f"y of {printable(path)} is {y.dtype} of {_sides(y.shape)}; give a class index or name for each"
        )
    if y.dtype.kind in "iu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < _MOST_CLASSES:
        raise DataError(
            f"y of {printable(path)} runs from {y.min()} to {y.max()}; give class indices from 0 to below "
            f"{_MOST_CLASSES:,}"
        )
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def _classes(
    labels: np.ndarray, every: np.ndarray, given: np.ndarray | None, path: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes in order, and which each input has; `every` are the labels of all splits."""
    if given is not None:
        given = _names(given, path)
    if labels.dtype.kind == "U":
        names = np.unique(every) if given is None else given
        unknown = sorted(set(every.tolist()) - set(names.tolist()))
        if unknown:
            raise DataError(f"y of {printable(path)} has {printable(unknown[0])!r}, which classes does not name")
        place = {name: index for index, name in enumerate(names.tolist())}
        return tuple(map(printable, names.tolist())), np.array([place[name] for name in labels.tolist()], np.int64)
    if every.dtype.kind == "U":
        raise DataError(f"{printable(path)} has class indices in one split and names in another; give one of them")
    count = int(every.max(initial=0)) + 1
    if given is not None and len(given) < count:
        raise DataError(f"classes of {printable(path)} names {len(given)}, and y goes up to {count - 1}; name all")
    names = np.arange(count).astype(str) if given is None else given
    return tuple(map(printable, names.tolist())), labels.astype(np.int64)


def _names(given: np.ndarray, path: Path) -> np.ndarray:
    if given.ndim != 1 or given.dtype.kind not in "US" or len(set(given.tolist())) < len(given):
        raise DataError(f"classes of {printable(path)} is no list of names, each once; give one, or leave it out")
    return np.char.decode(given, "utf-8", "replace") if given.dtype.kind == "S" else given


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no side"

"""Masks that give each pixel of a picture a class: where they lie, how they are read, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weanalysis.data.decoding import Unreadable, decode_indices, image_size, read_file
from weanalysis.data.pictures import (
    Examined,
    Looked,
    Pictures,
    digest,
    hashed,
    printable,
    refuse_another,
    state_of,
)
from weanalysis.data.transform import Transform
from weanalysis.errors import DataError

# The label of pixels that have no class (`tasks.segmentation.VOID`).
VOID = 255


class Masks(Looked, Protocol):
    """Masks by position. The pass over them looks at all of each: its labels, and whether it has its picture's size."""

    def mask(self, index: int) -> np.ndarray:
        """Return one mask, uint8 (H, W) of class indices, VOID where there is none; raise DataError naming it."""

    def take(self, indices: np.ndarray) -> Masks:
        """Return the masks at these positions, in this order."""


@dataclass(frozen=True, eq=False)
class ArrayMasks:
    """Masks of an array, uint8 (N, H, W)."""

    name: str
    array: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def mask(self, index: int) -> np.ndarray:
        return self.array[index]

    def label(self, index: int) -> str:
        return f"mask of {self.name} #{self.numbers[index]}"

    def examine(self, index: int, decode: bool) -> Examined:
        height, width = self.array.shape[1:]
        return Examined(hashed(self.array[index].tobytes()), (width, height))

    def listing(self) -> str | None:
        return None

    def take(self, indices: np.ndarray) -> ArrayMasks:
        return ArrayMasks(self.name, self.array[indices], self.numbers[indices])


@dataclass(frozen=True, eq=False)
class FileMasks:
    """Files of masks below one folder, each beside the picture of the same place in `pictures`.

    `classes[label]` (256,) is the class of a label in the files, VOID for those that have none, −1 for those that no
    file may have; `meaning` words the labels that one may have. Of masks that are served, `states` are how they were
    when they were taken.
    """

    root: Path
    paths: tuple[str, ...]
    pictures: tuple[str, ...]
    classes: np.ndarray
    meaning: str
    states: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def mask(self, index: int) -> np.ndarray:
        try:
            return self._classes_of(read_file(self.root / self.paths[index]))
        except Unreadable as error:
            raise DataError(f"{printable(self.root / self.paths[index])} is no mask of its picture: {error}") from error

    def label(self, index: int) -> str:
        return printable(self.paths[index])

    def examine(self, index: int, decode: bool) -> Examined:
        try:
            content = read_file(self.root / self.paths[index])
            height, width = self._classes_of(content).shape
            picture = image_size(read_file(self.root / self.pictures[index]))
            if picture != (width, height):
                sizes = "{} x {} pixels, its picture {} has {} x {}"
                raise Unreadable(sizes.format(width, height, printable(self.pictures[index]), *picture))
        except Unreadable as error:
            return Examined("", None, str(error), lasting=error.lasting)
        return Examined(hashed(content), (width, height))

    def listing(self) -> str | None:
        states: list[Any] = [self.classes.tolist()]
        for name in (*self.paths, *self.pictures):
            try:
                state = (self.root / name).stat()
            except OSError:
                states.append((name,))
                continue
            states.append((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
        return digest(states)

    def take(self, indices: np.ndarray) -> FileMasks:
        paths, pictures = (tuple(names[index] for index in indices) for names in (self.paths, self.pictures))
        states = tuple(state_of(self.root / path) for path in paths)
        return FileMasks(self.root, paths, pictures, self.classes, self.meaning, states)

    def refuse_changed(self, index: int) -> None:
        """Raise DataError where a mask is not what it was when its contents were hashed."""
        if self.states is not None:
            path = self.root / self.paths[index]
            refuse_another(path, self.states[index], state_of(path))

    def _classes_of(self, content: bytes) -> np.ndarray:
        """The classes of a mask's pixels, (H, W); raise Unreadable for labels that no mask has."""
        labels = decode_indices(content)
        classes = self.classes[labels]
        if (classes < 0).any():
            raise Unreadable(f"it has the label {labels[classes < 0][0]}, and labels are {self.meaning}")
        return classes.astype(np.uint8)


@dataclass(frozen=True)
class Segmented:
    """What a source of masks has: pictures and masks of the same places, the classes in the order of their labels."""

    pictures: Pictures
    masks: Masks
    classes: tuple[str, ...]
    transform: Transform
    notes: list[str] = field(default_factory=list)

"""How counts of pixels by class are kept: compressed, and of each ablation those of the images alone that it changed.

An ablation changes few classes of few images: of a network with 21 classes, 100 changed images take about as many bytes
as the classes that changed in them (docs/metrics.md has what was measured).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from weanalysis.errors import StoreError
from weanalysis.results.store.checked import Block, numbers

_COUNT = np.dtype(np.int32)


@dataclass(frozen=True)
class BlockPixels:
    """Of a block's ablations: `counts` (A,) images changed, at `positions` (M,) in the shard, by `changes` (M, 2, C).

    Changes are how many pixels more are right, and predicted, of each class.
    """

    counts: np.ndarray
    positions: np.ndarray
    changes: np.ndarray

    @classmethod
    def of(cls, row: Any, block: Block, num_classes: int) -> BlockPixels:
        """Check a row of `block_pixels`; raise StoreError where its columns do not go together, or point elsewhere."""
        what = f"the pixels of block {block.id}"
        counts = numbers(row["counts"], np.int32, what, len(block.ablation_ids))
        total = int(counts.view(np.uint32).sum(dtype=np.int64))
        if total > (block.stop - block.start) * len(counts):
            raise StoreError(f"{what} are damaged: more images changed than the shard has")
        positions = unpacked(row["positions"], total, what)
        if total and int(positions.view(np.uint32).max()) >= block.stop - block.start:
            raise StoreError(f"{what} are damaged: they name images that the shard does not have")
        changes = unpacked(row["changes"], total * 2 * num_classes, what)
        return cls(counts, positions, changes.reshape(total, 2, num_classes))

    @property
    def of_change(self) -> np.ndarray:
        """Which of the block's ablations each change is of, (M,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def packed(counts: np.ndarray) -> bytes:
    """Whole numbers as they are kept: 32 bits each, compressed."""
    return zlib.compress(np.ascontiguousarray(counts, _COUNT).tobytes(), 6)


def unpacked(raw: object, length: int, what: str) -> np.ndarray:
    """Whole numbers, of which there must be `length`; raise StoreError for anything else, whatever it unfolds to."""
    size = length * _COUNT.itemsize
    try:
        opened = zlib.decompressobj()
        content = opened.decompress(raw, size + 1) if isinstance(raw, bytes) else b""
    except zlib.error as error:
        raise StoreError(f"{what} are damaged ({error})") from error
    if len(content) != size:
        raise StoreError(f"{what} are damaged: they are not the numbers that were written")
    return np.frombuffer(content, _COUNT)


def intact_pixels(row: Any, num_images: int, what: str) -> np.ndarray:
    """How many pixels of each image are of each class: in truth, right, predicted; (N, 3, C). Raises StoreError."""
    num_classes = row["num_classes"]
    if not isinstance(num_classes, int) or not 0 < num_classes < 2**20:
        raise StoreError(f"{what} are damaged: they have no number of classes")
    return unpacked(row["numbers"], num_images * 3 * num_classes, what).reshape(num_images, 3, num_classes)

"""Pictures with masks in a seeded order, ready for a network that gives each pixel a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weanalysis.cache import Cache
from weanalysis.data.fingerprint import examine
from weanalysis.data.images import ImageData, fit_classes, served_order
from weanalysis.data.masks import VOID, Masks, Segmented
from weanalysis.data.pictures import OnDisk, digest, printable
from weanalysis.data.transform import Transform
from weanalysis.errors import DataError


@dataclass(eq=False)
class MaskData(ImageData):
    """A map-style dataset: `[i]` is (FloatTensor(3, H, W), LongTensor(H, W)), in an order drawn from `seed`.

    A mask has the class index of each pixel, 255 where it has none. `targets` are 0 for all; else as `ImageData`.

    >>> from weanalysis.data.images import load_data
    >>> data = load_data("digit-scenes", num_images=4)
    >>> image, mask = data[0]
    >>> tuple(image.shape), tuple(mask.shape), mask.dtype
    ((3, 32, 32), (32, 32), torch.int64)
    """

    transform: Transform
    masks: Masks = field(kw_only=True, repr=False)
    task: ClassVar[str] = "segmentation"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.transform(self.picture(index)), self.mask(index)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        return (self[index] for index in range(len(self)))

    def mask(self, index: int) -> Tensor:
        """Return the mask of the i-th served picture as the network's output is to be, LongTensor(H, W).

        >>> data.mask(0).shape == image.shape[1:]
        True
        """
        return self.indices(self.transform.mask(self.raw_mask(index), VOID))

    def raw_mask(self, index: int) -> np.ndarray:
        """Return the mask of the i-th served picture as it lies in the source, uint8 (H, W) of the data's classes.

        >>> labels = data.raw_mask(0)
        >>> labels.dtype, labels.shape
        (dtype('uint8'), (32, 32))
        """
        return self.masks.mask(range(len(self))[index])

    def batch(self, start: int, stop: int, num_threads: int = 1) -> tuple[Tensor, Tensor]:
        """Return images [start, stop), cut at the end, as FloatTensor(N, 3, H, W) and LongTensor(N, H, W).

        >>> images, masks = data.batch(0, 2)
        >>> tuple(images.shape), tuple(masks.shape)
        ((2, 3, 32, 32), (2, 32, 32))
        """
        images, _ = super().batch(start, stop, num_threads)
        indices = range(len(self))[start:stop]
        if isinstance(self.masks, OnDisk):
            for index in indices:
                self.masks.refuse_changed(index)
        masks = [self.mask(index) for index in indices]
        return images, torch.stack(masks) if masks else torch.empty((0, *images.shape[2:]), dtype=torch.int64)

    def indices(self, labels: Tensor) -> Tensor:
        """Return the network's class indices of labels of the data, LongTensors of any shape; VOID stays what it is.

        >>> data.indices(torch.tensor([0, 3, VOID])).tolist()
        [0, 3, 255]
        """
        table = torch.full((VOID + 1,), VOID)
        table[: len(self.outputs)] = torch.from_numpy(self.outputs)
        return table[labels]


def segmentation_data(
    spec: str,
    source: Segmented,
    transform: Transform,
    num_images: int | None,
    seed: int,
    model: Any,
    split: str,
    cache: Cache | None,
) -> MaskData:
    """Check pictures and masks and return them in the order of `seed`; see `images.load_data`.

    Every mask is read once, as long as the files stay the same. Raises DataError for what is no picture, for a mask
    that does not fit its picture, and where the network has other classes.
    """
    nothing = np.zeros(len(source.pictures), np.int64)
    of_pictures = examine(source.pictures, nothing, cache, decode=False)
    of_masks = examine(source.masks, nothing, cache, decode=True)
    for items, problems in ((source.pictures, of_pictures.problems), (source.masks, of_masks.problems)):
        if problems:
            named = [f"{items.label(index)} ({problem})" for index, problem in problems.items()]
            more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
            raise DataError(
                f"{printable(spec)} has files that cannot be used: {', '.join(named[:3])}{more}; mend them, or take "
                "them out of the split's list"
            )
    order, too_few = served_order(spec, len(nothing), num_images, seed)
    data = MaskData(
        spec=spec,
        split=split,
        classes=source.classes,
        targets=np.zeros(len(order), np.int64),
        transform=transform,
        seed=seed,
        ids=order,
        pictures=source.pictures.take(order),
        masks=source.masks.take(order),
        content=digest([of_pictures.content, of_masks.content]),
        outputs=np.arange(len(source.classes)),
        notes=[*source.notes, *too_few],
    )
    return data if model is None else fit_classes(data, model)

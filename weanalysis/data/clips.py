"""Clips: some moments in order, of which a network sees so many, and what becomes of clips that are shorter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from weanalysis.data.pictures import Examined, hashed
from weanalysis.data.transform import RGB, Transform
from weanalysis.errors import DataError, unknown_name

SAMPLINGS = ("dense", "strided")
MOST_FRAMES = 4096

# How a clip that has too few frames is filled, by the way of sampling.
FILLED_BY = {"dense": "the last frame is repeated", "strided": "frames are repeated in their order"}


class Clip(Protocol):
    """The frames of one clip, read when asked for."""

    def __len__(self) -> int: ...

    def frames(self, places: Sequence[int]) -> list[Image.Image]:
        """Return the frames at these places, which are in ascending order, as RGB; raise DataError naming the clip."""


def places_of(num_frames: int, wanted: int, sampling: str, drawn: Tensor | None = None) -> list[int]:
    """Choose which of a clip's `num_frames` frames (1 or more) a network sees: `wanted` places in ascending order.

    `dense`: neighbours, from the middle of the clip; too few are followed by the last one. `strided`: one of each of
    `wanted` parts of equal length, its middle; too few are repeated in their order. With `drawn`, (wanted,) numbers in
    [0, 1), the first neighbour, or the frame of each part, is drawn instead (Lin et al. 2019, section 4.1).
    """
    if sampling == "dense":
        spare = max(0, num_frames - wanted)
        first = spare // 2 if drawn is None else int(drawn[0] * (spare + 1))
        return [min(first + k, num_frames - 1) for k in range(wanted)]
    within = [0.5] * wanted if drawn is None else drawn.tolist()
    return [min(num_frames - 1, int((k + part) * num_frames / wanted)) for k, part in enumerate(within)]


@dataclass(frozen=True)
class ClipTransform(Transform):
    """Choose `num_frames` of a clip's frames by `sampling`, and do to each the same: FloatTensor(3, T, S, S).

    See `places_of` for the ways of sampling, and `Transform` for all else. Raises DataError.

    >>> from weanalysis.data.images import load_data
    >>> data = load_data("moving-digits", num_images=2, frames=4)
    >>> data.transform.num_frames, data.transform.sampling, tuple(data[0][0].shape)
    (4, 'dense', (3, 4, 32, 32))
    """

    num_frames: int = 16
    sampling: str = "dense"

    kind: ClassVar[str] = "clips"

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.num_frames
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_FRAMES:
            raise DataError(f"the number of frames is {count!r}; give a whole number from 1 to {MOST_FRAMES:,}")
        if self.sampling not in SAMPLINGS:
            raise DataError(unknown_name("sampling", str(self.sampling), SAMPLINGS))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.num_frames, *super().stored_shape

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.num_frames, self.image_size, self.image_size

    def pixels(self, picture: Any) -> Tensor:
        """Return the frames in the middle of a clip, resized and cropped: ByteTensor(T, 3, S, S)."""
        return torch.stack([self.frame_pixels(frame) for frame in self.chosen(picture)])

    def frame_pixels(self, frame: Image.Image) -> Tensor:
        """Return one frame, resized and cropped: ByteTensor(3, S, S)."""
        return super().pixels(frame)

    def chosen(self, clip: Clip, drawn: Tensor | None = None) -> list[Image.Image]:
        """Return the frames of a clip that the network sees; those of a training clip are `drawn`, see `places_of`."""
        return clip.frames(places_of(len(clip), self.num_frames, self.sampling, drawn))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale ByteTensor(..., T, 3, H, W), subtract `mean`, divide by `std`: FloatTensor(..., 3, T, H, W)."""
        return super().normalize(pixels).transpose(-4, -3).contiguous()

    def adjusted(
        self,
        image_size: int | None = None,
        mean: RGB | None = None,
        std: RGB | None = None,
        frames: int | None = None,
        sampling: str | None = None,
    ) -> ClipTransform:
        changed: Any = super().adjusted(image_size, mean, std)
        return replace(
            changed,
            num_frames=self.num_frames if frames is None else frames,
            sampling=self.sampling if sampling is None else sampling,
        )

    def note_short(self, lengths: Mapping[int, int], what: str) -> list[str]:
        """Say how many clips (of `what`; `lengths`: how many have so many frames) are filled up, and by which rule."""
        short = {length: count for length, count in lengths.items() if length < self.num_frames}
        if not short:
            return []
        return [
            f"{sum(short.values()):,} of the clips of {what} have fewer than {self.num_frames} frames (the shortest "
            f"{min(short)}): {FILLED_BY[self.sampling]}"
        ]


@dataclass(frozen=True, eq=False)
class ArrayClip:
    """A clip in memory, uint8 (T, H, W) grey or (T, H, W, 3) RGB."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def frames(self, places: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(self.array[place]).convert("RGB") for place in places]


@dataclass(frozen=True, eq=False)
class ArrayClips:
    """Clips of an array, uint8 (N, T, H, W) grey or (N, T, H, W, 3) RGB; `numbers` are what their labels say."""

    name: str
    array: np.ndarray
    numbers: np.ndarray

    kind: ClassVar[str] = "clips"

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> ArrayClip:
        return ArrayClip(self.array[index])

    def label(self, index: int) -> str:
        return f"{self.name} #{self.numbers[index]}"

    def examine(self, index: int, decode: bool) -> Examined:
        num_frames, height, width = self.array.shape[1:4]
        content = np.ascontiguousarray(self.array[index]).tobytes()
        return Examined(hashed(content), (width, height), num_frames=num_frames)

    def listing(self) -> str | None:
        return None

    def take(self, indices: np.ndarray) -> ArrayClips:
        return ArrayClips(self.name, self.array[indices], self.numbers[indices])

"""What a network reads as a picture: frames of a clip side by side, a signal as a line, an array as grey values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from weanalysis.figures.colours import CATEGORICAL

_GAP = 3
_MOST_FRAMES = 8
_WIDER = 1.75  # a line than it is high
_FINER = 4  # a line is drawn so many times as large, which makes it smooth
_MOST_LINES = len(CATEGORICAL)


def frame_strip(frames: Sequence[Image.Image], side: int = 48) -> Image.Image:
    """Draw frames of a clip side by side, `side` pixels high, eight at equal distances of more than that.

    Three frames of 48 pixels, with room between them:

    >>> frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "green", "blue")]
    >>> frame_strip(frames, side=48).size
    (150, 48)
    """
    places = np.unique(np.round(np.linspace(0, len(frames) - 1, min(_MOST_FRAMES, len(frames)))).astype(int))
    shown = [_of_height(frames[place], side) for place in places]
    strip = Image.new("RGBA", (sum(one.width for one in shown) + _GAP * (len(shown) - 1), side), (0, 0, 0, 0))
    left = 0
    for one in shown:
        strip.paste(one, (left, 0))
        left += one.width + _GAP
    return strip


def array_picture(array: np.ndarray, side: int = 112) -> Image.Image:
    """Draw an array (C, L) as lines, (C, H, W) as a picture, (C, T, H, W) as frames; the whole range of its numbers.

    Three channels are red, green and blue, of any other number their mean is grey; of a signal eight are drawn.

    >>> picture = array_picture(np.array([[[0.0, 1.0], [1.0, 0.0]]]), side=2)
    >>> picture.size, [picture.convert("L").getpixel((x, 0)) for x in (0, 1)]
    ((2, 2), [0, 255])
    """
    numbers = np.asarray(array, np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    shares = (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)
    if numbers.ndim == 2:
        return _lines(shares, (round(_WIDER * side), side))
    if numbers.ndim == 4:
        return frame_strip([_grey_or_colour(shares[:, moment]) for moment in range(numbers.shape[1])])
    return _of_height(_grey_or_colour(shares), side)


def _grey_or_colour(shares: np.ndarray) -> Image.Image:
    pixels = np.round(255 * shares).astype(np.uint8)
    if len(pixels) == 3:
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return Image.fromarray(np.round(255 * shares.mean(0)).astype(np.uint8))


def _of_height(picture: Image.Image, side: int) -> Image.Image:
    """Bring a picture to a height; small ones keep their pixels as squares."""
    width = max(1, round(picture.width * side / picture.height))
    finer = picture.height < side
    resample = Image.Resampling.NEAREST if finer else Image.Resampling.BILINEAR
    return picture.convert("RGB").resize((width, side), resample)


def _lines(shares: np.ndarray, size: tuple[int, int]) -> Image.Image:
    width, height = (_FINER * length for length in size)
    drawn = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    pen, margin = ImageDraw.Draw(drawn), 3 * _FINER
    steps = max(1, shares.shape[1] - 1)
    for channel, colour in zip(shares[:_MOST_LINES], CATEGORICAL, strict=False):
        heights = margin + (1 - channel) * (height - 2 * margin)
        points = [(place * (width - 1) / steps, float(y)) for place, y in enumerate(heights)]
        pen.line(points if len(points) > 1 else [*points, (width, points[0][1])], fill=colour, width=2 * _FINER)
    return drawn.resize(size, Image.Resampling.LANCZOS)

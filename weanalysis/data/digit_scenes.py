"""Scenes of several handwritten digits with a mask each: a segmentation that needs no download and is learned fast."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE, _DIGIT_SIDE = 32, 14
NUM_SCENES = {"train": 1200, "test": 600}
CLASSES = ("background", *"0123456789")
# Mean and standard deviation measured on the pictures of the training split: one grey value, three times.
MEAN, STD = 0.1826, 0.2526

# Of a digit's ink, from 0 to 255, so much makes a pixel one of the digit.
_INK = 96
_MOST_DIGITS, _MOST_NOISE, _MOST_TRIES = 4, 60, 20
# At most so large a share of a digit may hide another.
_MOST_HIDDEN = 0.15


def digit_scenes(images: np.ndarray, digits: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Place digits (N, 8, 8), from 0 to 16, on canvases: pictures and masks, uint8 (scenes, SIDE, SIDE) each.

    A scene has one to four digits of twice the size or a little less, on noise of its own strength; where two meet, the
    later one hides the other. A mask has 0 for the background and k + 1 for the digit k. The same for every call.
    """
    rng = np.random.default_rng([2026, NUM_SCENES[split]])
    pictures = np.zeros((NUM_SCENES[split], SIDE, SIDE), np.uint8)
    masks = np.zeros_like(pictures)
    for picture, mask in zip(pictures, masks, strict=True):
        noise = rng.integers(_MOST_NOISE)
        picture[:] = rng.integers(noise + 1, size=(SIDE, SIDE))
        for _ in range(rng.integers(1, _MOST_DIGITS + 1)):
            chosen = int(rng.integers(len(digits)))
            side = int(rng.integers(_DIGIT_SIDE - 2, _DIGIT_SIDE + 3))
            _place(picture, mask, _enlarged(images[chosen], side), int(digits[chosen]) + 1, rng)
    return pictures, masks


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """A digit from 0 to 16 as uint8 (side, side), from 0 to 255."""
    pixels = np.round(image * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def _place(picture: np.ndarray, mask: np.ndarray, digit: np.ndarray, label: int, rng: np.random.Generator) -> None:
    """Draw a digit where it hides little of the others; nowhere if no such place is met."""
    ink = digit >= _INK
    for _ in range(_MOST_TRIES):
        top, left = rng.integers(SIDE - len(digit) + 1, size=2)
        window = (slice(top, top + len(digit)), slice(left, left + len(digit)))
        if (mask[window][ink] > 0).sum() <= _MOST_HIDDEN * ink.sum():
            picture[window] = np.maximum(np.where(ink, 0, picture[window]), digit)
            mask[window][ink] = label
            return

"""Clips and signals made of scikit-learn's digits, so that both can be tried without a download."""

from __future__ import annotations

import numpy as np

from weanalysis.data.arrays import Arrays
from weanalysis.data.clips import ArrayClips

DIRECTIONS = ("left", "right", "up", "down")

# A digit of 8 x 8 moves by one pixel a frame on this canvas, from any place from which it stays there.
NUM_FRAMES, CANVAS = 8, 16


def moving_digits(
    images: np.ndarray, digits: np.ndarray, numbers: np.ndarray, names: str
) -> tuple[ArrayClips, np.ndarray]:
    """Let digits (N, 8, 8), 0 to 16, move: a clip (8, 16, 16) of each, and its class.

    Where a digit moves to and begins is drawn from its number. A clip that is shown backwards is one of the opposite
    direction, as likely as itself: without the order of its frames nobody can tell left from right, nor up from down.
    The class is the direction, or with `names` "digit" ten times the direction and the digit.
    """
    size, spare = images.shape[1], CANVAS - images.shape[1]
    pixels = np.round(images * (255 / 16)).astype(np.uint8)
    clips = np.zeros((len(images), NUM_FRAMES, CANVAS, CANVAS), np.uint8)
    directions = np.empty(len(images), np.int64)
    for index, number in enumerate(numbers):
        generator = np.random.default_rng([int(number), CANVAS])
        direction = int(generator.integers(len(DIRECTIONS)))
        across = int(generator.integers(spare + 1))
        first = int(generator.integers(spare + 2 - NUM_FRAMES))
        for frame in range(NUM_FRAMES):
            forth = direction in (DIRECTIONS.index("right"), DIRECTIONS.index("down"))
            along = first + (frame if forth else NUM_FRAMES - 1 - frame)
            row, column = (across, along) if direction < 2 else (along, across)
            clips[index, frame, row : row + size, column : column + size] = pixels[index]
        directions[index] = direction
    labels = directions if names != "digit" else 10 * directions + digits
    return ArrayClips("moving-digits", clips, numbers), labels


def class_names(names: str) -> tuple[str, ...]:
    """The names of the classes of `moving_digits`."""
    if names != "digit":
        return DIRECTIONS
    return tuple(f"{digit} {direction}" for direction in DIRECTIONS for digit in range(10))


def digit_signals(images: np.ndarray, numbers: np.ndarray) -> Arrays:
    """Write the rows of digits (N, 8, 8), 0 to 16, one behind the other: signals (N, 1, 64) of about -1 to 1."""
    signals = images.reshape(len(images), 1, -1).astype(np.float32) / 8 - 1
    return Arrays("digit-signals", signals, numbers)

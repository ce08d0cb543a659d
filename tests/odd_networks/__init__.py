"""Tiny networks of odd kinds, each with what is expected of whoever ablates it: ODD, name -> Odd.

Each has convolutions of a few channels for images of 3x8x8, whose channel 0 is always 0. The weights that read it are
large in the first layer, and 0 in the others: zeroing them is a no-op, and what a careless check takes first.
Everything else is lively: the last layer is scaled so that every class wins on some images.
"""

from odd_networks import (  # noqa: F401 (each enters its own)
    batches,
    chance,
    computed,
    control,
    gates,
    hooks,
    in_place,
    layouts,
    leftovers,
    modules,
    passages,
    shared,
    states,
)
from odd_networks.alike import ALIKE
from odd_networks.base import CONVOLUTIONS, NUM_CLASSES, NUM_IMAGES, ODD, Odd, images, inside, run

__all__ = ["ALIKE", "CONVOLUTIONS", "NUM_CLASSES", "NUM_IMAGES", "ODD", "Odd", "images", "inside", "run"]

"""Pairs drawn by lot from those that are not computed, which trust no prediction: numbers only, no network.

Whatever the network, as many in a hundred of the pairs that are left flip as in a hundred of those drawn, but for the
chance of the draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

# So many pairs are drawn of a shard: this share of all, and no fewer than so many; as many of each layer.
LOT_SHARE, LEAST_LOT = 0.0015, 200

# A layer of which more drawn pairs flip than predicted, and as many would by chance less often than this, is computed
# on all images.
_CONTRADICTION = 0.05


def draw(left: Bools, layers: NDArray[np.integer], of_each_layer: int, rng: np.random.Generator) -> Bools:
    """Draw so many from the pairs (N, A) that are left of each layer, and within it of each ablation its share.

    `layers` (A,) tells the layer of each column. A systematic sample: the pairs of a layer in the order of their
    ablations and, within one, in a random order; every so many-th is drawn, so that each pair of a layer is as likely.
    """
    drawn = np.zeros(left.shape, bool)
    for layer in np.unique(layers):
        (columns,) = np.nonzero(layers == layer)
        places, rows = np.nonzero(left[:, columns].T)
        if wanted := min(len(rows), of_each_layer):
            mixed = np.lexsort((rng.random(len(rows)), places))
            chosen = mixed[((rng.random() + np.arange(wanted)) * (len(rows) / wanted)).astype(int)]
            drawn[rows[chosen], columns[places[chosen]]] = True
    return drawn


def size(num_pairs: int, num_layers: int) -> int:
    """How many pairs are drawn of each layer."""
    return round(max(LEAST_LOT, LOT_SHARE * num_pairs) / num_layers)


def contradicted(flipped: NDArray, expected: NDArray) -> Bools:
    """Whether so many flips among the drawn pairs of each layer (L,) are more than can be put down to chance."""
    return (flipped > 0) & (stats.poisson.sf(flipped - 1, expected) < _CONTRADICTION)

"""What leads to what in the network of a study: its layers and the joins between them, as far as the study tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outline:
    """The nodes of a network in order, layers and joins such as sums, and the edges between them by their places.

    `is_traced` is False where only the order of the layers is known.

    >>> Outline.of({"layers": ["conv1", "conv2"]})
    Outline(names=('conv1', 'conv2'), are_layers=(True, True), edges=((0, 1),), is_traced=False)
    """

    names: tuple[str, ...]
    are_layers: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    is_traced: bool

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Outline:
        """The outline of the network of a study, given what the store says of it (`Store.describe`).

        One that an older study lacks, or that is damaged, is the study's layers in their order.

        >>> traced = {"nodes": [["a", "layer"], ["b", "layer"], ["+", "join"]], "edges": [[0, 1], [0, 2], [1, 2]]}
        >>> Outline.of({"outline": traced}).edges
        ((0, 1), (0, 2), (1, 2))
        """
        if (traced := _checked(about.get("outline"))) is not None:
            return traced
        layers = tuple(about.get("layers") or ())
        edges = tuple((place, place + 1) for place in range(len(layers) - 1))
        return cls(layers, (True,) * len(layers), edges, False)


def _checked(raw: Any) -> Outline | None:
    """What was kept, where each edge leads from one node to a later one; None for anything else."""
    nodes, edges = (raw.get("nodes"), raw.get("edges")) if isinstance(raw, dict) else (None, None)
    if not (isinstance(nodes, list) and isinstance(edges, list) and nodes):
        return None
    if not all(isinstance(one, list) and len(one) == 2 and all(isinstance(word, str) for word in one) for one in nodes):
        return None
    if not all(isinstance(one, list) and list(map(type, one)) == [int, int] for one in edges):
        return None
    if not all(0 <= first < second < len(nodes) for first, second in edges):
        return None
    names, sorts = zip(*nodes, strict=True)
    return Outline(names, tuple(sort == "layer" for sort in sorts), tuple(map(tuple, edges)), True)

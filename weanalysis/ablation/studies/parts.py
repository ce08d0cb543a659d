"""The nouns of a study: weights that are zeroed together, and the list of them that answers one question."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from typing import Any

from weanalysis.results.store import LABELS

_PLAIN_NAME = re.compile(r"[\w.\-]*")


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of one layer: `weight[out_channels, in_channels]`, or a range of ranks of its sorted |w|.

    `None` means all channels; `in_channels` counts within the group, as the weight does (0 … In/groups − 1).
    `ranks` = (first, last), counted from 1 in ascending |w|, both included; the rest is then None.

    >>> print(Part("layer1.0.conv1", out_channels=(3,), in_channels=(0, 1)))
    layer1.0.conv1[3;0,1]
    >>> print(Part("layer1.0.conv1", out_channels=(3,)), Part("conv1", ranks=(5, 9)))
    layer1.0.conv1[3;*] conv1|w|5..9
    """

    layer: str
    out_channels: tuple[int, ...] | None = None
    in_channels: tuple[int, ...] | None = None
    ranks: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.ranks is not None:
            return f"{self.layer}|w|{self.ranks[0]}..{self.ranks[1]}"
        sides = ("*" if side is None else ",".join(map(str, side)) for side in (self.out_channels, self.in_channels))
        return f"{self.layer}[{';'.join(sides)}]"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A set of weights that is zeroed together, and the words of design for the table's row.

    `depth` is the layer's place among the network's convolutions, from 0 in the order of the forward pass;
    `percentile`, `fraction` and `draw` are None where they do not apply.

    >>> one = Ablation((Part("conv1", (3,), (0,)), Part("conv2", (3,), (1,))), "kernels", num_weights=18)
    >>> one.layers, one.key
    (('conv1', 'conv2'), 'conv1[3;0] conv2[3;1]')
    """

    parts: tuple[Part, ...]
    selection: str
    num_weights: int
    layer: str | None = None
    depth: int | None = None
    out_channel: int | None = None
    in_channel: int | None = None
    percentile: float | None = None
    fraction: float | None = None
    draw: int | None = None

    @property
    def key(self) -> str:
        """What is zeroed, in words where they are short, else a hash of them; equal exactly if the weights are."""
        text = " ".join(sorted(map(str, self.parts)))
        # A layer may be called anything; only plain names can stand side by side and still be told apart.
        plain = all(_PLAIN_NAME.fullmatch(part.layer) for part in self.parts)
        if not plain:
            text = json.dumps(sorted(map(repr, self.parts)))
        return text if plain and len(text) <= 120 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers it touches, each once."""
        return tuple(dict.fromkeys(part.layer for part in self.parts))


# In the order of the fields, by which studies are known in the store.
_LABELS = [one.name for one in fields(Ablation) if one.name != "parts"]
assert set(_LABELS) == {label.name for label in LABELS}, "an ablation has the labels of a row"


@dataclass(frozen=True)
class Study:
    """The ablations of one question; `skipped` lists (layer, reason), `notes` what was changed about the request.

    A study of one's own, of two kernels; `ablate` takes it as it takes those of `weanalysis.studies`:

    >>> kernels = [Ablation((Part("0", (o,), (0,)),), "kernel", 9, "0", 0, o, 0) for o in (0, 1)]
    >>> study = Study("location", {}, tuple(kernels), layers=("0",))
    >>> [one.key for one in study.ablations]
    ['0[0;0]', '0[1;0]']
    """

    kind: str
    options: dict[str, Any]
    ablations: tuple[Ablation, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        """A hash of the question and of all that it zeroes, in order; the same whatever the number of images."""
        rows = [[one.key, *(getattr(one, name) for name in _LABELS)] for one in self.ablations]
        described = json.dumps([self.kind, self.options, self.layers, rows], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

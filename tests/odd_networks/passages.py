"""What passes between layers, and comes out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odd_networks.base import Base, Three, conv, odd


class Pair(NamedTuple):
    first: Tensor
    rest: dict[str, list[Tensor]]


@dataclasses.dataclass
class Carried:
    value: Tensor
    note: str = ""


class Packs(nn.Module):
    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, x):
        y = torch.relu(self.layer(x))
        return {"tuple": (y, [x]), "named": Pair(y, {"x": [x]}), "class": Carried(y), "dict": {"y": y}}[self.kind]


@odd("tuples, dicts and classes between the layers")
class Packed(Three):
    def __init__(self):
        super().__init__()
        self.d = conv(4, 4)
        self.packs = nn.ModuleList(map(Packs, (self.a, self.b, self.c, self.d), ("tuple", "named", "class", "dict")))

    def features(self, x):
        first, _ = self.packs[0](x)
        pair = self.packs[1](first)
        carried = self.packs[2](pair.first - pair.rest["x"][0])
        return self.packs[3](carried.value)["y"]


@odd("logits in a dict")
class OutDict(Base):
    def forward(self, x):
        return {"features": (y := self.features(x)), "logits": self.head(y.mean((2, 3)))}


@odd("logits first in a tuple")
class OutTuple(Base):
    def forward(self, x, *others, scale=1.0, **options):
        y = self.features(x)
        return self.head(y.mean((2, 3)) * scale), [y]


@odd("an object comes out", "refused")
class OutObject(Base):
    def forward(self, x):
        return Carried(super().forward(x))


@odd("one number comes out for each image", "refused")
class OneLogit(Base):
    def forward(self, x):
        return super().forward(x)[:, :1]


@odd("a map comes out", "refused")
class OutMap(Base):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]


@odd("NaN when a weight is zero")
class DividesByNorm(Base):
    def second(self, x):
        return torch.relu(self.b(x)) / self.b.weight.pow(2).sum((1, 2, 3)).min()


@odd("NaN when an activation is zero")
class DividesByActivation(Base):
    def second(self, x):
        y = self.b(x)
        return torch.relu(y / y.pow(2).sum((2, 3), keepdim=True).sqrt() - self.b.bias[:, None, None] * 0)

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.b.bias)


@odd("NaN in the intact network", "refused")
class IntactNan(Base):
    def forward(self, x):
        return super().forward(x) * float("nan")


@odd("features and logits that saturate")
class Saturates(Base):
    def forward(self, x):
        return F.hardtanh(super().forward(x), -2, 2)

    def second(self, x):
        return torch.sigmoid(3 * self.b(x))

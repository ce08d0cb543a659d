"""Modules of other kinds."""

from __future__ import annotations

import collections
import functools

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from odd_networks.base import NUM_CLASSES, Base, Three, conv, images, norm, odd


@odd("a transposed convolution between", left_out=("up",))
class Transposed(Base):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

    def second(self, x):
        return torch.relu(self.b(self.up(x)))


@odd("a convolution with a parameter of the network's own")
class OwnParameter(Base):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def second(self, x):
        return torch.relu(self.b(F.conv2d(x, self.kernel, padding=1)))


@odd("grouped, depthwise, dilated and strided")
class Grouped(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, groups=2)
        self.c, self.d = conv(4, 8, groups=4), conv(8, 4, padding=2, dilation=2, stride=2, groups=2, bias=False)

    def second(self, x):
        return torch.relu(self.d(torch.relu(self.c(torch.relu(self.b(x))))))


@odd("paddings of every mode")
class Padded(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(4, 4, padding=1, padding_mode="circular")
        self.c = conv(4, 4, padding=(1, 2), padding_mode="reflect", groups=2)
        self.d = conv(4, 4, padding="same", padding_mode="replicate")
        self.e = conv(4, 4, padding="valid")

    def second(self, x):
        return torch.relu(self.e(torch.relu(self.d(torch.relu(self.c(torch.relu(self.b(x))))))))


@odd("1d and 3d convolutions")
class OtherDimensions(Base):
    def __init__(self):
        super().__init__()
        self.deep, self.flat = conv(1, 4, kind=nn.Conv3d), conv(4, 4, kind=nn.Conv1d)

    def second(self, x):
        y = torch.relu(self.deep(torch.relu(self.b(x))[:, None]))
        return torch.relu(self.flat(y.mean(2).flatten(2))).unflatten(2, (8, 8))


@odd("a lazy convolution, made")
class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.b = nn.LazyConv2d(4, 3, padding=1)
        self(images())
        nn.init.normal_(self.b.weight)


@odd("a lazy convolution, not made yet", "refused")
def _():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.append(nn.Linear(4, NUM_CLASSES))


@odd("a scripted part")
class Scripted(Base):
    def __init__(self):
        super().__init__()
        self.part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()))

    def second(self, x):
        return torch.relu(self.b(self.part(x)))


@odd("a scripted function")
class ScriptedFunction(Base):
    def second(self, x):
        return _scripted(self.b(x), x)


@torch.jit.script
def _scripted(x, y):
    if bool(x.mean() > 0):
        return torch.relu(x) + y
    return torch.tanh(x)


@odd("compiled", again=True)
def _():
    return torch.compile(Base(), backend="eager")


@odd("in DataParallel")
def _():
    return nn.DataParallel(Base())


@odd("checkpointed")
class Checkpointed(Base):
    def second(self, x):
        return torch.relu(checkpoint(self.b, x, use_reentrant=False))


@odd("mapped over the images")
class Mapped(Base):
    def second(self, x):
        return torch.relu(torch.vmap(lambda one: self.b(one[None])[0])(x))


@odd("norms of other kinds")
class OtherNorms(Three):
    def __init__(self):
        super().__init__()
        self.d = conv(4, 4)
        self.group, self.instance = (
            nn.GroupNorm(2, 4),
            norm(4, functools.partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)),
        )
        self.layer = nn.LayerNorm(4)

    def second(self, x):
        y = torch.relu(self.group(self.b(x)))
        z = torch.relu(self.instance(self.c(y)))
        return torch.relu(self.layer(self.d(z).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class NormAct(nn.BatchNorm2d):
    """A batch norm with a nonlinearity and a gate in it."""

    def forward(self, x):
        return torch.relu(super().forward(x)) * 1.5 - 0.2


@odd("a batch norm with a forward of its own")
class OwnNorm(Base):
    def __init__(self):
        super().__init__()
        self.norm, self.one = norm(4, NormAct), norm(4)

    def second(self, x):
        return self.norm(self.b(self.one(x)))


@odd("one batch norm behind two convolutions")
class SharedNorm(Three):
    def __init__(self):
        super().__init__()
        self.norm = norm(4)

    def second(self, x):
        return torch.relu(self.norm(self.c(torch.relu(self.norm(self.b(x))))))


@odd("attention, recurrence and a learned token")
class Tokens(Base):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attention, self.memory = nn.MultiheadAttention(4, 2, batch_first=True), nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        y = F.avg_pool2d(self.features(x), 4).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.memory(y)[0][:, -1])


@odd("a sequential that is indexed")
def _():
    layers = {"a": conv(3, 4), "relu": nn.ReLU(inplace=True), "b": conv(4, 4), "head": nn.Linear(4, NUM_CLASSES)}
    return Indexed(collections.OrderedDict(layers))


class Indexed(nn.Sequential):
    def forward(self, x):
        y = self[1](self[0](x))
        for layer in list(self)[2:3]:
            y = y + self[1](layer(y))
        return self[-1](y.mean((2, 3)))

"""Types, shapes and layouts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from odd_networks.base import Base, odd


@odd("half precision between, by a function")
class HalfFunction(Base):
    def second(self, x):
        return torch.relu(F.conv2d(x.bfloat16(), self.b.weight.bfloat16(), padding=1)).float()


@odd("a half-typed module", "either")
class HalfModule(Base):
    def __init__(self):
        super().__init__()
        self.b.to(torch.bfloat16)

    def second(self, x):
        return torch.relu(self.b(x.to(torch.bfloat16))).float()


@odd("half-typed by autocast")
class Autocast(Base):
    def second(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.b(x)
        return torch.relu(y.float())


@odd("double precision", "either")
class Double(Base):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double())


@odd("a module in double precision", "either")
class DoubleModule(Base):
    def __init__(self):
        super().__init__()
        self.b.double()

    def second(self, x):
        return super().second(x.double()).float()


@odd("complex numbers between")
class Complex(Base):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.complex64))

    def second(self, x):
        y = torch.fft.irfft2(torch.fft.rfft2(self.b(x)) * self.filter)
        z = torch.complex(y, x)
        return torch.view_as_real(z * z.conj().roll(1, 1)).sum(-1).abs().sqrt()


@odd("channels last, strided views and windows")
class Views(Base):
    def second(self, x):
        y = self.b(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        y = y.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2))
        return torch.relu(y.transpose(1, 2).permute(0, 3, 1, 2)[..., ::2, 1:])


@odd("pooled with places, and unpooled")
class Unpools(Base):
    def second(self, x):
        y, places = F.max_pool2d(self.b(x), 2, return_indices=True)
        return F.max_unpool2d(torch.relu(y), places, 2)


@odd("resampled where a layer says")
class Resamples(Base):
    def second(self, x):
        place = torch.tanh(self.b(x)[:, :2]).permute(0, 2, 3, 1)
        return F.grid_sample(x, place, align_corners=False)

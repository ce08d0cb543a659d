"""In place, and into given memory."""

from __future__ import annotations

import torch

from odd_networks.base import NUM_IMAGES, Base, odd


@odd("out= is its own input")
class OutIsInput(Base):
    def second(self, x):
        y = self.b(x)
        torch.sigmoid(y, out=y)
        return y + self.a.weight.mean() * 0


@odd("out= is a tensor made on the way")
class OutIsNew(Base):
    def second(self, x):
        y, z = self.b(x), torch.empty_like(x)
        torch.add(y, x, out=z)
        return torch.relu(z)


@odd("out= is an activation that others read")
class OutIsRead(Base):
    def features(self, x):
        y = torch.relu(self.a(x))
        z = self.b(y)
        torch.sub(y, z, out=y)
        return torch.relu(y + 0.5 * z)


@odd("relu_ on a view of an activation")
class ReluOnView(Base):
    def second(self, x):
        y = self.b(x)
        y[:, :2].relu_()
        half = y[:, 2:]
        half.mul_(2)
        return y - half.mean(1, keepdim=True)


@odd("add_ on a view made before")
class AddOnView(Base):
    def second(self, x):
        flat = x.view(len(x), 4, -1)
        y = self.b(x)
        flat.add_(y.flatten(2))
        return torch.relu(x)


@odd("in place behind a chunk")
class InPlaceChunk(Base):
    def second(self, x):
        y = self.b(x)
        first, second = y.chunk(2, 1)
        first += second
        second.neg_()
        return torch.relu(y)


@odd("a slice is written to")
class WritesSlice(Base):
    def second(self, x):
        y = self.b(x)
        y[:, 1] = y[:, 2] * x[:, 3]
        return torch.relu(y)


@odd("masked_fill_, index_add_ and copy_")
class WritesMasked(Base):
    def second(self, x):
        y = self.b(x)
        y.masked_fill_(x > 1, 0.0)
        y.index_add_(1, torch.tensor([1, 2]), x[:, 2:4])
        z = torch.empty_like(y)
        z.copy_(y)
        y.zero_()
        return torch.relu(z + y)


@odd("the images are written to")
class WritesImages(Base):
    def forward(self, x):
        x.mul_(0.7).add_(0.1)
        return super().forward(x)


@odd("a buffer is scratch memory")
class Scratch(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("scratch", torch.zeros(NUM_IMAGES, 4, 8, 8))

    def second(self, x):
        scratch = self.scratch[: x.shape[0]]
        torch.mul(self.b(x), 2, out=scratch)
        return torch.relu(scratch - x)


@odd("the weight is written to, and back", "either")
class WritesWeight(Base):
    """Equalized learning rate, done by hand."""

    def second(self, x):
        self.b.weight.data.mul_(2)
        y = self.b(x)
        self.b.weight.data.div_(2)
        return torch.relu(y)

"""Across the batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from odd_networks.base import NUM_IMAGES, Base, conv, norm, odd


@odd("less the batch's mean", "either")
class LessMean(Base):
    def second(self, x):
        return torch.relu(self.b(x - x.mean(0)))


@odd("batch norm without running statistics", "either")
class NoStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def second(self, x):
        return torch.relu(self.norm(self.b(x)))


@odd("batch norm that stays in training", "either")
class StaysInTraining(Base):
    def __init__(self):
        super().__init__()
        self.norm = norm(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def second(self, x):
        return torch.relu(self.norm(self.b(x)))


@odd("batch norm by a function, in training", "either")
class FunctionalNorm(Base):
    def second(self, x):
        return torch.relu(F.batch_norm(self.b(x), None, None, training=True))


@odd("each image sees the one before", "either")
class SeesNeighbour(Base):
    def second(self, x):
        return torch.relu(self.b(x) + 0.8 * self.b(x).roll(1, 0))


@odd("divided by the batch's largest", "either")
class LargestOfBatch(Base):
    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head(y / y.abs().max())


@odd("attention from image to image", "either")
class AcrossAttention(Base):
    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head((y @ y.T).softmax(1) @ y - y)


@odd("a convolution over the batch", "either")
class OverBatch(Base):
    def __init__(self):
        super().__init__()
        self.c = conv(4, 4, kind=nn.Conv1d)

    def forward(self, x):
        y = self.features(x).mean((2, 3))
        return self.head(y + self.c(y.T[None])[0].T)


@odd("a batch that is shuffled, and back", "either")
class ShuffledAndBack(Base):
    def second(self, x):
        order = torch.randperm(x.shape[0])
        return torch.relu(self.b(x[order]))[order.argsort()]


@odd("a batch of one size", "either")
class OneSize(Base):
    def second(self, x):
        return torch.relu(self.b(x.view(NUM_IMAGES, 4, 8, 8)))


@odd("the batch folded into the channels")
class FoldedBatch(Base):
    def second(self, x):
        weight = self.b.weight.repeat(x.shape[0], 1, 1, 1)
        return torch.relu(F.conv2d(x.reshape(1, -1, 8, 8), weight, padding=1, groups=x.shape[0])).reshape(-1, 4, 8, 8)


@odd("the channels folded into the batch")
class FoldedChannels(Base):
    def __init__(self):
        super().__init__()
        self.b = conv(2, 2)
        nn.init.normal_(self.b.weight)

    def second(self, x):
        return torch.relu(self.b(x.reshape(-1, 2, 8, 8))).reshape(-1, 4, 8, 8)


@odd("image by image, in a loop")
class InALoop(Base):
    def second(self, x):
        return torch.cat([torch.relu(self.b(one)) for one in x.split(1)])

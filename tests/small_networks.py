"""Two small networks, images for them, and a study of one that says what it did."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from weanalysis.ablation import ablate
from weanalysis.ablation.copies import copied
from weanalysis.cache import Cache
from weanalysis.results import Store

NUM_IMAGES, NUM_CLASSES = 24, 6


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, NUM_CLASSES)
        # No class may win on every image, or nothing that is zeroed would show.
        with torch.no_grad():
            self.head.bias -= self(torch.randn(100, 3, 8, 8)).mean(0)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


class Images(torch.utils.data.Dataset):
    def __init__(self, num_images=NUM_IMAGES):
        self.images = torch.randn(NUM_IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))[:num_images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % NUM_CLASSES


def count_blocks(cache: Cache) -> int:
    with Store.open(cache.results) as store:
        return store._db.execute("SELECT count(*) FROM blocks").fetchone()[0]


NUM_ANSWERED, SIDE = 48, 8


class Net(nn.Module):
    """Two convolutions and a classifier; `between` is what a test puts between them."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        with torch.no_grad():
            seen = torch.relu(self.b(torch.relu(self.a(torch.randn(64, 3, SIDE, SIDE))))).mean((2, 3))
            self.head.bias.copy_(-8 * F.linear(seen, self.head.weight).mean(0))

    def between(self, x):
        return x

    def forward(self, x):
        return self.head(torch.relu(self.b(self.between(torch.relu(self.a(x))))).mean((2, 3)) * 8)


@torch.no_grad()
def centred(net: Net) -> Net:
    """No class may win on every image."""
    net.head.bias -= copied(net)(torch.randn(64, 3, SIDE, SIDE)).mean(0)
    return net


class Answered(torch.utils.data.Dataset):
    def __init__(self, net: nn.Module, num_images: int = NUM_ANSWERED):
        torch.manual_seed(1)
        self.images = torch.randn(num_images, 3, SIDE, SIDE)
        with torch.no_grad():
            self.targets = copied(net)(self.images).argmax(1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])


def measured(net, data, tmp_path, **options):
    said: list[str] = []
    table = ablate(
        net,
        data,
        options.pop("study", "channel"),
        cache=Cache(tmp_path / "cache"),
        say=said.append,
        shard_size=16,
        jobs=1,
        **options,
    )
    return table, said

"""A small network that gives each pixel a class, pictures and masks for it, with void pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_IMAGES, NUM_CLASSES, SIDE = 30, 4, 12


class Pixels(nn.Module):
    """Two convolutions at half the size, a skip connection, and its output brought back to the size of its input."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Conv2d(3, 5, 3, 2, 1)
        self.two = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Conv2d(5, NUM_CLASSES, 1)
        with torch.no_grad():
            self.head.bias -= self.scores(torch.randn(50, 3, SIDE, SIDE)).mean((0, 2, 3))

    def scores(self, images: Tensor) -> Tensor:
        x = torch.relu(self.one(images))
        return self.head(x + torch.relu(self.two(x)))

    def forward(self, images: Tensor):
        return F.interpolate(self.scores(images), images.shape[-2:], mode="bilinear", align_corners=False)


class Odd(Pixels):
    """The same as a mapping with an auxiliary head, which calls one convolution twice and adds in place."""

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.aux_classifier = nn.Conv2d(5, NUM_CLASSES, 1)

    def forward(self, images: Tensor):
        x = torch.relu(self.one(images))
        again = self.two(torch.relu_(self.two(x)))
        again += x
        size = images.shape[-2:]
        return {"out": F.interpolate(self.head(again), size), "aux": F.interpolate(self.aux_classifier(x), size)}


class Masks(torch.utils.data.Dataset):
    """Noise, with what a network says of it for masks, a third of the pixels drawn anew and a tenth of them void."""

    def __init__(self, net: nn.Module, num_images: int = NUM_IMAGES, side: int = SIDE):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(num_images, 3, side, side, generator=generator)
        with torch.no_grad():
            outputs = net(self.images)
        said = (outputs["out"] if isinstance(outputs, dict) else outputs).argmax(1)
        draw = torch.rand(said.shape, generator=generator)
        other = torch.randint(NUM_CLASSES, said.shape, generator=generator)
        self.masks = torch.where(draw < 0.33, other, said)
        self.masks[draw > 0.9] = 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index], self.masks[index]

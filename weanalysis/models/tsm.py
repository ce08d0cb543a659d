"""Temporal shift networks: a ResNet for pictures whose channels move between the frames of a clip."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weanalysis._torchvision import torchvision


class TemporalShift(nn.Module):
    """Move one of `share` parts of the channels a frame back in time, another a frame on (Lin et al. 2019, section 3).

    (N * segments, C, H, W) to the same, where the frames of a clip follow each other. What would come from beyond a
    clip's ends is 0, and the other channels stay.
    """

    shifts_channels = True

    def __init__(self, segments: int, share: int = 8) -> None:
        super().__init__()
        self.segments, self.share = segments, share

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.segments))
        moved = x.shape[1] // self.share
        back = F.pad(clips[:, 1:, :moved], (0, 0, 0, 0, 0, 0, 0, 1))
        on = F.pad(clips[:, :-1, moved : 2 * moved], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([back, on, clips[:, :, 2 * moved :]], 2).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"segments={self.segments}, share={self.share}"


class ShiftedBasicBlock(torchvision.models.resnet.BasicBlock):
    """A basic block whose convolutions read shifted channels, and whose shortcut does not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shift = TemporalShift(1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(self.shift(x))))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ShiftedBottleneck(torchvision.models.resnet.Bottleneck):
    """A bottleneck block whose convolutions read shifted channels, and whose shortcut does not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shift = TemporalShift(1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(self.shift(x))))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class TSM(torchvision.models.ResNet):
    """A temporal shift network: clips (N, 3, segments, H, W) -> logits (N, num_classes), the mean over the frames.

    The shift stands within each residual branch, before its first convolution. It has no weights, so that the names
    of all tensors are the ResNet's. Raises ValueError for `segments` or `share` below 1 or 2.
    """

    input_sides = 3

    def __init__(
        self, block: type[nn.Module], layers: list[int], num_classes: int, segments: int = 8, share: int = 8
    ) -> None:
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (segments, share))
        if not whole or segments < 1 or share < 2:
            raise ValueError(f"segments must be 1 or more, and share 2 or more, not {segments!r} and {share!r}")
        super().__init__(block, layers, num_classes=num_classes)
        self.segments = segments
        for module in self.modules():
            if isinstance(module, ShiftedBasicBlock | ShiftedBottleneck):
                module.add_module("shift", TemporalShift(segments, share))

    def forward(self, x: Tensor) -> Tensor:
        num_clips = x.shape[0]
        logits = super().forward(x.transpose(1, 2).flatten(0, 1))
        # A clip of other frames than `segments` fails here: it never passes for several clips, or a part of one.
        return logits.view(num_clips, self.segments, logits.shape[1]).mean(1)


def tsm_resnet18(num_classes: int, segments: int = 8, share: int = 8) -> nn.Module:
    """ResNet-18 with temporal shifts."""
    return TSM(ShiftedBasicBlock, [2, 2, 2, 2], num_classes, segments, share)


def tsm_resnet50(num_classes: int, segments: int = 8, share: int = 8) -> nn.Module:
    """ResNet-50 with temporal shifts."""
    return TSM(ShiftedBottleneck, [3, 4, 6, 3], num_classes, segments, share)

"""Small built-in networks for signals and for clips, such as the embedded ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: By the number of sides: convolution, normalization, pooling, and by what the sides are divided.
_LAYERS: dict[int, Any] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d, 2),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d, (1, 2, 2)),
}


class SmallConvNet(nn.Module):
    """Convolutions of kernel 3 with batch norm, one a width; each but the first halves all sides but that of time.

    (N, in_channels, L) for one side, (N, in_channels, T, H, W) for three -> (N, num_classes).
    """

    def __init__(self, sides: int, in_channels: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        convolution, norm, pooling, halving = _LAYERS[sides]
        layers: list[nn.Module] = []
        for place, width in enumerate(widths):
            conv = convolution(in_channels, width, 3, stride=halving if place else 1, padding=1, bias=False)
            layers += [conv, norm(width), nn.ReLU(inplace=True)]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = pooling(1)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.features:
            if isinstance(module, (nn.Conv1d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


def cnn1d(num_classes: int, in_channels: int = 1) -> nn.Module:
    """Four 1-D convolutions of 16 to 64 channels."""
    return SmallConvNet(1, in_channels, (16, 32, 32, 64), num_classes)


def cnn3d(num_classes: int, in_channels: int = 3) -> nn.Module:
    """Four 3-D convolutions of 8 to 32 channels."""
    return SmallConvNet(3, in_channels, (8, 16, 16, 32), num_classes)

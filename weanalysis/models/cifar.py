"""Built-in networks; here those for images of CIFAR's size, made of torchvision's blocks and named like its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache as remember
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weanalysis._torchvision import torchvision
from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.small import cnn1d, cnn3d
from weanalysis.models.source import NetworkSource
from weanalysis.models.tsm import tsm_resnet18, tsm_resnet50

_Block = type[torchvision.models.resnet.BasicBlock] | type[torchvision.models.resnet.Bottleneck]


class SubsampleAndPad(nn.Module):
    """He et al.'s shortcut A: every second pixel, and channels of zeros on both sides; no parameters.

    (N, C, H, W) -> (N, C + before + after, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class CifarResNet(nn.Module):
    """A residual network with a 3x3 stem and one stage a width, each but the first halving the map.

    Takes (N, 3, 32, 32) images (larger ones too), gives (N, num_classes) logits.
    """

    def __init__(
        self,
        block: _Block,
        num_blocks: int,
        stem_channels: int,
        planes: tuple[int, ...],
        num_classes: int,
        shortcut: str,
        groups: int = 1,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        in_channels = stem_channels
        for stage, width in enumerate(planes):
            blocks = []
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                out_channels = width * block.expansion
                downsample = None
                if stride != 1 or in_channels != out_channels:
                    downsample = _SHORTCUTS[shortcut](in_channels, out_channels, stride)
                blocks.append(block(in_channels, width, stride, downsample, groups, base_width))
                in_channels = out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_stages = len(planes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class CifarFCN(CifarResNet):
    """A residual network that classifies each pixel: (N, 3, H, W) -> (N, num_classes, H, W).

    Each stage is scored by a 1x1 convolution; scores of a later stage are enlarged and added to those of the one
    before, as the skip connections of J. Long, E. Shelhamer and T. Darrell, Fully Convolutional Networks for Semantic
    Segmentation, CVPR 2015, section 4.2.
    """

    def __init__(self, num_blocks: int, planes: tuple[int, ...], num_classes: int, shortcut: str) -> None:
        block = torchvision.models.resnet.BasicBlock
        super().__init__(block, num_blocks, planes[0], planes, num_classes, shortcut)
        del self.avgpool, self.fc
        for stage, width in enumerate(planes):
            self.add_module(f"score{stage + 1}", nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        scores = []
        for stage in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            scores.append(self.get_submodule(f"score{stage}")(x))
        score = scores.pop()
        while scores:
            finer = scores.pop()
            score = finer + F.interpolate(score, finer.shape[-2:], mode="bilinear", align_corners=False)
        return score


class CifarVGG(nn.Module):
    """VGG with batch norm and one linear layer behind its five poolings: (N, 3, 32, 32) -> (N, num_classes)."""

    def __init__(self, convs_per_stage: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for num_convs, channels in zip(convs_per_stage, (64, 128, 256, 512, 512), strict=True):
            for _ in range(num_convs):
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(True)]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


_SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"A": SubsampleAndPad, "B": _projection}


def _initialize(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_shortcut(shortcut: str) -> None:
    if shortcut not in _SHORTCUTS:
        raise ValueError(f"shortcut must be A (subsample, pad with zeros) or B (1x1 convolution), not {shortcut!r}")


def _resnet(depth: int, num_classes: int, shortcut: str = "A") -> nn.Module:
    _check_shortcut(shortcut)
    block = torchvision.models.resnet.BasicBlock
    return CifarResNet(block, (depth - 2) // 6, 16, (16, 32, 64), num_classes, shortcut)


def _fcn(depth: int, num_classes: int, shortcut: str = "A") -> nn.Module:
    _check_shortcut(shortcut)
    return CifarFCN((depth - 2) // 6, (16, 32, 64), num_classes, shortcut)


def _resnext29_16x64d(num_classes: int) -> nn.Module:
    block = torchvision.models.resnet.Bottleneck
    return CifarResNet(block, 3, 64, (64, 128, 256), num_classes, "B", groups=16)


def _vgg19_cifar(num_classes: int) -> nn.Module:
    return CifarVGG((2, 2, 4, 4, 4), num_classes)


#: name -> builder(num_classes, **options). He et al. 2016, section 4.2; Xie et al. 2017, section 5.3; and those for
#: clips and signals, from their own modules.
BUILTIN: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    "resnext29_16x64d": _resnext29_16x64d,
    "vgg19_cifar": _vgg19_cifar,
    "fcn_resnet20": partial(_fcn, 20),
    "tsm_resnet18": tsm_resnet18,
    "tsm_resnet50": tsm_resnet50,
    "cnn1d": cnn1d,
    "cnn3d": cnn3d,
}


class Builtin(NetworkSource):
    """The networks in BUILTIN."""

    def names(self) -> list[str]:
        return list(BUILTIN)

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in BUILTIN:
            raise ModelError(unknown_name("built-in model", name, BUILTIN))
        parameters = inspect.signature(BUILTIN[name]).parameters
        own = (parameters[option] for option in self.options(name))
        return 10, {one.name: one.default for one in own if one.default is not one.empty}

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return BUILTIN[name](num_classes=num_classes, **options)

    def task_of(self, name: str) -> str:
        return "segmentation" if name.startswith("fcn_") else self.task

    def options(self, name: str) -> list[str]:
        return [option for option in inspect.signature(BUILTIN[name]).parameters if option != "num_classes"]

    def num_parameters(self, name: str) -> int | None:
        return _num_parameters(name)


@remember
def _num_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BUILTIN[name](num_classes=10).parameters())

"""Attention on activations (SE, CBAM, BAM) and group normalization, put into a network that was built without them.

Where a block goes, and why the paper's Table 1 follows from it:

| | ResNet, ResNeXt, Wide ResNet, the built-in ones | MobileNetV2 |
| --- | --- | --- |
| SE, CBAM | in every block, behind its last norm, before the sum; reduction 16 | the same place; reduction 8 |
| BAM | behind every stage but the last; reduction 16, dilation 4 | before every block that halves the map; the same |

The SE and CBAM papers place them so in residual networks, the BAM paper places BAM before each downsampling. For
MobileNetV2 the paper gives no placement, only 3.6 M parameters: its blocks end in narrow layers (16 to 320 channels),
and a reduction of 8 there gives 3.56 M, where 16 gives 3.53 M and SE on the expanded channels 4.07 M.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from weanalysis._torchvision import torchvision
from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.cifar import CifarResNet

GROUPS = 32  # Wu and He, "Group Normalization", ECCV 2018
_REDUCTION = 16
_MOBILENET_REDUCTION = 8

_ResidualNet = torchvision.models.ResNet | CifarResNet
_ResidualBlock = torchvision.models.resnet.BasicBlock | torchvision.models.resnet.Bottleneck


class BAM(nn.Module):
    """The bottleneck attention module (Park et al., BMVC 2018): x * (1 + sigmoid(M_c(x) + M_s(x))).

    M_c, (N, C, 1, 1), comes from the mean of each channel; M_s, (N, 1, H, W), from two dilated 3x3 convolutions.
    (N, C, H, W) -> (N, C, H, W).
    """

    is_attention = True

    def __init__(self, channels: int, reduction: int = _REDUCTION, dilation: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
            nn.Unflatten(1, (channels, 1, 1)),
        )
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU()]
        for _ in range(2):
            conv = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers += [conv, nn.BatchNorm2d(hidden), nn.ReLU()]
        self.spatial = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.sigmoid(self.channel(x) + self.spatial(x)))


def _se(channels: int, reduction: int) -> nn.Module:
    return torchvision.ops.SqueezeExcitation(channels, max(1, channels // reduction))


def _cbam(channels: int, reduction: int) -> nn.Module:
    from timm.layers.cbam import CbamModule

    return CbamModule(channels, rd_channels=max(1, channels // reduction))


def _insert_in_blocks(net: nn.Module, make: Callable[[int, int], nn.Module]) -> None:
    if isinstance(net, torchvision.models.MobileNetV2):
        for block in net.features:
            if isinstance(block, torchvision.models.mobilenetv2.InvertedResidual):
                block.conv.add_module("attention", _marked(make(block.out_channels, _MOBILENET_REDUCTION)))
        return
    for block in list(net.modules()):
        if isinstance(block, _ResidualBlock):
            name, norm = _last_norm(block)
            attention = _marked(make(_num_channels(norm), _REDUCTION))
            block.add_module(name, nn.Sequential(OrderedDict(norm=norm, attention=attention)))


def _insert_between_stages(net: nn.Module, make: Callable[[int, int], nn.Module]) -> None:
    if isinstance(net, torchvision.models.MobileNetV2):
        net.features = nn.Sequential(OrderedDict(_with_attention_before_strides(net.features, make)))
        return
    stages = [module for name, module in net.named_children() if name.startswith("layer")]
    for stage in stages[:-1]:
        _, norm = _last_norm(list(stage.children())[-1])
        stage.add_module("attention", _marked(make(_num_channels(norm), _REDUCTION)))


def _with_attention_before_strides(
    features: nn.Sequential, make: Callable[[int, int], nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield MobileNetV2's features under their own names, with one attention block before each that halves the map."""
    channels = 0
    for name, block in features.named_children():
        if getattr(block, "stride", 1) == 2 and channels:
            yield f"attention{name}", _marked(make(channels, _REDUCTION))
        channels = getattr(block, "out_channels", 0)
        yield name, block


def _marked(attention: nn.Module) -> nn.Module:
    # torch's types allow a module no attributes but tensors and modules.
    setattr(attention, "is_attention", True)  # noqa: B010
    return attention


def _last_norm(block: nn.Module) -> tuple[str, nn.Module]:
    name = "bn3" if hasattr(block, "bn3") else "bn2"
    return name, block.get_submodule(name)


def _num_channels(norm: nn.Module) -> int:
    return norm.get_parameter("weight").shape[0]


#: name -> (makes a block from (channels, reduction), puts blocks into a network)
_ATTENTION: dict[str, tuple[Callable[[int, int], nn.Module], Callable[..., None]]] = {
    "se": (_se, _insert_in_blocks),
    "cbam": (_cbam, _insert_in_blocks),
    "bam": (BAM, _insert_between_stages),
}
ATTENTIONS = tuple(_ATTENTION)
NORMS = ("gn",)


def add_attention(net: nn.Module, kind: str, name: str) -> None:
    """Put attention blocks into `net`, in place; each has `is_attention` True, other modules keep their weights.

    `kind` is one of ATTENTIONS (Hu et al. 2018; Woo et al. 2018; Park et al. 2018), `name` what the user calls the
    network. Raises ModelError for an unknown kind, and for other networks than those in the table above.
    """
    if kind not in _ATTENTION:
        raise ModelError(unknown_name("attention", kind, ATTENTIONS))
    if not isinstance(net, _ResidualNet | torchvision.models.MobileNetV2):
        raise ModelError(
            f"{name} takes no attention blocks; {kind} goes into torchvision's resnet*, resnext*, wide_resnet* and "
            "mobilenet_v2 and the built-in resnet* and resnext29_16x64d (timm has networks of its own, e.g. "
            "timm:seresnet50)"
        )
    make, insert = _ATTENTION[kind]
    insert(net, make)


def use_norm(net: nn.Module, kind: str, name: str) -> None:
    """Replace every batch norm of `net`, in place, by group normalization with 32 groups.

    Where 32 does not divide the channels, or would leave one channel a group (which is instance normalization and
    gives 0 on a 1x1 map), the largest divisor with two channels a group is taken. Raises ModelError for an unknown
    kind, and for networks without batch norm or with one of their own.
    """
    if kind not in NORMS:
        raise ModelError(unknown_name("norm", kind, NORMS, "Without it a network keeps its batch norm."))
    replaced = 0
    for parent in list(net.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, child_name, nn.GroupNorm(num_groups(child.num_features), child.num_features, child.eps))
                replaced += 1
    others = {type(module).__name__ for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    if others or not replaced:
        reason = f"its norms are {', '.join(sorted(others))}" if others else "it has no batch norm"
        raise ModelError(f"{name} cannot be given group normalization: {reason}; leave out --norm gn")


def num_groups(channels: int) -> int:
    """Return the largest divisor of `channels`, 32 at most, that leaves two channels a group (1 if there is none)."""
    return max((n for n in range(1, GROUPS + 1) if channels % n == 0 and channels // n >= 2), default=1)

"""Networks that answer differently when weights are zeroed, ablations that show, and how two results are compared."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import nn

from weanalysis._torchvision import torchvision  # noqa: F401 (makes the imports below possible)

# isort: split
from torchvision import models
from torchvision.models import convnext, efficientnet, vgg
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from weanalysis.ablation import Evaluator, studies
from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.models import build

FIELDS = ("start", "stop", "targets", "predictions", "intact_correct", "counts", "positions", "classes", "correct")


def assert_same(first: Measured, second: Measured) -> None:
    for name in FIELDS:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def shaken(
    net: nn.Module, size: int | tuple[int, ...], num_images: int = 8
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Make a randomly initialized network lively: fitting batch norms, and no class that wins on every image.

    `size` is the side of its pictures, or the whole shape of an input.
    """
    shape = (3, size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if hasattr(module, "layer_scale") and isinstance(module.layer_scale, nn.Parameter):
            nn.init.constant_(module.layer_scale, 0.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.momentum = 1.0
    images = torch.randn(num_images, *shape, generator=generator)
    # Statistics of these images keep activations of one size: without, deep networks amplify rounding into noise.
    with torch.no_grad():
        net.train()(images)
    net.eval().requires_grad_(False)
    classifier = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = net(images)
        classifier.weight /= logits.std()
        classifier.bias -= classifier.bias
        classifier.bias -= net(images).mean(0)
        return net, images, net(images).argmax(1)


def candidates(layer: studies.Layer) -> dict[str, list[Ablation]]:
    """For each kind of selection, ablations of a layer to choose from."""
    num_out, num_in = layer.shape
    outs, ins = studies.equidistant(num_out, 6), studies.equidistant(num_in, 6)
    count = layer.conv.weight.numel()
    parts = {
        "filter": [Part(layer.name, (o,)) for o in outs],
        "input channel": [Part(layer.name, None, (i,)) for i in ins],
        "kernel": [Part(layer.name, (o,), (i,)) for o in outs for i in ins],
        "single": [Part(layer.name, ranks=(rank, rank)) for rank in range(count, max(0, count - 12), -1)],
        "layer": [Part(layer.name)],
    }
    return {
        selection: [Ablation((part,), selection, 1, layer.name) for part in some] for selection, some in parts.items()
    }


def some_ablations(net: nn.Module, images: torch.Tensor) -> list[Ablation]:
    """In four layers all over the network, one ablation of each kind that changes the logits; and one everywhere."""
    layers = studies.find_layers(net)
    naive = Evaluator(net, "naive")
    intact = naive.logits(images)

    def has_effect(ablation: Ablation) -> bool:
        # The same computation on the same images: any difference is the ablation's.
        return not torch.equal(naive.logits(images, ablation), intact)

    picked = []
    places = studies.equidistant(len(layers), 4)
    for place in places:
        for ablations in candidates(layers[place]).values():
            picked += list(islice(filter(has_effect, ablations), 1))
    assert len(picked) >= 3 * len(places), "ablations that change nothing prove nothing"
    everywhere = tuple(Part(layer.name, ranks=(layer.conv.weight.numel(),) * 2) for layer in layers)
    return [*picked, Ablation(everywhere, "single", 1)]


def small_efficientnet() -> nn.Module:
    expanded, fused = efficientnet.MBConvConfig, efficientnet.FusedMBConvConfig
    stages = [expanded(1, 3, 1, 8, 8, 1), fused(4, 3, 2, 8, 16, 1), expanded(6, 5, 2, 16, 24, 2)]
    return efficientnet.EfficientNet(stages, dropout=0.2, num_classes=10)


def small_convnext() -> nn.Module:
    stages = [convnext.CNBlockConfig(16, 24, 1), convnext.CNBlockConfig(24, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(stages, num_classes=10)


def small_vgg() -> nn.Module:
    features = vgg.make_layers([16, "M", 24, 24, "M", 32, "M"], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def googlenet() -> nn.Module:
    return models.googlenet(num_classes=10, aux_logits=False, init_weights=False)


def timm_net(name: str, **options: object) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **options)


class CallsTwice(nn.Module):
    """One convolution called on the image and again on its own output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        first = self.shared(torch.relu(self.stem(x)))
        second = self.shared(torch.relu(first))
        return self.head((first + second).mean((2, 3)))


# Of each architecture the smallest that has all its kinds of layers.
NETWORKS = {
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), 32),
    "resnext": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10, width_mult=0.25), 48),
    "densenet": (lambda: models.DenseNet(8, (2, 3, 2), 16, num_classes=10), 32),
    "googlenet": (googlenet, 32),
    "vgg": (small_vgg, 32),
    "efficientnet": (small_efficientnet, 48),
    "convnext": (small_convnext, 48),
    "shufflenet_v2": (lambda: models.shufflenet_v2_x0_5(num_classes=10), 48),
    "resnet20": (lambda: build({"source": "builtin", "name": "resnet20", "num_classes": 10}), 16),
    "timm:seresnet18": (lambda: timm_net("legacy_seresnet18", layers=(1, 1, 1, 1)), 32),
    "timm:tf_mobilenetv3": (lambda: timm_net("tf_mobilenetv3_small_minimal_100"), 48),
    "calls one convolution twice": (CallsTwice, 12),
}


def flips(measured: Measured, num_ablations: int, bit: int = 1) -> np.ndarray:
    """Which images' correctness changed: (ablations, images), +1 lost, -1 gained."""
    before = (measured.intact_correct & bit).astype(bool)
    table = np.zeros((num_ablations, len(before)), int)
    of_change = np.repeat(np.arange(num_ablations), measured.counts)
    after = (measured.correct & bit).astype(bool)
    table[of_change, measured.positions] = before[measured.positions].astype(int) - after
    return table


def lively(name: str, num_images: int, num_wrong: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    make, size = NETWORKS[name]
    torch.manual_seed(0)  # else the network would depend on which tests ran before
    net, images, targets = shaken(make(), size, num_images)
    targets[:num_wrong] = (targets[:num_wrong] + 1) % 10
    return net, images, targets


def of_every_kind(net: nn.Module) -> list[Ablation]:
    layers = studies.find_layers(net)
    chosen = [layers[place] for place in studies.equidistant(len(layers), 5)]
    return [
        a for layer in chosen for kind, ablations in candidates(layer).items() if kind != "layer" for a in ablations[:2]
    ]


class Blobs(torch.utils.data.Dataset):
    """Images of a lively network, at hand."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])

"""torchvision's networks that classify each pixel, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from weanalysis._torchvision import torchvision
from weanalysis.data import Transform
from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.source import Pretrained
from weanalysis.models.torchvision_source import Torchvision

_models = torchvision.models.segmentation
_NUM_VOC_CLASSES = 21


class TorchvisionSegmentation(Torchvision):
    """Every network of `torchvision.models.segmentation`.

    The option `aux_loss` gives DeepLabv3 and FCN a second head, which helps to train and takes no part in answers.
    """

    task = "segmentation"

    def names(self) -> list[str]:
        return torchvision.models.list_models(module=_models)

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in self.names():
            raise ModelError(unknown_name("torchvision segmentation model", name, self.names()))
        return _NUM_VOC_CLASSES, dict.fromkeys(self.options(name), False)

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes, **options
        )

    def options(self, name: str) -> list[str]:
        return [] if name.startswith("lraspp") else ["aux_loss"]

    def pretrained(self, name: str, label: str) -> Pretrained:
        published = super().pretrained(name, label)
        assert published.classes is not None
        # They call the background by another name than the data set does.
        classes = ("background", *published.classes[1:])
        return replace(published, classes=classes, options=dict.fromkeys(self.options(name), True))

    def _synsets(self) -> None:
        return None

    def _transform(self, name: str, entry: Any) -> Transform:
        preset = entry.transforms()
        size = int(preset.resize_size[0])
        return Transform(
            image_size=size,
            resize_size=size,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    def _notes(self) -> tuple[str, ...]:
        return ("torchvision evaluates it on whole pictures; here the square at the centre of each is used",)

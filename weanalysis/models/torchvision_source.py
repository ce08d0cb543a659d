"""torchvision's classification networks, each by its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from weanalysis._torchvision import torchvision
from weanalysis.cache import Cache
from weanalysis.data import Transform
from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.checkpoint import read_state_dict
from weanalysis.models.source import (
    NUM_IMAGENET_CLASSES,
    NetworkSource,
    Pretrained,
    imagenet_classes,
    no_download,
    unknown_weights,
)

_models = torchvision.models
# They have auxiliary classifiers that only help to train them, and their weights want inputs scaled anew.
_INCEPTIONS = ("googlenet", "inception_v3")


class Torchvision(NetworkSource):
    """Every network of `torchvision.models` that classifies images."""

    def names(self) -> list[str]:
        return _models.list_models(module=_models)

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in self.names():
            raise ModelError(unknown_name("torchvision model", name, self.names()))
        options = {"aux_logits": False, "transform_input": False} if name in _INCEPTIONS else {}
        return NUM_IMAGENET_CLASSES, options

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        # Without a word about it, GoogLeNet and Inception warn that they will initialize otherwise one day.
        extra = {"init_weights": True} if name in _INCEPTIONS else {}
        return _models.get_model(name, weights=None, num_classes=num_classes, **{**extra, **options})

    def options(self, name: str) -> list[str]:
        made = inspect.get_annotations(_models.get_model_builder(name), eval_str=True).get("return")
        parameters = inspect.signature(made).parameters.values() if inspect.isclass(made) else ()
        plain = [p.name for p in parameters if isinstance(p.default, bool | int | float | None)]
        return [option for option in plain if option not in ("num_classes", "init_weights", "norm_layer", "block")]

    def weights(self, name: str) -> list[str]:
        # Weights without class names (VGG's IMAGENET1K_FEATURES) have no classifier.
        return [entry.name for entry in _models.get_model_weights(name) if entry.meta["categories"]]

    def pretrained(self, name: str, label: str) -> Pretrained:
        enum = _models.get_model_weights(name)
        short = label.rpartition(".")[2]
        if label != "default" and short not in self.weights(name):
            raise unknown_weights(name, label, self.weights(name))
        entry = enum.DEFAULT if label == "default" else enum[short]
        options: dict[str, Any] = {"transform_input": True} if name in _INCEPTIONS else {}
        if name.startswith("vit_"):
            options["image_size"] = entry.meta["min_size"][0]
        return Pretrained(
            name=name,
            label=entry.name,
            classes=tuple(entry.meta["categories"]),
            num_classes=len(entry.meta["categories"]),
            synsets=self._synsets(),
            transform=self._transform(name, entry),
            fetch=lambda cache: _fetch(name, entry, cache),
            options=options,
            notes=self._notes(),
        )

    def _synsets(self) -> tuple[str, ...] | None:
        return imagenet_classes()[1]

    def _transform(self, name: str, entry: Any) -> Transform:
        return Transform.from_torchvision(entry.transforms())

    def _notes(self) -> tuple[str, ...]:
        return ()

    def published_as(self, name: str, file_name: str) -> str | None:
        entries = _models.get_model_weights(name)
        return next((label for label in self.weights(name) if _file_name(entries[label]) == file_name), None)

    def num_parameters(self, name: str) -> int | None:
        return _models.get_model_weights(name).DEFAULT.meta["num_params"]


def _file_name(entry: Any) -> str:
    return Path(urlparse(entry.url).path).name


def _fetch(name: str, entry: Any, cache: Cache) -> Mapping[str, Tensor]:
    """Read weights from torch's own cache or from ours, into which they are downloaded where neither has them."""
    file_name = _file_name(entry)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        path = cache.ready().weights / file_name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = re.search(r"-([0-9a-f]{8,})\.", file_name)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), hashed[1] if hashed else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise no_download(name, entry.name, error) from error
    return read_state_dict(path)[0]

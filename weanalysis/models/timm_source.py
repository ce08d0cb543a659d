"""The networks of timm (pytorch-image-models); timm is imported when one of them is asked for."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import weanalysis._torchvision  # noqa: F401 (before timm, which imports torchvision)
from weanalysis.cache import Cache
from weanalysis.data import Transform
from weanalysis.errors import DataError, ModelError, unknown_name
from weanalysis.models.source import (
    NUM_IMAGENET_CLASSES,
    NetworkSource,
    Pretrained,
    imagenet_classes,
    no_download,
    unknown_weights,
)

_NO_OPTIONS = ("pretrained", "checkpoint_path", "cache_dir")


class Timm(NetworkSource):
    """Every network that timm can create, as NAME or NAME.TAG, where the tag names pretrained weights."""

    @cached_property
    def _timm(self) -> Any:
        import timm

        return timm

    def names(self) -> list[str]:
        return self._timm.list_models()

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        base, _, tag = name.partition(".")
        if not self._timm.is_model(base):
            known = [f"timm:{one}" for one in self.names()]
            raise ModelError(unknown_name("model", f"timm:{base}", known))
        if tag and tag not in self.weights(base):
            raise unknown_weights(f"timm:{base}", tag, self.weights(base))
        config = self._timm.get_pretrained_cfg(name)
        return (config.num_classes if config else None) or NUM_IMAGENET_CLASSES, {}

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        if refused := [key for key in options if key.startswith(_NO_OPTIONS)]:
            raise TypeError(f"{', '.join(refused)} would load weights, and options only shape the network")
        return self._timm.create_model(name, pretrained=False, num_classes=num_classes, **options)

    def weights(self, name: str) -> list[str]:
        base = name.partition(".")[0]
        return [full.partition(".")[2] for full in self._timm.list_pretrained(f"{base}.*")]

    def pretrained(self, name: str, label: str) -> Pretrained:
        base, _, tag = name.partition(".")
        tag = tag if label == "default" else label
        available = self.weights(base)
        if not available or (tag and tag not in available):
            raise unknown_weights(f"timm:{base}", label, available)
        full = f"{base}.{tag}" if tag else base
        config = self._timm.get_pretrained_cfg(full)
        if not config.num_classes:
            raise ModelError(f"the weights {config.tag} of timm:{base} have no classifier; choose others")
        from timm.data import infer_imagenet_subset, resolve_data_config

        subset = infer_imagenet_subset({"num_classes": config.num_classes})
        classes, synsets = imagenet_classes(subset) if subset else (None, None)
        transform, notes = None, []
        try:
            transform = Transform.from_timm(resolve_data_config(pretrained_cfg=config.to_dict()))
        except DataError as error:
            notes.append(f"the transform of timm:{full} cannot be used: {error}")
        return Pretrained(
            name=full,
            label=config.tag or "default",
            classes=classes,
            num_classes=config.num_classes,
            synsets=synsets,
            transform=transform,
            fetch=lambda cache: self._fetch(full, config, cache),
            notes=tuple(notes),
        )

    def _fetch(self, full: str, config: Any, cache: Cache) -> Mapping[str, Tensor]:
        try:
            if _needs_unreachable_hub(config):
                raise OSError("the Hugging Face Hub cannot be reached")
            return self._timm.create_model(full, pretrained=True).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise no_download(f"timm:{full}", config.tag or "default", error) from error


def _needs_unreachable_hub(config: Any) -> bool:
    """Say whether weights are neither here nor to be had, which the Hub's client takes a minute to find out."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not config.hf_hub_id or urllib.request.getproxies():
        return False
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return False
    try:
        socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False

"""What the engine takes besides its own nouns: any module that gives logits, any map-style dataset."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import describe_behaviour
from weanalysis.ablation.copies import copied
from weanalysis.data import ImageData
from weanalysis.errors import DataError, ExcitationError, ModelError
from weanalysis.excitation import multipliers
from weanalysis.models import Model

# An architecture from this source is a module of the caller's: it cannot be rebuilt from a description.
UNNAMED_SOURCE = "module"


def as_model(model: Model | nn.Module) -> Model:
    """Return a Model around a copy of a network; raise ModelError for anything that is no network.

    A module that has no name to be rebuilt from goes by its class, and by a hash of all that it is.
    """
    if isinstance(model, nn.Module):
        net = copied(model)
        name = type(net).__name__
        return Model(
            name=name, net=net, weights="as given", num_classes=0, classes=None, transform=None,
            architecture={"source": UNNAMED_SOURCE, "name": name, "structure": describe_behaviour(net)},
        )  # fmt: skip
    if not isinstance(model, Model):
        raise ModelError(f"{type(model).__name__} is no network: give a torch.nn.Module or what load_model returns")
    return replace(model, net=copied(model.net))


def multipliers_of(model: Model) -> dict[str, Tensor]:
    """LWE's m of every layer that has it, (Out, In/groups) each; empty for a network without."""
    try:
        return {name: m.detach().contiguous() for name, m in multipliers(model.net).items()}
    except ExcitationError:
        return {}


@dataclass(eq=False)
class GivenImages:
    """Any map-style dataset of (FloatTensor(3, H, W), class index), in its own order, known by its contents."""

    dataset: Any
    spec: str = "dataset"
    seed: int = 0
    transform: None = None
    fingerprint: str = field(init=False)
    ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        try:
            count = len(self.dataset)
            first = self.dataset[0]
            assert isinstance(first[0], Tensor)
        except (TypeError, IndexError, KeyError, AssertionError):
            raise DataError(f"{type(self.dataset).__name__} is no data set of images: give what load_data returns, or "
                            "a map-style dataset whose items are (tensor, class index)") from None
        digest = hashlib.sha256()
        for index in range(count):
            image, target = self.dataset[index]
            digest.update(image.contiguous().numpy().tobytes() + int(target).to_bytes(8, "little", signed=True))
        self.fingerprint, self.ids = digest.hexdigest(), np.arange(count)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int, num_threads: int = 1) -> tuple[Tensor, Tensor]:
        """Return images [start, stop) as FloatTensor(N, 3, H, W) and LongTensor(N)."""
        items = [self.dataset[index] for index in range(start, min(stop, len(self)))]
        return torch.stack([image for image, _ in items]), torch.tensor([int(target) for _, target in items])


Images = ImageData | GivenImages


def as_images(data: Any) -> Images:
    """Return an ImageData as it is, and wrap any other map-style dataset. Raises DataError for anything else."""
    return data if isinstance(data, (ImageData, GivenImages)) else GivenImages(data)

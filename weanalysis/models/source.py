"""What a source of networks is: the base class of the three in SOURCES, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as remember
from typing import Any

from torch import Tensor, nn

from weanalysis.cache import Cache
from weanalysis.data import Transform
from weanalysis.errors import ModelError

NUM_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Pretrained:
    """Published weights of a network, not fetched yet.

    `name` is the network's name within its source, `options` are those that the weights need. `fetch(cache)` gets the
    state dict, downloading it where it is not there; it raises ModelError where that fails.
    """

    name: str
    label: str
    classes: tuple[str, ...] | None
    num_classes: int
    synsets: tuple[str, ...] | None
    transform: Transform | None
    fetch: Callable[[Cache], Mapping[str, Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class NetworkSource(ABC):
    """Where networks come from. They give each image a class, but for those of another `task`."""

    task = "classification"

    def task_of(self, name: str) -> str:
        """What a network's outputs mean: "classification", or "segmentation"."""
        return self.task

    @abstractmethod
    def names(self) -> list[str]:
        """List the networks."""

    @abstractmethod
    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        """Return a network's number of classes and its options; raise ModelError, with near names, if unknown."""

    @abstractmethod
    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        """Make a network with random weights; raise TypeError or ValueError for options that it does not take."""

    def options(self, name: str) -> list[str]:
        """List the options that a network takes, as far as they are known."""
        return []

    def weights(self, name: str) -> list[str]:
        """List a network's published weights."""
        return []

    def pretrained(self, name: str, label: str) -> Pretrained:
        """Find published weights, or the best of them under "default"; raise ModelError, with a list, if unknown."""
        raise ModelError(f"{name} has no published weights, so none called {label!r}; give a file, or none")

    def published_as(self, name: str, file_name: str) -> str | None:
        """Return which of a network's weights are published under the name of a file."""
        return None

    def num_parameters(self, name: str) -> int | None:
        """Return how many parameters a network has by default, where that is known without building it."""
        return None


def unknown_weights(name: str, label: str, available: Sequence[str]) -> ModelError:
    """Word the refusal of weights that a network does not have."""
    if not available:
        return ModelError(f"{name} has no published weights, so none called {label!r}; give a file, or none")
    return ModelError(
        f"unknown weights {label!r} for {name}: choose from {', '.join(available)}, default, none, or give a file"
    )


def no_download(name: str, label: str, error: BaseException) -> ModelError:
    """Word the refusal of weights that could not be downloaded."""
    cause = getattr(error, "reason", None) or error
    lines = str(getattr(cause, "strerror", None) or cause).splitlines() or [type(error).__name__]
    return ModelError(
        f"the weights {label} of {name} cannot be downloaded ({lines[0][:120]}); get them elsewhere and give the file, "
        "or give none for random weights"
    )


@remember
def imagenet_classes(subset: str = "imagenet-1k") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (names, wnids) of ImageNet's classes in the order of the outputs of published networks."""
    from timm.data import ImageNetInfo

    import weanalysis._torchvision  # noqa: F401 (before timm, which imports torchvision)

    info = ImageNetInfo(subset)
    names = tuple(info.index_to_description(index) for index in range(info.num_classes()))
    return names, tuple(info.label_names())

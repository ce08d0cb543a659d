"""From what a user gives to what can be ablated: a copy with plain weights, known by what it does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import (
    NUM_PROBES,
    Conduct,
    answers_to_probes,
    describe_behaviour,
    drawn_from,
    observe,
)
from weanalysis.ablation.copies import copied, first_line, moved, storages_of
from weanalysis.ablation.evaluate import choose_output, logits_of
from weanalysis.ablation.folding import few, fold_weights
from weanalysis.ablation.graph import CONVOLUTIONS
from weanalysis.ablation.inputs import UNNAMED_SOURCE
from weanalysis.ablation.left_out import convolutions_left_out
from weanalysis.data import GivenImages, ImageData
from weanalysis.errors import StudyError, WeanalysisError
from weanalysis.excitation import excitation_of
from weanalysis.models import Model, build
from weanalysis.tasks import SEGMENTATION

# What rebuilding a network from its name may change in its logits, of the largest one.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Prepared:
    """A network that can be ablated: plain weights in a copy of its own, how it is to be run, and notes for a person.

    `output_shape` is that of an image's outputs. `is_rebuilt`: its architecture and its weights make the same network
    again, in another process too.
    """

    model: Model
    conduct: Conduct
    notes: tuple[str, ...]
    output_shape: tuple[int, ...]
    is_rebuilt: bool


def prepare(
    model: Model,
    layers: Collection[str] | None,
    images: Tensor,
    seed: int | None = None,
    batch_size: int | None = None,
    given: nn.Module | None = None,
    output: str | int | None = None,
    num_classes: int | None = None,
    any_shape: bool = False,
    of_pixels: bool = False,
) -> Prepared:
    """Fold a network's weights in a copy, observe how it behaves on some images, and find out what tells it apart.

    `layers` are those that will be zeroed (None: all); `seed` and `batch_size` are what the user allows, see
    `behaviour.observe`; `given` is the network that `model` holds a copy of, which must not be computed with; `output`
    names the logits among several outputs, which `num_classes` may tell apart; with `of_pixels` each pixel has its own,
    with `any_shape` they need be no logits.
    Raises StudyError for a network that cannot be measured.
    """
    net = copied(model.net)
    if layers is None:
        layers = [name for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS)]
    lazy = [
        name
        for name, module in net.named_modules()
        if isinstance(module, CONVOLUTIONS)
        and isinstance(module._parameters.get("weight"), nn.parameter.UninitializedParameter)
    ]
    if lazy:
        raise StudyError(f"{few(lazy)} has no weight yet: run one batch through the network first")
    net = moved(net, torch.device("cpu"), torch.float32)
    returned = run_forward(copied(net), images.clone())
    path, note = choose_output(returned, num_classes, output, len(images) if any_shape else None, of_pixels)

    def forward(net: nn.Module, images: Tensor) -> Tensor:
        with drawn_from(seed):
            return logits_of(run_forward(net, images), path).detach()

    conduct, notes = observe(net, images, forward, seed, batch_size)
    conduct = replace(conduct, output=path)
    notes += [note] if note else []

    architecture = model.architecture
    if excitation_of(net) is not None:
        architecture = {key: value for key, value in architecture.items() if key != "excitation"}
    notes += fold_weights(net, images, forward, layers)
    with drawn_from(conduct.seed):
        notes += _left_out(net, images, storages_of(model.net if given is None else given))
    plain = replace(model, net=net, architecture=architecture)
    named = architecture.get("source") != UNNAMED_SOURCE
    is_rebuilt = named and _rebuilds(plain, images, forward)
    if named and not is_rebuilt:
        notes.append(
            f"the network is not the {model.name} that its name stands for: it was changed after it was "
            "loaded; so it is known by what it does, and measured in one process"
        )
    if not is_rebuilt:
        structure = {"structure": describe_behaviour(net), "answers": answers_to_probes(net, images, forward)}
        plain = replace(plain, architecture={"source": UNNAMED_SOURCE, "name": model.name, **structure})
    return Prepared(plain, conduct, tuple(notes), tuple(logits_of(returned, path).shape[1:]), is_rebuilt)


def prepare_on(model: Model, images: ImageData | GivenImages, batch_size: int | None = None) -> Prepared:
    """Prepare a network for whatever reads its weights over a whole data set; see `prepare`."""
    probes = images.batch(0, min(NUM_PROBES, len(images)))[0]
    of_pixels = images.task == SEGMENTATION
    return prepare(model, None, probes, None, batch_size, num_classes=classes_of(model, images), of_pixels=of_pixels)


def classes_of(model: Model, images: ImageData | GivenImages) -> int:
    """How many classes there are, for all that is known of the network and the data."""
    return model.num_classes or len(getattr(images, "classes", None) or ()) or int(images.targets.max(initial=0)) + 1


@torch.no_grad()
def run_forward(net: nn.Module, images: Tensor) -> Any:
    """What a network returns for images; raise StudyError where it fails on them."""
    try:
        return net(images)
    except WeanalysisError:
        raise
    except Exception as error:  # whatever somebody else's forward pass raises
        raise StudyError(
            f"the network {type(net).__name__} fails on images of shape {tuple(images.shape[1:])} in "
            f"batches of {len(images)} ({type(error).__name__}: {first_line(error)}); give images that it "
            "takes, such as with --image-size"
        ) from error


def _rebuilds(model: Model, images: Tensor, forward: Any) -> bool:
    """Whether a network built from the architecture, with these weights, answers as this one does."""
    try:
        again = build(model.architecture)
        again.load_state_dict(model.net.state_dict())
    except (WeanalysisError, RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        return False
    if repr(again) != repr(model.net):
        return False
    one, other = forward(again, images), forward(model.net, images)
    return bool((one - other).abs().max() <= _ROUNDING * max(1e-6, other.abs().max().item()))


def _left_out(net: nn.Module, images: Tensor, of_given: set[int]) -> list[str]:
    """Say which convolutions no study covers, and which the images do not reach.

    Raises StudyError for a copy that computes with weights of the network that it was made from.
    """
    others, unreached, reads_given = convolutions_left_out(copied(net), images.clone(), of_given)
    if reads_given:
        raise StudyError(
            "a copy of the network still computes with weights of the given one, and only copies are "
            "measured: a hook, a replaced forward or a weak reference holds on to it; remove that"
        )
    notes = []
    if others:
        notes.append(
            f"left out, since no study covers transposed convolutions and those called as functions: "
            f"{few(others)} ({sum(others.values()):.1%} of the network's weights)"
        )
    if unreached:
        notes.append(
            f"the first {len(images)} images do not reach {few(unreached)} ({sum(unreached.values()):.1%} of "
            "the network's weights): D there is 0 unless others do"
        )
    return notes

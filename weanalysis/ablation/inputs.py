"""What the engine takes besides its own nouns: any module that gives logits."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from weanalysis.ablation.behaviour import describe_behaviour
from weanalysis.ablation.copies import copied
from weanalysis.cache import storable
from weanalysis.errors import ExcitationError, ModelError
from weanalysis.excitation import excitation_of, multipliers
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
            name=name,
            net=net,
            weights="as given",
            num_classes=0,
            classes=None,
            transform=None,
            architecture={"source": UNNAMED_SOURCE, "name": name, "structure": describe_behaviour(net)},
        )
    if not isinstance(model, Model):
        raise ModelError(f"{type(model).__name__} is no network: give a torch.nn.Module or what load_model returns")
    return replace(model, net=copied(model.net))


def multipliers_of(model: Model) -> dict[str, Tensor]:
    """LWE's m of every layer that has it, (Out, In/groups) each; empty for a network without."""
    try:
        return {name: m.detach().contiguous() for name, m in multipliers(model.net).items()}
    except ExcitationError:
        return {}


def excitation_kind(model: Model) -> str | None:
    """By what the network's weights were excited in training, such as "lwe"; None where they were not, or none knows.

    Weights that were folded since are plain: what they were trained with is in the recipe that their file keeps.
    """
    excitation = excitation_of(model.net)
    if excitation is not None:
        return str(excitation["kind"])
    file = model.checkpoint
    if file is None or file.trained_with in (None, "none") or not file.still_holds(model.weights_hash):
        return None
    return storable(str(file.trained_with))


def checkpoint_of(model: Model) -> str | None:
    """The checkpoint file that the network was loaded from; None where it has other weights by now, or had no file."""
    file = model.checkpoint
    return storable(str(file.path)) if file is not None and file.still_holds(model.weights_hash) else None

"""What the engine takes besides its own nouns: any module that gives logits."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

from torch import Tensor, nn

from weanalysis.errors import ExcitationError, ModelError
from weanalysis.excitation import excitation_of, fold, multipliers
from weanalysis.models import Model

# An architecture from this source is a module of the caller's: it cannot be rebuilt from a description.
UNNAMED_SOURCE = "module"


def as_model(model: Model | nn.Module) -> Model:
    """Return a Model as it is, and wrap any other module. Raises ModelError for anything that is no network."""
    if isinstance(model, nn.Module):
        name = type(model).__name__
        # The printed structure stands in for a description: other layers or sizes are another architecture.
        structure = hashlib.sha256(repr(model).encode()).hexdigest()
        model = Model(
            name=name, net=model, architecture={"source": UNNAMED_SOURCE, "name": name, "structure": structure},
            weights="as given", num_classes=0, classes=None, transform=None,
        )  # fmt: skip
    if not isinstance(model, Model):
        raise ModelError(f"{type(model).__name__} is no network: give a torch.nn.Module or what load_model returns")
    return model


def multipliers_of(model: Model) -> dict[str, Tensor]:
    """LWE's m of every layer that has it, (Out, In/groups) each; empty for a network without."""
    try:
        return {name: m.detach().contiguous() for name, m in multipliers(model.net).items()}
    except ExcitationError:
        return {}


def folded(model: Model) -> Model:
    """Return the same network with plain weights, those it computes with; the caller's network stays as it is.

    Ablations zero these: inside an excited network, a zeroed stored weight would not be a zero weight.
    """
    if excitation_of(model.net) is None:
        return model
    plain = {key: value for key, value in model.architecture.items() if key != "excitation"}
    return replace(model, net=fold(copy.deepcopy(model.net)), architecture=plain)

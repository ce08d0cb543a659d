"""The network that a recipe trains, before its first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weanalysis.data import ImageData
from weanalysis.excitation import excitation_of, excite
from weanalysis.models import (
    check_forward,
    check_inputs,
    check_task,
    fitting_options,
    load_network,
    smallest_image_size,
)
from weanalysis.training.recipe import Recipe


def make_network(recipe: Recipe, data: ImageData) -> tuple[nn.Module, dict[str, Any], int | None]:
    """Build the recipe's network for the classes of `data`: (network, architecture, image size).

    Weights are drawn from the recipe's seed, those of the network before those of an excitation, so that with one
    seed a baseline and an excited network begin with the same weights. Seeds torch's global generator. Without an
    image size in the recipe, images that are too small for the network are enlarged (`smallest_image_size`); the size
    of arrays is None. Raises ModelError or ExcitationError.
    """
    torch.manual_seed(recipe.seed)
    fitting = fitting_options(recipe.model, data.transform.shape)
    options = {**fitting, **recipe.options, "attention": recipe.attention, "norm": recipe.norm, "excitation": "none"}
    model = load_network(recipe.model, "none", num_classes=len(data.classes), options=options)
    net, architecture = model.net, dict(model.architecture)
    check_task(architecture, recipe.data, data.task)
    check_inputs(net, model.name, data.transform.shape)
    own_size = data.transform.image_size
    image_size = None
    if own_size is not None:
        image_size = recipe.image_size or max(own_size, smallest_image_size(net, data.transform.shape[1:-2]))
    check_forward(net, model.name, data.transform.adjusted(image_size=image_size).shape)
    if recipe.excitation != "none":
        excite(
            net,
            recipe.excitation,
            recipe.normalize,
            recipe.reduction,
            recipe.eps,
            recipe.layers,
            recipe.hidden_of,
            recipe.unbiased,
            recipe.constant_maximum,
        )
        architecture["excitation"] = excitation_of(net)
    return net, architecture, image_size

"""The multiplier study: is a channel that LWE excites more also needed more? (§4.2, "Validity of …")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor, nn

from weanalysis.ablation.studies.layers import Layer, find_layers, input_channel, select_layers
from weanalysis.ablation.studies.parts import Ablation, Study
from weanalysis.errors import ExcitationError, StudyError
from weanalysis.excitation import multipliers

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5)


def multiplier(
    net: nn.Module,
    channels: int = 1,
    fractions: Iterable[float] = CURVE,
    draws: int = 5,
    layers: str | None = None,
    seed: int = 0,
) -> Study:
    """Zero the input channels with the lowest (D_L) and the highest (D_H) multiplier, and random ones beside them.

    A channel's multiplier is m averaged over the outputs that read it. `channels` K of them are zeroed in every
    layer at once, and layer by layer; then, in every layer at once, each of `fractions` of the channels: the rank
    curve. Selections are "lowest", "highest" and "random" (`draws` of it, from `seed`); the table's `fraction` is
    NaN for K channels. The stem is left out, as in the paper. Raises StudyError for a network without LWE.
    """
    fractions = tuple(fractions)
    if channels < 1 or draws < 1:
        raise StudyError(f"channels {channels} and draws {draws}: both must be at least 1")
    if any(not 0 < fraction < 1 for fraction in fractions):
        raise StudyError("fractions of channels must lie between 0 and 1, such as 0.1")
    try:
        found = multipliers(net)
    except ExcitationError:
        raise StudyError("the network has no LWE multipliers, so this study has nothing to rank; train one with "
                         "`weanalysis train --excitation lwe`, and give its unfolded checkpoint") from None
    skipped: list[tuple[str, str]] = []
    chosen = []
    for layer in select_layers(find_layers(net), layers, skipped):
        if layer.depth == 0:
            skipped.append((layer.name, "the stem, which the paper leaves out"))
        elif layer.name not in found:
            skipped.append((layer.name, "it has no LWE"))
        elif layer.conv.in_channels <= channels:
            skipped.append((layer.name, f"it has no more than {channels} input channels"))
        else:
            chosen.append(layer)
    if not chosen:
        raise StudyError("no layer is left to study: " + "; ".join(f"{name}: {why}" for name, why in skipped[:4]))
    ranked = {layer.name: np.argsort(mean_multiplier(layer, found), kind="stable") for layer in chosen}
    rng = np.random.default_rng(seed)
    shuffled = [{layer.name: rng.permutation(layer.conv.in_channels) for layer in chosen} for _ in range(draws)]
    orders: list[tuple[str, int | None, Mapping[str, np.ndarray]]] = [
        ("lowest", None, ranked),
        ("highest", None, {name: order[::-1] for name, order in ranked.items()}),
        *(("random", draw, order) for draw, order in enumerate(shuffled)),
    ]
    ablations = [_first(chosen, selection, draw, order, channels) for selection, draw, order in orders]
    ablations += [
        _first(chosen, selection, draw, order, fraction)
        for fraction in fractions for selection, draw, order in orders
    ]  # fmt: skip
    ablations += [
        _first([layer], selection, draw, order, channels)
        for layer in chosen for selection, draw, order in orders if selection != "random"
    ]  # fmt: skip
    options = {"channels": channels, "fractions": list(fractions), "draws": draws, "seed": seed}
    return Study("multiplier", options, tuple(ablations), tuple(skipped), (), tuple(layer.name for layer in chosen))


def mean_multiplier(layer: Layer, found: Mapping[str, Tensor]) -> np.ndarray:
    """Average m (Out, In/groups) over the outputs that read each input channel: (in_channels,)."""
    of_kernel = found[layer.name].detach().double().cpu().numpy()
    groups = layer.conv.groups
    return of_kernel.reshape(groups, -1, of_kernel.shape[1]).mean(axis=1).reshape(-1)


def _first(
    layers: list[Layer], selection: str, draw: int | None, order: Mapping[str, np.ndarray], amount: int | float
) -> Ablation:
    """Zero the first channels of each layer's order: a number of them, or a fraction (at least one)."""
    parts, num_weights = [], 0
    for layer in layers:
        count = amount if isinstance(amount, int) else max(1, round(amount * layer.conv.in_channels))
        parts += [input_channel(layer, int(channel)) for channel in sorted(order[layer.name][:count])]
        num_weights += count * layer.shape[0] // layer.conv.groups * math.prod(layer.kernel_size)
    single = layers[0] if len(layers) == 1 else None
    return Ablation(
        tuple(parts), selection, num_weights, single.name if single else None, single.depth if single else None,
        in_channel=int(order[single.name][0]) if single and amount == 1 else None,
        fraction=None if isinstance(amount, int) else float(amount), draw=draw,
    )  # fmt: skip

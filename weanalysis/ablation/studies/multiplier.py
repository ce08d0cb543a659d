"""The multiplier study: is what LWE excites more also needed more? (§4.2, "Validity of attention multiplier")."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from weanalysis.ablation.studies.layers import Layer, find_layers, input_channel, select_layers
from weanalysis.ablation.studies.parts import Ablation, Part, Study
from weanalysis.errors import ExcitationError, StudyError, unknown_name
from weanalysis.excitation import multipliers
from weanalysis.results.contrast import RANKED

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5)


def multiplier(
    net: nn.Module,
    channels: int = 1,
    fractions: Iterable[float] = CURVE,
    draws: int = 5,
    layers: str | None = None,
    seed: int = 0,
    multiplier_of: str = "channel",
) -> Study:
    """Zero the units with the lowest (D_L) and the highest (D_H) multiplier, and random ones beside them.

    The paper ranks "channels" by a multiplier that LWE gives every kernel, and does not say how the two are brought
    together. Two readings are offered: with `multiplier_of` "channel" a unit is an input channel, ranked by m averaged
    over the outputs that read it; with "kernel" it is a single kernel `weight[o, i]`, ranked by its own m.

    `channels` K units are zeroed in every layer at once, and layer by layer; then, in every layer at once, each of
    `fractions` of the units: the rank curve. Selections are "lowest", "highest" and "random" (`draws` of it, from
    `seed`); the table's `fraction` is NaN for K units. The first convolution is left out: a choice of this program, as
    its input channels are the image's own colours. Raises StudyError for a network without LWE, and for settings that
    cannot be.

    >>> from weanalysis.excitation import excite
    >>> net = excite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), "lwe")
    >>> study = multiplier(net, fractions=(), draws=2)
    >>> [ablation.selection for ablation in study.ablations if ablation.layer is None]
    ['lowest', 'highest', 'random', 'random']
    """
    fractions = tuple(fractions)
    if multiplier_of not in UNITS:
        raise StudyError(unknown_name("unit for --multiplier-of", multiplier_of, UNITS))
    if channels < 1 or draws < 1:
        raise StudyError(f"channels {channels} and draws {draws}: both must be at least 1")
    if any(not 0 < fraction < 1 for fraction in fractions):
        raise StudyError(f"fractions of {multiplier_of}s must lie between 0 and 1, such as 0.1")
    unit = UNITS[multiplier_of]
    skipped: list[tuple[str, str]] = []
    ranking = _layers_to_rank(net, unit, channels, layers, skipped)
    chosen, values = [layer for layer, _ in ranking], {layer.name: values_of for layer, values_of in ranking}
    ranked = {name: np.argsort(m, kind="stable") for name, m in values.items()}
    rng = np.random.default_rng(seed)
    shuffled = [{name: rng.permutation(len(m)) for name, m in values.items()} for _ in range(draws)]
    orders: list[tuple[str, int | None, Mapping[str, np.ndarray]]] = [
        ("lowest", None, ranked),
        ("highest", None, {name: order[::-1] for name, order in ranked.items()}),
        *(("random", draw, order) for draw, order in enumerate(shuffled)),
    ]
    ablations = [_first(unit, chosen, selection, draw, order, channels) for selection, draw, order in orders]
    ablations += [
        _first(unit, chosen, selection, draw, order, fraction)
        for fraction in fractions
        for selection, draw, order in orders
    ]
    ablations += [
        _first(unit, [layer], selection, draw, order, channels)
        for layer in chosen
        for selection, draw, order in orders
        if selection != "random"
    ]
    # A study of channels is called what it was called before there was a choice.
    choice = {} if multiplier_of == "channel" else {"multiplier_of": multiplier_of}
    options = {"channels": channels, "fractions": list(fractions), "draws": draws, "seed": seed, **choice}
    return Study("multiplier", options, tuple(ablations), tuple(skipped), (), tuple(layer.name for layer in chosen))


def _layers_to_rank(
    net: nn.Module, unit: Unit, channels: int, layers: str | None, skipped: list[tuple[str, str]]
) -> list[tuple[Layer, np.ndarray]]:
    """The layers whose units can be ranked, with these units' multipliers; the others are added to `skipped`."""
    try:
        of_layers = multipliers(net)
    except ExcitationError:
        raise StudyError(
            "the network has no LWE multipliers, so this study has nothing to rank; train one with "
            "`weanalysis train --excitation lwe`, and give its unfolded checkpoint"
        ) from None
    chosen = []
    for layer in select_layers(find_layers(net), layers, skipped):
        if layer.depth == 0:
            skipped.append((layer.name, "the first convolution, which this study leaves out by choice"))
        elif layer.name not in of_layers:
            skipped.append((layer.name, "it has no LWE"))
        elif len(values_of := unit.values(layer, of_layers)) <= channels:
            skipped.append((layer.name, f"it has no more than {channels} {unit.name}s"))
        else:
            chosen.append((layer, values_of))
    if not chosen:
        raise StudyError("no layer is left to study: " + "; ".join(f"{name}: {why}" for name, why in skipped[:4]))
    return chosen


def mean_multiplier(layer: Layer, of_layers: Mapping[str, Tensor]) -> np.ndarray:
    """Average m (Out, In/groups) over the outputs that read each input channel: (in_channels,)."""
    of_kernel = of_layers[layer.name].detach().double().cpu().numpy()
    groups = layer.conv.groups
    return of_kernel.reshape(groups, -1, of_kernel.shape[1]).mean(axis=1).reshape(-1)


def kernel_multiplier(layer: Layer, of_layers: Mapping[str, Tensor]) -> np.ndarray:
    """Lay out m (Out, In/groups) kernel by kernel, all of an output's together: (Out * In/groups,)."""
    return of_layers[layer.name].detach().double().cpu().numpy().reshape(-1)


@dataclass(frozen=True)
class Unit:
    """What a multiplier is told of: the values of a layer's units, and the parts of those with some indices."""

    name: str
    values: Callable[[Layer, Mapping[str, Tensor]], np.ndarray]
    parts: Callable[[Layer, Sequence[int]], list[Part]]
    num_kernels: Callable[[Layer], int]


def _kernels(layer: Layer, places: Sequence[int]) -> list[Part]:
    """The kernels with these places in `kernel_multiplier`, a part for each output channel."""
    by_output: dict[int, list[int]] = {}
    for place in places:
        out, in_ = divmod(place, layer.shape[1])
        by_output.setdefault(out, []).append(in_)
    return [Part(layer.name, (out,), tuple(ins)) for out, ins in by_output.items()]


UNITS = {
    "channel": Unit(
        RANKED["channel"],
        mean_multiplier,
        lambda layer, places: [input_channel(layer, place) for place in places],
        lambda layer: layer.shape[0] // layer.conv.groups,
    ),
    "kernel": Unit(RANKED["kernel"], kernel_multiplier, _kernels, lambda layer: 1),
}


def _first(
    unit: Unit,
    layers: list[Layer],
    selection: str,
    draw: int | None,
    order: Mapping[str, np.ndarray],
    amount: int | float,
) -> Ablation:
    """Zero the first units of each layer's order: a number of them, or a fraction (at least one)."""
    parts: list[Part] = []
    num_weights = 0
    for layer in layers:
        places = order[layer.name]
        count = amount if isinstance(amount, int) else max(1, round(amount * len(places)))
        parts += unit.parts(layer, sorted(int(place) for place in places[:count]))
        num_weights += count * unit.num_kernels(layer) * math.prod(layer.kernel_size)
    single = layers[0] if len(layers) == 1 else None
    out_channel = in_channel = None
    if single and amount == 1:
        place = int(order[single.name][0])
        out_channel, in_channel = divmod(place, single.shape[1]) if unit is UNITS["kernel"] else (None, place)
    return Ablation(
        tuple(parts),
        selection,
        num_weights,
        single.name if single else None,
        single.depth if single else None,
        out_channel=out_channel,
        in_channel=in_channel,
        fraction=None if isinstance(amount, int) else float(amount),
        draw=draw,
    )

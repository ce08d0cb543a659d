"""Cheap scores that are meant to predict the measured D: each a function from what a layer showed to its units' scores.

A score is larger where a unit should matter more. w is a weight, g the gradient of one image's cross-entropy with
respect to it, E the mean over images, and Σ runs over the weights of the unit (a weight, kernel, filter, input channel
or layer), which is what a study zeroes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weanalysis.saliency.evidence import Evidence, unit_sums

Needs = Literal["weights", "gradients", "activations", "batch norm", "LWE"]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """How units are scored: what it `needs`, the `formula` in words, its `source`, and the function that computes it.

    `score` returns the scores of each unit that the criterion speaks of, and none where the layer lacks what it needs.

    >>> CRITERIA["l1"].formula, CRITERIA["taylor"].needs
    ('sum |w|', 'gradients')
    """

    needs: Needs
    formula: str
    source: str
    score: Callable[[Evidence], Scores]


def _sums(values: Tensor, groups: int) -> Scores:
    return {"weight": values, **unit_sums(values, groups)}


def _magnitude(seen: Evidence) -> Scores:
    counts = _sums(torch.ones_like(seen.weight), seen.groups)
    return {unit: values / counts[unit] for unit, values in _l1(seen).items()}


def _l1(seen: Evidence) -> Scores:
    return _sums(seen.weight.abs(), seen.groups)


def _l2(seen: Evidence) -> Scores:
    return {unit: values.sqrt() for unit, values in _sums(seen.weight.square(), seen.groups).items()}


def _taylor(seen: Evidence) -> Scores:
    return seen.absolute


def _taylor_mean(seen: Evidence) -> Scores:
    assert seen.mean is not None
    return {unit: values.abs() for unit, values in _sums(seen.mean, seen.groups).items()}


def _fisher(seen: Evidence) -> Scores:
    return {unit: values / 2 for unit, values in seen.squared.items()}


def _obd(seen: Evidence) -> Scores:
    return _sums(seen.squared["weight"] / 2, seen.groups)


def _activation(seen: Evidence) -> Scores:
    assert seen.input_square is not None and seen.output_square is not None
    num_out, num_in = seen.layer.shape
    # Input channel i of an output's group, for every output: (Out, In/groups), as the weight has them.
    read = seen.input_square.reshape(seen.groups, 1, num_in).expand(-1, num_out // seen.groups, -1)
    read = read.reshape(num_out, num_in, *[1] * (seen.weight.dim() - 2))
    scores = {unit: values.sqrt() for unit, values in _sums(seen.weight.square() * read, seen.groups).items()}
    return {**scores, "filter": seen.output_square.sqrt(), "layer": seen.output_square.sum().sqrt()}


def _gamma(seen: Evidence) -> Scores:
    if seen.gamma is None:
        return {}
    gamma = seen.gamma.abs()
    return {"kernel": gamma[:, None].expand(seen.layer.shape), "filter": gamma, "layer": gamma.mean()}


def _multiplier(seen: Evidence) -> Scores:
    if seen.multiplier is None:
        return {}
    m = seen.multiplier
    by_group = m.unflatten(0, (seen.groups, -1)).mean(1)
    return {"kernel": m, "filter": m.mean(1), "input channel": by_group.flatten(), "layer": m.mean()}


# To add a criterion: a function from Evidence to scores, and an entry here. Its order is that of tables.
CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion("weights", "mean |w|", "Han et al., NeurIPS 2015", _magnitude),
    "l1": Criterion("weights", "sum |w|", "Li et al., ICLR 2017", _l1),
    "l2": Criterion("weights", "root of sum w^2", "He et al., IJCAI 2018", _l2),
    "taylor": Criterion("gradients", "E |sum w g|, image by image", "Molchanov et al., ICLR 2017", _taylor),
    "taylor-mean": Criterion(
        "gradients", "|sum w E g|, of the mean loss", "Mozer and Smolensky, NeurIPS 1988", _taylor_mean
    ),
    "fisher": Criterion(
        "gradients", "E (sum w g)^2 / 2, image by image", "Theis et al., 2018 (arXiv:1801.05787)", _fisher
    ),
    "obd": Criterion(
        "gradients",
        "sum w^2 E g^2 / 2: optimal brain damage, E g^2 for the second derivative",
        "LeCun et al., NeurIPS 1989",
        _obd,
    ),
    "activation": Criterion(
        "activations",
        "root mean square of what the unit adds to the layer's output: measured for "
        "filters and layers, else from w^2 E x^2 as if pixels were uncorrelated",
        "Sun et al. (Wanda), ICLR 2024",
        _activation,
    ),
    "bn-gamma": Criterion("batch norm", "|gamma| of the batch norm behind the filter", "Liu et al., ICCV 2017", _gamma),
    "lwe-multiplier": Criterion(
        "LWE", "LWE's m, averaged over the unit", "Quader et al., ECCV 2020, section 4.2", _multiplier
    ),
}

"""What to zero: a study is a list of ablations of one network, and of the layers it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from weanalysis.ablation.studies.channel import channel, layer
from weanalysis.ablation.studies.checks import check_ablations
from weanalysis.ablation.studies.layers import Layer, equidistant, find_layers
from weanalysis.ablation.studies.location import location, parse_grid
from weanalysis.ablation.studies.magnitude import magnitude, parse_percentiles
from weanalysis.ablation.studies.multiplier import multiplier
from weanalysis.ablation.studies.parts import Ablation, Part, Study
from weanalysis.kinds import CHANNEL, LOCATION, MAGNITUDE, MULTIPLIER, WHOLE_LAYER, kind_called

__all__ = [
    "STUDIES",
    "Ablation",
    "Layer",
    "Part",
    "Study",
    "channel",
    "check_ablations",
    "equidistant",
    "find_layers",
    "layer",
    "location",
    "magnitude",
    "make_study",
    "multiplier",
    "parse_grid",
    "parse_percentiles",
]

# The function that makes each kind of study; what else is known of a kind stands in `weanalysis.kinds`.
STUDIES: dict[str, Callable[..., Study]] = {
    LOCATION.name: location,
    MAGNITUDE.name: magnitude,
    MULTIPLIER.name: multiplier,
    CHANNEL.name: channel,
    WHOLE_LAYER.name: layer,
}


def make_study(kind: str, net: nn.Module, **options: Any) -> Study:
    """Make the study of that name; raise StudyError for an unknown name or a wrong option.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> len(make_study("location", net, grid="all").ablations)
    88
    """
    kind_called(kind).check_options(options)
    return STUDIES[kind](net, **options)

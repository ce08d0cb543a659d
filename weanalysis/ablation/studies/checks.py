"""Whether a study fits the network that it is to be measured on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from weanalysis.ablation.studies.layers import find_layers
from weanalysis.ablation.studies.parts import Ablation
from weanalysis.errors import StudyError, unknown_name


def check_ablations(ablations: Sequence[Ablation], net: nn.Module) -> None:
    """Raise StudyError for an ablation of a layer, a channel or a rank that the network does not have.

    >>> from weanalysis.ablation.studies.parts import Part
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> check_ablations([Ablation((Part("0", (7,)),), "out", 27)], net)
    Traceback (most recent call last):
        ...
    weanalysis.errors.StudyError: 0 has no output channel 7: its weight's are 0 to 3
    """
    if not ablations:
        raise StudyError("the study has no ablations, so there is nothing to measure")
    shapes = {one.name: (*one.shape, one.num_weights) for one in find_layers(net)}
    for part in (part for ablation in ablations for part in ablation.parts):
        if part.layer not in shapes:
            raise StudyError(unknown_name("layer", part.layer, shapes))
        num_out, num_in, num_weights = shapes[part.layer]
        sides = ((part.out_channels, num_out, "output"), (part.in_channels, num_in, "input"))
        for channels, count, word in sides:
            if wrong := [one for one in channels or () if not 0 <= one < count]:
                raise StudyError(f"{part.layer} has no {word} channel {wrong[0]}: its weight's are 0 to {count - 1}")
        if part.ranks is not None and not 1 <= part.ranks[0] <= part.ranks[1] <= num_weights:
            raise StudyError(
                f"{part.layer} has no weights of ranks {part.ranks[0]} to {part.ranks[1]}: it has "
                f"{num_weights:,}, counted from 1"
            )

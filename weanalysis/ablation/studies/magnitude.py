"""The magnitude study: the weight, or the bin of weights, at a percentile of sorted |w| (§3.1, Fig. 1a)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from torch import nn

from weanalysis.ablation.studies.layers import find_layers, select_layers
from weanalysis.ablation.studies.parts import Ablation, Part, Study
from weanalysis.errors import StudyError, unknown_name


def parse_percentiles(text: str | Iterable[float]) -> list[float]:
    """Read "1-100", "50,75,90-100" or numbers into sorted percentiles; raise StudyError outside (0, 100].

    >>> parse_percentiles("1-3,50")
    [1.0, 2.0, 3.0, 50.0]
    """
    values: list[float] = []
    pieces = [piece.strip() for piece in text.split(",")] if isinstance(text, str) else list(text)
    for piece in pieces:
        try:
            if isinstance(piece, str) and "-" in piece.lstrip("-"):
                first, last = (int(end) for end in piece.split("-", 1))
                if first > last:
                    raise StudyError(f"percentiles {piece!r} run backwards: write {last}-{first}")
                values += [float(value) for value in range(first, last + 1)]
            else:
                values.append(float(piece))
        except (TypeError, ValueError) as error:
            if isinstance(error, StudyError):
                raise
            raise StudyError(f"percentiles {piece!r} are malformed: write 1-100, or 50,75,90-100") from None
    outside = [value for value in values if not 1 <= value <= 100]
    if outside or not values:
        raise StudyError(
            f"percentile {outside[0]:g} is not allowed: percentiles go from 1 to 100"
            if outside
            else "no percentile was given: write 1-100, or 50,75,90-100"
        )
    return sorted(set(values))


def _rank(percentile: float, num_weights: int) -> int:
    """The paper's percentile position b of n sorted weights as a rank counted from 1: ⌈b·n/100⌉."""
    return max(1, math.ceil(round(percentile * num_weights / 100, 9)))


def _ranks(num_weights: int, percentile: float, width: float | None, draw: int, repeats: int) -> tuple[int, int]:
    """The first and the last rank that are zeroed of a layer: the bin that ends at b, or one weight near b."""
    centre = _rank(percentile, num_weights)
    if width is not None:
        first = _rank(percentile - width, num_weights) + 1 if percentile > width else 1
        return min(first, centre), centre
    # 0, −1, +1, −2, +2 … around the centre; near an end the window slides so that it stays R weights wide.
    low = min(max(1, centre - repeats // 2), max(1, num_weights - repeats + 1))
    window = sorted(range(low, min(low + repeats, num_weights + 1)), key=lambda rank: (abs(rank - centre), rank))
    rank = window[min(draw, len(window) - 1)]
    return rank, rank


def magnitude(
    net: nn.Module,
    percentiles: str | Iterable[float] = "1-100",
    scope: Literal["network", "layer"] = "network",
    percentile_width: float | None = None,
    repeats: int = 1,
    layers: str | None = None,
) -> Study:
    """Zero the weight at the b-th percentile of a layer's sorted |w| (§3.1, Fig. 1a).

    `scope` "network" zeroes one weight in every convolution at once (the paper's curve), "layer" one layer at a
    time. `percentile_width` k zeroes the whole bin (b−k, b] instead of one weight. `repeats` R makes R ablations
    of each b, with the R weights nearest to the position, since one weight is one draw. Raises StudyError.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> study = magnitude(net, percentiles="50,100", scope="layer")
    >>> [(ablation.layer, ablation.percentile) for ablation in study.ablations]
    [('0', 50.0), ('0', 100.0), ('2', 50.0), ('2', 100.0)]
    """
    values = parse_percentiles(percentiles)
    if scope not in ("network", "layer"):
        raise StudyError(unknown_name("scope", str(scope), ["network", "layer"]))
    if repeats < 1:
        raise StudyError(f"repeats {repeats} is not allowed: give 1 or more")
    if percentile_width is not None:
        if not 0 < percentile_width <= 100:
            raise StudyError(f"percentile width {percentile_width:g} is not allowed: give more than 0, at most 100")
        if repeats > 1:
            raise StudyError(
                "repeats and a percentile width exclude each other: a bin is zeroed whole, so it has "
                "no neighbours to repeat with; give one of them"
            )
    skipped: list[tuple[str, str]] = []
    chosen = select_layers(find_layers(net), layers, skipped)
    selection = "single" if percentile_width is None else "bin"
    fraction = None if percentile_width is None else percentile_width / 100
    scopes = [[layer] for layer in chosen] if scope == "layer" else [chosen]
    ablations, short = [], set()
    for group in scopes:
        for percentile in values:
            for draw in range(repeats):
                if scope == "layer" and draw >= group[0].num_weights:
                    short.add(group[0].name)
                    continue
                parts = tuple(
                    Part(layer.name, ranks=_ranks(layer.num_weights, percentile, percentile_width, draw, repeats))
                    for layer in group
                )
                count = sum(part.ranks[1] - part.ranks[0] + 1 for part in parts if part.ranks)
                single = group[0] if scope == "layer" else None
                ablations.append(
                    Ablation(
                        parts,
                        selection,
                        count,
                        single.name if single else None,
                        single.depth if single else None,
                        percentile=percentile,
                        fraction=fraction,
                        draw=draw if percentile_width is None else None,
                    )
                )
    options = {"percentiles": values, "scope": scope, "percentile_width": percentile_width, "repeats": repeats}
    notes = tuple(f"{name} has fewer than {repeats} weights: it is repeated less often" for name in sorted(short))
    return Study("magnitude", options, tuple(ablations), tuple(skipped), notes, tuple(x.name for x in chosen))

"""How a row of a study is called: what it zeroes, in a few words."""

from __future__ import annotations

from typing import Any


def sample_words(num_layers: int) -> str:
    """Say what a rank correlation's interval takes for its sample (`statistics.rank_agreement`)."""
    if num_layers <= 1:
        return "the places are the sample"
    return "the layers are the sample" if num_layers > 2 else "two layers are too few for an interval"


def named(row: Any) -> str:
    """Word what a row of a study's table zeroes: "layer1.0.conv1[3, 5]", "90th percentile" …"""
    if row.selection == "kernel":
        return f"{row.layer}[{row.out_channel:.0f}, {row.in_channel:.0f}]"
    if row.selection == "filter":
        return f"{row.layer}[{row.out_channel:.0f}, :]"
    if row.selection == "input channel":
        return f"{row.layer}[:, {row.in_channel:.0f}]"
    place = row.layer if isinstance(row.layer, str) else "every layer"
    if row.selection in ("single", "bin"):
        draw = f", draw {row.draw:.0f}" if row.draw and row.draw > 0 else ""
        return f"{place}, percentile {row.percentile:g}{draw}"
    if row.selection in ("lowest", "highest", "random"):
        # Channels or kernels: which, the study's options say.
        fraction = getattr(row, "fraction", None)
        amount = f" {fraction:.0%}" if fraction and fraction == fraction else ""
        draw = f", draw {row.draw:.0f}" if row.draw is not None and row.draw == row.draw else ""
        return f"{place}, {row.selection}{amount}{' by multiplier' if not draw else ''}{draw}"
    return str(place)

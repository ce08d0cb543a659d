"""Colours that stay apart for colour-blind eyes, on a light or a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly.colors import sample_colorscale

SEQUENTIAL = "Cividis"  # shares and magnitudes, which have no sign

# Ten, since Streamlit's chartCategoricalColors takes exactly ten: Okabe and Ito's, less black and yellow, which one
# of the two pages swallows, and four more of medium lightness.
CATEGORICAL = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#7B61B8",
    "#8A8A8A",
    "#A3A800",
)

# One colour for one way of training, in every figure; what is trained otherwise takes those that are left.
WAY_COLOURS = dict(
    zip(("baseline", "LWE", "MWE", "LWE + MWE", "WE", "weight standardization"), CATEGORICAL, strict=False)
)


def colours_by_way(ways: Mapping[str, str]) -> dict[str, str]:
    """Return a colour for each name, given how its network was trained: the same for the same way.

    Names of no known way have colours of their own; so have all where every name is of one way, and would be alike.

    >>> colours_by_way({"a": "LWE", "b": "baseline"}) == {"a": CATEGORICAL[1], "b": CATEGORICAL[0]}
    True
    """
    if len(ways) > 1 and len(set(ways.values())) == 1:
        return {name: CATEGORICAL[place % len(CATEGORICAL)] for place, name in enumerate(ways)}
    others = [way for way in dict.fromkeys(way or name for name, way in ways.items()) if way not in WAY_COLOURS]
    left = CATEGORICAL[len(WAY_COLOURS) :]
    own = {way: left[place % len(left)] for place, way in enumerate(others)}
    return {name: (WAY_COLOURS | own)[way or name] for name, way in ways.items()}


# Red is a loss, blue a gain, and nothing is the page itself, white or black. The further from 0, the more a colour
# stands out from its page, so that a dark page has a scale of its own.
_RED_BLUE = [
    [0.0, "#053061"],
    [0.15, "#2166AC"],
    [0.3, "#6AACD0"],
    [0.42, "#C3DEEE"],
    [0.5, "#FFFFFF"],
    [0.58, "#FBD0BC"],
    [0.7, "#EC8C6D"],
    [0.85, "#B2182B"],
    [1.0, "#67001F"],
]
_RED_BLUE_ON_DARK = [
    [0.0, "#6CB8FF"],
    [0.15, "#2F8CE8"],
    [0.3, "#2467A8"],
    [0.42, "#21436A"],
    [0.5, "#14171C"],
    [0.58, "#5C2A2A"],
    [0.7, "#97362F"],
    [0.85, "#DB4633"],
    [1.0, "#FF6A4D"],
]


@dataclass(frozen=True)
class Theme:
    """Colours of the page that a figure lies on, and the diverging scale that D is drawn in."""

    ink: str
    muted: str
    page: str
    tile: str
    grid: str
    accent: str
    line: str
    diverging: Any

    @property
    def diverging_middle(self) -> str:
        """The colour of nothing."""
        return str(self.diverging[len(self.diverging) // 2][1])


THEMES = {
    "light": Theme("#22252A", "#5F6672", "#FFFFFF", "#D5D9DF", "#E8EAED", "#111111", "#0072B2", _RED_BLUE),
    "dark": Theme("#E8EAED", "#A2A9B4", "#14171C", "#4A515D", "#2A2F37", "#FFD54A", "#56B4E9", _RED_BLUE_ON_DARK),
}


def readable_on(values: np.ndarray, scale: Any) -> list[str]:
    """Return black or white for each value in [-1, 1], whichever can be read better on its colour of a scale.

    One of the two has a contrast of 4.5 : 1 at least on any colour (WCAG 2.2, relative luminance).

    >>> readable_on(np.array([0.0, 1.0]), THEMES["light"].diverging)
    ['#000000', '#FFFFFF']
    """
    drawn = sample_colorscale(scale, ((np.asarray(values) + 1) / 2).clip(0, 1).tolist(), colortype="tuple")
    linear = [[part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in one] for one in drawn]
    luminance = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear]
    return ["#000000" if (one + 0.05) / 0.05 >= 1.05 / (one + 0.05) else "#FFFFFF" for one in luminance]


def translucent(colour: str, alpha: float) -> str:
    """Turn "#rrggbb" into the same colour that lets what lies below shine through."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"

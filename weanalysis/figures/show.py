"""The figure that goes with a study, for notebooks: chosen by what its rows zero."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from weanalysis.cache import Cache, find_cache
from weanalysis.errors import StudyError
from weanalysis.figures.compare import drop_distributions
from weanalysis.figures.layers import drop_by_layer
from weanalysis.figures.location import location_mosaic
from weanalysis.figures.magnitude import magnitude_curve, magnitude_map
from weanalysis.figures.multipliers import multiplier_curve, multiplier_drops
from weanalysis.figures.strips import channel_strips
from weanalysis.kinds import CHANNEL, LOCATION, MAGNITUDE, MULTIPLIER, WHOLE_LAYER
from weanalysis.results import COLUMNS, Store


def show(study: pd.DataFrame | str | int, *, theme: str = "light", cache: Cache | str | None = None) -> go.Figure:
    """Return the figure that goes with a study; as the last line of a notebook's cell it shows by itself.

    `study` is a table that `ablate` returned, or a study in the cache, by its number or name, as far as it has come.
    Kernels are a map of every layer; weights a curve over percentiles, layer by layer a map; multipliers D_L and D_H of
    every layer, or the curve over shares; filters and input channels a strip of every layer; layers points by depth. A
    study of your own is shown by the distribution of D. Other figures of the same table are in `weanalysis.figures`.

    Raises:
        StudyError: a table without a study's columns, or of several kinds of studies.
        StoreError: no such study in the cache.

    >>> import weanalysis as wa
    >>> model = wa.load_model("resnet20", weights="none", num_classes=10)
    >>> data = wa.load_data("digits", image_size=16, num_images=20)
    >>> show(wa.ablate(model, data, wa.studies.layer(model.net, layers="layer3.*"))).layout.yaxis.title.text
    'D (points)'
    """
    if not isinstance(study, pd.DataFrame):
        with Store.open(find_cache(cache).results) as store:
            study = store.table(store.find(study))
    missing = [column for column in COLUMNS if column not in study]
    if missing:
        raise StudyError(f"this table has no column {missing[0]!r}; give one that ablate returned, or name a study")
    kinds = list(study["study"].unique())
    if len(kinds) > 1:
        raise StudyError(f"this table has rows of several studies ({', '.join(map(str, kinds))}); show one at a time")
    return FIGURES.get(kinds[0] if kinds else "", _distribution)(study, theme)


def _distribution(table: pd.DataFrame, theme: str) -> go.Figure:
    return drop_distributions({"D": table}, theme=theme)


def _by_percentile(table: pd.DataFrame, theme: str) -> go.Figure:
    draw = magnitude_map if table["layer"].notna().any() else magnitude_curve
    return draw(table, theme=theme)


def _by_multiplier(table: pd.DataFrame, theme: str) -> go.Figure:
    if table["layer"].notna().any():
        return multiplier_drops(table, theme=theme)
    return multiplier_curve(table, "unit", theme=theme)  # shares do not say of what they are


# The figure of each kind of study; one that is not here is shown by the distribution of D.
FIGURES: dict[str, Callable[[pd.DataFrame, str], go.Figure]] = {
    LOCATION.name: lambda table, theme: location_mosaic(table, theme=theme),
    MAGNITUDE.name: _by_percentile,
    MULTIPLIER.name: _by_multiplier,
    CHANNEL.name: lambda table, theme: channel_strips(table, theme=theme),
    WHOLE_LAYER.name: lambda table, theme: drop_by_layer(table, theme=theme),
}

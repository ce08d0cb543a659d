"""A study in a notebook: the figure that goes with it, chosen by what its rows zero, and clicks on that figure."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

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
from weanalysis.kinds import CHANNEL, LOCATION, MAGNITUDE, MULTIPLIER, WHOLE_LAYER, kinds_where
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
    'Accuracy lost, D (points)'
    """
    table = table_of(study, cache)
    kind = table["study"].iloc[0] if len(table) else ""
    return FIGURES.get(kind, _distribution)(table, theme)


def table_of(study: pd.DataFrame | str | int, cache: Cache | str | None) -> pd.DataFrame:
    """Return the table of a study in the cache, or the one given; raise StudyError where it is not one study's."""
    if not isinstance(study, pd.DataFrame):
        opened = cache if isinstance(cache, Cache) else find_cache(cache)
        with Store.open(opened.results) as store:
            study = store.table(store.find(study))
    missing = [column for column in COLUMNS if column not in study]
    if missing:
        raise StudyError(f"this table has no column {missing[0]!r}; give one that ablate returned, or name a study")
    kinds = list(study["study"].unique())
    if len(kinds) > 1:
        raise StudyError(f"this table has rows of several studies ({', '.join(map(str, kinds))}); show one at a time")
    return study


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


class Explorer:
    """A study's figure whose units can be clicked on, as the last line of a notebook's cell.

    `chosen` is the row of the study's table that was clicked on last (a Series with the results' columns), None before
    the first click; `on_choose` has a function called with it. `widget` is the figure, a Plotly FigureWidget. `explore`
    makes one.

    >>> import pandas as pd
    >>> Explorer(pd.DataFrame({"drop": [0.5]}), go.Figure()).chosen is None
    True
    """

    def __init__(self, table: pd.DataFrame, widget: Any) -> None:
        self.table, self.widget = table, widget
        self.chosen: pd.Series | None = None
        self._callbacks: list[Callable[[pd.Series], object]] = []
        for trace in widget.data:
            if trace.customdata is not None:
                trace.on_click(self._choose)

    def on_choose(self, function: Callable[[pd.Series], object]) -> None:
        """Call `function` with the row of each unit that is clicked on from now on.

        >>> import pandas as pd
        >>> Explorer(pd.DataFrame({"drop": [0.5]}), go.Figure()).on_choose(print)
        """
        self._callbacks.append(function)

    def _choose(self, trace: Any, points: Any, state: Any) -> None:
        if points.point_inds:
            place = int(trace.customdata[points.point_inds[0]][-1])
            self.chosen = self.table.iloc[place]
            for function in self._callbacks:
                function(self.chosen)

    def _repr_mimebundle_(self, **given: Any) -> Any:
        return self.widget._repr_mimebundle_(**given)


def explore(study: pd.DataFrame | str | int, *, theme: str = "light", cache: Cache | str | None = None) -> Explorer:
    """Return the figure of a study of kernels, channels or layers for a notebook, with clicks that choose a unit.

    `study` is a table that `ablate` returned, or a study in the cache, by its number or name. The figure is that of
    `show`, which is the dashboard's; it needs the extra `notebook`.

    Raises:
        StudyError: a study of another kind, a table that is not one study's, or no anywidget.
        StoreError: no such study in the cache.

    >>> import weanalysis as wa
    >>> model = wa.load_model("resnet20", weights="none", num_classes=10)
    >>> data = wa.load_data("digits", image_size=16, num_images=20)
    >>> explore(wa.ablate(model, data, "magnitude", percentiles=[100]))
    Traceback (most recent call last):
        ...
    weanalysis.errors.StudyError: explore needs a study of location, channel, layer, not magnitude; show draws any
    """
    table = table_of(study, cache)
    allowed = kinds_where(lambda kind: kind.units)
    kind = table["study"].iloc[0] if len(table) else ""
    if kind not in allowed:
        raise StudyError(
            f"explore needs a study of {', '.join(allowed)}, not {kind or 'an empty table'}; show draws any"
        )
    if not find_spec("anywidget"):
        raise StudyError("a figure with clicks needs anywidget: pip install 'weanalysis[notebook]'; show needs nothing")
    # The places that clicks carry are counted in the table that is drawn.
    return Explorer(table, go.FigureWidget(show(table.reset_index(drop=True), theme=theme)))

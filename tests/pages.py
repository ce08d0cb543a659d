"""A page of the dashboard, opened as Streamlit runs it, and what a reader finds on it."""

from __future__ import annotations

import base64
import json
import tempfile
from typing import Any

import numpy as np
import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest

from weanalysis.cache import ENVIRONMENT_VARIABLE
from weanalysis.dashboard import app_folder

STUDY_PAGES = ("overview", "location", "channels", "images", "magnitude", "compare")
PAGES = (*STUDY_PAGES, "saliency", "pruning", "ways", "runs", "multipliers", "excitation", "jobs")


def open_page(page: str, **query: str) -> AppTest:
    """Open a page of the dashboard over the cache that the environment names."""
    app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=60)
    app.query_params.update(query)
    if page == "overview":
        return app.run()
    # The first run knows the pages; it shows the overview, which has nothing to read in an empty cache.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as empty:
        patch.setenv(ENVIRONMENT_VARIABLE, empty)
        app.run()
    return app.switch_page(f"views/{page}.py").run()


def words(app: AppTest) -> str:
    """Return all text of a page."""
    kinds = (app.title, app.caption, app.markdown, app.info, app.error, app.warning, app.code, app.get("badge"))
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def drawings(app: AppTest) -> list[Any]:
    """Return the figures of a page, without the network above them and the empty one that makes Plotly load."""
    return [one for one in app.get("plotly_chart") if not one.id.endswith(("-preload-figure", "-network"))]


def network_of(app: AppTest) -> dict:
    """Return the picture of the network that a page begins with."""
    (element,) = (one for one in app.get("plotly_chart") if one.id.endswith("-network"))
    return json.loads(element.spec)


def charts(app: AppTest) -> list[dict]:
    """Return the figures of a page as Plotly's JSON."""
    return [json.loads(element.spec) for element in drawings(app)]


def chart(app: AppTest) -> dict:
    """Return the first figure of a page."""
    return charts(app)[0]


def containers_of(app: AppTest, key: str) -> list[str]:
    """Return what the figure shown under `key` lies in, from the outside in, such as "grid_container"."""

    def search(node: Any, above: list[str]) -> list[str] | None:
        for child in getattr(node, "children", {}).values():
            if str(getattr(child, "id", "")).endswith(f"-{key}"):
                return above
            if (inside := search(child, [*above, child.type])) is not None:
                return inside
        return None

    around = search(app.main, [])
    assert around is not None, f"there is no figure {key}"
    return around


def decoded(array: dict) -> np.ndarray:
    """Return an array as Plotly's JSON holds it."""
    shape = [int(side) for side in str(array.get("shape", "-1")).split(",")]
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]).reshape(shape)


def click(app: AppTest, key: str, customdata: list) -> None:
    """Click on a point of a figure, as the browser reports it: AppTest itself clicks on no figure."""
    _select(
        app,
        app.get("plotly_chart"),
        key,
        {"points": [{"customdata": customdata}], "point_indices": [0], "box": [], "lasso": []},
    )


def select_row(app: AppTest, key: str, row: int) -> None:
    """Select a row of a table, as the browser reports it."""
    _select(app, app.dataframe, key, {"rows": [row], "columns": [], "cells": []})


def _select(app: AppTest, elements: Any, key: str, selection: dict[str, Any]) -> None:
    element = next(element for element in elements if element.proto.id.endswith(f"-{key}"))
    tree = app.main.root
    states = tree.get_widget_states()
    states.widgets.append(WidgetState(id=element.proto.id, string_value=json.dumps({"selection": selection})))
    tree.get_widget_states = lambda: states  # the next run makes another tree
    app.run()


def is_well(app: AppTest) -> None:
    """Hold a page to having no complaint."""
    assert not app.exception, app.exception[0].value
    assert not app.error, app.error[0].value

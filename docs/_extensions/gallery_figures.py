"""Plotly's figures in the gallery: drawn in the page by one plotly.js that lies beside it."""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from sphinx.application import Sphinx

from weanalysis import figures

_keys = itertools.count(1)


def begin_afresh(gallery_conf: dict[str, Any], script: str) -> None:
    """Give a script a cache of its own, and figures that show themselves without plotly.js; sphinx-gallery calls this.

    Scripts run beside each other: in one cache they would number each other's studies, and wait for each other's runs.
    """
    os.environ["WEANALYSIS_CACHE"] = tempfile.mkdtemp(prefix="weanalysis-docs-")
    go.Figure._repr_html_ = lambda figure: figures.embedded(figure, f"figure-{next(_keys)}")


def _write_script(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(exist_ok=True)
        (static / "plotly.min.js").write_text(figures.plotly_script(), encoding="utf-8")


def _load_script(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if 'class="plotly-graph-div"' in context.get("body", ""):
        app.add_js_file("plotly.min.js", priority=100)
        app.add_js_file("figures.js", priority=101)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", _load_script)
    app.connect("build-finished", _write_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

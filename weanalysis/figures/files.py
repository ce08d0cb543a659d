"""Figures outside of the dashboard: inside a page that needs no network, and as picture files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from weanalysis.cache import write_atomically
from weanalysis.errors import StoreError, unknown_name

FORMATS = ("png", "svg", "pdf")

# What a reader may do with a figure: hover, zoom, and save it, from the page itself. Nothing is sent anywhere.
_CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
}
_WIDTH = 1000
# A browser that is asked for pictures alone needs nobody else: its requests end here.
_NOWHERE = "http://127.0.0.1:9"


_NO_CHROMIUM = (
    "figures as files need Chromium or Chrome, and none was found: install one (apt-get install chromium), "
    "name it in the environment variable BROWSER_PATH, or leave the pictures out"
)


def plotly_script() -> str:
    """Return the text of plotly.js, for one script element of a page.

    >>> "plotly.js" in plotly_script()[:200]
    True
    """
    return get_plotlyjs()


def embedded(figure: go.Figure, key: str) -> str:
    """Return `figure` as HTML for a page that has `plotly_script`; `key`, a safe name, is the id of its element.

    >>> embedded(go.Figure(go.Bar(y=[1, 2])), "bars").count('id="bars"')
    1
    """
    height = figure.layout.height or 400
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=key,
        config=_CONFIG,
        default_width="100%",
        default_height=f"{height:.0f}px",
    )


def check_pictures(formats: tuple[str, ...]) -> None:
    """Raise StoreError for an unknown format, and where kaleido or a Chromium is missing, saying what to install.

    >>> check_pictures(("gif",))
    Traceback (most recent call last):
        ...
    weanalysis.errors.StoreError: unknown picture format 'gif': choose from pdf, png, svg.
    """
    for format_ in formats:
        if format_ not in FORMATS:
            raise StoreError(unknown_name("picture format", format_, FORMATS))
    if not find_spec("kaleido"):
        raise StoreError(
            "figures as files need kaleido, which is not installed: pip install 'weanalysis[images]', or "
            "leave the pictures out (the page itself can save each figure as PNG)"
        )
    from choreographer.browsers.chromium import Chromium

    if not Chromium.find_browser(skip_local=False):
        raise StoreError(_NO_CHROMIUM)


def save_pictures(figures: Mapping[str, go.Figure], folder: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write each figure, by its name, as `folder`/NAME.FORMAT and return the paths, once all of them are drawn.

    Pictures are 1,000 units wide, a PNG two pixels a unit. Raises StoreError where `check_pictures` does, where the
    browser fails, and where the folder cannot be written.

    >>> save_pictures({"bars": go.Figure(go.Bar(y=[1, 2]))}, Path("pictures"), ("gif",))
    Traceback (most recent call last):
        ...
    weanalysis.errors.StoreError: unknown picture format 'gif': choose from pdf, png, svg.
    """
    check_pictures(formats)
    import kaleido

    with tempfile.TemporaryDirectory() as made:
        names = [f"{name}.{format_}" for name in figures for format_ in formats]
        jobs = [
            {
                "fig": figure,
                "path": Path(made) / f"{name}.{format_}",
                "opts": {
                    "format": format_,
                    "width": _WIDTH,
                    "height": figure.layout.height or 400,
                    "scale": 2 if format_ == "png" else 1,
                },
            }
            for name, figure in figures.items()
            for format_ in formats
        ]
        try:
            # Without MathJax, which kaleido would fetch from the network, and a browser that reaches none.
            kaleido.write_fig_from_object_sync(
                jobs, cancel_on_error=True, kopts={"mathjax": False, "proxy_server": _NOWHERE}
            )
        except Exception as error:  # whatever a browser may fail with: it ends as one line
            raise StoreError(
                f"Chromium could not draw the figures ({_first_line(error)}); leave the pictures out, or "
                "name another browser in the environment variable BROWSER_PATH"
            ) from error
        contents = {name: (Path(made) / name).read_bytes() for name in names}
    try:
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror or error}); choose another folder") from error
    return [folder / name for name in names]


def _first_line(error: Exception) -> str:
    words = error.args[0] if error.args and isinstance(error.args[0], str) else type(error).__name__
    return words.splitlines()[0]

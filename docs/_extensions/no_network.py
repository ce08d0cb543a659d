"""The site is read without a network: a page that loads anything from another machine fails the build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# What a browser fetches by itself; links, which wait for a click, are none of these.
_FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*?(?:src|href|data)\s*=\s*["']((?:https?:)?//[^"']+)"""
    r"""|(?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')]+)"""
)


def fetched(folder: Path) -> list[str]:
    """Return what the pages and style sheets of a site fetch from elsewhere, each with the file that does."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".html", ".css")]
    return [
        f"{path.relative_to(folder)}: {page or sheet}"
        for path in files
        for page, sheet in _FETCHED.findall(path.read_text(encoding="utf-8", errors="replace"))
    ]


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html" and (elsewhere := fetched(Path(app.outdir))):
        from sphinx.errors import SphinxError

        raise SphinxError("the site would ask other machines for " + "; ".join(elsewhere))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

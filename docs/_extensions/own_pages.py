"""Pages that stand at the root of the repository, or in another page's section, with links that lead on from here."""

import re
from pathlib import Path

from sphinx.application import Sphinx

# Where a page of the repository is on the site.
HOMES = {
    "ARCHITECTURE.md": "/project/architecture.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "CHANGELOG.md": "/project/changelog.md",
    "README.md": "/index.md",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def _lead_on(app: Sphinx, relative_path: Path, parent: str, content: list[str]) -> None:
    """Turn an included page's links, which lead from the root of the repository, into links on the site."""

    def target(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        if path.startswith("docs/"):
            return f"](/{path.removeprefix('docs/')}{anchor})"
        return f"]({HOMES[path]}{anchor})" if path in HOMES else "]"  # what is not on the site is named without a link

    content[0] = _LINK.sub(target, content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("include-read", _lead_on)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

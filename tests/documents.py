"""What a reader is shown: the README, the documentation's pages, what lies in other folders, and the gallery."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import CHECKOUT

DOCS = CHECKOUT / "docs"
PAGES = [
    *sorted(CHECKOUT.glob("*.md")),
    *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "auto_gallery"} & set(path.parts)),
    CHECKOUT / "cache" / "README.md",
]
GALLERY = sorted((DOCS / "gallery").glob("*.py"))
_FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of code in a page; `reason` says why it is not run, "" that it is."""

    page: Path
    language: str
    text: str
    reason: str

    @property
    def lines(self) -> list[str]:
        """Its commands, each in one line and without what two spaces and # explain."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(re.split(r"\s{2,}#", line)[0].split()) for line in joined if line.strip()]


def blocks() -> Iterator[Block]:
    """Every block of code of every page."""
    for page in PAGES:
        for fence in _FENCE.finditer(page.read_text(encoding="utf-8")):
            yield Block(page, fence["language"].strip(), fence["text"], fence["reason"] or "")

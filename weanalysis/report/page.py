"""What a report is made of, and how it becomes a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from weanalysis import figures
from weanalysis.cache import safe_name
from weanalysis.report.words import without_folders


@dataclass(frozen=True)
class Picture:
    """A figure of `weanalysis.figures` with the words below it; `name` is its own within the chapter."""

    name: str
    figure: Any
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of finished words, with the words above; columns from `numbers_from` on hold numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 1


@dataclass(frozen=True)
class Chapter:
    """A study, the runs, or a comparison: what was asked, what was found, by what, and what it does not say.

    `state` is a line that a reader must see first, such as that a study still runs. `findings` are sentences, `verdict`
    says in one line what was found, for the summary. `setting` and `provenance` are pairs of a name and words.
    `numbers` are what `--json` prints of it. `key` is a safe name, the chapter's own among those of the report.
    """

    key: str
    title: str
    question: str
    findings: Sequence[str]
    content: Sequence[Picture | Table]
    setting: Sequence[tuple[str, str]]
    limits: Sequence[str]
    numbers: dict[str, Any]
    state: str = ""
    provenance: Sequence[tuple[str, str]] = field(default_factory=tuple)
    verdict: str = ""

    def figures(self) -> dict[str, Any]:
        """Return the chapter's figures by names that are safe for files and elements."""
        return {f"{self.key}-{safe_name(one.name)}": one.figure for one in self.content if isinstance(one, Picture)}


def render(title: str, chapters: Sequence[Chapter], made: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> str:
    """Return the page as HTML. Whatever it shows is escaped; nothing in it reaches for the network.

    `made` says by what and when, as pairs of a name and words; `notes` are lines about the report as a whole.
    """
    # Figures come from plotly, as HTML whose own words `weanalysis.figures` has escaped.
    drawn = {
        key: Markup(figures.embedded(figure, key)) for chapter in chapters for key, figure in chapter.figures().items()
    }
    script = Markup(figures.plotly_script()) if drawn else ""
    return _page().render(
        title=title, chapters=chapters, made=made, notes=notes, drawn=drawn, script=script, safe_name=safe_name
    )


@cache
def _page() -> Any:
    environment = Environment(
        loader=PackageLoader("weanalysis.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever is shown leaves out where it lay on the machine of who made the page.
        finalize=lambda value: without_folders(value) if type(value) is str else value,
    )
    # A number stays on one line with its unit.
    environment.filters["bound"] = lambda words: words.replace(" %", "\u00a0%").replace(" points", "\u00a0points")
    return environment.get_template("page.html")

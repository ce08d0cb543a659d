"""From the names of studies and runs to a written page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from weanalysis import figures
from weanalysis.cache import Cache, find_cache, storable, write_atomically
from weanalysis.comparison import StudyOf, find_named, find_run_folder
from weanalysis.errors import StoreError
from weanalysis.provenance import called_as
from weanalysis.report.comparisons import chapters_of_comparisons
from weanalysis.report.page import Chapter, render
from weanalysis.report.runs import chapter_of_runs
from weanalysis.report.studies import chapter_of_study
from weanalysis.report.words import moment, settings
from weanalysis.results import Store
from weanalysis.tasks import find_metric
from weanalysis.training import Run
from weanalysis.versions import versions

# Every pair of studies of one kind is compared; of more, these first ones, so that a page stays one to read.
_MOST_COMPARISONS = 10


@dataclass(frozen=True)
class Written:
    """Where the page is, its main numbers (a mapping a study and a comparison, one for all runs), and the pictures.

    `notes` are lines that a person should read, such as which studies could not be compared.
    """

    path: Path
    studies: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    runs: dict[str, Any] | None
    figures: list[Path]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "report": str(self.path),
            "studies": self.studies,
            "comparisons": self.comparisons,
            "runs": self.runs,
            "figures": [str(path) for path in self.figures],
            "notes": self.notes,
        }


def write_report(
    named: Sequence[str | int | Run],
    path: str | Path,
    *,
    cache: Cache | str | None = None,
    title: str | None = None,
    metric: str | None = None,
    pictures: str | Path | None = None,
    formats: Sequence[str] = figures.FORMATS,
) -> Written:
    """Write one self-contained HTML page about studies (number or name) and training runs (name, folder or `Run`).

    Studies of one kind are compared in pairs, second minus first in the order given, where they can be. `metric` is
    that of all studies, by default each one's own. With `pictures`, a folder, the figures are also written there in
    `formats`, which needs kaleido and Chromium. The page appears whole or not at all, after the pictures.

    Raises:
        StoreError: a name that is not there or ambiguous, a file that cannot be written, pictures that cannot be drawn.
        StudyError: an unknown metric.
        TrainingError: a run that cannot be read.

    >>> import weanalysis as wa
    >>> from torch import nn, rand
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> table = wa.ablate(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "layer", name="whole layers")
    >>> write_report(["whole layers"], "page.html").path.name
    'page.html'
    """
    command = called_as(write_report, locals())
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise StoreError(f"a report is an HTML page: {path.name!r} must end in .html")
    if pictures is not None:
        figures.check_pictures(tuple(formats))
    found_cache = cache if isinstance(cache, Cache) else find_cache(cache)
    resolved = [_find(item, found_cache) for item in named]
    if metric is not None:
        find_metric(metric)  # a caller's own is known from the studies that were found
    # Named twice is meant once.
    runs = list({run.folder: run for run in resolved if isinstance(run, Run)}.values())
    numbers = list(dict.fromkeys(study.number for study in resolved if isinstance(study, StudyOf)))
    if not numbers and not runs:
        raise StoreError("name at least one study or run; `weanalysis list` and `weanalysis list runs` show them")
    notes: list[str] = []
    with ExitStack() as stack:
        studies, compared = [], []
        if numbers:
            store = stack.enter_context(Store.open(found_cache.results))
            studies = [chapter_of_study(store, number, found_cache, metric) for number in numbers]
            compared = _compared(store, numbers, found_cache, metric, notes)
    trained = [chapter_of_runs(runs)] if runs else []
    chapters = [*studies, *compared, *trained]
    title = title or _title(chapters)
    page = render(title, chapters, _made(command), notes)
    drawn: list[Path] = []
    if pictures is not None:
        wanted = {name: figure for chapter in chapters for name, figure in chapter.figures().items()}
        drawn = figures.save_pictures(wanted, Path(pictures).expanduser(), tuple(formats))
    try:
        write_atomically(path, storable(page).encode())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); choose another path") from error
    return Written(
        path,
        [one.numbers for one in studies],
        [one.numbers for one in compared],
        trained[0].numbers if trained else None,
        drawn,
        notes,
    )


def _find(item: str | int | Run, cache: Cache) -> Run | StudyOf:
    if isinstance(item, Run):
        return item
    return find_run_folder(str(item)) or find_named(str(item), cache)


def _compared(
    store: Store, numbers: Sequence[int], cache: Cache, metric: str | None, notes: list[str]
) -> list[Chapter]:
    """Compare every two studies of one kind; note which cannot be compared, and why."""
    kinds = {number: store.describe(number)["kind"] for number in numbers}
    pairs = [(one, two) for one, two in combinations(numbers, 2) if kinds[one] == kinds[two]]
    chapters, refused = chapters_of_comparisons(store, pairs[:_MOST_COMPARISONS], cache, metric)
    notes += [f"studies {', '.join(which)} are not compared: {why}" for why, which in refused.items()]
    if len(pairs) > _MOST_COMPARISONS:
        notes.append(
            f"{len(pairs) - _MOST_COMPARISONS:,} of {len(pairs):,} pairs of studies are not compared; name "
            "fewer studies, or use weanalysis compare"
        )
    return chapters


def _title(chapters: Sequence[Chapter]) -> str:
    return chapters[0].title if len(chapters) == 1 else "Which weights matter: a report"


def _made(command: str) -> list[tuple[str, str]]:
    """Say by what the page was made, and when."""
    return [
        ("made", moment(time.time())),
        ("with", settings(versions())),
        ("by", command),
    ]

"""What a person sees in the terminal while something runs, and when it is done."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weanalysis.cache import Cache, find_cache
from weanalysis.kinds import named
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, interval_words
from weanalysis.results.store import PLACE

if TYPE_CHECKING:
    from weanalysis.ablation import Status
    from weanalysis.tasks import Metric
    from weanalysis.training import TrainingProgress

# Without a terminal, progress is a line now and then: in a log, a thousand lines hide the one that matters.
SECONDS_BETWEEN_LINES = 10.0

# Studies this large are summed up from their rows only every few seconds.
SECONDS_BETWEEN_TABLES = 1.0


# No line is as long: in a pipe nothing is wrapped, and no cell of a table cut.
_ENDLESS = 10_000


def open_console() -> Console:
    """Return what results are printed on: prose wraps at words in a terminal; in a pipe nothing is wrapped or cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_ENDLESS)


def cache_words(cache: Cache) -> str:
    """Return the option that names a cache in a command to type next; empty for the one that is taken without."""
    return "" if cache.root == find_cache().root else f" --cache {shlex.quote(str(cache.root))}"


def time_left(seconds: float) -> str:
    """Word how long something will last: "3 min 05 s left", "estimating…" where it is not known."""
    return f"{duration(seconds)} left" if math.isfinite(seconds) else "estimating…"


def print_next(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print commands to type next, each on a line of its own that can be copied, and what each is for."""
    width = max((len(command) for command, _ in lines), default=0)
    for command, purpose in lines:
        fits = not console.is_terminal or width + len(purpose) + 6 <= console.width
        console.print(f"  {command:<{width}}   # {purpose}" if fits else f"  {command}", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Word a time: "42 s", "3 min 05 s", "2 h 10 min"; "…" where it is not known."""
    if not math.isfinite(seconds):
        return "…"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def points(row: Any, decimals: int = 2) -> str:
    """Word a D with the interval for rows that were chosen by it: "+1.39 [+0.42, +3.61]"."""
    drop, low, high = (f"{value:+.{decimals}f}" for value in (row.drop, row.selected_low, row.selected_high))
    return f"{drop} [{low}, {high}]" if row.selected_low == row.selected_low else f"{drop} [no interval]"


def rows_table(rows: pd.DataFrame, metric: Metric) -> Table:
    """Lay out chosen rows of a study's table: what is zeroed, D with its interval, q if it is known, images flipped.

    A star marks what differs from 0 after correction.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_q = "q_value" in rows
    table.add_column("zeroed")
    table.add_column(rf"D, {metric.unit} \[interval]", justify="right")
    if has_q:
        table.add_column("q", justify="right")
    if metric.counts_images:
        table.add_column("flipped", justify="right")
    for row in rows.itertuples():
        star = "*" if has_q and row.q_value <= FALSE_DISCOVERY_RATE else " "
        q = [f"{row.q_value:.2g}{star}"] if has_q else []
        flipped = [f"{row.num_flipped:.0f} of {row.num_images:.0f}"] if metric.counts_images else []
        table.add_row(named(row), points(row, metric.decimals), *q, *flipped)
    return table


class Watcher:
    """Shows a training run or a study on standard error: live in a terminal, else a line now and then."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live: Live | None = None
        self._last = -math.inf
        self._ended = ""  # the last line of what is done, which is printed once
        self._top: RenderableType = Text("")

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Take the live picture away, so that what follows is printed below."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line for a person."""
        self.console.print(f"note: {line}", markup=False, soft_wrap=not self.console.is_terminal)

    def _show(self, done: float, picture: RenderableType, line: str, last: bool) -> None:
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(picture)
        elif last or time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            if line != self._ended:
                self.console.print(line, markup=False, soft_wrap=True)
            self._ended = line if last else ""
        if last:
            self.rest()

    def training(self, progress: TrainingProgress) -> None:
        """Show a report of a training run."""
        if progress.note:
            self.console.print(progress.note, markup=False, soft_wrap=True)
        share = progress.step / max(1, progress.num_steps)
        scores = (("top-1", progress.val_top1), ("mean IoU", progress.val_miou))
        accuracy = "".join(f", validation {name} {value:.1f} %" for name, value in scores if math.isfinite(value))
        loss = f", loss {progress.loss:.3f}" if math.isfinite(progress.loss) else ""
        words = (
            f"training {progress.run}: epoch {progress.epoch} of {progress.num_epochs:g}{loss}{accuracy}, "
            f"{time_left(progress.eta_seconds)}"
        )
        self._show(share, _bar(share, words), f"{share:4.0%}  {words}", progress.step >= progress.num_steps)

    def study(self, status: Status) -> None:
        """Show how far a study has come, and what it has found so far."""
        share = status.done / max(1, status.total)
        reused = f" ({status.reused:,} from the cache)" if status.reused else ""
        words = (
            f"{status.name}: {status.done:,} of {status.total:,} measurements{reused}, "
            f"{time_left(status.seconds_left)}, {_crew(status)}"
        )
        due = time.monotonic() - self._last >= SECONDS_BETWEEN_TABLES
        number = 5 if self.console.is_terminal else 2
        top = most_important(status, number) if due or not self.console.is_terminal else None
        last = status.done >= status.total
        if self.console.is_terminal:
            if top is not None:
                self._last = time.monotonic()
                compared = int((status.counts["num_images"] > 0).sum())
                title = Text(f"most important so far: {interval_words(len(top), compared)}")
                self._top = Group(title, rows_table(top, status.metric)) if len(top) else Text("")
            self._show(share, Group(_bar(share, words), self._top), "", last)
        else:
            listed = (
                "; so far most: "
                + ", ".join(f"{named(row)} {points(row, status.metric.decimals)}" for row in top.itertuples())
                if top is not None and len(top) and not last
                else ""
            )
            self._show(share, "", f"{share:4.0%}  {words}{listed}", last)


def _crew(status: Status) -> str:
    """Word who measures: "1 process", "2 processes", "5 workers"."""
    if status.scheduler:
        return f"{status.jobs} worker{'s' * (status.jobs != 1)}"
    return f"{status.jobs} process{'es' * (status.jobs != 1)}"


def _bar(share: float, words: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=1.0, completed=min(share, 1.0), width=24), Text(f"{share:4.0%}"), Text(words))
    return row


def most_important(status: Status, number: int = 5) -> pd.DataFrame:
    """The ablations of a running study with the largest D so far, with intervals that count with that choice."""
    from weanalysis.results.statistics import StoppingRule, drop_table, mean_table, selected_intervals

    counts, metric = pd.DataFrame(status.counts), status.metric
    table = drop_table(counts) if metric.counts_images else mean_table(counts, metric.worse)
    measured = table[table["num_images"] > 0]
    rows = measured.sort_values("drop", ascending=False, kind="stable")[:number].drop(columns=["p_value", "q_value"])
    rows["metric"] = metric.name
    rows["num_flipped"] = rows["lost"] + rows["gained"] if metric.counts_images else math.nan
    for label in PLACE:
        rows[label] = [getattr(status.study.ablations[place], label) for place in rows.index]
    return selected_intervals(rows, max(1, len(measured)), StoppingRule.of(status.study.options) is not None)

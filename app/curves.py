"""Where curves of training come from: this program's run folders, any CSV, and TensorBoard's event files."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from weanalysis.cache import Cache
from weanalysis.errors import TrainingError
from weanalysis.training.runs import Run

PLACES = ("epoch", "step", "seconds")
_EVENTS = "events.out.tfevents."


@dataclass
class Curves:
    """What one run recorded, and what is known about it; `problem` says in a line what could not be read."""

    name: str
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    recipe: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    problem: str = ""
    finished: bool = True


def find_curves(cache: Cache) -> list[Curves]:
    """Read all that lies in the cache's `runs`, the run begun last first, then what other programs left there."""
    if not cache.runs.is_dir():
        return []
    own, others = [], []
    for path in sorted(cache.runs.iterdir()):
        if path.is_dir() and (path / "recipe.json").is_file():
            own.append(_own_run(Run(path)))
        elif path.is_dir():
            others += _foreign_folder(path)
        elif path.suffix.lower() == ".csv":
            others.append(_guarded(path.stem, path))
    return sorted(own, key=lambda run: run.created, reverse=True) + others


def read_upload(name: str, content: bytes) -> Curves:
    """Read a CSV or an event file that came through the browser."""
    try:
        if name.lower().endswith(".csv"):
            return Curves(Path(name).stem, read_csv(io.BytesIO(content), name))
        if _EVENTS in name:
            with tempfile.TemporaryDirectory() as folder:
                # Under a name of our own: the one that came may be a path.
                (Path(folder) / f"{_EVENTS}uploaded").write_bytes(content)
                return Curves(Path(name).name, read_events(Path(folder)))
    except TrainingError as error:
        return Curves(name, problem=str(error))
    return Curves(name, problem=f"{name} is neither a .csv nor a TensorBoard file ({_EVENTS}…)")


def read_csv(file: Any, name: str) -> pd.DataFrame:
    """Return the columns of numbers of a CSV that has an epoch or step column; raise TrainingError for any other."""
    try:
        frame = pd.read_csv(file, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise TrainingError(f"{name} cannot be read as CSV ({' '.join(str(error).split())})") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    lowered = {column.lower(): column for column in reversed(frame.columns)}
    frame = frame.rename(columns={lowered[place]: place for place in PLACES if place in lowered})
    if not {"epoch", "step"} & set(frame.columns):
        raise TrainingError(f"{name} has no column “epoch” or “step”; it has {', '.join(frame.columns[:8])}")
    return frame.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")


def read_events(folder: Path) -> pd.DataFrame:
    """Return the scalars of a TensorBoard folder, a row a step and a column a tag; raise TrainingError without them."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise TrainingError(
            f"{folder.name} holds TensorBoard events; reading them needs tensorboard: pip install tensorboard"
        ) from None
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        raise TrainingError(f"{folder.name} holds no scalars that TensorBoard can read")
    series = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}
    return pd.DataFrame(series).rename_axis("step").sort_index().reset_index()


def _own_run(run: Run) -> Curves:
    curves = Curves(run.name, finished=run.finished)
    try:
        curves.recipe = dict(run.recipe)
        curves.created = str(run.description["created"])
        curves.result = run.result or {}
        if run.metrics_file.is_file():
            curves.frame = read_csv(run.metrics_file, f"{run.name}/{run.metrics_file.name}")
    except TrainingError as error:
        curves.problem = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        curves.problem = f"{run.name} has no usable recipe ({error!r}); remove its folder to train it anew"
    return curves


def _foreign_folder(folder: Path) -> list[Curves]:
    """Read what another program left: event files, else every CSV with a step or epoch column."""
    found = [_guarded(f"{folder.name}/{path.stem}", path) for path in sorted(folder.glob("*.csv"))]
    for place in sorted({path.parent for path in folder.rglob(f"{_EVENTS}*")}):
        name = folder.name if place == folder else f"{folder.name}/{place.relative_to(folder)}"
        try:
            found.append(Curves(name, read_events(place)))
        except TrainingError as error:
            found.append(Curves(name, problem=str(error)))
    return found


def _guarded(name: str, path: Path) -> Curves:
    try:
        return Curves(name, read_csv(path, path.name))
    except TrainingError as error:
        return Curves(name, problem=str(error))

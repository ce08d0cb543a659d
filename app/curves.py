"""Where curves of training come from: this program's run folders, any CSV, and TensorBoard's event files."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from weanalysis.cache import Cache, storable
from weanalysis.errors import TrainingError, one_line
from weanalysis.training.runs import Run

PLACES = ("epoch", "step", "seconds")
_EVENTS = "events.out.tfevents."

# More is no log of a training, and would take all memory.
_MOST_BYTES, _LONGEST_LINE, _MOST_COLUMNS = 2**26, 2**20, 500
_MOST_NOTES = 5

# "3/10" is the third of ten; "55.1%" a number in percent.
_OF_ALL = re.compile(r"(\d+)\s*/\s*\d+")


@dataclass
class Curves:
    """What one run recorded, and what is known about it.

    `problem` says in a line why nothing could be read, `notes` which columns were not understood.
    """

    name: str
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    recipe: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    problem: str = ""
    notes: list[str] = field(default_factory=list)
    finished: bool = True
    state: str = "finished"


def find_curves(cache: Cache) -> list[Curves]:
    """Read all that lies in the cache's `runs`, the run begun last first, then what other programs left there."""
    if not cache.runs.is_dir():
        return []
    own: list[Curves] = []
    others: list[Curves] = []
    for path in sorted(cache.runs.iterdir()):
        if path.is_dir() and Run(path).recipe_file.is_file():
            own.append(_own_run(Run(path)))
        elif path.is_dir():
            others += _foreign_folder(path)
        elif path.suffix.lower() == ".csv":
            others.append(_guarded(storable(path.stem), path))
    return sorted(own, key=lambda run: run.created, reverse=True) + others


def read_upload(name: str, content: bytes) -> Curves:
    """Read a CSV or an event file that came through the browser."""
    name = storable(name, 200)
    try:
        if name.lower().endswith(".csv"):
            frame, notes = read_csv(io.BytesIO(content), name)
            return Curves(Path(name).stem, frame, notes=notes)
        if _EVENTS in name:
            with tempfile.TemporaryDirectory() as folder:
                # Under a name of our own: the one that came may be a path.
                (Path(folder) / f"{_EVENTS}uploaded").write_bytes(content)
                return Curves(Path(name).name, read_events(Path(folder)))
    except TrainingError as error:
        return Curves(name, problem=str(error))
    return Curves(name, problem=f"{name} is neither a .csv nor a TensorBoard file ({_EVENTS}…)")


def read_csv(file: Any, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns of numbers of a CSV that has an epoch or step column, and a line for each not understood.

    Cells may be percent ("55.1%"), epochs and steps a share of all ("3/10"). What is no number is NaN. Where other
    programs write validation as "val_x" and training as "x", as Keras does, training is "train_x" here. Raises
    TrainingError for what is no such CSV.
    """
    frame = _read_cells(file, name)
    frame.columns = pd.Index([storable(str(column), 100).strip() for column in frame.columns])
    frame = frame.loc[:, ~frame.columns.duplicated()]
    places = {place: _column_of(place, list(frame.columns)) for place in PLACES}
    if not places["epoch"] and not places["step"]:
        raise TrainingError(f"{name} has no column “epoch” or “step”; it has {', '.join(frame.columns[:8])}")
    names = {column: place for place, column in places.items() if column}
    read, notes = {}, []
    for column in frame.columns:
        cells = frame[column].dropna().str.strip()
        cells = cells[cells != ""]
        values = _numbers(cells, column in names)
        if len(strange := cells[values.isna() & (cells.str.lower() != "nan")]):
            some = f"{len(strange):,} of {len(cells):,} cells" if len(strange) < len(cells) else "no cell"
            what = "are no numbers" if len(strange) < len(cells) else "is a number"
            notes.append(f"{name}, column “{column}”: {some} {what}, such as {storable(strange.iloc[0], 40)!r}")
        if values.notna().any():
            read[names.get(column, column)] = values.reindex(frame.index)
    if not {"epoch", "step"} & set(read):
        raise TrainingError(f"{name} has no number in its column “{places['epoch'] or places['step']}”")
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES - 1 :] = [f"{name}: {len(notes) - _MOST_NOTES + 1:,} more columns are not all numbers"]
    values_too = {column for column in read if column not in PLACES and f"val_{column}" in read}
    renamed = {column: f"train_{column}" for column in values_too if f"train_{column}" not in read}
    return pd.DataFrame(read).rename(columns=renamed), notes


def _read_cells(file: Any, name: str) -> pd.DataFrame:
    """Return all cells of a CSV as text; raise TrainingError for what is none, or too large to be a log."""
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        if len(content) > _MOST_BYTES or (
            len(content) > _LONGEST_LINE and any(len(line) > _LONGEST_LINE for line in io.BytesIO(content))
        ):
            raise TrainingError(
                f"{name} is too large for the log of a training: {_MOST_BYTES >> 20} MiB at most, and "
                f"{_LONGEST_LINE >> 20} MiB a line"
            )
        options: dict[str, Any] = {"skipinitialspace": True, "dtype": str, "encoding": "utf-8-sig", "index_col": False}
        if (num := len(pd.read_csv(io.BytesIO(content), nrows=0, **options).columns)) > _MOST_COLUMNS:
            raise TrainingError(f"{name} has {num:,} columns; the log of a training has {_MOST_COLUMNS:,} at most")
        with warnings.catch_warnings():
            # Rows longer than the header would lose what has no name.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(io.BytesIO(content), **options)
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError, pd.errors.ParserWarning) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{name} cannot be read as CSV ({one_line(error, 200)})") from error


def _column_of(place: str, columns: list[str]) -> str | None:
    """Return the column that is called so, else the first that is so in other letters."""
    return place if place in columns else next((column for column in columns if column.lower() == place), None)


def _numbers(cells: pd.Series, is_place: bool) -> pd.Series:
    """Return what cells of text say as float; NaN for what is no finite number, and for percent beside plain ones."""
    plain = pd.to_numeric(cells, errors="coerce").astype(float)
    if np.isfinite(plain).all():
        return plain  # percent and shares of all would be NaN by now
    if is_place:
        cells = cells.str.replace(_OF_ALL, r"\1", regex=True) if cells.str.fullmatch(_OF_ALL).any() else cells
    percent = cells.str.endswith("%")
    if len(cells) and percent.all():
        cells = cells.str.removesuffix("%").str.strip()
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    return values.where(np.isfinite(values))


def read_events(folder: Path) -> pd.DataFrame:
    """Return the scalars of a TensorBoard folder, a row a step and a column a tag; raise TrainingError without them.

    A scalar may be a plain value or, as Keras and newer writers have it, a tensor of one number.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise TrainingError(
            f"{folder.name} holds TensorBoard events; reading them needs tensorboard: pip install tensorboard"
        ) from None
    from google.protobuf.message import DecodeError

    series: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob(f"{_EVENTS}*")):
        try:
            for event in LegacyEventFileLoader(str(path)).Load():
                _take_scalars(event, series)
        except (DecodeError, OSError, ValueError, OverflowError, MemoryError):
            continue  # what was read before the damage is good: each record has a checksum
    if not series:
        raise TrainingError(f"{storable(folder.name)} holds no scalars that TensorBoard can read")
    return pd.DataFrame(series).rename_axis("step").sort_index().reset_index()


def _take_scalars(event: Any, series: dict[str, dict[int, float]]) -> None:
    """Put the scalars of an event under their tags; a training that began anew at a step replaces what followed it."""
    if event.HasField("session_log") and event.session_log.status == event.session_log.START:
        for tag, values in series.items():
            series[tag] = {step: value for step, value in values.items() if step < event.step}
    for value in event.summary.value:
        number = _scalar(value)
        if number is not None and value.tag != "step":
            series.setdefault(storable(value.tag, 200), {})[event.step] = number


def _scalar(value: Any) -> float | None:
    """Return the number of a summary; None for what is none, without making a tensor larger than one number."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or any(dim.size != 1 for dim in value.tensor.tensor_shape.dim):
        return None
    try:
        number = make_ndarray(value.tensor)
        return float(number.item()) if number.dtype.kind in "fiub" else None
    except (TypeError, ValueError, KeyError):
        return None


def _own_run(run: Run) -> Curves:
    name = storable(run.name)
    known: dict[str, Any] = {"finished": run.finished, "state": run.state}
    try:
        known["recipe"] = storable(run.recipe)
        known["created"] = str(run.description["created"])
        known["result"] = run.result or {}
        if run.metrics_file.is_file():
            known["frame"], known["notes"] = _read_log(run.metrics_file, f"{name}/{run.metrics_file.name}")
    except TrainingError as error:
        known["problem"] = storable(str(error))
    return Curves(name, **known)


def _foreign_folder(folder: Path) -> Iterator[Curves]:
    """Read what another program left: event files, else every CSV with a step or epoch column."""
    shown = storable(folder.name)
    yield from (_guarded(f"{shown}/{storable(path.stem)}", path) for path in sorted(folder.glob("*.csv")))
    for place in sorted({path.parent for path in folder.rglob(f"{_EVENTS}*")}):
        name = shown if place == folder else f"{shown}/{storable(str(place.relative_to(folder)))}"
        try:
            yield Curves(name, read_events(place))
        except TrainingError as error:
            yield Curves(name, problem=str(error))


def _guarded(name: str, path: Path) -> Curves:
    try:
        frame, notes = _read_log(path, storable(path.name))
        return Curves(name, frame, notes=notes)
    except TrainingError as error:
        return Curves(name, problem=str(error))


def _read_log(path: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV as `read_csv` does, once for every state that the file was in: pages ask for all logs in each run."""
    try:
        state = path.stat()
    except OSError:
        return read_csv(path, name)  # which says what is the matter
    return _read_once(str(path), name, (state.st_mtime_ns, state.st_size, state.st_ino))


@st.cache_data(show_spinner=False, max_entries=512)
def _read_once(path: str, name: str, state: tuple[int, int, int]) -> tuple[pd.DataFrame, list[str]]:
    return read_csv(Path(path), name)

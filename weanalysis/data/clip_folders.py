"""The layouts in which data sets of clips lie on a disk: Kinetics', and Jester's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weanalysis.data.folders import LeftOut, by_small_letters, existing_folder, split_folder, subfolders
from weanalysis.data.pictures import printable
from weanalysis.data.video import VIDEOS, FileClips
from weanalysis.errors import DataError

_LABELS_OF = {"train": ("train",), "test": ("validation", "valid", "val", "test")}
_MOST_BYTES = 2**28


@dataclass(frozen=True)
class LabelledClips:
    """The clips of a split, and which of the classes each shows."""

    clips: FileClips
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: list[str]


def class_clips(place: str, split: str) -> LabelledClips:
    """List the clips of `kinetics:DIR`: DIR/val/CLASS/CLIP, where CLIP is a video, or a folder of frames.

    Without folders for splits, DIR has the classes. Raises DataError.
    """
    folder, left_out = existing_folder("kinetics", place), LeftOut()
    chosen = split_folder(folder, split, by_small_letters(folder, left_out), left_out, "kinetics")
    root, notes = chosen or folder, []
    if chosen is None and split == "train":
        notes.append(f"{printable(folder)} has no train/ beside val/, so that all of it is taken for training")
    classes = subfolders(root, left_out)
    clips: list[tuple[int, str]] = []
    for label, name in enumerate(classes):
        own = sorted(_clips_in(root / name, left_out))
        if not own:
            raise DataError(
                f"{printable(root / name)} holds no clips; it needs videos ({', '.join(VIDEOS)}), or folders of frames"
            )
        clips += [(label, f"{name}/{clip}") for clip in own]
    if not clips:
        raise DataError(f"{printable(root)} has no class folders; it needs one folder a class, with clips")
    labels = np.array([label for label, _ in clips], np.int64)
    paths = tuple(path for _, path in clips)
    return LabelledClips(FileClips(root, paths), labels, tuple(map(printable, classes)), [*notes, *left_out.note()])


def _clips_in(folder: Path, left_out: LeftOut) -> list[str]:
    names = subfolders(folder)
    for entry in folder.iterdir():
        if entry.is_dir():
            continue
        if entry.name.startswith("."):
            left_out.add("hidden file", entry.name)
        elif entry.suffix.lower() in VIDEOS:
            names.append(entry.name)
        else:
            left_out.add("ending", f"{folder.name}/{entry.name}")
    return names


def listed_clips(place: str, split: str) -> LabelledClips:
    """List the clips of `frames:DIR`: one folder of frames a clip, and files of lines `CLIP;LABEL`, as Jester has them.

    DIR holds *train*.csv and *validation*.csv (or val, or test), perhaps *labels*.csv with the classes in order, and
    the clips' folders, in DIR or in one folder below. Raises DataError, for a line without a label with its place.
    """
    folder = existing_folder("frames", place)
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".csv" and file.name[0] != ".")
    table = _table_of(split, tables)
    if table is None:
        listed = ", ".join(printable(file.name) for file in tables[:4]) or "none"
        raise DataError(
            f"{printable(folder)} has no file of labels for {split} (of .csv files it has: {listed}); it needs "
            f"{' or '.join(f'*{name}*.csv' for name in _LABELS_OF[split][:2])} with lines CLIP;LABEL"
        )
    rows = _rows(table)
    names = next((file for file in tables if "labels" in file.stem.lower()), None)
    others = [_table_of(name, tables) for name in _LABELS_OF]
    every = [label for other in others if other is not None for _, label in _rows(other)]
    classes = _lines(names) if names is not None else sorted(set(every))
    index_of = {name: index for index, name in enumerate(classes)}
    strange = next(((clip, label) for clip, label in rows if label not in index_of), None)
    if strange is not None and names is not None:
        raise DataError(
            f"{printable(table)} gives the clip {printable(strange[0])} the label {printable(strange[1])!r}, which "
            f"{printable(names.name)} does not name"
        )
    root = next((one for one in (folder, *_below(folder)) if (one / rows[0][0]).is_dir()), folder)
    labels = np.array([index_of[label] for _, label in rows], np.int64)
    return LabelledClips(FileClips(root, tuple(clip for clip, _ in rows)), labels, tuple(map(printable, classes)), [])


def _table_of(split: str, tables: Sequence[Path]) -> Path | None:
    for name in _LABELS_OF[split]:
        for table in tables:
            if name in table.stem.lower().replace("_", "-").split("-"):
                return table
    return None


def _below(folder: Path) -> list[Path]:
    return [folder / name for name in subfolders(folder)]


def _rows(table: Path) -> list[tuple[str, str]]:
    """Read CLIP;LABEL lines; raise DataError for a line that is none, and for a clip that is named twice."""
    rows, seen = [], set()
    for number, line in enumerate(_lines(table), 1):
        clip, mark, label = (part.strip() for part in line.partition(";"))
        where = f"line {number} of {printable(table)}"
        if not mark or not clip or not label:
            raise DataError(f"{where} is {printable(line)[:80]!r}; give CLIP;LABEL, such as 34870;Drumming Fingers")
        if clip in (".", "..") or "/" in clip or "\\" in clip or "\0" in clip:
            raise DataError(f"{where} names the clip {printable(clip)[:80]!r}; give the name of a folder")
        if clip in seen:
            raise DataError(f"{where} names the clip {printable(clip)[:80]!r} again; give each one label")
        seen.add(clip)
        rows.append((clip, label))
    if not rows:
        raise DataError(f"{printable(table)} names no clips; give lines CLIP;LABEL")
    return rows


def _lines(table: Path) -> list[str]:
    try:
        if table.stat().st_size > _MOST_BYTES:
            raise DataError(f"{printable(table)} has more than {_MOST_BYTES:,} bytes, so that it is no list of clips")
        text = table.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(table)} cannot be read as text ({error}); give lines CLIP;LABEL") from error
    return [line for line in text.splitlines() if line.strip()]

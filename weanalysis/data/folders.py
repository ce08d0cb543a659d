"""Folders of pictures: which are classes, which are splits, and what in them is left out and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from weanalysis.data.pictures import FilePictures, printable
from weanalysis.errors import DataError

# The endings that torchvision's ImageFolder takes.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_ANY_SPLIT = tuple(name for names in _SPLITS.values() for name in names)

# What systems and programs leave in folders; names that begin with a dot are hidden anyway.
_SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}

_KINDS = {
    "hidden folder": "hidden or system folder{s}",
    "hidden file": "hidden file{s}",
    "link": "link{s} to a folder that is read already",
    "beside": "picture{s} beside the class folders",
    "ending": "file{s} with an ending that is not read",
    "no split": "folder{s} beside the splits",
}


@dataclass
class LeftOut:
    """What was left out of a folder: of each kind how many, and a few by name."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one more of a kind."""
        self.names.setdefault(kind, []).append(printable(name))

    def note(self) -> list[str]:
        """Return the line that says what was left out; none where nothing was."""
        parts = []
        for kind, words in _KINDS.items():
            if names := self.names.get(kind):
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                parts.append(f"{len(names):,} {words.format(s='s' * (len(names) > 1))} ({shown})")
        return [f"left out of the folder: {'; '.join(parts)}"] if parts else []


@dataclass(frozen=True)
class ClassFolders:
    """The pictures of one folder a class: `labels[i]` is the index in `classes` of the i-th one."""

    pictures: FilePictures
    labels: list[int]
    classes: tuple[str, ...]
    notes: list[str]


def existing_folder(name: str, place: str) -> Path:
    """Return the folder that stands after `name:`; raise DataError where there is none."""
    if not place:
        raise DataError(f"{name} needs a folder: {name}:DIR")
    try:
        folder = Path(place).expanduser()
        exists, is_folder, real = folder.exists(), folder.is_dir(), folder.resolve()
    # A name with a NUL byte, a home that is not known, links in a circle.
    except (OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{printable(place)!r} cannot be a folder ({why}); give one as {name}:DIR") from error
    if not exists:
        raise DataError(f"the folder {printable(folder)} does not exist; give an existing one as {name}:DIR")
    if not is_folder:
        raise DataError(f"{printable(folder)} is no folder; give one as {name}:DIR")
    return real


def split_folder(
    folder: Path, split: str, names: dict[str, str], left_out: LeftOut, source: str = "imagefolder"
) -> Path | None:
    """Return the subfolder of a split, such as Test/, or None where the folder's own subfolders are classes.

    `names` maps the subfolders' names in small letters to their names. Raises DataError where other splits are there.
    """
    # A class may be called "train": only folders of folders are splits.
    parts = [name for name in _ANY_SPLIT if name in names and subfolders(folder / names[name])]
    has_train = any(name in parts for name in _SPLITS["train"])
    is_split = (has_train and len(parts) > 1) or (len(parts) > 0 and set(names) <= set(_ANY_SPLIT))
    if not is_split:
        return None
    chosen = next((name for name in _SPLITS[split] if name in parts), None)
    if chosen is None:
        there = ", ".join(f"{printable(names[name])}/" for name in parts)
        raise DataError(
            f"{printable(folder)} has class folders in {there} but none in {_SPLITS[split][0]}/; to use those images "
            f"all the same, name their folder: {source}:{printable(folder / names[parts[0]])}"
        )
    for name in sorted(set(names) - set(_ANY_SPLIT)):
        left_out.add("no split", names[name])
    return folder / names[chosen]


def by_small_letters(folder: Path, left_out: LeftOut) -> dict[str, str]:
    """Map each subfolder's name in small letters to its name; raise DataError for splits that differ in case alone."""
    names: dict[str, str] = {}
    for name in subfolders(folder, left_out):
        small = name.casefold()
        if small in names and small in _ANY_SPLIT:
            both = f"{printable(names[small])}/ and {printable(name)}/"
            raise DataError(
                f"{printable(folder)} has both {both}; name the one that is meant: {printable(folder / names[small])}"
            )
        names[name if small in names else small] = name
    return names


def subfolders(folder: Path, left_out: LeftOut | None = None) -> list[str]:
    """Return the names of the subfolders in the order of text, without hidden and system folders."""
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        _refuse(error)
    names = []
    for entry in entries:
        if not entry.is_dir():
            if left_out is not None and entry.name.lower().endswith(EXTENSIONS):
                left_out.add("beside", entry.name)
        elif _is_ignored(entry.name):
            if left_out is not None:
                left_out.add("hidden folder", entry.name)
        else:
            names.append(entry.name)
    return names


def class_folders(folder: Path, left_out: LeftOut | None = None) -> ClassFolders:
    """List the pictures of a folder that has one folder a class, in the order of torchvision's ImageFolder.

    A folder that several links lead to is read once; hidden and system folders are not. Raises DataError.
    """
    left_out = LeftOut() if left_out is None else left_out
    allowed, shown = ", ".join(EXTENSIONS), printable(folder)
    classes = subfolders(folder, left_out)
    if not classes:
        raise DataError(f"{shown} has no class folders; it needs one folder a class, with pictures ({allowed})")
    files: list[tuple[int, str, str]] = []
    for label, where, name in _walk(folder, classes, left_out):
        if name.startswith("."):
            left_out.add("hidden file", os.path.relpath(os.path.join(where, name), folder))
        elif name.lower().endswith(EXTENSIONS):
            files.append((label, where, name))
        else:
            left_out.add("ending", os.path.relpath(os.path.join(where, name), folder))
    files.sort()
    notes = left_out.note()
    empty = sorted(set(range(len(classes))) - {label for label, _, _ in files})
    more = f"; {notes[0]}" if notes else ""
    if len(empty) == len(classes):
        raise DataError(f"{shown} has no pictures in its class folders ({allowed}){more}")
    if empty:
        names = ", ".join(repr(printable(classes[label])) for label in empty[:4]) + (" ..." if len(empty) > 4 else "")
        raise DataError(f"{shown} has class folders without pictures ({allowed}): {names}; fill or remove them{more}")
    paths = tuple(Path(os.path.join(where, name)).relative_to(folder).as_posix() for _, where, name in files)
    labels = [label for label, _, _ in files]
    return ClassFolders(FilePictures(folder, paths), labels, tuple(map(printable, classes)), notes)


def _walk(folder: Path, classes: list[str], left_out: LeftOut) -> Iterator[tuple[int, str, str]]:
    """Yield (class, folder, name) of every file below the class folders, each folder once."""
    # A link that leads up would read the whole again as one class.
    seen = {_identity(above) for above in (folder, *folder.parents)}
    tops = [(label, str(folder / name)) for label, name in enumerate(classes)]
    # What lies there itself comes first, so that its name does not hang on which link is found before it. The list
    # grows while it is worked through: each link found below is one more place to begin at.
    tops.sort(key=lambda top: os.path.islink(top[1]))
    for label, top in tops:
        if not _is_new(top, seen):
            left_out.add("link", os.path.relpath(top, folder))
            continue
        for where, below, files in os.walk(top, onerror=_refuse):
            kept = []
            for name in sorted(below):
                path = os.path.join(where, name)
                if _is_ignored(name):
                    left_out.add("hidden folder", os.path.relpath(path, folder))
                elif os.path.islink(path):
                    tops.append((label, path))
                elif _is_new(path, seen):
                    kept.append(name)
                else:
                    left_out.add("link", os.path.relpath(path, folder))
            below[:] = kept
            yield from ((label, where, name) for name in files)


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is met for the first time, under whatever name."""
    identity = _identity(folder)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _identity(folder: str | Path) -> tuple[int, int]:
    try:
        state = os.stat(folder)
    except OSError as error:
        _refuse(error)
    return state.st_dev, state.st_ino


def _refuse(error: OSError) -> NoReturn:
    where = printable(error.filename)
    raise DataError(f"the folder {where} cannot be read ({error.strerror or error})") from error


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS

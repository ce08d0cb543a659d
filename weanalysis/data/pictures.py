"""Where the pictures of a dataset lie: files, an array, or a Hugging Face dataset, each read only when asked for."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from weanalysis.data.decoding import Look, Unreadable, decode, look, read_file
from weanalysis.errors import DataError

# Unicode's categories of control characters, halves of surrogates, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Examined:
    """What the one pass over a dataset finds out about a picture; not `lasting` if another pass may find other.

    A clip has `num_frames`.
    """

    digest: str
    size: tuple[int, int] | None
    problem: str | None = None
    remarks: tuple[str, ...] = ()
    lasting: bool = True
    num_frames: int | None = None


class Looked(Protocol):
    """What the one pass over a dataset looks at, by position: pictures, or masks."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> str:
        """Return what a person calls this picture."""

    def examine(self, index: int, decode: bool) -> Examined:
        """Hash one picture and look whether it is one: its header, or with `decode` all of it."""

    def listing(self) -> str | None:
        """Return what changes whenever a picture may have changed, without reading any; None if nothing does."""


class Pictures(Looked, Protocol):
    """Pictures by position; small when pickled, since every worker process gets a copy.

    `kind` is what they are: pictures, clips or arrays.
    """

    kind: ClassVar[str]

    def picture(self, index: int) -> Any:
        """Return one picture as RGB, a `clips.Clip` or an array; raise DataError naming it where it cannot be read."""

    def take(self, indices: np.ndarray) -> Pictures:
        """Return the pictures at these positions, in this order."""


@runtime_checkable
class OnDisk(Protocol):
    """What is read from files while it is served, which may change meanwhile."""

    def refuse_changed(self, index: int) -> None:
        """Raise DataError where files are not what they were when they were taken; those that are gone are not told."""


@dataclass(frozen=True)
class FilePictures:
    """Picture files below one folder; of those that are served, `states` are how they were when they were taken."""

    root: Path
    paths: tuple[str, ...]
    states: tuple[tuple[int, int], ...] | None = None

    kind: ClassVar[str] = "pictures"

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Image.Image:
        path = self.root / self.paths[index]
        try:
            return decode(read_file(path))
        except Unreadable as error:
            raise DataError(_unreadable(str(path), error)) from error

    def label(self, index: int) -> str:
        return printable(self.paths[index])

    def examine(self, index: int, decode: bool) -> Examined:
        try:
            return _examined(read_file(self.root / self.paths[index]), decode)
        except Unreadable as error:
            return Examined("", None, str(error), lasting=error.lasting)

    def listing(self) -> str | None:
        states: list[tuple[Any, ...]] = []
        for name in self.paths:
            try:
                state = (self.root / name).stat()
            except OSError:
                states.append((name,))
                continue
            # The time of the last status change also tells a file that was replaced by one of the same size and age.
            states.append((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
        return digest(states)

    def take(self, indices: np.ndarray) -> FilePictures:
        paths = tuple(self.paths[index] for index in indices)
        return FilePictures(self.root, paths, tuple(state_of(self.root / path) for path in paths))

    def refuse_changed(self, index: int) -> None:
        """Raise DataError where a file is not what it was when its contents were hashed."""
        if self.states is not None:
            path = self.root / self.paths[index]
            refuse_another(path, self.states[index], state_of(path))


# The state of a file that is not there, which is said when it is read.
MISSING = (-1, 0)


def state_of(path: Path) -> tuple[int, int]:
    """The size of a file and when it was last written; MISSING where there is none."""
    try:
        state = path.stat()
    except OSError:
        return MISSING
    return state.st_size, state.st_mtime_ns


def refuse_another(path: Path, before: Any, now: Any) -> None:
    """Raise DataError where the state of what lies at a path is not what it was, unless it is gone."""
    if now not in (before, MISSING):
        raise DataError(
            f"{printable(path)} has changed since the data was loaded, or is another file on this host: what is "
            "measured on it would not be what the study says; run the same command again, by which it is read anew"
        )


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Pictures of an array, uint8 (N, H, W) grey or (N, H, W, 3) RGB; `numbers` are what their labels say."""

    name: str
    array: np.ndarray
    numbers: np.ndarray

    kind: ClassVar[str] = "pictures"

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index]).convert("RGB")

    def label(self, index: int) -> str:
        return f"{self.name} #{self.numbers[index]}"

    def examine(self, index: int, decode: bool) -> Examined:
        height, width = self.array.shape[1:3]
        return Examined(hashed(np.ascontiguousarray(self.array[index]).tobytes()), (width, height))

    def listing(self) -> str | None:
        return None

    def take(self, indices: np.ndarray) -> ArrayPictures:
        return ArrayPictures(self.name, self.array[indices], self.numbers[indices])


@dataclass(frozen=True, eq=False)
class TablePictures:
    """Pictures in a column of a Hugging Face dataset, left undecoded; `numbers` are their rows in the whole of it."""

    name: str
    table: Any
    column: str
    numbers: np.ndarray

    kind: ClassVar[str] = "pictures"

    def __len__(self) -> int:
        return len(self.numbers)

    def picture(self, index: int) -> Image.Image:
        try:
            return decode(self._content(index), upright=True)
        except Unreadable as error:
            raise DataError(_unreadable(f"{self.name} {self.label(index)}", error)) from error

    def label(self, index: int) -> str:
        return f"row {self.numbers[index]}"

    def examine(self, index: int, decode: bool) -> Examined:
        try:
            return _examined(self._content(index), decode, upright=True)
        except Unreadable as error:
            return Examined("", None, str(error), lasting=error.lasting)

    def listing(self) -> str | None:
        files = [Path(file["filename"]) for file in self.table.cache_files]
        if not files or self._is_path(0):
            return None  # A path says nothing about what the file holds by now.
        states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
        return digest([states, self.table._fingerprint, self.column])

    def take(self, indices: np.ndarray) -> TablePictures:
        return TablePictures(self.name, self.table, self.column, self.numbers[indices])

    def _is_path(self, index: int) -> bool:
        cell = self.table[int(self.numbers[index])][self.column]
        return cell is not None and cell["bytes"] is None

    def _content(self, index: int) -> bytes:
        cell = self.table[int(self.numbers[index])][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise Unreadable("the row holds no picture")
        return cell["bytes"] if cell["bytes"] is not None else read_file(Path(cell["path"]))


def _examined(content: bytes, decode_all: bool, upright: bool = False) -> Examined:
    seen: Look = look(content, decode_all, upright)
    # What later versions read in another way must not pass for what earlier ones measured.
    identity = f"{hashed(content)} {seen.reading}" if seen.reading else hashed(content)
    return Examined(identity, seen.size, seen.problem, seen.remarks)


def printable(name: object) -> str:
    """Return a name, such as a path, with line breaks, control characters and bytes that are no UTF-8 written out."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(
        mark.encode("unicode_escape").decode() if unicodedata.category(mark) in _UNPRINTABLE else mark for mark in text
    )


def digest(description: Any) -> str:
    """Return the sha256 (hex) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hashed(content: bytes) -> str:
    """Return the BLAKE2b hash (hex, 32 bytes) of a picture's bytes."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _unreadable(name: str, error: Exception) -> str:
    return (
        f"{printable(name)} cannot be read ({error}); mend or remove it, or leave out what is no picture "
        "with --skip-bad-images"
    )

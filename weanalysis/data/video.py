"""Clips on disk: videos, and folders of frames, each read only when asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from weanalysis.data.clips import Clip
from weanalysis.data.decoding import MAX_PIXELS, Unreadable, decode, look, read_file
from weanalysis.data.folders import EXTENSIONS
from weanalysis.data.pictures import MISSING, Examined, digest, hashed, printable, refuse_another, state_of
from weanalysis.errors import DataError

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")

# Of all that FFmpeg opens, the containers of videos: no playlists, which name other files and addresses.
_OPENED = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo", "protocol_whitelist": "file"}
_MOST_MOMENTS = 1_000_000
_NEEDED = "videos are read with PyAV, which is not installed: pip install av, or extract the frames"


@dataclass(frozen=True)
class FileClips:
    """Clips below one folder: each a video, or a folder of frames in the order of the numbers in their names.

    Of those that are served, `states` are how their files were when they were taken.
    """

    root: Path
    paths: tuple[str, ...]
    states: tuple[Any, ...] | None = None

    kind: ClassVar[str] = "clips"

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Clip:
        path = self.root / self.paths[index]
        return VideoFile(path) if path.suffix.lower() in VIDEOS and not path.is_dir() else FrameFolder(path)

    def label(self, index: int) -> str:
        return printable(self.paths[index])

    def examine(self, index: int, decode: bool) -> Examined:
        clip: Any = self.picture(index)
        try:
            return clip.examine(decode)
        except Unreadable as error:
            return Examined("", None, str(error), lasting=error.lasting)

    def listing(self) -> str | None:
        return digest([[name, _states(self.root / name)] for name in self.paths])

    def take(self, indices: np.ndarray) -> FileClips:
        paths = tuple(self.paths[index] for index in indices)
        return FileClips(self.root, paths, tuple(_written(self.root / path) for path in paths))

    def refuse_changed(self, index: int) -> None:
        """Raise DataError where a video, or one of a clip's frames, is not what it was when it was hashed."""
        if self.states is not None:
            path = self.root / self.paths[index]
            refuse_another(path, self.states[index], _written(path))


@dataclass(frozen=True)
class FrameFolder:
    """A clip whose frames are pictures in one folder."""

    folder: Path

    def __len__(self) -> int:
        return len(_frame_files(self.folder))

    def frames(self, places: Sequence[int]) -> list[Image.Image]:
        files = _frame_files(self.folder)
        read: dict[int, Image.Image] = {}
        for place in places:
            if place not in read:
                try:
                    read[place] = decode(read_file(files[place]))
                except Unreadable as error:
                    raise _refusal(files[place], str(error)) from error
        return _alike([read[place] for place in places], self.folder)

    def examine(self, decode_all: bool) -> Examined:
        """Hash all frames, and look whether they are pictures; raise Unreadable where they are none."""
        if not self.folder.is_dir():
            raise Unreadable("the folder of its frames is not there")
        files = _frame_files(self.folder)
        if not files:
            raise Unreadable(f"no frames ({', '.join(EXTENSIONS)})")
        digests, sizes = [], set()
        for file in files:
            content = read_file(file)
            seen = look(content, decode_all)
            if seen.problem:
                raise Unreadable(f"{printable(file.name)}: {seen.problem}")
            digests.append([file.name, hashed(content), seen.reading])
            sizes.add(seen.size)
        if len(sizes) > 1:
            raise Unreadable(f"frames of several sizes ({_several(sizes)})")
        return Examined(digest(digests), sizes.pop(), num_frames=len(files))


@dataclass(frozen=True)
class VideoFile:
    """A clip in a file of a video, whose frames are decoded in order up to the last one that is asked for."""

    path: Path

    def __len__(self) -> int:
        try:
            return self._num_frames()
        except Unreadable as error:
            raise _refusal(self.path, str(error)) from error

    def frames(self, places: Sequence[int]) -> list[Image.Image]:
        wanted, read = set(places), {}
        try:
            for place, frame in enumerate(self._decoded()):
                if place in wanted:
                    read[place] = frame.to_image()
                if place >= places[-1]:
                    break
        except Unreadable as error:
            raise _refusal(self.path, str(error)) from error
        if len(read) < len(wanted):
            raise _refusal(self.path, f"its frame {places[-1]} cannot be decoded, though it says that it has it")
        return _alike([read[place] for place in places], self.path)

    def examine(self, decode_all: bool) -> Examined:
        """Hash the file, and look whether it is a video, with `decode_all` at all frames; raise Unreadable."""
        try:
            with open(self.path, "rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        except OSError as error:
            raise Unreadable(error.strerror or str(error), lasting=False) from error
        count = self._num_frames()
        if decode_all and (decoded := sum(1 for _ in self._decoded())) < count:
            raise Unreadable(f"of its {count:,} frames only {decoded:,} can be decoded")
        with self._opened() as (_, stream):
            return Examined(content, (stream.width, stream.height), num_frames=count)

    def _num_frames(self) -> int:
        """The number of frames by the packets that hold them, none of which is decoded."""
        with self._opened() as (container, stream):
            count = 0
            for packet in container.demux(stream):
                count += packet.size > 0
                if count > _MOST_MOMENTS:
                    raise Unreadable(f"more than {_MOST_MOMENTS:,} frames")
        if not count:
            raise Unreadable("no frames")
        return count

    def _decoded(self) -> Iterator[Any]:
        with self._opened() as (container, stream):
            yield from container.decode(stream)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        try:
            import av
        except ImportError as error:
            raise DataError(_NEEDED) from error
        try:
            with av.open(str(self.path), options=_OPENED) as container:
                if not container.streams.video:
                    raise Unreadable("no video in the file")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise Unreadable("a video in a coding that is not known")
                if stream.width * stream.height > MAX_PIXELS:
                    raise Unreadable(f"{stream.width:,} x {stream.height:,} pixels; at most {MAX_PIXELS:,} are read")
                yield container, stream
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            raise Unreadable(f"not a video that can be read ({_first_line(error)})") from error


def _frame_files(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != "."]
    except OSError as error:
        raise _refusal(folder, error.strerror or str(error)) from error
    return sorted(files, key=lambda file: [int(part) if part.isdecimal() else part for part in _parts(file.name)])


def _parts(name: str) -> list[str]:
    """Split a name into text and numbers, by turns, so that frame 10 comes after frame 9."""
    return re.split(r"([0-9]+)", name)


def _states(path: Path) -> list[Any]:
    """What changes when a clip may have changed, without reading it."""
    try:
        files = _frame_files(path) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
    except (OSError, DataError):
        return []
    return [[name, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in states]


def _written(path: Path) -> Any:
    """The names and states of a clip's files, alike on all hosts that see the same; MISSING where there are none."""
    if not path.is_dir():
        return state_of(path)
    try:
        return tuple((file.name, *state_of(file)) for file in _frame_files(path)) or MISSING
    except DataError:
        return MISSING


def _alike(frames: list[Image.Image], path: Path) -> list[Image.Image]:
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise _refusal(path, f"its frames are of several sizes ({_several(sizes)})")
    return frames


def _several(sizes: set[Any]) -> str:
    return ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])


def _refusal(path: Path, why: str) -> DataError:
    return DataError(
        f"the clip {printable(path)} cannot be read ({why}); mend or remove it, or leave out what cannot be read with "
        "--skip-bad-images"
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:120]

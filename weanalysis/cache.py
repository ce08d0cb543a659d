"""Where a user's runs leave things: the only module that names a file or folder of the cache."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from weanalysis.errors import StoreError

ENVIRONMENT_VARIABLE = "WEANALYSIS_CACHE"


@dataclass(frozen=True)
class Cache:
    """The folder with every result, run, checkpoint and downloaded dataset of a user."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.sqlite"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs.sqlite"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    def weights_file(self, weights_hash: str) -> Path:
        """The weights that studies zeroed."""
        return self.weights / f"{weights_hash}.safetensors"

    def multipliers_file(self, weights_hash: str) -> Path:
        return self.weights / f"{weights_hash}-multipliers.safetensors"

    @property
    def saliency(self) -> Path:
        return self.root / "saliency"

    def saliency_file(self, key: str) -> Path:
        return self.saliency / f"{key}.safetensors"

    @property
    def pruning(self) -> Path:
        return self.root / "pruning"

    def pruning_file(self, name: str) -> Path:
        """What `prune` measured under a name; raise StoreError for a name that is none of a file there."""
        if name != safe_name(name):
            raise StoreError(f"{name!r} is no name of a pruning; give one that `weanalysis list pruning` shows")
        return self.pruning / f"{name}.json"

    def pruning_files(self) -> list[Path]:
        """The files of all that `prune` measured, those that are whole."""
        return sorted(path for path in self.pruning.glob("*.json") if not path.name.startswith("."))

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def lock_file(self, what: str) -> Path:
        """What a process holds while it alone may do something, such as "study-KEY" or "run-NAME"."""
        return self.locks / f"{what}.lock"

    @contextmanager
    def hold(self, locks: Mapping[str, str]) -> Iterator[None]:
        """Hold locks for this process, by name, each with what it is of in words.

        Raises StoreError where another process is at one of them.
        """
        import filelock

        with ExitStack() as held:
            if locks:
                self.locks.mkdir(parents=True, exist_ok=True)
            for name, what in locks.items():
                try:
                    held.enter_context(filelock.FileLock(self.lock_file(name)).acquire(timeout=0))
                except filelock.Timeout:
                    raise StoreError(f"another process is working on {what}; stop it first") from None
            yield

    def job_log(self, number: int) -> Path:
        return self.root / "jobs" / f"{number}.log"

    @property
    def fingerprints(self) -> Path:
        """The fingerprints of folders of images, so that they are not read twice."""
        return self.data / "fingerprints.json"

    @property
    def huggingface(self) -> Path:
        """What the Hub's client downloads, and keeps in its own way."""
        return self.data / "huggingface"

    def ready(self) -> Cache:
        """Make the folder if it is not there; raise StoreError where it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"the cache {self.root} cannot be written ({error.strerror or error}); "
                f"choose another folder with --cache DIR or {ENVIRONMENT_VARIABLE}"
            ) from error
        return self


class RunFile(StrEnum):
    """The files in the folder of a training run."""

    RECIPE = "recipe.json"
    METRICS = "metrics.csv"
    LAST = "last.safetensors"
    BEST = "best.safetensors"
    STATE = "state.safetensors"
    RESULT = "result.json"
    LOG = "log.txt"


def find_cache(path: str | os.PathLike[str] | None = None) -> Cache:
    """Return the cache named by `path`, else by WEANALYSIS_CACHE, else a checkout's `cache/`, else the user's own."""
    named = path or os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Cache(Path(named).expanduser().resolve())
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "weanalysis" / "cache.py").is_file() and (folder / "pyproject.toml").is_file():
            return Cache(folder / "cache")
    import platformdirs

    return Cache(Path(platformdirs.user_cache_dir("weanalysis", appauthor=False)))


def safe_name(name: str) -> str:
    """Turn any text into a file name: letters, digits, dot, dash and underscore, never empty, hidden or a path."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return cleaned[:100] or "unnamed"


# What Python has in place of the bytes of a name that are no UTF-8. It can be neither printed nor kept as text.
_SURROGATES = re.compile("[\ud800-\udfff]")


def storable(value: Any, longest: int | None = None) -> Any:
    """Return text, or the JSON value that holds it, as it can be kept and printed everywhere.

    Bytes that are no UTF-8 become `\\xff`; text beyond `longest` characters is cut, and ends in "…".
    """
    if isinstance(value, str):
        if not value.isascii():
            value = _SURROGATES.sub(_escaped, value)
        return value if longest is None or len(value) <= longest else value[: longest - 1] + "…"
    if isinstance(value, Mapping):
        return {storable(key, longest): storable(item, longest) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item, longest) for item in value]
    return value


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"


def is_full(error: BaseException) -> bool:
    """Tell whether something could not be written for lack of room: the disk's, a quota's, or a file's."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def older_version_of(path: Path, version: int) -> Path:
    """A free name beside a database, under which it is kept as it was before it is brought up to date."""
    first = path.with_name(f"{path.name}.v{version}")
    more = (first.with_name(f"{first.name}.{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([first], more) if not one.exists())


def temporary_of(path: Path) -> Path:
    """Under which name this process writes a file until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

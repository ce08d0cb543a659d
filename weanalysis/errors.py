"""The one family of errors that a user sees: one line each, saying what came, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class WeanalysisError(ValueError):
    """A user's mistake or an unusable input; the command line prints it as one line and exits with status 1.

    Whatever names and reasons of others are in the message, it stays one line that every terminal and file can take.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class ModelError(WeanalysisError):
    """A network that is unknown, or weights that cannot be read or do not fit."""


class DataError(WeanalysisError):
    """Images that are missing, unreadable or do not fit the network."""


class StudyError(WeanalysisError):
    """A study that cannot be run as asked."""


class StoreError(WeanalysisError):
    """Results that cannot be read or written."""


class DeviceError(WeanalysisError):
    """A device that does not exist or gave up."""


class TrainingError(WeanalysisError):
    """A training run that cannot start, continue or converge."""


class ExcitationError(WeanalysisError):
    """An excitation that cannot be applied, folded or read."""


def one_line(text: object, longest: int | None = None) -> str:
    """Return text with line breaks made spaces, and what cannot be printed or encoded written as escapes.

    Text beyond `longest` characters is cut, and ends in "…": what a library says of a damaged file may hold anything.
    """
    line = str(text)
    if not line.isprintable():
        line = "".join(
            c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in line
        )
    if longest is None:
        return line
    line = " ".join(line.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def unknown_name(kind: str, name: str, choices: Iterable[str], hint: str = "") -> str:
    """Word the line for a name that is in no registry: the nearest names, else all of them where they are few."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        offer = "did you mean " + " or ".join(near) + "?"
    elif len(known) <= 12:
        offer = "choose from " + ", ".join(known) + "."
    else:
        offer = f"{len(known)} names are known."
    return f"unknown {kind} {name!r}: {offer}" + (f" {hint}" if hint else "")


def some_names(names: Collection[str], most: int = 6) -> str:
    """List the first of some names, each in one line and no longer than a line."""
    shown = ", ".join(one_line(name[:200]) for name in list(names)[:most])
    return shown if len(names) <= most else f"{shown}, ..."

"""By what something was made: the command line, or the call from Python, in words that can be repeated."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_command_line: ContextVar[str | None] = ContextVar("command_line", default=None)

# Longer arguments are data, which words cannot hold.
_LONGEST, _MOST_ITEMS = 200, 20


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Say that what is made meanwhile is made by the command `weanalysis WORDS`."""
    token = _command_line.set(shlex.join(["weanalysis", *words]))
    try:
        yield
    finally:
        _command_line.reset(token)


def called_as(function: Callable[..., Any], given: Mapping[str, Any], **more: Any) -> str:
    """Word what was called: the command line where a command runs, else `weanalysis.FUNCTION(...)` from Python.

    `given` are the function's arguments by name, such as its `locals()` before anything else; those at their defaults
    and those that only report are left out, `more` are what its `**options` took. Networks, data and studies go by
    their names.
    """
    if (line := _command_line.get()) is not None:
        return line
    parameters = inspect.signature(function).parameters
    arguments = {
        name: given[name]
        for name, parameter in parameters.items()
        if name in given and parameter.kind is not parameter.VAR_KEYWORD and not _is(given[name], parameter.default)
    }
    words = [f"{name}={_word(value)}" for name, value in (arguments | more).items() if not inspect.isroutine(value)]
    return f"weanalysis.{function.__name__}({', '.join(words)})"


def _is_plain(value: object) -> bool:
    """Tell whether Python's own way of writing a value is short enough to be read, and tells all of it."""
    if isinstance(value, tuple | list):
        return len(value) <= _MOST_ITEMS and all(map(_is_plain, value))
    return value is None or (isinstance(value, str | int | float) and len(repr(value)) <= _LONGEST)


def _is(value: object, default: object) -> bool:
    """Tell whether an argument is its default."""
    return value is default or (type(value) is type(default) and _is_plain(value) and value == default)


def _word(value: Any) -> str:
    """Word an argument: plain values as Python writes them, all else by type and by the name or kind that it has."""
    if _is_plain(value):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"<{type(value).__name__} of {len(value):,}>"
    known = (getattr(value, attribute, None) for attribute in ("name", "spec", "kind", "root"))
    name = next((str(one) for one in known if isinstance(one, str | os.PathLike)), "")
    return f"<{type(value).__name__}{f' {name[:_LONGEST]}' if name else ''}>"

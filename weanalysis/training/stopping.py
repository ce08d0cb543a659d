"""Ctrl-C and SIGTERM while a run is trained: the step in hand is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag that is looked at after each step; a second one stops at once."""

    def __init__(self) -> None:
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether one is to stop after the step in hand."""
        return self._asked

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen within the block; only the main thread can, elsewhere signals keep their meaning."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            restore()

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            restore()

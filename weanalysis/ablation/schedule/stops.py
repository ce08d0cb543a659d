"""How a study is asked to stop, and how the processes that it starts are kept from hearing it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

# What asks a study to stop: Ctrl-C, and what a batch system sends before it takes the machine away.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first Ctrl-C into a flag that is looked at between tasks; the second one interrupts at once.

    `say` is called with a line for a person when the first one comes, since a task in hand takes its time.

    >>> with StopRequest().listening() as stop:
    ...     for step in range(10):
    ...         if stop.asked:
    ...             break
    ...         if step == 2:
    ...             stop.ask()
    >>> step
    3
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._asked = False
        self._say = say

    @property
    def asked(self) -> bool:
        """Whether one is to stop when what is in hand is done."""
        return self._asked

    def ask(self) -> None:
        """Have it stop when what is in hand is done."""
        self._asked = True

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen within the block; only the main thread can, elsewhere Ctrl-C keeps its meaning."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def on_signal(_number: int, _frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self.ask()
            with suppress(RuntimeError):  # a signal that comes in the middle of a print may not print
                self._say("stopping when the measurements in hand are done; press Ctrl-C again to stop at once")

        previous = {number: signal.signal(number, on_signal) for number in _STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def ignore_stops() -> None:
    """Let this process go on whatever asks it to stop: the one that it works for hears it."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deaf_to_stops() -> Iterator[None]:
    """Start processes within, so that they never hear Ctrl-C or SIGTERM, not even before their first task.

    A terminal, and a batch system, sends it to all processes, and one that dies of it takes the others with it. They
    inherit that it is blocked; this process hears one that comes meanwhile right afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows.
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own helper, whose start would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

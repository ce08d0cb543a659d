"""Processes that end by themselves once the one that they work for is gone, however it ended."""

from __future__ import annotations

import os
import threading
import time

import psutil

LOOK_SECONDS = 1.0


def end_with(parent: int) -> None:
    """Watch, in a thread, the process `parent` that started this one; end this one at once when it is gone.

    A process that is killed tells nobody, so that its children would wait for work for ever. Nothing is lost: what a
    worker has in hand is only kept by its parent.
    """

    def watch() -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="ends-with-its-parent", daemon=True).start()

"""What `weanalysis dashboard` serves: the pages, behind their guard. It is started by `weanalysis.dashboard.launch`."""

from __future__ import annotations

import json
import logging
import os
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import guard
from starlette.middleware import Middleware
from streamlit.starlette import App

from weanalysis.dashboard import SETTINGS_VARIABLE
from weanalysis.orphans import end_with

# Taken away at once: a job is a process of its own, and needs no token.
_settings = json.loads(os.environ.pop(SETTINGS_VARIABLE))
_guarding = {name: _settings[name] for name in ("token", "hosts", "is_local", "port")}

logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


@asynccontextmanager
async def _begin(_app: App) -> AsyncIterator[None]:
    """Say where the dashboard is as soon as it answers, and open it if that was asked for."""
    end_with(os.getppid())
    print(_settings["welcome"], flush=True)
    if address := _settings["open"]:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    yield


app = App(Path(__file__).with_name("main.py"), middleware=[Middleware(guard.Guard, **_guarding)], lifespan=_begin)

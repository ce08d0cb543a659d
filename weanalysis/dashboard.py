"""Start the dashboard: where its pages are, and the command that serves them with Streamlit."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.errors import StoreError


def app_folder() -> Path:
    """Return the folder of the Streamlit pages: inside an installed package, else beside it in a checkout.

    Raises StoreError where neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_app", package.parent / "app"):
        if (folder / "main.py").is_file():
            return folder
    raise StoreError(f"the dashboard's pages are missing beside {package}; install weanalysis again")


def launch(cache: Cache, port: int = 8501, address: str = "127.0.0.1", open_browser: bool = False) -> int:
    """Serve the dashboard over `cache` at http://address:port until it is stopped, and return its exit status.

    Ctrl-C is a normal end, status 0; SIGTERM is passed on. Raises StoreError where the port cannot be had or Streamlit
    is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise StoreError("the dashboard needs streamlit, which is not installed; run: pip install streamlit")
    _check_port(address, port)
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": not open_browser,
        # Streamlit would ask who starts it for the first time for an address, and serve nothing until it is answered.
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "viewer",
        **_theme(),
    }
    flags = [f"--{name}={_word(value)}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(app_folder() / "main.py"), *flags]
    importable = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        ENVIRONMENT_VARIABLE: str(cache.root),
        "PYTHONPATH": os.pathsep.join(importable),
    }
    process = subprocess.Popen(command, env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal sends Ctrl-C to Streamlit too, which then ends by itself.
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_port(address: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise StoreError(f"{port} is no port; choose one from 1 to 65535 with --port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise StoreError(
            f"the dashboard cannot listen at {address}:{port} ({error.strerror or error}); "
            "stop what runs there, or choose another port with --port"
        ) from error


def _theme() -> dict[str, object]:
    """Return Streamlit's theme options, from the same colours as the figures."""
    from weanalysis.figures import CATEGORICAL, THEMES

    options: dict[str, object] = {
        "theme.chartCategoricalColors": list(CATEGORICAL),
        "theme.headingFontSizes": ["2rem", "1.5rem", "1.25rem", "1.1rem", "1rem", "1rem"],
    }
    for name, second in (("light", "#F3F5F7"), ("dark", "#1F242C")):
        colours = THEMES[name]
        options |= {
            f"theme.{name}.primaryColor": {"light": "#0063A3", "dark": "#3A8FD0"}[name],
            f"theme.{name}.backgroundColor": colours.page,
            f"theme.{name}.secondaryBackgroundColor": second,
            f"theme.{name}.textColor": colours.ink,
        }
    return options


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

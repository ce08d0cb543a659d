"""Start the dashboard: where its pages are, and the command that serves them with Streamlit."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.errors import StoreError

# What `app/server.py` is told, as JSON. No argument of a command: those are for all to see.
SETTINGS_VARIABLE = "WEANALYSIS_DASHBOARD"

# All places of this machine, which is no address to open.
_EVERYWHERE = ("0.0.0.0", "::")


def app_folder() -> Path:
    """Return the folder of the Streamlit pages: inside an installed package, else beside it in a checkout.

    Raises StoreError where neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_app", package.parent / "app"):
        if (folder / "main.py").is_file():
            return folder
    raise StoreError(f"the dashboard's pages are missing beside {package}; install weanalysis again")


def launch(
    cache: Cache, port: int = 8501, address: str = "127.0.0.1", open_browser: bool = False, hosts: Sequence[str] = ()
) -> int:
    """Serve the dashboard over `cache` at http://address:port until it is stopped, and return its exit status.

    Where other machines can reach `address`, the dashboard is for who has the token in the address that is printed.
    `hosts` are names by which it is reached beyond this machine's own, as behind a proxy. Ctrl-C and SIGTERM are a
    normal end, status 0. Raises StoreError where the port cannot be had, or Streamlit is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise StoreError("the dashboard needs streamlit, which is not installed; run: pip install streamlit")
    is_local = _check_port(address, port)
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": True,
        # Streamlit would ask who starts it for the first time for an address, and serve nothing until it is answered.
        "server.showEmailPrompt": False,
        # It would also ask a server on the internet for this machine's address, to print it.
        "logger.hideWelcomeMessage": True,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "viewer",
        **_theme(),
    }
    flags = [f"--{name}={_word(value)}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(app_folder() / "server.py"), *flags]
    importable = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        ENVIRONMENT_VARIABLE: str(cache.root),
        "PYTHONPATH": os.pathsep.join(importable),
        SETTINGS_VARIABLE: json.dumps(_settings(address, port, is_local, open_browser, hosts)),
    }
    process = subprocess.Popen(command, env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        status = process.wait()
        return 0 if status == -signal.SIGTERM else status
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


def _settings(address: str, port: int, is_local: bool, open_browser: bool, hosts: Sequence[str]) -> dict[str, Any]:
    """Return what the server needs to know beside Streamlit's options: the token, its own names, what to print."""
    token = secrets.token_urlsafe(32)
    shown = "127.0.0.1" if address in _EVERYWHERE else f"[{address}]" if ":" in address else address
    place = f"http://{shown}:{port}/"
    welcome = f"The dashboard is at {place} until you press Ctrl-C."
    if not is_local:
        welcome = (
            f"The dashboard is at {place}?token={token} until you press Ctrl-C. Whoever has this address can start "
            "commands here. From another machine, put this one's name or number in its place; a name that this machine "
            "does not call itself by must be given with --host NAME."
        )
    names = ["localhost", address, *hosts]
    return {
        "token": token,
        "is_local": is_local,
        "port": port,
        "welcome": welcome,
        "hosts": names if is_local else [*names, socket.gethostname()],
        # A browser's command line is for all to see, and would show the token.
        "open": place if open_browser and is_local else None,
    }


def _check_port(address: str, port: int) -> bool:
    """Raise StoreError where `address` cannot be listened at; tell whether it can be reached from here alone."""
    if not 1 <= port <= 65535:
        raise StoreError(f"{port} is no port; choose one from 1 to 65535 with --port")
    try:
        addresses = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise StoreError(
            f"the dashboard cannot listen at {address}:{port} ({error.strerror or error}); "
            "stop what runs there, or choose another port with --port"
        ) from error
    return all(ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in addresses)


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

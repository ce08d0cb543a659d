"""The server of the dashboard: how it is started, and what is said where it cannot be."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from processes import free_port

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.dashboard import app_folder, launch
from weanalysis.errors import StoreError


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StoreError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
            launch(Cache(tmp_path), port)
    for port in (0, 70_000, -1):
        with pytest.raises(StoreError, match=f"{port} is no port"):
            launch(Cache(tmp_path), port)
    with pytest.raises(StoreError, match=r"cannot listen at no\.such\.host\.invalid"):
        launch(Cache(tmp_path), 8501, "no.such.host.invalid")


def test_without_streamlit_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="pip install streamlit"):
        launch(Cache(tmp_path))


def test_the_pages_are_found_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (app_folder() / "main.py").is_file()
    package = tmp_path / "site-packages" / "weanalysis"
    (package / "_app").mkdir(parents=True)
    monkeypatch.setattr("weanalysis.dashboard.__file__", str(package / "dashboard.py"))
    with pytest.raises(StoreError, match="install weanalysis again"):
        app_folder()
    (package / "_app" / "main.py").touch()
    assert app_folder() == package / "_app"


def test_the_server_is_started_closed_to_others_and_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {}

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]):
            started.update(command=command, env=env)

        def wait(self) -> int:
            return 3

    monkeypatch.setattr("subprocess.Popen", Process)
    assert launch(Cache(tmp_path), port=free_port()) == 3
    options = dict(flag[2:].split("=", 1) for flag in started["command"] if flag.startswith("--"))
    assert options["server.address"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] == "false"
    assert options["client.showErrorDetails"] == "none"
    assert options["server.headless"] == "true"
    assert len(json.loads(options["theme.chartCategoricalColors"])) == 10
    assert started["env"][ENVIRONMENT_VARIABLE] == str(tmp_path)

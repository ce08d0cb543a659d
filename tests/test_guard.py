"""The dashboard among other pages and machines: who is answered, asked with real requests to started servers."""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import CHECKOUT, free_port

HEALTH, STREAM = "/_stcore/health", "/_stcore/stream"


class Server:
    """A dashboard as the command starts it, on a port of its own."""

    def __init__(self, folder: Path, *options: str):
        self.port = free_port()
        folder.mkdir()
        environment = {
            **os.environ,
            "HOME": str(folder),
            "BROWSER": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(CHECKOUT),
        }
        command = [sys.executable, "-m", "weanalysis", "dashboard", "--port", str(self.port), "--cache", str(folder)]
        self.log = folder / "server.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *options], env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def token(self) -> str:
        return re.search(r"\?token=([\w-]+)", self.printed)[1]

    def wait(self) -> Server:
        for _ in range(720):
            try:
                if self.ask(HEALTH)[0] == 200:
                    return self
            except OSError:
                assert self.process.poll() is None, self.printed
            time.sleep(0.25)
        pytest.fail("the dashboard does not serve:\n" + self.printed)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
        """Send one request to this machine, whatever Host it names; `cookie_` gives a token as the browser would."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", headers.pop("host", self.host))
        if token := headers.pop("cookie_", None):
            connection.putheader("Cookie", f"other=1; weanalysis-{self.port}={token}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        body = "" if answer.status == 101 else answer.read().decode(errors="replace")
        connection.close()
        return answer.status, answer.headers, body

    def upgrade(self, **headers: str) -> int:
        """Ask for the WebSocket through which a page's clicks come; 101 opens it."""
        key = base64.b64encode(os.urandom(16)).decode()
        asked = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec_WebSocket_Key": key,
            "Sec_WebSocket_Version": "13",
        }
        return self.ask(STREAM, **asked, **headers)[0]

    def cookie(self) -> str:
        """Return the token as a browser gets it that opens the page."""
        return re.search(rf"weanalysis-{self.port}=([\w-]+)", self.ask("/")[1]["set-cookie"])[1]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One dashboard for this machine alone and one for others too, started side by side."""
    folder = tmp_path_factory.mktemp("servers")
    both = Server(folder / "local"), Server(folder / "open", "--address", "0.0.0.0", "--host", "gpu.example.org")
    try:
        yield both[0].wait(), both[1].wait()
    finally:
        for server in both:
            server.process.terminate()
        ends = [server.process.wait(timeout=120) for server in both]
    assert ends == [0, 0], "to be stopped is a normal end"


@pytest.fixture
def local(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def shared(servers: tuple[Server, Server]) -> Server:
    return servers[1]


def test_who_starts_it_for_the_first_time_is_told_the_address_and_asked_nothing(local: Server) -> None:
    assert f"The dashboard is at http://127.0.0.1:{local.port}/ until" in local.printed
    assert "token" not in local.printed and "mail" not in local.printed.lower()


@pytest.mark.parametrize("path", ["/", "/jobs", HEALTH, "/no/such/page", "/_stcore/host-config", "/?token=wrong"])
def test_nothing_may_be_shown_in_a_frame(path: str, local: Server, shared: Server) -> None:
    for server in (local, shared):
        headers = server.ask(path)[1]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "localhost.evil.example:{port}",
        "",
        "user@127.0.0.1:{port}",
        "127.0.0.1:{port}/x",
        "127.0.0.1:x",
        "2130706433:{port}",
        "gpu.example.org:{port}",
        "10.0.0.1:{port}",
        "0.0.0.0:{port}",
    ],
)
def test_a_foreign_host_is_refused_also_where_its_origin_agrees(host: str, local: Server) -> None:
    host, token = host.format(port=local.port), local.cookie()
    assert local.ask("/", host=host)[0] in (400, 403)
    assert local.ask(HEALTH, host=host)[0] in (400, 403)
    # As a site whose name was pointed at this machine: what it sends agrees with itself.
    assert local.ask("/", host=host, Origin=f"http://{host}", cookie_=token)[0] in (400, 403)
    assert local.upgrade(host=host, Origin=f"http://{host}", cookie_=token) in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:{port}",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "null",
        "",
        "http://127.0.0.1:{port}.evil.example",
        "file://",
    ],
)
def test_a_foreign_origin_is_refused(origin: str, local: Server) -> None:
    origin, token = origin.format(port=local.port), local.cookie()
    assert local.ask("/", Origin=origin, cookie_=token)[0] == 403
    assert local.ask("/_stcore/upload_file/a/b", "PUT", Origin=origin, cookie_=token)[0] == 403
    assert local.upgrade(Origin=origin, cookie_=token) == 403


def test_a_job_needs_the_token_of_the_session(local: Server) -> None:
    token, ours = local.cookie(), f"http://{local.host}"
    assert len(token) > 40
    for wrong in ({}, {"cookie_": "x"}, {"cookie_": token[:-1]}, {"cookie_": "é"}, {"Cookie": f"weanalysis={token}"}):
        assert local.upgrade(Origin=ours, **wrong) == 403, wrong
        assert local.upgrade(**wrong) == 403, "who sends no Origin is no browser, and needs it too"
        assert local.ask("/_stcore/upload_file/a/b", "PUT", **wrong)[0] == 403
        assert local.ask("/_stcore/agent/interact", "POST", **wrong)[0] == 403
    assert local.upgrade(Origin=ours, cookie_=token) == 101
    assert local.upgrade(cookie_=token) == 101


def test_who_opens_a_page_here_gets_the_token_as_a_cookie_that_pages_cannot_read(local: Server) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]", "LOCALHOST", "localhost."):
        status, headers, _ = local.ask("/", host=f"{name}:{local.port}")
        assert status == 200, name
        assert headers["set-cookie"].endswith("; HttpOnly; Path=/; SameSite=Lax")
    assert local.ask("/", host="localhost:9999")[0] == 200, "through a tunnel of another port"
    assert "set-cookie" not in local.ask("/", cookie_=local.cookie())[1]


def test_other_machines_need_the_token_that_is_printed(shared: Server) -> None:
    token = shared.token
    assert len(token) > 40 and token in shared.printed.splitlines()[0]
    for path in ("/", "/jobs", "/_stcore/host-config", "/media/x.png", "/?token=", "/?token=x", f"/?token={token}x"):
        status, headers, body = shared.ask(path)
        assert status == 403 and "set-cookie" not in headers, path
        assert "?token=..." in body and token not in body
    assert shared.ask("/", "POST")[0] == 403
    assert shared.ask(f"/?token={token}", "POST")[0] == 403
    assert shared.upgrade() == shared.upgrade(Origin=f"http://{shared.host}", cookie_="wrong") == 403
    assert shared.ask(HEALTH)[0] == 200, "a container's health check has none"


def test_the_token_goes_from_the_address_into_a_cookie(shared: Server) -> None:
    token = shared.token
    status, headers, _ = shared.ask(f"/location?study=a+b&token={token}")
    assert (status, headers["location"]) == (303, "/location?study=a+b")
    assert f"weanalysis-{shared.port}={token}; HttpOnly" in headers["set-cookie"]
    assert shared.ask("/", cookie_=token)[0] == 200
    assert shared.upgrade(Origin=f"http://{shared.host}", cookie_=token) == 101
    elsewhere = shared.ask(f"//evil.example/x?token={token}")[1]["location"]
    assert elsewhere is None or re.match("/[^/]", elsewhere), "never to another site"


def test_by_other_names_it_answers_only_where_they_were_given(shared: Server) -> None:
    token, port = shared.token, shared.port
    for host in (
        f"gpu.example.org:{port}",
        "GPU.example.org",
        f"192.0.2.7:{port}",
        f"[2001:db8::1]:{port}",
        f"{socket.gethostname()}:{port}",
    ):
        assert shared.ask("/", host=host, cookie_=token)[0] == 200, host
        assert shared.upgrade(host=host, Origin=f"http://{host}", cookie_=token) == 101
        assert shared.ask("/", host=host)[0] == 403
    for host in ("evil.example", f"example.org:{port}", f"x.gpu.example.org:{port}"):
        assert shared.ask("/", host=host, cookie_=token)[0] == 403, host
        assert shared.upgrade(host=host, Origin=f"http://{host}", cookie_=token) == 403


def test_the_token_is_in_no_command_line(shared: Server) -> None:
    own = psutil.Process(shared.process.pid)
    listed = [process.cmdline() for process in (own, *own.children(recursive=True))]
    assert any("streamlit" in words for words in listed)
    assert shared.token not in str(listed)

"""Who may talk to the dashboard: nobody's page but its own, and from other machines only who has the token."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# It says "ok" and no more; a container's health check has no token.
HEALTH = "/_stcore/health"

_FRAMING = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]+)(:\d{1,5})?")

NOT_OURS = "The dashboard does not go by this name. Open the address that it printed, or start it with --host NAME."
FOREIGN = "This comes from a page of another site, and is refused."
NO_TOKEN = "The dashboard is for who has its token: open the address, with ?token=..., that it printed when it began."


class Guard:
    """Middleware in front of all that is served, over HTTP and over the WebSocket through which jobs are started.

    A request must name a host of ours, and come from no page but ours, which the browser tells in `Origin`: a site
    whose name was pointed at this machine agrees with its own origin, but not with our names. It must carry the token,
    as a cookie that no other page can read or send along. Where only this machine is listened to (`is_local`), who
    opens a page gets the cookie; elsewhere it is given for the token in the address. Nothing may be shown in a frame,
    where another page could lead a click of the reader's to a button of ours.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str], is_local: bool, port: int):
        self.app, self.token, self.is_local = app, token, is_local
        self.hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self.cookie = f"weanalysis-{port}"  # a browser sends cookies to every port of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        answer = self._answer(scope)
        gives_cookie = answer is None and self.is_local and scope["type"] == "http" and not self._has_cookie(scope)

        async def send_marked(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _FRAMING.items():
                    headers.append(name, value)
                if gives_cookie:
                    headers.append("Set-Cookie", self._set_cookie())
            await send(message)

        # Starlette's own responses refuse a WebSocket too, before it is one.
        await (self.app if answer is None else answer)(scope, receive, send_marked)

    def _answer(self, scope: Scope) -> Response | None:
        """Return what is answered instead of the dashboard; None for who may see it."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            return PlainTextResponse(NOT_OURS, 403)
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse(FOREIGN, 403)
        looks = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if looks and given and self._is_token(given[-1]):
            return self._without_token(scope["path"], [pair for pair in query if pair[0] != "token"])
        if self._has_cookie(scope) or (looks and (self.is_local or scope["path"] == HEALTH)):
            return None
        return PlainTextResponse(NO_TOKEN, 403)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        if name in self.hosts:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        # A name can be pointed at this machine by anyone, a number by nobody.
        return address.is_loopback or not self.is_local

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    def _has_cookie(self, scope: Scope) -> bool:
        sent = cookie_parser("; ".join(Headers(scope=scope).getlist("cookie")))
        return self._is_token(sent.get(self.cookie, ""))

    def _set_cookie(self) -> str:
        return f"{self.cookie}={self.token}; HttpOnly; Path=/; SameSite=Lax"

    def _without_token(self, path: str, query: list[tuple[str, str]]) -> Response:
        """Lead to the same page without the token, which is in the cookie now and need not be seen in the address."""
        place = "/" + quote(path.lstrip("/\\")) + (f"?{urlencode(query)}" if query else "")
        return RedirectResponse(place, 303, {"Set-Cookie": self._set_cookie(), "Cache-Control": "no-store"})

"""Who may call, and how much a caller may take: the size of a body, the time it may take to arrive, the number of
requests at once.

The health endpoints are under none of these limits: they read no body and always answer.

Without a token, a server is for the user who started it. Pages of other sites show by their headers, and for other
users of the machine the kernel knows whose process is at the other end of the connection.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chm_dagster.api.errors import problem
from chm_dagster.api.pages import is_page, is_visit, login_path
from chm_dagster.serving import OTHER_USER, is_by_other_user
from chm_dagster.sessions import Sessions

PUBLIC = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json", "/login", "/logout"})
PUBLIC_FOLDERS = ("/docs/", "/board/")
"""No client's data is under these."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Authentication:
    """ASGI middleware that refuses unauthorized requests before anything of their bodies is read.

    Refusing is the default: only what is in `PUBLIC` is open to everybody, so that a new route cannot be forgotten.
    """

    def __init__(self, app: ASGIApp, token: str | None, sessions: Sessions | None = None) -> None:
        self._app = app
        self._sessions = sessions
        self._digest = None if token is None else _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        refusal = self._refuse(scope, Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        if is_public(scope["path"]):
            return None
        if self._digest is None and is_by_other_user(scope):
            return problem(403, OTHER_USER)
        is_reading = is_page(scope["path"]) and scope["method"] in ("GET", "HEAD")
        if self._digest is None:
            visited = is_reading and is_visit(scope["method"], headers) and is_meant_for_this_machine(headers)
            return None if visited or is_from_this_machine(headers) else problem(403)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Digests have one length, so that the time of the comparison says nothing about the token.
        matches = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._digest)
        if scheme.lower() == "bearer" and matches:
            return None
        if is_reading and self._sessions is not None:
            # A session opens pages and nothing else: some addresses of the API change something even by GET.
            if self._sessions.is_open(cookie_parser(headers.get("cookie", ""))):
                return None
            if "text/html" in headers.get("accept", "") and not token:
                return RedirectResponse(login_path(scope["path"], scope["query_string"].decode("latin-1")), 303)
        fault = ', error="invalid_token"' if token else ""
        return problem(401, headers={"WWW-Authenticate": f'Bearer realm="chm"{fault}'})


def is_public(path: str) -> bool:
    """Whether everybody may call this path."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def is_from_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request is meant for a server of this machine, and no page of another origin has sent it."""
    host = headers.get("host", "")
    if not is_meant_for_this_machine(headers):
        return False
    # "same-site" is another port of this machine.
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    return "origin" not in headers or headers["origin"].lower() in (f"http://{host}".lower(), f"https://{host}".lower())


def is_meant_for_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request names this machine: a page whose own name points here does not."""
    return _host_name(f"//{headers.get('host', '')}") in LOOPBACK_NAMES


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


MAX_BODY_BYTES = 1_048_576
LARGER_BODIES = {"/api/v1/lineage": 8_388_608, "/api/v1/lineage/batch": 8_388_608}
"""Producers of lineage never send again what is refused, and schema facets of wide tables are large."""
BODY_SECONDS = 30.0
"""A body that has not arrived by then is not waited for."""
MAX_IN_FLIGHT = 256
"""Requests beyond these are rejected at once, rather than queued."""
MAX_PUBLIC_IN_FLIGHT = 16
"""The share of callers that have not authenticated."""
UNLIMITED = frozenset({"/healthz", "/readyz"})


class Limits:
    """ASGI middleware behind authentication: a request that may call waits for nothing but its own work."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_flight = {True: 0, False: 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request within the limits, or reject it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in UNLIMITED:
            await self._app(scope, _replay(b"", receive), send)
            return
        public = is_public(scope["path"])
        if self._in_flight[public] >= (MAX_PUBLIC_IN_FLIGHT if public else MAX_IN_FLIGHT):
            busy = problem(503, "too many requests at once; try again shortly", headers={"Retry-After": "1"})
            await busy(scope, receive, send)
            return
        self._in_flight[public] += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._in_flight[public] -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = LARGER_BODIES.get(scope["path"], MAX_BODY_BYTES)
        with anyio.move_on_after(BODY_SECONDS) as deadline:
            body = await _read(receive, Headers(scope=scope), limit)
        if deadline.cancelled_caught:
            late = problem(408, f"the body did not arrive within {BODY_SECONDS:g} s", headers={"Connection": "close"})
            await late(scope, receive, send)
        elif body == "too large":
            too_large = problem(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})
            await too_large(scope, receive, send)
        elif body != "disconnected":
            await self._app(scope, _replay(body, receive), send)


class HeadRequests:
    """ASGI middleware: HEAD is answered as GET is, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, receive, without_body)
        # What the routing found out is for the middleware around this one.
        scope["route"] = as_get.get("route")


async def _read(receive: Receive, headers: Headers, limit: int) -> bytes | Literal["too large", "disconnected"]:
    """The whole body, before any route starts."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit:
        return "too large"
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return "disconnected"
        body += message.get("body", b"")
        if len(body) > limit:
            return "too large"
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once, and after it whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay

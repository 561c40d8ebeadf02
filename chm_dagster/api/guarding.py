"""What a request must be before any route sees it: from a caller who may ask, and not too large.

Refusing is the default. Only what is in `PUBLIC` is open to everybody, so that a new route cannot be forgotten.

Without a token the server is for its own machine alone. A web page may still send requests there from the browser of
somebody who works on that machine: straight, or under a name of its own that it points to 127.0.0.1. The headers Host,
Origin and Sec-Fetch-Site, which a page cannot forge, give both away.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chm_dagster.api.problems import problem

PUBLIC = frozenset({"/healthz", "/readyz", "/", "/docs", "/openapi.json"})
PUBLIC_FOLDERS = ("/docs/",)
"""Nothing of a client's is under these."""
MAX_BODY_BYTES = 1_048_576
LARGER_BODIES = {"/api/v1/lineage": 8_388_608, "/api/v1/lineage/batch": 8_388_608}
"""Producers of lineage drop for good what is refused, and schema facets of wide tables are large."""
MAX_IN_FLIGHT = 256
"""Requests beyond these are told to come back at once, rather than to wait for those before them."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware between the observer and the routes."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._digest = None if token is None else _digest(token.encode())
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refuse(scope["path"], headers)
        if refusal is None and self._in_flight >= MAX_IN_FLIGHT:
            refusal = problem(503, "too many requests at once; try again shortly", headers={"Retry-After": "1"})
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._serve(scope, receive, send, headers)
        finally:
            self._in_flight -= 1

    def _refuse(self, path: str, headers: Headers) -> Response | None:
        if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            return None
        if self._digest is None:
            return None if is_from_this_machine(headers) else problem(403)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Digests are of one length, so that the time the comparison takes tells nothing of the token.
        right = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._digest)
        if scheme.lower() == "bearer" and right:
            return None
        fault = ', error="invalid_token"' if token else ""
        return problem(401, headers={"WWW-Authenticate": f'Bearer realm="chm"{fault}'})

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        limit = LARGER_BODIES.get(scope["path"], MAX_BODY_BYTES)
        body = await _read(receive, headers, limit)
        if body == "too large":
            too_large = problem(413, f"the body is over {limit} bytes", headers={"Connection": "close"})
            await too_large(scope, receive, send)
        elif body != "gone":
            await self._app(scope, _replay(body, receive), send)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def is_from_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request was meant for a server of this machine, and no page of another site has sent it."""
    if _host_name(f"//{headers.get('host', '')}") not in LOOPBACK_NAMES:
        return False
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin", "same-site"):
        return False
    return "origin" not in headers or _host_name(headers["origin"]) in LOOPBACK_NAMES


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _read(receive: Receive, headers: Headers, limit: int) -> bytes | Literal["too large", "gone"]:
    """The whole body, before any route starts; "gone" if the caller left meanwhile."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit:
        return "too large"
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return "gone"
        body += message.get("body", b"")
        if len(body) > limit:
            return "too large"
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the body once, and after it whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay

"""What is known of every request afterwards: its id, a line in the log, and its place in the metrics."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from chm_dagster.api.metrics import RequestMetrics
from chm_dagster.api.problems import problem

REQUEST_ID = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics")
_SHOWN = 300

log = logging.getLogger(__name__)


class Observer:
    """ASGI middleware, the outermost of ours. It also turns an error that nobody expected into an answer."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(REQUEST_ID))
        answer = _Answer(send, request_id)
        begin = time.perf_counter()
        with bound_contextvars(request_id=request_id), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, answer.send)
            except Exception:
                log.exception("request failed")
                if answer.status is None:
                    await problem(500)(scope, receive, answer.send)
            finally:
                seconds = time.perf_counter() - begin
                route = getattr(scope.get("route"), "path_format", None)
                self._metrics.count(scope["method"], route, answer.status, seconds)
                _log_request(scope, route, answer.status, seconds)


def request_id_of(wished: str | None) -> str:
    """The caller's own id if it is a short plain word, else a new one."""
    return wished if wished is not None and _SANE_ID.fullmatch(wished) else uuid.uuid4().hex


class _Answer:
    """Passes an answer on with the request's id in it, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
        await self._send(message)


def _log_request(scope: Scope, route: str | None, status: int | None, seconds: float) -> None:
    # The path alone: a query may hold anything.
    facts = {
        "method": scope["method"],
        "path": scope["path"][:_SHOWN],
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "peer": (scope.get("client") or [None])[0],
    }
    log.log(logging.DEBUG if scope["path"] in _QUIET and status == 200 else logging.INFO, "request", extra=facts)

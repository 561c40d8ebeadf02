"""The sandbox's HTTP server: CHM's own partner API, plus an endpoint that makes it misbehave.

A response depends only on the world, the app's clock and the request. The `Date` header uses the same clock, so a world
at another time is consistent.
"""

import asyncio
import base64
import binascii
import functools
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chm_dagster.errors import ChmError, InputError, NotFound
from chm_dagster.partners.sandbox.catalogue import SandboxPipeline
from chm_dagster.partners.sandbox.misbehaviour import (
    Endpoint,
    Kind,
    Misbehaviour,
    Misbehaviours,
    TruncatedResponse,
    http_date,
    mixed_with_bad,
    wrong_response,
)
from chm_dagster.partners.sandbox.world import EPOCH, Listing, Position, World
from chm_dagster.serving import serve_in_thread as serve_any_in_thread

DEFAULT_LIMIT = 200
MAX_LIMIT = 1_000
MAX_ACCOUNT_LIMIT = 5_000

SERVER_OPTIONS: dict[str, Any] = {
    "lifespan": "off",
    # The app sends its own Date.
    "date_header": False,
    # A deliberately slow response must not delay the shutdown. 0 would also cut quick ones.
    "timeout_graceful_shutdown": 0.3,
}
"""The uvicorn options that the app needs."""
serve_in_thread = functools.partial(serve_any_in_thread, **SERVER_OPTIONS)

_MAX_CURSOR_CHARS = 300
_BAD_CURSOR = InputError("cursor", "not a cursor of this listing; start again without one")

ENDPOINTS = {
    "GET /pipelines": "the pipelines (cursor, limit)",
    "GET /pipelines/{external_id}/runs": "one pipeline's runs (updated_since, cursor, limit)",
    "GET /runs": "all pipelines' runs (updated_since, cursor, limit)",
    "GET /ui/{external_id}/{run_number}": "one run: the target of a record's url",
    "GET|POST|DELETE /_sandbox/misbehave": "list, add ({kind, external_id, times, seconds}), clear misbehaviour",
    "GET /healthz": "200 while it serves",
}


class SettableClock:
    """A clock for `create_app` that moves only on `advance`."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def __call__(self) -> datetime:
        """The time, aware."""
        return self.time

    def advance(self, by: timedelta) -> datetime:
        """Move forward and return the new time."""
        self.time += by
        return self.time


def wall_clock() -> datetime:
    """The real time, in UTC."""
    return datetime.now(UTC)


def create_app(
    world: World,
    token: str | None,
    *,
    now: Callable[[], datetime] = wall_clock,
    misbehaviours: Misbehaviours | None = None,
    account_wide: bool = True,
) -> Starlette:
    """The sandbox partner as an ASGI app. Without a `token` it needs no authentication.

    `now` is its clock, aware. With `account_wide` False the partner has no `GET /runs` (404). It sends its own `Date`:
    serve it with SERVER_OPTIONS, which turn the server's off.
    """
    sandbox = _Sandbox(world, token, now, misbehaviours or Misbehaviours())
    routes = [
        Route("/", sandbox.index),
        Route("/healthz", sandbox.healthz),
        Route("/ui/{external_id}/{number:int}", sandbox.run),
        Route("/pipelines", sandbox.private(sandbox.pipelines)),
        Route("/pipelines/{external_id}/runs", sandbox.private(sandbox.pipeline_runs)),
        Route("/_sandbox/misbehave", sandbox.private(sandbox.misbehave), methods=["GET", "POST", "DELETE"]),
    ]
    if account_wide:
        routes.append(Route("/runs", sandbox.private(sandbox.account_runs)))
    app = Starlette(routes=routes, exception_handlers={ChmError: _refused, HTTPException: _refused})
    app.add_middleware(_OwnDate, now=now)
    return app


class _Sandbox:
    def __init__(
        self, world: World, token: str | None, now: Callable[[], datetime], misbehaviours: Misbehaviours
    ) -> None:
        self._world = world
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._now = now
        self._misbehaviours = misbehaviours

    def private(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def authenticated(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if self._authorization is not None and not hmac.compare_digest(given, self._authorization):
                return _error(401, "unauthorized", "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
            return await endpoint(request)

        return authenticated

    async def index(self, request: Request) -> Response:
        world = self._world
        about = {"service": "CHM sandbox partner", "seed": world.seed, "pipelines": len(world.pipelines())}
        return _json({**about, "endpoints": ENDPOINTS})

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def run(self, request: Request) -> Response:
        pipeline = self._pipeline(request)
        record = self._world.record(pipeline, request.path_params["number"], self._now(), _base_url(request))
        if record is None:
            raise NotFound("no such run, or not visible yet")
        return _json(record)

    async def pipelines(self, request: Request) -> Response:
        rule = self._misbehaviours.take(Endpoint.INVENTORY)
        if rule and (wrong := await self._wrong(rule)):
            return wrong
        limit, cursor = _limit(request, MAX_LIMIT), request.query_params.get("cursor")
        start = 0 if cursor is None else _read_pipelines_cursor(self._world.seed, cursor)
        everything = self._world.pipelines()
        end = start + limit
        following = _pipelines_cursor(self._world.seed, end) if end < len(everything) else None
        return _page(rule, {"pipelines": [_inventory(p) for p in everything[start:end]], "next_cursor": following})

    async def pipeline_runs(self, request: Request) -> Response:
        pipeline = self._pipeline(request)
        rule = self._misbehaviours.take(Endpoint.PIPELINE_RUNS, pipeline.external_id)
        return await self._runs(request, pipeline, rule, MAX_LIMIT)

    async def account_runs(self, request: Request) -> Response:
        return await self._runs(request, None, self._misbehaviours.take(Endpoint.ACCOUNT_RUNS), MAX_ACCOUNT_LIMIT)

    async def misbehave(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._misbehaviours.clear()
        elif request.method == "POST":
            try:
                body = orjson.loads(await request.body())
            except orjson.JSONDecodeError:
                raise InputError("body", "must be JSON") from None
            known = {p.external_id for p in self._world.pipelines()}
            self._misbehaviours.add(Misbehaviour.from_json(body, known))
        return _json({"misbehaviours": self._misbehaviours.as_json()})

    async def _runs(
        self, request: Request, pipeline: SandboxPipeline | None, rule: Misbehaviour | None, max_limit: int
    ) -> Response:
        if rule and (wrong := await self._wrong(rule)):
            return wrong
        world, base_url = self._world, _base_url(request)
        limit, cursor = _limit(request, max_limit), request.query_params.get("cursor")
        if cursor is None:
            listing, start = world.listing(pipeline, _updated_since(request), self._now()), None
        else:
            index = None if pipeline is None else pipeline.index
            listing, start = _read_runs_cursor(world.seed, cursor, index)
        records, following = world.page(listing, start, limit, base_url)
        if rule and rule.kind is Kind.BAD_RECORDS:
            model = {"pipeline_id": (pipeline or world.pipelines()[0]).external_id, "status": "success", "id": "model"}
            records = mixed_with_bad(records, records[0] if records else model)
        if rule and rule.kind is Kind.CURSOR_LOOP:
            following = start or Position(0 if pipeline is None else pipeline.index, 0)
        next_cursor = _runs_cursor(world.seed, listing, following) if following else None
        return _page(rule, {"runs": records, "next_cursor": next_cursor})

    async def _wrong(self, rule: Misbehaviour) -> Response | None:
        if rule.kind is Kind.SLOW:
            await asyncio.sleep(rule.seconds)
        return wrong_response(rule, self._now())

    def _pipeline(self, request: Request) -> SandboxPipeline:
        pipeline = self._world.pipeline(request.path_params["external_id"])
        if pipeline is None:
            raise NotFound("no such pipeline")
        return pipeline


class _OwnDate:
    """Adds the app's own time to every response as its Date."""

    def __init__(self, app: ASGIApp, now: Callable[[], datetime]) -> None:
        self._app = app
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Taken before the response is made: its content must never be older than its Date.
        date = (b"date", http_date(self._now()).encode())

        async def send_with_date(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), date]
            await send(message)

        await self._app(scope, receive, send_with_date)


def _page(rule: Misbehaviour | None, page: dict[str, Any]) -> Response:
    body = orjson.dumps(page)
    kind = TruncatedResponse if rule and rule.kind is Kind.TRUNCATED else Response
    return kind(body, media_type="application/json")


def _inventory(pipeline: SandboxPipeline) -> dict[str, Any]:
    return {
        "id": pipeline.external_id,
        "name": pipeline.name,
        "platform": pipeline.platform.value,
        "type": pipeline.pipeline_type.value,
        "client": pipeline.client_name,
        "period_seconds": pipeline.period_seconds,
    }


def _limit(request: Request, most: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise InputError("limit", f"must be an integer from 1 to {most}")
    return int(text)


def _updated_since(request: Request) -> datetime | None:
    text = request.query_params.get("updated_since")
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
        # The comparison raises for naive times, and for aware ones beyond the range of UTC.
        return when if when >= EPOCH else EPOCH
    except (ValueError, TypeError, OverflowError):
        raise InputError("updated_since", "must be an ISO 8601 time with a time zone (in a URL, + is %2B)") from None


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _error(error.status_code, "http_error", str(error.detail), dict(error.headers or {}))
    if isinstance(error, NotFound):
        return _error(404, "not_found", str(error))
    return _error(400, "validation_error", str(error))


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": {"code": code, "message": message}}, status, headers)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


# --- cursors: opaque, and refused unless this server issued them
#
# A cursor holds the listing with its time and a position in it, so that later pages belong to the same snapshot. A
# checksum keyed with the seed turns any other string into a 400 instead of an odd response.


def _runs_cursor(seed: int, listing: Listing, position: Position) -> str:
    """The cursor of the page of `listing` that starts at `position`."""
    scope = -1 if listing.pipeline is None else listing.pipeline
    return _pack(seed, "r", listing.as_of_us, listing.since_us, scope, *position)


def _read_runs_cursor(seed: int, cursor: str, pipeline: int | None) -> tuple[Listing, Position]:
    """Listing and position of a cursor. Raises InputError if it was issued elsewhere, or for another listing."""
    numbers = _unpack(seed, "r", cursor, 5)
    listing = Listing(numbers[0], numbers[1], None if numbers[2] == -1 else numbers[2])
    if listing.pipeline != pipeline:
        raise _BAD_CURSOR
    return listing, Position(numbers[3], numbers[4])


def _pipelines_cursor(seed: int, index: int) -> str:
    """The cursor of the page of pipelines that starts at `index`."""
    return _pack(seed, "p", index)


def _read_pipelines_cursor(seed: int, cursor: str) -> int:
    """The index in a cursor of pipelines. Raises InputError."""
    return _unpack(seed, "p", cursor, 1)[0]


def _pack(seed: int, kind: str, *numbers: int) -> str:
    text = ":".join([kind, *map(str, numbers)])
    return base64.urlsafe_b64encode(f"{text}:{_checksum(seed, text)}".encode()).decode().rstrip("=")


def _unpack(seed: int, kind: str, cursor: str, count: int) -> list[int]:
    try:
        padded = cursor[:_MAX_CURSOR_CHARS] + "=" * (-len(cursor) % 4)
        text, _, checksum = base64.b64decode(padded, b"-_", validate=True).decode().rpartition(":")
    except (binascii.Error, ValueError):
        raise _BAD_CURSOR from None
    parts = text.split(":")
    if parts[0] != kind or len(parts) != count + 1 or checksum != _checksum(seed, text):
        raise _BAD_CURSOR
    return [int(part) for part in parts[1:]]


def _checksum(seed: int, text: str) -> str:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=6).hexdigest()

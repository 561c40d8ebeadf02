"""Operations: liveness, readiness and metrics, and what is recorded of every request: an id and a line in the log.

The log has one JSON object per line on standard output, from CHM and from the libraries alike.
"""

import functools
import logging
import re
import sys
import threading
import time
import uuid
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import anyio
import structlog
from fastapi import APIRouter, Request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from chm_dagster.api.errors import documented, problem, unguarded
from chm_dagster.domain.redaction import redact
from chm_dagster.domain.rules import RuleType
from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.warehouse import Warehouse

_metrics_log = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_CLIENTS = 200
"""Clients with series of their own; the others are summed up under `_other`, which is no slug."""
FRESH_SECONDS = 15.0
"""The health of clients is read at most this often, however many servers scrape."""
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """Counts of requests. Labels are the route's template, never the path, and a known method."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "chm_http_requests", "Requests served", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "chm_http_request_duration_seconds",
            "Time from a request's head to its response",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("chm_http_requests_in_flight", "Requests in progress", registry=registry)

    def count(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """Count a request. `route` is None if none matched, `status` if the caller left before the response."""
        method, route = method if method in METHODS else "OTHER", route or "none"
        self._requests.labels(method, route, str(status or 499)).inc()
        self._seconds.labels(method, route).observe(seconds)


class HealthCollector(Collector):
    """Gauges of the clients' health, read from the warehouse during a scrape and kept for a few seconds."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not read the database when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges, and which of them could not be read."""
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._kept = self._read()
                self._read_at = time.monotonic()
            kept = self._kept
        yield from kept

    def _read(self) -> list[Metric]:
        up = GaugeMetricFamily("chm_database_up", "1 if CHM's database answers")
        unread = GaugeMetricFamily("chm_metrics_unavailable", "1 for metrics that could not be read", labels=["part"])
        found: list[Metric] | None = None
        reached = False
        try:
            schema.current(self._warehouse.engine)
            reached = True
            clients = self._warehouse.ask("latest_status_by_client")
            connections = self._warehouse.ask("connections")
            now = datetime.now(UTC)
            alerts = _of_alerts(self._warehouse.ask("open_episodes"), self._warehouse.ask("waiting_messages"), now)
            found = [*_of_all(clients), *_by_client(clients), *_by_connection(connections, now), *alerts]
        except DatabaseUnavailable as error:
            _metrics_log.warning("no health in the metrics: %s", error)
        up.add_metric([], int(reached))
        unread.add_metric(["health"], int(found is None))
        return [up, unread, *(found or ())]


_STATUSES = ("success", "failed", "running", "canceled", "skipped", "never_ran")
_HEALTH = ("failing", "late", "overrunning", "unknown", "healthy", "in_maintenance")


def _of_all(clients: list[dict[str, Any]]) -> Iterator[Metric]:
    by_status = "Active pipelines by the status of their latest run"
    for name, text, label, values in (
        ("chm_pipelines", by_status, "status", _STATUSES),
        ("chm_pipelines_by_health", "Active pipelines by their health", "health", _HEALTH),
    ):
        gauge = GaugeMetricFamily(name, text, labels=[label])
        for value in values:
            gauge.add_metric([value], sum(client[value] for client in clients))
        yield gauge


def _by_connection(connections: list[dict[str, Any]], now: datetime) -> Iterator[Metric]:
    """Whether connections can be read, and how old the knowledge is; no sample for what was never read."""
    labels = ["platform", "connection"]
    up = GaugeMetricFamily("chm_connection_up", "1 if the connection's last sync succeeded", labels=labels)
    behind = GaugeMetricFamily(
        "chm_connection_seconds_behind", "Seconds since the start of the connection's last complete sync", labels=labels
    )
    errors = GaugeMetricFamily(
        "chm_connection_error", "1 for the kind of the connection's latest error or warning", labels=[*labels, "code"]
    )
    newest = GaugeMetricFamily("chm_last_sync_timestamp_seconds", "When the newest complete sync started, Unix time")
    for row in connections:
        name = [row["platform"], row["connection"] or ""]
        up.add_metric(name, int(row["failing_since"] is None and row["read_at"] is not None))
        if row["error_code"] is not None:
            errors.add_metric([*name, row["error_code"]], 1)
        if row["read_at"] is not None:
            behind.add_metric(name, (now - row["read_at"]).total_seconds())
    last = max((row["read_at"] for row in connections if row["read_at"] is not None), default=None)
    if last is not None:
        newest.add_metric([], last.timestamp())
    yield from (up, behind, errors, newest)


_EPISODE_STATES = ("announced", "acknowledged", "unannounced")
_MESSAGE_STATES = ("waiting", "undeliverable")


def _of_alerts(episodes: list[dict[str, Any]], messages: list[dict[str, Any]], now: datetime) -> Iterator[Metric]:
    """What is open, and what could not be delivered; the oldest message only while one waits."""
    found = Tally((row["rule_type"], row["state"]) for row in episodes)
    gauge = GaugeMetricFamily("chm_alert_open_episodes", "Open episodes", labels=["rule_type", "state"])
    for rule_type in RuleType:
        for state in _EPISODE_STATES:
            gauge.add_metric([rule_type, state], found[rule_type, state])
    yield gauge
    states = Tally(row["state"] for row in messages)
    gauge = GaugeMetricFamily("chm_alert_messages", "Messages that no receiver has accepted", labels=["state"])
    for state in _MESSAGE_STATES:
        gauge.add_metric([state], states[state])
    yield gauge
    oldest = GaugeMetricFamily("chm_alert_oldest_waiting_message_seconds", "Age of the oldest message that waits")
    waiting = [row["created_at"] for row in messages if row["state"] == "waiting"]
    if waiting:
        oldest.add_metric([], (now - min(waiting)).total_seconds())
    yield oldest


def _by_client(clients: list[dict[str, Any]]) -> tuple[Metric, Metric]:
    """Active and failing pipelines of each client; the clients with most failures first, if there are too many."""
    pipelines, failing = Tally[str](), Tally[str]()
    for place, client in enumerate(sorted(clients, key=lambda c: (-c["failing"], c["client_slug"]))):
        label = client["client_slug"] if place < MAX_CLIENTS else "_other"
        pipelines[label] += client["pipelines"]
        failing[label] += client["failing"]
    return (
        _gauge("chm_client_pipelines", "Active pipelines", pipelines),
        _gauge("chm_client_pipelines_failing", "Active pipelines that are failing", failing),
    )


def _gauge(name: str, text: str, values: Mapping[str, int]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["client"])
    for slug, value in values.items():
        gauge.add_metric([slug], value)
    return gauge


def registry_for(warehouse: Warehouse) -> tuple[CollectorRegistry, RequestMetrics]:
    """A registry of one app: requests, the process, and the clients' health."""
    registry = CollectorRegistry(auto_describe=False)
    metrics = RequestMetrics(registry)
    ProcessCollector(registry=registry)
    registry.register(HealthCollector(warehouse))
    return registry, metrics


router = APIRouter(tags=["operations"])

READY_SECONDS = 5.0
# Threads of their own: these endpoints answer also while all others wait for the database.
_threads = functools.cache(lambda: anyio.CapacityLimiter(4))


class Alive(BaseModel):
    """The process is running."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Requests can be served."""

    status: Literal["ready"] = "ready"
    revision: str = Field(description="The newest migration of the database and of this release.", examples=["0001"])


@router.get("/healthz", summary="Whether the process is alive", responses=unguarded())
async def liveness() -> Alive:
    """Always 200 while the process runs. The database is not read."""
    return Alive()


@router.get("/readyz", summary="Whether requests can be served", response_model=Ready, responses=unguarded())
async def readiness(request: Request) -> Ready | Response:
    """200 if the tables can be read and are those of this release; 503 says what is wrong."""
    warehouse: Warehouse = request.app.state.probes
    try:
        with anyio.fail_after(READY_SECONDS):
            found = await anyio.to_thread.run_sync(_revision, warehouse, abandon_on_cancel=True, limiter=_threads())
    except (DatabaseUnavailable, TimeoutError):
        return problem(503, "the database is not available, or its tables cannot be read at the moment")
    if found != schema.head():
        level = "was never migrated" if found is None else f"is at revision {found}"
        return problem(503, f"the database {level}, this release needs {schema.head()}: run `chm migrate`")
    return Ready(revision=found)


def _revision(warehouse: Warehouse) -> str | None:
    found = schema.current(warehouse.engine)
    if found == schema.head():
        schema.read_tables(warehouse.engine)
    return found


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented()},
)
async def metrics(request: Request) -> Response:
    """Requests by route, and the health of clients. Where health cannot be read, a series says so."""
    content = await anyio.to_thread.run_sync(generate_latest, request.app.state.registry, limiter=_threads())
    return Response(content, media_type=CONTENT_TYPE_LATEST)


REQUEST_ID = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics")
_SHOWN = 300

log = logging.getLogger(__name__)


class Observer:
    """The outermost ASGI middleware. It also turns an unexpected error into a response."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(REQUEST_ID))
        response = _Response(send, request_id)
        begin = time.perf_counter()
        with bound_contextvars(request_id=request_id), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, response.send)
            except Exception:
                log.exception("request failed")
                if response.status is None:
                    await problem(500)(scope, receive, response.send)
            finally:
                seconds = time.perf_counter() - begin
                route = getattr(scope.get("route"), "path_format", None)
                self._metrics.count(scope["method"], route, response.status, seconds)
                _log_request(scope, route, response.status, seconds)


def request_id_of(sent: str | None) -> str:
    """The caller's id if it is a short plain word, else a new one."""
    return sent if sent is not None and _SANE_ID.fullmatch(sent) else uuid.uuid4().hex


class _Response:
    """Adds the request's id to a response, and remembers its status."""

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


# --- the log --------------------------------------------------------------------------------------------------------


def configure(stream: TextIO = sys.stdout, level: int = logging.INFO) -> None:
    """Set up logging for this process. Call it once, at the entry point."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_EVENT, processors=_LINE))
    logging.basicConfig(handlers=[handler], level=level, force=True)


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Mask what looks like a secret in the texts of an event."""
    event.pop("color_message", None)  # uvicorn's event over again, for terminals
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event


_EVENT: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_LINE: list[Processor] = [
    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    structlog.processors.format_exc_info,
    mask_secrets,
    structlog.processors.JSONRenderer(),
]

"""What Prometheus may scrape: requests by route, and the health of clients, in a bounded number of series."""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse.warehouse import Warehouse

log = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_CLIENTS = 200
"""Series of single clients; further ones are added up under `_other`, which is no slug."""
FRESH_SECONDS = 15.0
"""The health of clients is asked for at most this often, however many servers scrape."""
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """Counts of requests. Labels are the route's template, never the path, and a known method."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "chm_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "chm_http_request_duration_seconds",
            "Time from a request's head to its answer",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("chm_http_requests_in_flight", "Requests not answered yet", registry=registry)

    def count(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """Count a request; `route` is None where no route took it, `status` where the caller left before the answer."""
        method, route = method if method in METHODS else "OTHER", route or "none"
        self._requests.labels(method, route, str(status or 499)).inc()
        self._seconds.labels(method, route).observe(seconds)


class HealthCollector(Collector):
    """Gauges of the clients' health, asked of the warehouse while a scrape waits, and kept for a few seconds."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._asked = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not ask the database when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges; without the health ones while the database does not answer."""
        with self._lock:
            if time.monotonic() - self._asked >= FRESH_SECONDS:
                self._kept = self._ask()
                self._asked = time.monotonic()
            kept = self._kept
        yield from kept

    def _ask(self) -> list[Metric]:
        up = GaugeMetricFamily("chm_database_up", "1 if CHM's database answers")
        try:
            clients = self._warehouse.ask("latest_status_by_client")
        except DatabaseUnavailable as error:
            log.warning("no health in the metrics: %s", error)
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, _by_status(clients), *_by_client(clients)]


_STATUSES = ("success", "failed", "running", "canceled", "skipped", "never_ran")


def _by_status(clients: list[dict[str, Any]]) -> Metric:
    gauge = GaugeMetricFamily("chm_pipelines", "Active pipelines by the status of their latest run", labels=["status"])
    for status in _STATUSES:
        gauge.add_metric([status], sum(client[status] for client in clients))
    return gauge


def _by_client(clients: list[dict[str, Any]]) -> tuple[Metric, Metric]:
    """Active and failing pipelines of each client; the clients with most failures first, if there are too many."""
    pipelines, failing = Tally[str](), Tally[str]()
    for place, client in enumerate(sorted(clients, key=lambda c: (-c["failing"], c["client_slug"]))):
        label = client["client_slug"] if place < MAX_CLIENTS else "_other"
        pipelines[label] += client["pipelines"]
        failing[label] += client["failing"]
    return (
        _gauge("chm_client_pipelines", "Active pipelines", pipelines),
        _gauge("chm_client_pipelines_failing", "Active pipelines whose latest settled run failed", failing),
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

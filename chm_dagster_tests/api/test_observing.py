"""Each request can be traced: by its id, in the log, and in the telemetry."""

import io
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from chm_dagster.api import operations
from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import add_client, add_pipeline
from chm_dagster_tests.api.conftest import TOKEN, caller

pytestmark = pytest.mark.alone


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the process would log, with the configuration of its entry point."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    operations.configure(stream)
    # The HTTP client of the test runs in this process too, and its library logs its requests.
    root.handlers[0].addFilter(lambda record: not record.name.startswith("http"))
    yield stream
    root.handlers, root.level = before, level


def events(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


# --- ids -----------------------------------------------------------------------------------------------------------


def test_a_request_keeps_the_id_that_it_came_with(api: httpx.Client) -> None:
    for path in ("/healthz", "/nowhere", "/api/v1/clients?limit=x"):
        assert api.get(path, headers={"X-Request-ID": "trace-7:a_b.c"}).headers["x-request-id"] == "trace-7:a_b.c"


def test_a_request_without_a_sane_id_gets_one(api: httpx.Client) -> None:
    made = set()
    for wished in ("", "a b", "x" * 129, "<script>", 'a"b', b"\xff", None):
        headers: Any = {} if wished is None else {"X-Request-ID": wished}
        made.add(api.get("/healthz", headers=headers).headers["x-request-id"])
    assert len(made) == 7
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


# --- the log -------------------------------------------------------------------------------------------------------


def test_each_request_is_logged_as_a_line_of_json_without_its_query_string(log: io.StringIO, api: httpx.Client) -> None:
    secret = "sw0rdfish"
    add_pipeline(api, "Acme", "Orders")
    headers = {"X-Request-ID": "one"}
    api.get("/api/v1/pipelines/acme/orders/runs", params={"cursor": secret, "password": secret}, headers=headers)
    api.post("/ping/acme/orders/fail", content=f"password={secret}", headers={"X-Request-ID": "two"})
    api.get(f"/nowhere/token={secret}", headers={"X-Request-ID": "three"})
    by_id = {event["request_id"]: event for event in events(log) if event["event"] == "request"}
    one = by_id["one"]
    assert (one["method"], one["path"], one["status"]) == ("GET", "/api/v1/pipelines/acme/orders/runs", 400)
    assert one["route"] == "/api/v1/pipelines/{pipeline_id}/runs"
    assert (one["level"], one["peer"]) == ("info", "127.0.0.1")
    assert one["duration_ms"] >= 0 and one["timestamp"].endswith("Z")
    assert by_id["three"]["path"] == "/nowhere/token=***"
    assert secret not in log.getvalue()
    assert TOKEN not in log.getvalue()


def test_log_lines_cannot_be_forged(log: io.StringIO, api: httpx.Client) -> None:
    api.get('/nowhere%0A{"event":"forged"}')
    api.get("/nowhere%1b[31m")
    assert all(event["event"] != "forged" for event in events(log))
    assert "\x1b" not in log.getvalue()


def test_successful_probes_are_not_logged(log: io.StringIO, api: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert api.get(path).status_code == 200
    assert [event for event in events(log) if event["event"] == "request"] == []


def test_an_unexpected_error_is_logged_with_its_place_but_without_secrets(
    log: io.StringIO, warehouse: Warehouse
) -> None:
    app = create_app(warehouse, token=TOKEN)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("login failed: password=hunter2")

    with serve_in_thread(app) as url, caller(url, TOKEN) as api:
        api.get("/broken", headers={"X-Request-ID": "seven"})
    error = next(event for event in events(log) if event["level"] == "error")
    assert error["request_id"] == "seven"
    assert "def broken" in error["exception"] or "in broken" in error["exception"]
    assert "password=***" in error["exception"]
    assert "hunter2" not in log.getvalue()


def test_the_reason_for_a_database_failure_is_logged(log: io.StringIO) -> None:
    nowhere = Warehouse(make_engine("postgresql://someuser:hunter2@127.0.0.1:1/nothing"))
    with serve_in_thread(create_app(nowhere, token=TOKEN)) as url, caller(url, TOKEN) as api:
        api.get("/api/v1/clients", headers={"X-Request-ID": "eight"})
    # The API also warns that it cannot note that it is up: that belongs to no request.
    (warning,) = (event for event in events(log) if event["level"] == "warning" and "request_id" in event)
    assert warning["request_id"] == "eight"
    assert "the database does not answer" in warning["event"]
    assert "hunter2" not in log.getvalue()


# --- the metrics ---------------------------------------------------------------------------------------------------


def samples(api: httpx.Client) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_are_counted_and_timed_by_route_not_by_path(api: httpx.Client) -> None:
    for name in ("a", "b", "c"):
        api.get(f"/api/v1/clients/{name}")
        api.get(f"/nowhere/{name}")
        api.request("PROPFIND", "/healthz")
    found = samples(api)
    assert found[("chm_http_requests_total", "GET", "/api/v1/clients/{client_id}", "404")] == 3
    assert found[("chm_http_requests_total", "GET", "none", "404")] == 3
    assert found[("chm_http_requests_total", "OTHER", "/healthz", "405")] == 3
    assert found[("chm_http_request_duration_seconds_count", "GET", "/api/v1/clients/{client_id}")] == 3
    assert found[("chm_http_requests_in_flight",)] == 1
    assert not any("nowhere" in label for key in found for label in key)


def record(api: httpx.Client, pipeline: str, status: str) -> None:
    assert api.post(f"/api/v1/pipelines/{pipeline}/runs", json={"status": status}).status_code == 201


def test_pipelines_are_counted_by_status_and_failures_by_client(api: httpx.Client) -> None:
    for client, name, status in [
        ("Acme", "Orders", "failed"),
        ("Acme", "Bills", "success"),
        ("Bolt", "Orders", "failed"),
        ("Bolt", "Bills", "failed"),
        ("Bolt", "New", None),
    ]:
        add_pipeline(api, client, name)
        if status:
            record(api, f"{client}/{name}".lower(), status)
    found = samples(api)
    assert found[("chm_database_up",)] == 1
    expected = {"failed": 3, "success": 1, "never_ran": 1, "running": 0, "canceled": 0, "skipped": 0}
    assert {status: found[("chm_pipelines", status)] for status in expected} == expected
    by_health = {"failing": 3, "healthy": 1, "unknown": 1, "late": 0, "overrunning": 0}
    assert {health: found[("chm_pipelines_by_health", health)] for health in by_health} == by_health
    assert {c: found[("chm_client_pipelines_failing", c)] for c in ("acme", "bolt")} == {"acme": 1, "bolt": 2}
    assert {c: found[("chm_client_pipelines", c)] for c in ("acme", "bolt")} == {"acme": 2, "bolt": 3}


def test_connections_say_whether_they_can_be_read_and_how_long_ago_they_were(api: httpx.Client, engine: Engine) -> None:
    for name in ("read", "refused", "new"):
        add_pipeline(api, "Acme", name)
    facts = (
        "UPDATE pipelines SET external_id = slug, connection = slug",
        "UPDATE pipelines SET observed_through = now() - interval '100 seconds' WHERE slug <> 'new'",
        "UPDATE pipelines SET sync_attempted_at = now(), sync_failing_since = now(), sync_error = 'no',"
        " sync_error_code = 'credentials_refused' WHERE slug = 'refused'",
    )
    with engine.begin() as connection:
        for statement in facts:
            connection.execute(sa.text(statement))
    found = samples(api)
    up = {key[1]: value for key, value in found.items() if key[0] == "chm_connection_up"}
    behind = {key[1]: value for key, value in found.items() if key[0] == "chm_connection_seconds_behind"}
    assert up == {"read": 1, "refused": 0, "new": 0}
    assert behind.keys() == {"read", "refused"}
    errors = {key[1:]: value for key, value in found.items() if key[0] == "chm_connection_error"}
    assert errors == {("credentials_refused", "refused", "custom"): 1}
    assert min(behind.values()) >= 100
    assert time.time() - found[("chm_last_sync_timestamp_seconds",)] >= 100


def test_clients_beyond_the_limit_are_added_up(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_CLIENTS", 2)
    for client in ("Acme", "Bolt", "Corp", "Dent"):
        add_pipeline(api, client, "Orders")
    record(api, "corp/orders", "failed")
    found = samples(api)
    failing = {key[1]: value for key, value in found.items() if key[0] == "chm_client_pipelines_failing"}
    assert failing == {"corp": 1, "acme": 0, "_other": 0}
    assert found[("chm_client_pipelines", "_other")] == 2


def test_frequent_scrapes_query_the_database_once(api: httpx.Client, engine: Engine) -> None:
    asked = []
    sa.event.listen(engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    add_client(api, "Acme")
    samples(api)
    count = len(asked)
    for _ in range(5):
        samples(api)
    assert len(asked) == count > 0


def test_metrics_work_while_the_database_is_down() -> None:
    nowhere = Warehouse(make_engine("postgresql://nobody@127.0.0.1:1/nothing"))
    with serve_in_thread(create_app(nowhere, token=TOKEN)) as url, caller(url, TOKEN) as api:
        found = samples(api)
        assert found[("chm_database_up",)] == 0
        assert not any(key[0] == "chm_pipelines" for key in found)
        assert any(key[0] == "process_cpu_seconds_total" for key in found)

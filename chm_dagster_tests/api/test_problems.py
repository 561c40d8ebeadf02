"""Every error response has the same shape and the right status, and reveals no more than it should."""

import concurrent.futures
import logging
import threading
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.api.app import create_app
from chm_dagster.api.errors import STATUSES
from chm_dagster.errors import Busy, ChmError, Conflict, DatabaseUnavailable, InputError, NotFound
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import add_client, add_pipeline, details, refused
from chm_dagster_tests.api.conftest import TOKEN, caller

JSON = {"Content-Type": "application/json"}


# --- bodies --------------------------------------------------------------------------------------------------------


def test_a_body_that_is_not_a_json_object_is_rejected_with_the_fix(api: httpx.Client) -> None:
    for content, headers, issue in [
        (b"", JSON, "missing; send a JSON object as application/json"),
        (b"{", JSON, "not JSON: Expecting property name"),
        (b'{"name": "Acme"', JSON, "not JSON"),
        (b"[]", JSON, "not a JSON object"),
        (b"7", JSON, "not a JSON object"),
        (b"null", JSON, "not a JSON object"),
        (b'{"name": "Acme"}', {}, "say so in Content-Type"),
        (b'{"name": "Acme"}', {"Content-Type": "text/plain"}, "say so in Content-Type"),
        (b"name=Acme", {"Content-Type": "application/x-www-form-urlencoded"}, "say so in Content-Type"),
        (b"\xff\xfe\xfa", JSON, "cannot be read"),
        (b"[" * 100_000, JSON, "cannot be read"),
        (b'{"name": ' + b"9" * 5_000 + b"}", JSON, "cannot be read"),
    ]:
        answer = api.post("/api/v1/clients", content=content, headers=headers)
        assert refused(answer, 400) == {"body"}, content[:40]
        assert issue in details(answer)["body"], content[:40]
    assert api.get("/api/v1/clients").json()["items"] == []


def test_values_that_postgres_cannot_store_are_rejected_by_field(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    runs = "/api/v1/pipelines/acme/orders/runs"
    for path, body, field in [
        ("/api/v1/clients", '{"name": "a\\u0000b"}', "name"),
        ("/api/v1/clients", '{"name": "a\\ud800b"}', "name"),
        ("/api/v1/clients", '{"name": NaN}', "name"),
        ("/api/v1/clients", '{"name": ["Acme"]}', "name"),
        ("/api/v1/clients", '{"name": "   "}', "name"),
        (runs, '{"status": "success", "rows_processed": 9223372036854775808}', "rows_processed"),
        (runs, '{"status": "success", "rows_processed": 1e999}', "rows_processed"),
        (runs, '{"status": "success", "duration_seconds": Infinity}', "duration_seconds"),
        (runs, '{"status": "success", "started_at": "9999-12-31T23:59:59-12:00"}', "started_at"),
        (runs, '{"status": "success", "started_at": "2026-03-01T06:00:00"}', "started_at"),
        (runs, '{"status": "success", "external_run_id": ""}', "external_run_id"),
        (runs, '{"status": true}', "status"),
    ]:
        assert refused(api.post(path, content=body, headers=JSON), 400) == {field}, body


def test_hostile_payloads_are_stored_without_harm(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    body = '{"status": "success", "payload": {"a\\u0000": "\\ud800", "n": NaN, "big": 1e999, "token": "s3cret"}}'
    answer = api.post("/api/v1/pipelines/acme/orders/runs", content=body, headers=JSON)
    assert answer.status_code == 201
    assert answer.json()["payload"] == {"a\ufffd": "\ufffd", "n": None, "big": None, "token": "***"}


def test_a_rejected_value_is_not_echoed(api: httpx.Client) -> None:
    secret = "hunter2" * 3
    for answer in (
        api.post("/api/v1/clients", json={"name": {"password": secret}, "slug": f"S {secret}"}),
        api.get("/api/v1/clients", params={"limit": secret, "cursor": secret, "active": secret}),
        api.post("/api/v1/alert_rules", json={"destination": f"https://u:{secret}@h", "rule_type": secret}),
    ):
        assert answer.status_code == 400
        assert secret not in answer.text


# --- races ---------------------------------------------------------------------------------------------------------


def test_concurrent_creations_of_the_same_thing_give_one_success_and_conflicts(api: httpx.Client) -> None:
    """All requests pass validation and race in the database: the constraint decides, and it is not a server error."""
    add_client(api, "Bolt")
    tries = 12
    barrier = threading.Barrier(tries)
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/clients", {"name": "Acme", "slug": "acme"}),
        (
            "/api/v1/clients/bolt/pipelines",
            {"name": "Orders", "slug": "orders", "platform": "cron", "pipeline_type": "export"},
        ),
        (
            "/api/v1/alert_rules",
            {"client_id": "bolt", "rule_type": "on_failure", "channel": "slack", "destination": "#d"},
        ),
    ]

    def post(path: str, body: dict[str, Any]) -> int:
        barrier.wait()
        return api.post(path, json=body).status_code

    with concurrent.futures.ThreadPoolExecutor(tries) as pool:
        for path, body in wishes:
            statuses = sorted(pool.map(post, [path] * tries, [body] * tries))
            assert statuses == [201, *[409] * (tries - 1)], path


def test_concurrent_posts_with_the_same_key_make_one_run(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    path, tries = "/api/v1/pipelines/acme/orders/runs", 8
    barrier = threading.Barrier(tries)

    def post(_: int) -> tuple[int, str]:
        barrier.wait()
        answer = api.post(path, json={"status": "success"}, headers={"Idempotency-Key": "k1"})
        return answer.status_code, answer.json()["id"]

    with concurrent.futures.ThreadPoolExecutor(tries) as pool:
        answers = set(pool.map(post, range(tries)))
    assert answers == {(201, api.get(f"{path}/latest").json()["id"])}
    assert len(api.get(path).json()["items"]) == 1


# --- server errors, and errors of the database ---------------------------------------------------------------------


def test_every_error_that_an_api_client_can_meet_has_a_status() -> None:
    assert set(STATUSES) == {InputError, NotFound, Conflict, Busy, DatabaseUnavailable}
    assert all(issubclass(kind, ChmError) for kind in STATUSES)


def test_an_unexpected_error_is_reported_without_its_text(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(warehouse, token=TOKEN)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("a secret of ours")

    @app.get("/unknown")
    def unknown() -> None:
        raise ChmError("another secret of ours")

    with serve_in_thread(app) as url, caller(url, TOKEN) as api, caplog.at_level(logging.ERROR):
        for path in ("/broken", "/unknown"):
            answer = api.get(path)
            assert refused(answer, 500) == set()
            assert "secret" not in answer.text
            assert answer.headers["x-request-id"]
        assert api.get("/healthz").status_code == 200
    assert "a secret of ours" in caplog.text


def test_an_unreachable_database_is_a_503_with_retry_after() -> None:
    nowhere = Warehouse(make_engine("postgresql://someuser:pw@127.0.0.1:1/somedb"))
    with serve_in_thread(create_app(nowhere, token=TOKEN)) as url, caller(url, TOKEN) as api:
        for method, path, body in [
            ("GET", "/api/v1/clients", None),
            ("POST", "/api/v1/clients", {"name": "Acme"}),
            ("GET", "/api/v1/health/failing", None),
            ("POST", "/ping/acme/orders/start", None),
        ]:
            answer = api.request(method, path, json=body)
            refused(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
            assert not any(word in answer.text for word in ("someuser", "somedb", "127.0.0.1"))
        refused(api.post("/api/v1/clients", json={"name": ""}), 400)


def test_the_api_recovers_after_a_database_outage(api: httpx.Client, engine: Engine) -> None:
    add_client(api, "Acme")
    url = engine.url.render_as_string(hide_password=False).replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert api.get("/api/v1/clients/acme").status_code == 200


def test_a_statement_that_takes_too_long_is_canceled_with_a_503(database_url: str) -> None:
    engine = make_engine(database_url, statement_seconds=1)
    app = create_app(Warehouse(engine), token=TOKEN)
    with serve_in_thread(app) as url, caller(url, TOKEN) as api:
        add_client(api, "Acme")
        with make_engine(database_url).begin() as holder:
            holder.execute(sa.text("LOCK TABLE clients IN ACCESS EXCLUSIVE MODE"))
            answer = api.patch("/api/v1/clients/acme", json={"name": "Other"})
        refused(answer, 503)
        assert api.patch("/api/v1/clients/acme", json={"name": "Other"}).status_code == 200
    engine.dispose()

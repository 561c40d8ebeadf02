"""The receiver as producers see it: over a socket, with gzip, batches, unknown jobs and overload."""

import gzip
import json
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.api.admission import MAX_IN_FLIGHT
from chm_dagster.api.app import create_app
from chm_dagster.ingestion.lineage import UnmatchedEvents, jobs, replay
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP
from chm_dagster_tests.factories import rows
from chm_dagster_tests.lineage.recorded import events, sent
from chm_dagster_tests.lineage.test_receiving import pipeline

PATH = "/api/v1/lineage"


@pytest.fixture
def unmatched(tmp_path: Path) -> UnmatchedEvents:
    return UnmatchedEvents(tmp_path / "lineage")


@pytest.fixture
def api(engine: sa.Engine, unmatched: UnmatchedEvents) -> Iterator[httpx.Client]:
    app = create_app(Warehouse(engine), token="t", unmatched_events=unmatched)
    with (
        serve_in_thread(app) as url,
        httpx.Client(
            base_url=url, headers={"Authorization": "Bearer t"}, trust_env=False, verify=PLAIN_HTTP, timeout=30
        ) as client,
    ):
        yield client


def test_recorded_airflow_events_become_runs(api: httpx.Client, engine: sa.Engine) -> None:
    for job in ("p_success", "p_fail", "p_skip", "p_slow", "p_flaky"):
        pipeline(engine, job)
    for event in events("airflow"):
        assert api.post(PATH, json=event).status_code == 201
    found = rows(engine, "SELECT external_run_id, status FROM runs ORDER BY 1")
    assert [(row["external_run_id"], row["status"]) for row in found] == [
        ("ol_p_fail", "failed"),
        ("ol_p_flaky", "success"),
        ("ol_p_skip", "skipped"),
        ("ol_p_slow", "canceled"),
        ("ol_p_success", "success"),
    ]


def test_a_compressed_event_is_accepted(api: httpx.Client, engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="dbt")
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = api.post(PATH, content=gzip.compress(json.dumps(sent()).encode()), headers=headers)
    assert (answer.status_code, answer.json()["outcome"]) == (201, "inserted")


@pytest.mark.parametrize(
    ("body", "encoding", "issue"),
    [
        (gzip.compress(b" " * 9_000_000, mtime=0), "gzip", "after decompression"),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", "truncated"),
        (b"plain", "gzip", "is not gzip"),
        (b"{}", "br", "compressed with gzip"),
        (b"{", "identity", "not JSON"),
        (b"[]", "identity", "not an object"),
        (json.dumps({**sent(), "eventTime": "yesterday"}).encode(), "identity", "not a time"),
    ],
    ids=["bomb", "cut", "plain", "brotli", "no JSON", "no object", "no time"],
)
def test_an_invalid_event_is_rejected(api: httpx.Client, body: bytes, encoding: str, issue: str) -> None:
    answer = api.post(PATH, content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == 400
    assert issue in answer.json()["error"]["message"]


def test_an_event_about_no_run_is_accepted(api: httpx.Client) -> None:
    event = {k: v for k, v in sent().items() if k != "run"}
    answer = api.post(PATH, json=event)
    assert (answer.status_code, answer.json()["outcome"]) == (201, "ignored")


def test_events_of_an_unknown_job_are_kept_until_its_pipeline_is_there(
    api: httpx.Client, engine: sa.Engine, unmatched: UnmatchedEvents
) -> None:
    secret = {"errorMessage": {"message": "password=hunter2"}}
    for event in (sent(), sent("FAIL", "2026-11-23T12:00:09Z", facets=secret)):
        answer = api.post(PATH, json=event)
        assert (answer.status_code, answer.json()["outcome"]) == (201, "unmatched")
    (file,) = unmatched.folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"hunter2" not in file.read_bytes()
    assert [(job["namespace"], job["job"], job["events"]) for job in jobs(unmatched)] == [("acme", "orders", 2)]
    pipeline(engine, "orders", connection="acme", platform="dbt")
    assert replay(engine, unmatched) == {"inserted": 1, "updated": 1}
    assert replay(engine, unmatched) == {"unchanged": 2}
    assert [row["status"] for row in rows(engine, "SELECT status FROM runs")] == ["failed"]


def test_a_full_store_of_unmatched_events_responds_503(engine: sa.Engine, tmp_path: Path) -> None:
    app = create_app(Warehouse(engine), unmatched_events=UnmatchedEvents(tmp_path / "lineage", room=100))
    with serve_in_thread(app) as url:
        answer = httpx.post(url + PATH, json=sent(), trust_env=False, verify=PLAIN_HTTP)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_an_unwritable_store_of_unmatched_events_responds_503(engine: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / "lineage").write_text("a file where the folder should be")
    with serve_in_thread(create_app(Warehouse(engine), unmatched_events=UnmatchedEvents(tmp_path / "lineage"))) as url:
        answer = httpx.post(url + PATH, json=sent(), trust_env=False, verify=PLAIN_HTTP)
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def test_a_line_truncated_by_a_crash_costs_no_other_event(unmatched: UnmatchedEvents) -> None:
    unmatched.put(sent(job="first"))
    (file,) = unmatched.folder.iterdir()
    with file.open("ab") as cut:
        cut.write(b'{"eventType": "STA')
    assert [event["job"]["name"] for event in unmatched.events()] == ["first"]
    unmatched.put(sent(job="second"))
    unmatched.put(sent(job="third"))
    assert [event["job"]["name"] for event in unmatched.events()] == ["first", "second", "third"]


def test_a_batch_reports_invalid_events_and_accepts_the_others(api: httpx.Client, engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="dbt")
    answer = api.post(PATH + "/batch", json=[sent(), {"run": {}}, sent("COMPLETE", "2026-11-23T12:00:09Z")])
    assert answer.status_code == 200
    assert answer.json()["status"] == "partial_success"
    assert answer.json()["summary"] == {"received": 3, "successful": 2, "failed": 1}
    assert [event["index"] for event in answer.json()["failed_events"]] == [1]
    assert [row["status"] for row in rows(engine, "SELECT status FROM runs")] == ["success"]


def test_without_a_database_the_producer_gets_a_503_to_retry() -> None:
    nowhere = make_engine("postgresql://nobody@127.0.0.1:1/none")
    with serve_in_thread(create_app(Warehouse(nowhere))) as url:
        answer = httpx.post(url + PATH, json=sent(), trust_env=False, verify=PLAIN_HTTP)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.slow
def test_under_overload_producers_get_a_503_and_no_accepted_event_is_lost(api: httpx.Client, engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="dbt")
    accepted: list[str] = []
    statuses: list[int] = []

    def produce(number: int) -> None:
        for n in range(4):
            run = f"{number}-{n}"
            answer = api.post(PATH, json=sent("COMPLETE", run=run))
            statuses.append(answer.status_code)
            if answer.status_code == 201:
                accepted.append(run)

    # The lock blocks everything, so that the server fills up.
    with engine.connect() as blocker:
        blocker.exec_driver_sql("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        api._transport._pool._max_connections = 2 * MAX_IN_FLIGHT  # type: ignore[attr-defined]
        threads = [threading.Thread(target=produce, args=(n,)) for n in range(MAX_IN_FLIGHT + 40)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while 503 not in statuses and time.monotonic() < deadline:
            time.sleep(0.05)
        blocker.rollback()
    for thread in threads:
        thread.join()
    assert set(statuses) == {201, 503}
    kept = {row["external_run_id"] for row in rows(engine, "SELECT external_run_id FROM runs")}
    assert kept == set(accepted)

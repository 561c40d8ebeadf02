"""Events in a real ledger: the result is the same in any order, also when a sync reports the same runs."""

import random
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from chm_dagster.domain.lineage import LineageEvent, read_event
from chm_dagster.domain.runs import Observation, RunStatus
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.lineage import EventOutcome, receive
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import observation, rows
from chm_dagster_tests.lineage.recorded import LATEST, events, of_task, sent

SHOWN = "external_run_id, status, started_at, finished_at, duration_seconds, rows_processed, error_message, status_reason, payload, source_version, lineage"
JOBS = ("p_success", "p_fail", "p_skip", "p_slow", "p_flaky")


def pipeline(engine: sa.Engine, external_id: str, **fields: Any) -> UUID:
    warehouse = Warehouse(engine)
    if not warehouse.clients.list().items:
        warehouse.clients.create("Acme")
    given = {"platform": "airflow", "pipeline_type": "ingestion", "connection": "acme-airflow", **fields}
    return warehouse.pipelines.create("acme", {"name": external_id, "external_id": external_id, **given}).id


def tell(engine: sa.Engine, event: dict[str, Any]) -> list[EventOutcome]:
    said = read_event(event, LATEST)
    assert isinstance(said, LineageEvent), said
    return list(receive(engine, said).values())


def ledger(engine: sa.Engine) -> list[dict[str, Any]]:
    return [dict(row) for row in rows(engine, f"SELECT {SHOWN} FROM runs ORDER BY pipeline_id, external_run_id")]


def synced(pipeline_id: UUID) -> list[Observation]:
    """What syncs saw of the run that failed, was cleared and failed again; the times are Airflow's own."""
    day = datetime(2026, 11, 23, 11, 59, tzinfo=UTC)
    first, end = day + timedelta(seconds=0.232393), day + timedelta(seconds=6.227031)
    again, last = day + timedelta(seconds=28.415994), day + timedelta(seconds=34.556615)
    seen = [(RunStatus.RUNNING, first, first, None), (RunStatus.FAILED, end, first, end)]
    seen += [(RunStatus.RUNNING, again, again, None), (RunStatus.FAILED, last, again, last)]
    return [
        observation(
            pipeline_id,
            "ol_p_fail",
            status=status,
            started_at=start,
            finished_at=finish,
            duration_seconds=None if finish is None else (finish - start).total_seconds(),
            error_message="as the sync found it" if status is RunStatus.FAILED else None,
            source_version=version,
            observed_at=version + timedelta(seconds=1),
        )
        for status, version, start, finish in seen
    ]


def deliver(engine: sa.Engine, deliveries: Sequence[dict[str, Any] | Observation]) -> list[dict[str, Any]]:
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    for delivery in deliveries:
        if isinstance(delivery, Observation):
            with engine.begin() as connection:
                merge_runs(connection, [delivery])
        else:
            tell(engine, delivery)
    return ledger(engine)


@pytest.mark.parametrize("orders", [12, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("synced_until", [2, 4], ids=["a sync behind", "a sync ahead"])
def test_shuffled_and_repeated_events_and_syncs_give_one_ledger(
    engine: sa.Engine, orders: int, synced_until: int
) -> None:
    ids = {job: pipeline(engine, job) for job in JOBS}
    sent_events: list[dict[str, Any] | Observation] = [*events("airflow"), *synced(ids["p_fail"])[:synced_until]]
    wanted = deliver(engine, sent_events)
    assert [(r["external_run_id"], r["status"]) for r in sorted(wanted, key=lambda r: r["external_run_id"])] == [
        ("ol_p_fail", "failed"),
        ("ol_p_flaky", "success"),
        ("ol_p_skip", "skipped"),
        ("ol_p_slow", "canceled"),
        ("ol_p_success", "success"),
    ]
    for seed in range(orders):
        chance = random.Random(seed)
        shuffled = sent_events + chance.choices(sent_events, k=len(sent_events) // 2)
        chance.shuffle(shuffled)
        assert deliver(engine, shuffled) == wanted, f"order {seed}"


def test_the_same_event_sent_six_times_is_written_once(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="dbt")
    assert tell(engine, sent()) == ["inserted"]
    before = rows(engine, "SELECT xmin::text, ctid::text FROM runs")
    for _ in range(5):
        assert tell(engine, sent()) == ["unchanged"]
    assert rows(engine, "SELECT xmin::text, ctid::text FROM runs") == before


def test_a_task_event_that_arrives_first_creates_a_running_run_that_run_events_complete(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="openlineage:acme", platform="dbt")
    assert tell(engine, of_task("FAIL", error="no disk")) == ["inserted"]
    assert ledger(engine)[0]["status"] == "running"
    tell(engine, sent("FAIL", "2026-11-23T12:00:09Z"))
    tell(engine, sent("START", "2026-11-23T12:00:00Z"))
    (run,) = ledger(engine)
    assert (run["status"], run["error_message"], run["duration_seconds"]) == ("failed", "no disk", 9.0)


def test_events_match_the_pipeline_of_their_namespace_and_not_its_namesake(engine: sa.Engine) -> None:
    ours = pipeline(engine, "orders", connection="acme", platform="dbt")
    pipeline(engine, "orders", name="other", connection="elsewhere", platform="custom")
    pipeline(engine, "orders", name="any", connection=None, platform="cron")
    tell(engine, sent())
    assert [row["pipeline_id"] for row in rows(engine, "SELECT pipeline_id FROM runs")] == [ours]


def test_events_match_a_pipeline_without_a_connection_if_no_other_matches(engine: sa.Engine) -> None:
    only = pipeline(engine, "orders", connection=None, platform="dbt")
    tell(engine, sent())
    assert [row["pipeline_id"] for row in rows(engine, "SELECT pipeline_id FROM runs")] == [only]


def test_events_of_a_disabled_or_unknown_job_match_no_pipeline(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", is_active=False)
    assert tell(engine, sent()) == []
    assert tell(engine, sent(job="unheard-of")) == []
    assert ledger(engine) == []


def test_a_task_without_its_airflow_run_id_creates_no_ghost_run(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="airflow")
    assert tell(engine, of_task()) == ["ignored"]
    assert ledger(engine) == []


def test_a_pipeline_that_is_fed_by_events_only_is_not_synced(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="openlineage:acme", platform="dbt")
    assert ingested_pipelines(engine) == []


def test_concurrent_events_of_one_run_lose_nothing(engine: sa.Engine) -> None:
    pipeline(engine, "orders", connection="acme", platform="dbt")
    sent_events = [sent(), of_task("FAIL", error="no disk"), sent("FAIL", "2026-11-23T12:00:09Z")] * 4
    threads = [threading.Thread(target=tell, args=(engine, event)) for event in sent_events]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = ledger(engine)
    assert (run["status"], run["error_message"], run["duration_seconds"]) == ("failed", "no disk", 9.0)

"""Runs that are unfinished in the ledger do not run forever, and known details of a run are not lost."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.runs import KnownDetails, OpenRun, RunStatus
from chm_dagster.domain.sync import IngestReport
from chm_dagster.ingestion.ingest import ingest, remap
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.partners.platforms.generic import GenericMapper
from chm_dagster.partners.port import (
    Capabilities,
    Partner,
    PipelinesFailed,
    PipelinesSynced,
    RecordBatch,
    RunsNotFound,
    SyncTarget,
)
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.heartbeats import Signal, ping
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.ledger.runs import failing_runs, known_details, open_runs
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, FakeFeed, add_pipeline, minutes, observation, one_page, record, rows

LATER = T0 + timedelta(hours=2)
CAN = Capabilities(finds_deletions=True, looks_further=True, reopens=True)
Event = RecordBatch | PipelinesSynced | PipelinesFailed | RunsNotFound


@pytest.fixture
def zone(landing_root: Path) -> LandingZone:
    return LandingZone(landing_root)


def run(
    engine: sa.Engine, feed: FakeFeed, landing: Landing, capabilities: Capabilities = CAN, **more: Any
) -> IngestReport:
    partners = {"default": Partner("default", lambda: feed, GenericMapper(reopens=True), capabilities=capabilities)}
    report = ingest(engine, partners, ingested_pipelines(engine), landing, **more)
    assert all(p.accounted_for for p in report.pipelines.values())
    assert landing.count_records() == report.fetched
    return report


def ledger(engine: sa.Engine) -> dict[str, Any]:
    query = "SELECT external_run_id, status, status_reason, started_at, finished_at, payload FROM runs"
    return {row["external_run_id"]: dict(row) for row in rows(engine, query)}


def vanishing(target: SyncTarget) -> Sequence[Event]:
    """A partner that has none of the runs that are unfinished in the ledger."""
    gone = [RunsNotFound(target.external_id, target.open_runs, LATER)] if target.open_runs else []
    return [*gone, PipelinesSynced([target.external_id], LATER - minutes(5), LATER)]


def test_a_run_that_vanished_while_running_ends_as_deleted_and_stays(engine: sa.Engine, zone: LandingZone) -> None:
    add_pipeline(engine)
    running = record("r1", "running", note="kept")
    run(engine, FakeFeed(lambda t: one_page(t.external_id, running, record("r2"))), zone.open("one"))
    report = run(engine, FakeFeed(vanishing), zone.open("two"))
    assert (report.fetched, report.counts.updated) == (1, 1)
    found = ledger(engine)
    assert found["r1"]["status"] == "canceled"
    assert found["r1"]["status_reason"] == "deleted at the source"
    assert (found["r1"]["started_at"], found["r1"]["finished_at"]) == (T0, None)
    assert found["r1"]["payload"]["note"] == "kept"
    assert found["r2"]["status"] == "success"
    again = run(engine, FakeFeed(vanishing), zone.open("three"))
    assert again.fetched == 0


def test_only_unfinished_runs_of_the_pipeline_are_looked_up(engine: sa.Engine, zone: LandingZone) -> None:
    for name in ("one", "other"):
        add_pipeline(engine, name)
    feed = FakeFeed(lambda t: one_page(t.external_id, record(f"{t.external_id}-r", "running"), record("done")))
    run(engine, feed, zone.open("one"))
    assert [t.open_runs for t in feed.asked] == [(), ()]
    run(engine, feed, zone.open("two"))
    asked = {t.external_id: [open_run.external_run_id for open_run in t.open_runs] for t in feed.asked[2:]}
    assert asked == {"acme-one": ["acme-one-r"], "acme-other": ["acme-other-r"]}


def test_a_partner_without_lookups_is_not_asked(engine: sa.Engine, zone: LandingZone) -> None:
    add_pipeline(engine)
    feed = FakeFeed(
        lambda t: one_page(t.external_id, record("r1", "running"), record("r2", "failed", error_message="x"))
    )
    for name in ("one", "two"):
        run(engine, feed, zone.open(name), Capabilities())
    assert all((t.open_runs, t.known_details) == ((), {}) for t in feed.asked)


def test_a_later_record_of_a_run_wins_over_its_deletion(engine: sa.Engine, zone: LandingZone) -> None:
    add_pipeline(engine)
    first = record("r1", "running", updated_at=T0.isoformat())
    run(engine, FakeFeed(lambda t: one_page(t.external_id, first)), zone.open("one"))
    run(engine, FakeFeed(vanishing), zone.open("two"))
    back = record("r1", "success", updated_at=(T0 + minutes(10)).isoformat())
    run(engine, FakeFeed(lambda t: one_page(t.external_id, back, at=LATER + minutes(5))), zone.open("three"))
    assert ledger(engine)["r1"]["status"] == "success"


def test_an_earlier_deletion_does_not_undo_a_later_record(engine: sa.Engine, zone: LandingZone) -> None:
    (pipeline,) = [add_pipeline(engine)]
    run(
        engine,
        FakeFeed(lambda t: one_page(t.external_id, record("r1", "running", updated_at=T0.isoformat()))),
        zone.open("one"),
    )
    run(engine, FakeFeed(vanishing), zone.open("two"))
    back = record("r1", "success", updated_at=(T0 + minutes(10)).isoformat())
    run(engine, FakeFeed(lambda t: one_page(t.external_id, back, at=LATER + minutes(5))), zone.open("three"))
    partners = {
        "default": Partner("default", lambda: FakeFeed(vanishing), GenericMapper(reopens=True), capabilities=CAN)
    }
    replay = remap(engine, partners, [pipeline], zone.open("two"))
    assert (replay.fetched, replay.counts.stale) == (1, 1)
    assert ledger(engine)["r1"]["status"] == "success"


def test_replaying_a_deletion_writes_nothing(engine: sa.Engine, zone: LandingZone) -> None:
    pipeline = add_pipeline(engine)
    run(engine, FakeFeed(lambda t: one_page(t.external_id, record("r1", "running"))), zone.open("one"))
    run(engine, FakeFeed(vanishing), zone.open("two"))
    partners = {
        "default": Partner("default", lambda: FakeFeed(vanishing), GenericMapper(reopens=True), capabilities=CAN)
    }
    replay = remap(engine, partners, [pipeline], zone.open("two"), dry_run=True)
    assert (replay.counts.unchanged, replay.counts.updated) == (1, 0)


def test_a_landed_deletion_is_read_back_unchanged(zone: LandingZone) -> None:
    landing = zone.open("one")
    runs = [
        OpenRun("r1", T0, 2, T0 + minutes(1), "https://x.example/1", {"note": "ä", "n": 2**70}),
        OpenRun("r2", None, 0, None, None, {}),
    ]
    with landing.writer("acme") as file:
        file.add(RunsNotFound("p1", runs, LATER))
    (event,) = landing.events("acme")
    assert event == RunsNotFound("p1", runs, LATER)
    assert landing.count_records() == 2


# Queries on the ledger


def test_the_ledger_returns_unfinished_runs_with_their_order_of_knowledge(engine: sa.Engine) -> None:
    pipeline, other = add_pipeline(engine), add_pipeline(engine, "other")
    version = T0 + minutes(3)
    _merge(
        engine,
        observation(pipeline.id, "a", status=RunStatus.RUNNING, attempt=2, source_version=version, payload={"x": 1}),
        observation(pipeline.id, "b"),
        observation(other.id, "c", status=RunStatus.RUNNING),
    )
    assert open_runs(engine, [pipeline.id]) == {pipeline.id: (OpenRun("a", T0, 2, version, None, {"x": 1}),)}
    assert open_runs(engine, []) == {}


def test_no_partner_is_asked_for_a_run_that_it_cannot_know(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    warehouse = Warehouse(engine)
    warehouse.runs.record(pipeline.key, {"status": "running"})
    ping(engine, pipeline.key, Signal.START)
    warehouse.runs.record(pipeline.key, {"status": "running", "external_run_id": "r1"})
    assert [run.external_run_id for run in open_runs(engine, [pipeline.id])[pipeline.id]] == ["r1"]


def test_unfinished_runs_are_found_by_their_index(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    _merge(engine, *(observation(pipeline.id, f"r{n}") for n in range(2_000)))
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    open_runs(engine, [pipeline.id])
    query = next(statement for statement in statements if "running" in statement)
    with engine.connect() as connection:
        connection.execute(sa.text("ANALYZE runs"))
        plan = connection.exec_driver_sql(f"EXPLAIN {query}", {"param_1": [pipeline.id]}).scalars().all()
    assert any("ix_runs_running" in line for line in plan), plan


def test_the_ledger_returns_recent_errors_and_row_counts(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    _merge(
        engine,
        observation(pipeline.id, "failed", status=RunStatus.FAILED, error_message="no disk", rows_processed=None),
        observation(pipeline.id, "counted", rows_processed=7),
        observation(pipeline.id, "bare", rows_processed=None),
        observation(pipeline.id, "old", started_at=T0 - timedelta(days=9), finished_at=T0 - timedelta(days=8)),
    )
    end = T0 + minutes(10)
    details = {"failed": KnownDetails(end, "no disk", None, end), "counted": KnownDetails(end, None, 7, end)}
    assert known_details(engine, [pipeline.id], T0) == {pipeline.id: details}
    with_ends = {pipeline.id: {**details, "bare": KnownDetails(end, None, None, end)}}
    assert known_details(engine, [pipeline.id], T0, ends=True) == with_ends


def test_the_ledger_returns_the_run_that_makes_a_pipeline_fail(engine: sa.Engine) -> None:
    failing, mended, unsettled, manual = (add_pipeline(engine, name, name) for name in "abcd")
    later = {"started_at": T0 + minutes(30), "finished_at": T0 + minutes(40)}
    latest = {"started_at": T0 + minutes(50), "finished_at": T0 + minutes(55)}
    _merge(
        engine,
        observation(failing.id, "r1"),
        observation(failing.id, "r2", status=RunStatus.FAILED, **later),
        observation(mended.id, "r1", status=RunStatus.FAILED),
        observation(mended.id, "r2", **later),
        observation(unsettled.id, "r1", status=RunStatus.FAILED),
        observation(unsettled.id, "r2", status=RunStatus.CANCELED, **later),
        observation(unsettled.id, "r3", status=RunStatus.RUNNING, **latest),
        observation(manual.id, "manual-1", status=RunStatus.FAILED),
    )
    ids = [pipeline.id for pipeline in (failing, mended, unsettled, manual)]
    assert failing_runs(engine, ids) == {failing.id: "r2", unsettled.id: "r1"}


def test_a_sync_knows_the_failing_runs_if_the_partner_lists_no_changes_of_old_runs(
    engine: sa.Engine, zone: LandingZone
) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record("r1", "failed")))
    run(engine, feed, zone.open("one"))
    run(engine, feed, zone.open("two"), Capabilities(follows_failing=True))
    run(engine, feed, zone.open("three"))
    assert [t.failing_runs for t in feed.asked] == [(), ("r1",), ()]


def test_a_sync_knows_the_details_recorded_since_the_watermark(engine: sa.Engine, zone: LandingZone) -> None:
    add_pipeline(engine)
    failed = record("r1", "failed", error_message="no disk")
    feed = FakeFeed(lambda t: one_page(t.external_id, failed, record("r2")))
    run(engine, feed, zone.open("one"))
    run(engine, feed, zone.open("two"))
    assert [dict(t.known_details) for t in feed.asked] == [{}, {"r1": KnownDetails(T0 + minutes(10), "no disk", None)}]


def _merge(engine: sa.Engine, *observations: Any) -> None:
    with engine.begin() as connection:
        merge_runs(connection, list(observations))

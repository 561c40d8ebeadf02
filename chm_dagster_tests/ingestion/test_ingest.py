"""Ingestion with a scripted partner and a real database: every record is accounted for, whatever goes wrong."""

import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.sync import IngestReport
from chm_dagster.errors import InputError, Transient
from chm_dagster.ingestion.ingest import ingest, remap
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch, SyncTarget
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.syncs import reading_claims
from chm_dagster_tests.factories import T0, FakeFeed, add_pipeline, fake_partner, minutes, one_page, record, rows

FRESH = (T0 + minutes(60)).isoformat()
"""The partner's time during each sync here: a record of this version proves that its clock shows it."""


@pytest.fixture
def landing(landing_root: Path) -> Landing:
    return LandingZone(landing_root).open("0d6f5a52-6a3c-4d5e-9c83-0d4f3f1f7f10")


def run(engine: sa.Engine, feed: FakeFeed, landing: Landing, **options: Any) -> IngestReport:
    report = ingest(engine, fake_partner(feed), ingested_pipelines(engine), landing, **options)
    assert all(p.accounted_for for p in report.pipelines.values())
    return report


def counts(report: IngestReport) -> dict[str, int]:
    return {
        name: n
        for name in ("inserted", "updated", "unchanged", "stale", "rejected")
        if (n := getattr(report.counts, name))
    }


def watermark(engine: sa.Engine, pipeline: IngestedPipeline) -> Any:
    return rows(engine, "SELECT synced_through FROM pipelines WHERE id = :id", id=pipeline.id)[0]["synced_through"]


def test_a_second_ingestion_of_the_same_records_changes_nothing(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record("r1"), record("r2", "failed", error_message="no disk")))
    assert counts(run(engine, feed, landing)) == {"inserted": 2}
    assert counts(run(engine, feed, landing)) == {"unchanged": 2}


def test_each_pipeline_is_read_from_its_watermark(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record(updated_at=FRESH)))
    run(engine, feed, landing)
    run(engine, feed, landing)
    run(engine, feed, landing, since=T0)
    assert [t.since for t in feed.asked] == [None, T0 + minutes(55), T0]
    assert watermark(engine, pipeline) == T0 + minutes(55)


def test_a_time_after_the_watermark_leaves_no_gap_behind_it(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record(updated_at=FRESH)))
    run(engine, feed, landing)
    run(engine, feed, landing, since=T0 + minutes(600))
    assert [t.since for t in feed.asked] == [None, T0 + minutes(55)]


def test_a_time_in_the_future_is_rejected_before_any_request(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record()))
    with pytest.raises(InputError, match="since: in the future"):
        run(engine, feed, landing, since=datetime.now(UTC) + timedelta(minutes=1))
    assert feed.asked == []


def test_inactive_pipelines_and_clients_and_those_without_an_external_id_are_not_fetched(engine: sa.Engine) -> None:
    for name, client in (("kept", "Acme"), ("off", "Acme"), ("unlinked", "Acme"), ("hers", "Gone")):
        add_pipeline(engine, name, client)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET is_active = false WHERE slug = 'off'"))
        connection.execute(sa.text("UPDATE pipelines SET external_id = NULL WHERE slug = 'unlinked'"))
        connection.execute(sa.text("UPDATE clients SET is_active = false WHERE slug = 'gone'"))
    assert [p.key for p in ingested_pipelines(engine)] == ["acme/kept"]


def test_a_failed_pipeline_keeps_its_watermark_and_others_continue(engine: sa.Engine, landing: Landing) -> None:
    good, bad = add_pipeline(engine, "good"), add_pipeline(engine, "bad")

    def script(target: SyncTarget) -> list[RecordBatch | PipelinesSynced | PipelinesFailed]:
        if target.external_id == bad.external_id:
            return [
                RecordBatch([(bad.external_id, record())], T0 + minutes(60)),
                PipelinesFailed([bad.external_id], Transient("503")),
            ]
        return one_page(target.external_id, record(updated_at=FRESH))

    report = run(engine, FakeFeed(script), landing)
    assert [p.key for p in report.failed] == [bad.key]
    assert report.pipelines[bad.key].error == "503"
    # What was read before the failure is kept: it is true, and the watermark does not claim more.
    assert counts(report) == {"inserted": 2}
    assert watermark(engine, bad) is None
    assert watermark(engine, good) == T0 + minutes(55)


def test_a_crash_between_fetch_and_commit_loses_nothing(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)

    def crash(target: SyncTarget) -> list[RecordBatch | PipelinesSynced | PipelinesFailed]:
        return one_page(target.external_id, *(record(f"r{n}") for n in range(3)))

    partners = fake_partner(FakeFeed(crash))
    broken = {"default": type(partners["default"])("default", partners["default"].open_feed, _explode)}
    with pytest.raises(ZeroDivisionError):
        ingest(engine, broken, ingested_pipelines(engine), landing)
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 0
    assert watermark(engine, pipeline) is None
    assert landing.report() is None
    assert counts(run(engine, FakeFeed(crash), landing)) == {"inserted": 3}


def _explode(*_: object) -> Any:
    raise ZeroDivisionError


def test_bad_records_are_rejected_and_kept_with_a_reason_while_others_are_stored(
    engine: sa.Engine, landing: Landing
) -> None:
    pipeline = add_pipeline(engine)
    bad = [None, 7, "x", [], {}, record(run=""), record(started_at="2026-03-01T06:00:00"), record(run="x" * 600)]
    report = run(engine, FakeFeed(lambda t: one_page(t.external_id, record("good"), *bad)), landing)
    assert counts(report) == {"inserted": 1, "rejected": len(bad)}
    kept = [orjson.loads(line) for line in (landing.folder / "rejected.jsonl").read_bytes().splitlines()]
    assert len(kept) == len(bad)
    assert all(line["pipeline"] == pipeline.key and line["reason"] for line in kept)


def test_rejected_records_are_kept_without_being_held_in_memory(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    pages, records, size = 200, 5, 59_000

    def script(target: SyncTarget) -> Any:
        for n in range(pages):
            bad = [record(run="", error_message=f"{n}-{i}" + "x" * size) for i in range(records)]
            yield RecordBatch([(target.external_id, one) for one in bad], T0 + minutes(60))
        yield PipelinesSynced([target.external_id], T0 + minutes(55), T0 + minutes(60))

    tracemalloc.start()
    report = run(engine, FakeFeed(script), landing)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts(report) == {"rejected": pages * records}
    kept = (landing.folder / "rejected.jsonl").stat().st_size
    assert kept > pages * records * size
    # A page is held a few times over on its way; all of them would be 59 MB.
    assert peak < kept / 4, peak


def test_an_unknown_status_counts_as_running_and_is_reported(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    report = run(engine, FakeFeed(lambda t: one_page(t.external_id, record("r1", "levitating"))), landing)
    assert dict(report.pipelines["acme/orders"].unknown_statuses) == {"levitating": 1}
    assert rows(engine, "SELECT status, status_reason FROM runs") == [
        {"status": "running", "status_reason": "levitating"}
    ]


def test_two_clients_that_share_an_external_id_both_get_the_run(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine, "orders", "Acme", "shared")
    add_pipeline(engine, "orders", "Zenith", "shared")
    feed = FakeFeed(lambda t: one_page(t.external_id, record()))
    assert counts(run(engine, feed, landing)) == {"inserted": 2}
    assert len(feed.asked) == 1


def test_a_pipeline_of_an_unknown_connection_is_reported_with_the_known_ones(
    engine: sa.Engine, landing: Landing
) -> None:
    add_pipeline(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET connection = 'eu-west'"))
    report = run(engine, FakeFeed(lambda t: one_page(t.external_id)), landing)
    assert report.pipelines["acme/orders"].error == "acme/orders: there is no connection 'eu-west'; configured: default"


def test_a_connection_that_is_being_ingested_shows_as_busy(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record()))
    with reading_claims(engine) as other:
        assert other.take("default")
        report = run(engine, feed, landing, patience=0.05)
    assert "being read by another process" in (report.pipelines["acme/orders"].error or "")
    assert feed.asked == []


def test_an_ingestion_waits_for_the_previous_one(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    with reading_claims(engine) as other:
        assert other.take("default")
        threading.Timer(0.5, other.close).start()
        assert counts(run(engine, FakeFeed(lambda t: one_page(t.external_id, record())), landing)) == {"inserted": 1}


def test_landed_data_can_be_remapped_without_the_partner(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)
    partners = fake_partner(FakeFeed(lambda t: one_page(t.external_id, record("r1"), record("r2"), {"id": None})))
    ingest(engine, partners, [pipeline], landing)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs WHERE external_run_id = 'r2'"))
    silent_partner = fake_partner(FakeFeed(lambda t: pytest.fail("the partner was asked")))
    replayed = remap(engine, silent_partner, [pipeline], landing, dry_run=True)
    assert counts(replayed) == {"inserted": 1, "unchanged": 1, "rejected": 1}
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 1
    report = remap(engine, silent_partner, [pipeline], landing)
    assert counts(report) == {"inserted": 1, "unchanged": 1, "rejected": 1}


def test_a_report_survives_being_written_and_read(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    report = run(engine, FakeFeed(lambda t: one_page(t.external_id, record("r1", "odd"), {})), landing)
    saved = landing.report()
    assert saved is not None
    assert IngestReport.from_dict(saved) == report


def test_old_landings_are_removed_and_recent_ones_stay(engine: sa.Engine, landing_root: Path, landing: Landing) -> None:
    add_pipeline(engine)
    run(engine, FakeFeed(lambda t: one_page(t.external_id)), landing)
    zone = LandingZone(landing_root)
    assert zone.prune(datetime.now(UTC) + timedelta(days=6)) == 0
    assert zone.prune(datetime.now(UTC) + timedelta(days=8)) == 1
    assert zone.newest() is None


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("documents", "report.json"),
        ("0d6f5a52-6a3c-4d5e-9c83-0d4f3f1f7f11", "thesis.txt"),
        ("20260101T000000-0123abcd", ""),
    ],
)
def test_a_folder_that_chm_did_not_make_is_never_removed(landing_root: Path, name: str, inside: str) -> None:
    foreign = landing_root / name
    foreign.mkdir(parents=True)
    if inside:
        (foreign / inside).write_text("precious")
    else:
        foreign.rmdir()
        elsewhere = landing_root.parent / "elsewhere"
        elsewhere.mkdir()
        foreign.symlink_to(elsewhere)
    assert LandingZone(landing_root).prune(datetime.now(UTC) + timedelta(days=8)) == 0
    assert foreign.exists()


def test_progress_is_read_step_by_step(landing: Landing) -> None:
    assert landing.read_progress(0) == ([], 0)
    with landing.progress() as progress:
        progress(1, 0)
        progress(0, 200)
        steps, offset = landing.read_progress(0)
        progress(2, 0)
    assert steps == [(1, 0), (0, 200)]
    assert landing.read_progress(offset)[0] == [(2, 0)]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "x" * 101])
def test_a_landing_cannot_be_outside_of_its_zone(landing_root: Path, name: str) -> None:
    from chm_dagster.errors import InputError

    with pytest.raises(InputError, match="landing"):
        LandingZone(landing_root).open(name)


def test_records_that_the_fast_encoder_rejects_land_and_are_read_back(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    deep: Any = "bottom"
    for _ in range(900):
        deep = [deep]
    bottomless: Any = "bottom"
    for _ in range(100_000):
        bottomless = [bottomless]
    odd = [record("surrogate", note="\ud800"), record("huge", rows=2**70), record("deep", extra=deep), bottomless]
    report = run(engine, FakeFeed(lambda t: one_page(t.external_id, *odd, record("good"))), landing)
    assert counts(report) == {"inserted": 4, "rejected": 1}

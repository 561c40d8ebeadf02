"""The use case over a scripted partner and a real database: every record is accounted for, whatever goes wrong."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from chm_dagster.domain.inventory import IngestedPipeline
from chm_dagster.errors import InputError, Transient
from chm_dagster.ingestion.ingest import ingest, remap
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.ingestion.report import IngestReport
from chm_dagster.partners.port import Done, Failed, Page, Target
from chm_dagster.warehouse.inventory import ingested_pipelines
from chm_dagster.warehouse.session import ledger_writer
from chm_dagster_tests.factories import T0, FakeFeed, add_pipeline, fake_partner, minutes, record, rows, told


@pytest.fixture
def landing(landing_root: Path) -> Landing:
    return LandingZone(landing_root).open("one")


def run(engine: sa.Engine, feed: FakeFeed, landing: Landing, **options: Any) -> IngestReport:
    report = ingest(engine, fake_partner(feed), ingested_pipelines(engine), landing, **options)
    assert all(p.accounted_for for p in report.pipelines.values())
    return report


def counts(report: IngestReport) -> dict[str, int]:
    return {name: n for name in ("inserted", "updated", "unchanged", "stale", "rejected") if (n := report.total(name))}


def watermark(engine: sa.Engine, pipeline: IngestedPipeline) -> Any:
    return rows(engine, "SELECT synced_through FROM pipelines WHERE id = :id", id=pipeline.id)[0]["synced_through"]


def test_a_second_ingestion_of_the_same_records_changes_nothing(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: told(t.external_id, record("r1"), record("r2", "failed", error_message="no disk")))
    assert counts(run(engine, feed, landing)) == {"inserted": 2}
    assert counts(run(engine, feed, landing)) == {"unchanged": 2}


def test_each_pipeline_is_asked_from_its_watermark_on(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)
    feed = FakeFeed(lambda t: told(t.external_id, record()))
    run(engine, feed, landing)
    run(engine, feed, landing)
    run(engine, feed, landing, since=T0)
    assert [t.since for t in feed.asked] == [None, T0 + minutes(55), T0]
    assert watermark(engine, pipeline) == T0 + minutes(55)


def test_a_time_after_the_watermark_leaves_no_gap_behind_it(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: told(t.external_id, record()))
    run(engine, feed, landing)
    run(engine, feed, landing, since=T0 + minutes(600))
    assert [t.since for t in feed.asked] == [None, T0 + minutes(55)]


def test_a_time_in_the_future_is_refused_before_anybody_is_asked(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: told(t.external_id, record()))
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


def test_a_pipeline_that_fails_keeps_its_watermark_and_its_neighbours_go_on(
    engine: sa.Engine, landing: Landing
) -> None:
    good, bad = add_pipeline(engine, "good"), add_pipeline(engine, "bad")

    def script(target: Target) -> list[Page | Done | Failed]:
        if target.external_id == bad.external_id:
            return [Page([(bad.external_id, record())], T0 + minutes(60)), Failed([bad.external_id], Transient("503"))]
        return told(target.external_id, record())

    report = run(engine, FakeFeed(script), landing)
    assert [p.key for p in report.failed] == [bad.key]
    assert report.pipelines[bad.key].error == "503"
    # What was read before it failed is kept: it is true, and the watermark does not claim more.
    assert counts(report) == {"inserted": 2}
    assert watermark(engine, bad) is None
    assert watermark(engine, good) == T0 + minutes(55)


def test_a_crash_between_fetch_and_commit_loses_nothing(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)

    def crash(target: Target) -> list[Page | Done | Failed]:
        return told(target.external_id, *(record(f"r{n}") for n in range(3)))

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


def test_bad_records_are_rejected_with_a_reason_and_kept_and_their_neighbours_stored(
    engine: sa.Engine, landing: Landing
) -> None:
    pipeline = add_pipeline(engine)
    bad = [None, 7, "x", [], {}, record(run=""), record(started_at="2026-03-01T06:00:00"), record(run="x" * 600)]
    report = run(engine, FakeFeed(lambda t: told(t.external_id, record("good"), *bad)), landing)
    assert counts(report) == {"inserted": 1, "rejected": len(bad)}
    kept = [orjson.loads(line) for line in (landing.folder / "rejected.jsonl").read_bytes().splitlines()]
    assert len(kept) == len(bad)
    assert all(line["pipeline"] == pipeline.key and line["reason"] for line in kept)


def test_an_unknown_status_counts_as_running_and_is_told(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    report = run(engine, FakeFeed(lambda t: told(t.external_id, record("r1", "levitating"))), landing)
    assert dict(report.pipelines["acme/orders"].unknown_statuses) == {"levitating": 1}
    assert rows(engine, "SELECT status, status_reason FROM runs") == [
        {"status": "running", "status_reason": "levitating"}
    ]


def test_two_clients_that_share_an_external_id_both_get_the_run(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine, "orders", "Acme", "shared")
    add_pipeline(engine, "orders", "Zenith", "shared")
    feed = FakeFeed(lambda t: told(t.external_id, record()))
    assert counts(run(engine, feed, landing)) == {"inserted": 2}
    assert len(feed.asked) == 1


def test_a_pipeline_of_an_unknown_connection_is_told_which_there_are(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET connection = 'eu-west'"))
    report = run(engine, FakeFeed(lambda t: told(t.external_id)), landing)
    assert report.pipelines["acme/orders"].error == "acme/orders: there is no connection 'eu-west'; configured: default"


def test_a_connection_that_is_being_ingested_shows_as_busy(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    feed = FakeFeed(lambda t: told(t.external_id, record()))
    with ledger_writer(engine) as other:
        other.claim("default")
        report = run(engine, feed, landing, patience=0.05)
    assert "being ingested by another process" in (report.pipelines["acme/orders"].error or "")
    assert feed.asked == []


def test_an_ingestion_waits_for_the_one_before(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    with ledger_writer(engine) as other:
        other.claim("default")
        threading.Timer(0.5, other.close).start()
        assert counts(run(engine, FakeFeed(lambda t: told(t.external_id, record())), landing)) == {"inserted": 1}


def test_what_landed_can_be_mapped_again_without_the_partner(engine: sa.Engine, landing: Landing) -> None:
    pipeline = add_pipeline(engine)
    partners = fake_partner(FakeFeed(lambda t: told(t.external_id, record("r1"), record("r2"), {"id": None})))
    ingest(engine, partners, [pipeline], landing)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs WHERE external_run_id = 'r2'"))
    silent_partner = fake_partner(FakeFeed(lambda t: pytest.fail("the partner was asked")))
    rehearsed = remap(engine, silent_partner, [pipeline], landing, rehearsal=True)
    assert counts(rehearsed) == {"inserted": 1, "unchanged": 1, "rejected": 1}
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 1
    report = remap(engine, silent_partner, [pipeline], landing)
    assert counts(report) == {"inserted": 1, "unchanged": 1, "rejected": 1}


def test_a_report_comes_back_from_its_file_as_it_was(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    report = run(engine, FakeFeed(lambda t: told(t.external_id, record("r1", "odd"), {})), landing)
    saved = landing.report()
    assert saved is not None
    assert IngestReport.from_dict(saved) == report


def test_old_landings_are_removed_and_young_ones_stay(engine: sa.Engine, landing_root: Path, landing: Landing) -> None:
    add_pipeline(engine)
    run(engine, FakeFeed(lambda t: told(t.external_id)), landing)
    zone = LandingZone(landing_root)
    from datetime import UTC, datetime, timedelta

    assert zone.prune(datetime.now(UTC) + timedelta(days=6)) == 0
    assert zone.prune(datetime.now(UTC) + timedelta(days=8)) == 1
    assert zone.newest() is None


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "x" * 101])
def test_a_landing_cannot_be_outside_of_its_zone(landing_root: Path, name: str) -> None:
    from chm_dagster.errors import InputError

    with pytest.raises(InputError, match="landing"):
        LandingZone(landing_root).open(name)


def test_records_that_no_fast_encoder_takes_land_and_come_back(engine: sa.Engine, landing: Landing) -> None:
    add_pipeline(engine)
    deep: Any = "bottom"
    for _ in range(900):
        deep = [deep]
    bottomless: Any = "bottom"
    for _ in range(100_000):
        bottomless = [bottomless]
    odd = [record("surrogate", note="\ud800"), record("huge", rows=2**70), record("deep", extra=deep), bottomless]
    report = run(engine, FakeFeed(lambda t: told(t.external_id, *odd, record("good"))), landing)
    assert counts(report) == {"inserted": 4, "rejected": 1}

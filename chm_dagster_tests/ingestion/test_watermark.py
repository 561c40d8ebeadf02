"""The watermark as ingestion moves it: clocks that lie, pipelines that change their meaning. Over real sockets."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import OldRuns
from chm_dagster.warehouse.ledger.syncs import ledger_writer
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import record
from chm_dagster_tests.http.fault_server import Reply, Request, runs_reply
from chm_dagster_tests.ingestion.scene import Held, Scene, serving


class Partner:
    """Keeps runs and gives those that changed since the time that it is asked for. Its clocks may be wrong."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.header_ahead = timedelta(0)
        self.records_behind = timedelta(0)
        self.since: list[str | None] = []
        self.held: Held | None = None

    def finish(self, pipeline: str, run: str, **ago: float) -> None:
        stamp = datetime.now(UTC) - self.records_behind - timedelta(**ago)
        times = {"started_at": (stamp - timedelta(minutes=1)).isoformat(), "finished_at": stamp.isoformat()}
        self.runs.setdefault(pipeline, []).append(record(run, updated_at=stamp.isoformat(), **times))

    def __call__(self, request: Request) -> Reply:
        if self.held is not None:
            return self.held(request)
        since = request.query.get("updated_since")
        self.since.append(since)
        known = self.runs.get(request.path.split("/")[-2], [])
        found = [run for run in known if since is None or _time(run["updated_at"]) >= _time(since)]
        date = format_datetime(datetime.now(UTC) + self.header_ahead, usegmt=True)
        return runs_reply(found, headers={"Date": date})


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@pytest.fixture
def partner() -> Partner:
    return Partner()


@pytest.fixture
def stage(engine: sa.Engine, tmp_path: Path, partner: Partner) -> Iterator[Scene]:
    with serving(partner) as server:
        yield Scene(engine, tmp_path, {"orders": server.base_url})


@pytest.mark.parametrize("ahead", [6, 120, 23 * 60], ids=["6 min", "2 h", "23 h"])
def test_a_date_header_that_is_ahead_loses_nothing_and_is_reported(stage: Scene, partner: Partner, ahead: int) -> None:
    partner.header_ahead = timedelta(minutes=ahead)
    for number in range(1, 4):
        partner.finish("acme-orders", f"r{number}")
        report = stage.ingest()
        assert stage.runs("orders") == [f"r{n}" for n in range(1, number + 1)]
    assert f"{ahead} minutes ahead of CHM's clock" in (report.pipelines["acme/orders"].warning or "")
    # By more than a run may be late, nobody can say whether one is.
    health, reason = _health(stage)
    assert health == ("healthy" if ahead < 15 else "unknown")
    assert (reason is None) == (ahead < 15)
    row = stage.pipeline("orders")
    assert (row["sync_error_code"], row["sync_failing_since"]) == ("clock_skew", None)
    partner.header_ahead = timedelta(0)
    partner.finish("acme-orders", "r4")
    stage.ingest()
    assert stage.runs("orders") == ["r1", "r2", "r3", "r4"]
    assert stage.pipeline("orders")["sync_error_code"] is None
    assert _health(stage) == ("healthy", None)


def _health(stage: Scene) -> tuple[str, str | None]:
    (row,) = ask(stage.engine, "latest_status_by_pipeline")
    return row["health"], row["health_reason"]


def test_records_stamped_by_a_clock_that_is_behind_both_servers_are_read(stage: Scene, partner: Partner) -> None:
    partner.records_behind = timedelta(minutes=40)
    stage.ingest()
    for number in range(1, 4):
        partner.finish("acme-orders", f"r{number}")
        stage.ingest()
        assert stage.runs("orders") == [f"r{n}" for n in range(1, number + 1)]


def test_runs_that_ended_in_the_future_are_reported(stage: Scene, partner: Partner) -> None:
    partner.records_behind = timedelta(minutes=-30)
    partner.finish("acme-orders", "r1")
    report = stage.ingest()
    assert "runs ended up to 30 minutes ahead of CHM's clock" in (report.pipelines["acme/orders"].warning or "")


def test_a_watermark_in_the_future_is_pulled_back_and_the_gap_is_read(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "r1", minutes=90)
    stage.ingest()
    with stage.engine.begin() as connection:
        future = "now() + interval '2 hours'"
        connection.execute(sa.text(f"UPDATE pipelines SET synced_through = {future}, observed_through = {future}"))
    partner.finish("acme-orders", "r2", minutes=30)
    report = stage.ingest()
    assert "in the future; read again from" in (report.pipelines["acme/orders"].warning or "")
    assert stage.runs("orders") == ["r1", "r2"]
    row = stage.pipeline("orders")
    assert row["synced_through"] < datetime.now(UTC)
    assert row["observed_through"] <= datetime.now(UTC)
    assert partner.since[-1] is not None


def test_a_quiet_pipeline_is_fresh_although_its_watermark_is_old(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "r1", days=3)
    stage.ingest()
    stage.ingest()
    row = stage.pipeline("orders")
    assert datetime.now(UTC) - row["observed_through"] < timedelta(minutes=5)
    assert datetime.now(UTC) - row["synced_through"] > timedelta(days=3)


# --- a pipeline that means another one


def test_a_corrected_external_id_starts_the_history_anew(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "wrong")
    partner.finish("orders-prod", "right", days=2)
    stage.ingest()
    updated = Warehouse(stage.engine).pipelines.update("acme/orders", {"external_id": "orders-prod"})
    assert (updated.synced_through, updated.observed_through) == (None, None)
    stage.ingest()
    assert partner.since == [None, None]
    assert stage.runs("orders") == ["right", "wrong"]


def test_the_runs_of_the_old_external_id_are_removed_if_asked(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "wrong")
    partner.finish("orders-prod", "right", days=2)
    stage.ingest()
    changed = Warehouse(stage.engine).pipelines.update(
        "acme/orders", {"external_id": "orders-prod"}, runs=OldRuns.REMOVE
    )
    assert changed.external_id == "orders-prod"
    assert stage.runs("orders") == []
    stage.ingest()
    assert stage.runs("orders") == ["right"]


def test_the_runs_can_also_be_removed_later(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "r1")
    stage.ingest()
    Warehouse(stage.engine).pipelines.update("acme/orders", {}, runs=OldRuns.REMOVE)
    assert (stage.runs("orders"), stage.pipeline("orders")["synced_through"]) == ([], None)


def test_other_changes_keep_the_watermark(stage: Scene, partner: Partner) -> None:
    partner.finish("acme-orders", "r1")
    stage.ingest()
    before = stage.pipeline("orders")["synced_through"]
    updated = Warehouse(stage.engine).pipelines.update("acme/orders", {"description": "nightly"})
    assert updated.synced_through == before is not None


def test_what_was_read_under_the_old_external_id_is_not_written_after_the_change(
    stage: Scene, partner: Partner
) -> None:
    partner.held = Held(runs_reply([record("wrong", updated_at=datetime.now(UTC).isoformat())]))
    with stage.ingesting() as ingestion:
        stage.wait_until(partner.held.asked.is_set)
        Warehouse(stage.engine).pipelines.update("acme/orders", {"external_id": "orders-prod"})
        partner.held.let_go()
        report = ingestion.result()
    assert (stage.runs("orders"), stage.pipeline("orders")["synced_through"]) == ([], None)
    row = report.pipelines["acme/orders"]
    assert (row.counts.stale, row.accounted_for) == (1, True)
    assert "changed in the inventory while it was being read" in (row.error or "")


def test_a_pipeline_does_not_change_its_meaning_while_its_runs_are_written(stage: Scene) -> None:
    inventory = Warehouse(stage.engine).pipelines
    with ledger_writer(stage.engine, "orders") as ledger:
        ledger.repointed([])
        with stage.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/meaning', 0))"))
    assert inventory.update("acme/orders", {"external_id": "other"}).external_id == "other"

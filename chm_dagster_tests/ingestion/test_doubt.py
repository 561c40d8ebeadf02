"""Records that CHM cannot understand: their pipeline is not called healthy, late or overrunning. Over real sockets."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import yaml

from chm_dagster.api.app import create_app
from chm_dagster.partners.connections import load_partners
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import record
from chm_dagster_tests.http.fault_server import Reply, Request, json_reply, page_reply, runs_reply
from chm_dagster_tests.ingestion.scene import Scene, serving

Records = list[dict[str, Any]]


def generic(request: Request, records: Records) -> Reply:
    since = request.query.get("updated_since")
    return runs_reply([one for one in records if since is None or one["updated_at"][:19] >= since[:19]])


def generic_record(run: str, status: str, hours_ago: float, **more: Any) -> dict[str, Any]:
    ended = datetime.now(UTC) - timedelta(hours=hours_ago)
    times = {"started_at": (ended - timedelta(minutes=1)).isoformat(), "updated_at": ended.isoformat()}
    return record(run, status, **{**times, "finished_at": None if status == "running" else ended.isoformat(), **more})


def airbyte(request: Request, records: Records) -> Reply:
    if not request.path.endswith("/jobs"):
        return json_reply(next(one for one in records if str(one["jobId"]) == request.path.split("/")[-1]))
    since = request.query.get("updatedAtStart", "")
    found = [one for one in records if one["lastUpdatedAt"][:19] >= since[:19]]
    return json_reply({"data": found[int(request.query.get("offset", 0)) :]})


def airbyte_record(run: str, status: str, hours_ago: float, **more: Any) -> dict[str, Any]:
    ended = f"{datetime.now(UTC) - timedelta(hours=hours_ago):%Y-%m-%dT%H:%M:%SZ}"
    word = "succeeded" if status == "success" else status
    job = {"jobId": int(run[1:]), "status": word, "jobType": "sync", "connectionId": "acme-orders"}
    return {**job, "startTime": ended, "lastUpdatedAt": ended, "duration": "PT1M", **more}


class Stage(Scene):
    """Acme's pipeline `orders` at one API, with its records."""

    def __init__(self, engine: sa.Engine, folder: Path, api: str, make: Callable[..., dict[str, Any]]) -> None:
        self.api, self.make = api, make
        self.records: Records = []
        super().__init__(engine, folder, {})

    def open(self, url: str, folder: Path) -> None:
        Scene.__init__(self, self.engine, folder, {"orders": url})
        file = folder / "partners.yaml"
        file.write_text(yaml.safe_dump({"connections": {"orders": {"api": self.api, "base_url": url}}}))
        self.partners = load_partners(file, {}, None, None)
        self.set(platform="airbyte" if self.api == "airbyte" else "custom")

    def add(self, run: str, status: str = "success", hours_ago: float = 1, **more: Any) -> None:
        self.records = [one for one in self.records if str(one.get("id", one.get("jobId"))) != run.lstrip("r")]
        self.records.append(self.make(run, status, hours_ago, **more))

    def set(self, **values: Any) -> None:
        names = ", ".join(f"{name} = :{name}" for name in values)
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE pipelines SET {names} WHERE slug = 'orders'"), values)

    def health(self) -> tuple[str, str | None]:
        (row,) = ask(self.engine, "latest_status_by_pipeline")
        return row["health"], row["health_reason"]


APIS: Mapping[str, Any] = {"generic": (generic, generic_record), "airbyte": (airbyte, airbyte_record)}


@pytest.fixture(params=sorted(APIS))
def stage(request: pytest.FixtureRequest, engine: sa.Engine, tmp_path: Path) -> Iterator[Stage]:
    answer, make = APIS[request.param]
    found = Stage(engine, tmp_path, request.param, make)
    with serving(lambda asked: answer(asked, found.records)) as server:
        found.open(server.base_url, tmp_path)
        yield found


# No status at all: neither platform has a run without one.
BAD = {"status": None}


def test_a_rejected_newest_record_is_unknown_until_a_sync_reads_it(stage: Stage) -> None:
    stage.add("r1", hours_ago=3)
    stage.ingest()
    assert stage.health() == ("healthy", None)
    stage.add("r2", hours_ago=2, **BAD)
    for _ in range(2):
        report = stage.ingest()
        assert report.pipelines["acme/orders"].counts.rejected == 1
        health, reason = stage.health()
        assert health == "unknown"
        assert (reason or "").startswith("1 record of the last sync was rejected: ")
        assert "status" in (reason or "")
    stage.records.pop()
    stage.add("r2", "failed", 2)
    stage.ingest()
    assert stage.health() == ("failing", "the latest settled run failed")
    stage.add("r3", hours_ago=1)
    stage.ingest()
    assert stage.health() == ("healthy", None)


@pytest.mark.parametrize("expected", [{}, {"schedule_cron": "* * * * *"}, {"max_runtime_minutes": 1}], ids=str)
def test_a_status_that_is_not_known_is_neither_healthy_nor_late_nor_overrunning(
    stage: Stage, expected: dict[str, Any]
) -> None:
    stage.add("r1", hours_ago=4)
    stage.ingest()
    due = {"due_at": datetime.now(UTC) - timedelta(hours=1)} if "schedule_cron" in expected else {}
    stage.set(is_active=True, **expected, **due)
    stage.add("r2", "levitating", 3)
    stage.ingest()
    assert stage.health() == ("unknown", "1 record of the last sync was of unknown status: 'levitating'")


def test_an_unfinished_run_that_cannot_be_read_is_not_taken_for_an_overrunning_one(
    engine: sa.Engine, tmp_path: Path
) -> None:
    stage, proxy = Stage(engine, tmp_path, "airbyte", airbyte_record), [False]

    def answer(request: Request) -> Reply:
        return page_reply(404) if proxy[0] and not request.path.endswith("/jobs") else airbyte(request, stage.records)

    with serving(answer) as server:
        stage.open(server.base_url, tmp_path)
        stage.set(max_runtime_minutes=90, is_active=True)
        stage.add("r1", hours_ago=4)
        stage.add("r2", "running", 1, duration=None)
        stage.ingest()
        assert stage.health() == ("healthy", None)
        stage.set(max_runtime_minutes=30)
        stage.records.clear()  # it is over, and no longer in the list
        proxy[0] = True
        report = stage.ingest().pipelines["acme/orders"]
        assert "an unfinished run could not be read: " in (report.unread or "")
        health, reason = stage.health()
        assert (health, reason) == ("unknown", report.unread)
        (pipeline,) = ingested_pipelines(engine)
        assert (pipeline.clock_warning, report.warnings) == (None, [report.unread]), "the partner's clock is right"
        assert len(stage.runs("orders")) == 2
        proxy[0] = False
        stage.add("r2", hours_ago=0.5)
        stage.ingest()
        assert stage.health() == ("healthy", None)


def test_a_failure_before_it_stays_a_failure(stage: Stage) -> None:
    stage.add("r1", "failed", 3)
    stage.add("r2", hours_ago=2, **BAD)
    stage.ingest()
    health, reason = stage.health()
    assert health == "failing"
    assert "1 record of the last sync was rejected" in (reason or "")


def test_records_before_the_time_that_is_read_again_leave_a_doubt_until_a_run_comes(stage: Stage) -> None:
    stage.add("r1", hours_ago=80)
    stage.add("r2", hours_ago=70, **BAD)
    stage.ingest()
    for _ in range(2):
        stage.records = stage.records[:1]  # a sync that does not read it is no proof that it is well
        assert stage.ingest().pipelines["acme/orders"].counts.rejected == 0
        assert stage.health()[0] == "unknown"
    stage.add("r3", hours_ago=1)
    stage.ingest()
    assert stage.health() == ("healthy", None)


def test_the_watermark_waits_a_day_for_a_record_that_was_rejected(stage: Stage) -> None:
    stage.add("r1", hours_ago=6)
    stage.ingest()
    before = stage.pipeline("orders")["synced_through"]
    stage.add("r2", hours_ago=2, **BAD)
    stage.add("r3", hours_ago=1)
    stage.ingest()
    assert stage.pipeline("orders")["synced_through"] == before
    stage.records[1]["status"] = "failed"
    stage.ingest()
    assert stage.pipeline("orders")["synced_through"] > before
    assert len(stage.runs("orders")) == 3
    assert stage.health() == ("healthy", None)


def test_a_push_that_is_refused_leaves_nothing_and_one_that_is_taken_does_not_hide_a_doubt(
    stage: Stage,
) -> None:
    stage.add("r1", hours_ago=3)
    stage.add("r2", hours_ago=2, **BAD)
    stage.ingest()
    pipeline = stage.pipeline("orders")["id"]
    with (
        serve_in_thread(create_app(Warehouse(stage.engine))) as url,
        httpx.Client(base_url=f"{url}/api/v1", trust_env=False) as api,
    ):
        refused = api.post(f"/pipelines/{pipeline}/runs", json={"status": "levitating"})
        assert (refused.status_code, refused.json()["error"]["details"][0]["field"]) == (400, "status")
        (shown,) = api.get("/health/latest").json()["items"]
        assert (shown["health"], shown["health_reason"]) == stage.health()
        assert shown["health"] == "unknown"
        taken = api.post(f"/pipelines/{pipeline}/runs", json={"external_run_id": "by-hand", "status": "failed"})
        assert taken.status_code == 201
        (shown,) = api.get("/health/latest").json()["items"]
        assert shown["health"] == "failing"

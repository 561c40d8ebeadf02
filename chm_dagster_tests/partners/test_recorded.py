"""Recordings of the real servers map to what they meant: statuses, times, errors, versions, and one ledger in any order."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.domain.runs import Observation, Rejection, RunKind, RunStatus
from chm_dagster.partners.engine.mapping import RecordMapper, RecordReader
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import PipelinesSynced, RecordBatch, SyncTarget
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines, ingested_pipelines
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster_tests.factories import rows
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, status_reply
from chm_dagster_tests.partners.recorded import observed_at, records, served, snapshots
from chm_dagster_tests.partners.scene import PIPELINE, connect
from chm_dagster_tests.partners.scripts import SCRIPTS


def mapping(platform: str) -> RecordMapper:
    rest = shipped()[platform]
    return RecordMapper(rest.runs, reopens=rest.reopens, links={"ui": "https://ui.example"})


def mapped(platform: str, name: str) -> Observation:
    """The first run of a recorded response."""
    found = mapping(platform)(PIPELINE, records(platform, name)[0], observed_at(platform, name))
    assert isinstance(found, Observation), found
    return found


R = RunStatus
CASES = [
    ("airflow", "list_p_success", R.SUCCESS, None, None),
    ("airflow", "list_p_fail", R.FAILED, None, None),
    ("airflow", "list_p_skip", R.SUCCESS, None, None),
    ("airflow", "list_p_flaky", R.SUCCESS, None, None),
    ("airflow", "list_p_timeout", R.FAILED, None, None),
    ("airflow", "life_3_after_clear", R.RUNNING, "queued", None),
    ("airflow", "life_6_slow_running", R.RUNNING, None, None),
    ("airflow", "life_8_slow_marked_failed", R.FAILED, None, None),
    ("airflow", "life_21_trigger_future_run_after", R.RUNNING, "queued", None),
    ("prefect", "filter_f-ok", R.SUCCESS, None, None),
    ("prefect", "filter_f-fail", R.FAILED, None, "ValueError"),
    ("prefect", "filter_f-fail-state", R.FAILED, None, ""),
    ("prefect", "filter_f-skip", R.SKIPPED, None, None),
    ("prefect", "filter_f-timeout", R.FAILED, "TimedOut", "timeout"),
    ("prefect", "filter_f-crash", R.FAILED, "Crashed", "SIGKILL"),
    ("prefect", "filter_f-slow", R.RUNNING, None, None),
    ("prefect", "life_cancelling", R.RUNNING, "Cancelling", None),
    ("prefect", "life_cancelled", R.CANCELED, "Flow run was cancelled successfully.", None),
    ("prefect", "life_retry_2_awaiting", R.RUNNING, "AwaitingRetry", None),
    ("dagster", "runs_j_ok", R.SUCCESS, None, None),
    ("dagster", "runs_j_fail", R.FAILED, "FAILURE", None),
    ("dagster", "runs_j_skip", R.SUCCESS, None, None),
    ("dagster", "runs_j_slow", R.RUNNING, None, None),
]


@pytest.mark.parametrize(
    ("platform", "name", "status", "reason", "error"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_a_recorded_run_maps_to_what_happened(
    platform: str, name: str, status: RunStatus, reason: str | None, error: str | None
) -> None:
    found = mapped(platform, name)
    assert found.status is status
    assert found.unknown_status is False
    if status is not R.FAILED or reason != "FAILURE":
        assert found.status_reason == reason
    if error is None:
        assert found.error_message is None
    else:
        assert error in (found.error_message or "")
    assert (found.finished_at is None) == (status is R.RUNNING)
    assert (found.duration_seconds is None) == (status is R.RUNNING)
    assert found.source_version is not None


def test_a_cleared_run_is_waiting_since_it_was_cleared() -> None:
    cleared = mapped("airflow", "life_3_after_clear")
    assert cleared.started_at is None
    assert cleared.queued_at == datetime(2026, 11, 23, 11, 38, 39, 178991, UTC)
    assert cleared.source_version == cleared.queued_at


def test_a_run_that_is_planned_for_later_has_no_start() -> None:
    planned = mapped("airflow", "life_21_trigger_future_run_after")
    assert planned.started_at is None
    assert planned.source_version == datetime(2026, 11, 23, 11, 39, 40, 827644, UTC)


def test_runs_that_prefect_has_only_planned_are_left_out() -> None:
    reader = RecordReader(shipped()["prefect"])
    planned = records("prefect", "sched_future_runs_first")
    assert planned
    assert not any(reader.is_run(record) for record in planned)


def test_links_lead_to_the_run() -> None:
    run = "manual__2026-11-23T11%3A35%3A51.019467%2B00%3A00"
    assert mapped("airflow", "list_p_fail").source_url == f"https://ui.example/dags/p_fail/runs/{run}"
    prefect = mapped("prefect", "filter_f-ok")
    assert prefect.source_url == f"https://ui.example/runs/flow-run/{prefect.external_run_id}"
    dagster = mapped("dagster", "runs_j_ok")
    assert dagster.source_url == f"https://ui.example/runs/{dagster.external_run_id}"


def test_why_a_recorded_run_was_started_is_known() -> None:
    assert mapped("airflow", "list_p_fail").kind is RunKind.MANUAL
    assert mapped("prefect", "filter_f-ok").kind is RunKind.MANUAL
    recorded = [
        mapping("dagster")(PIPELINE, record, observed_at("dagster", "runs_j_runretry"))
        for record in records("dagster", "runs_j_runretry")
    ]
    found = [(run.kind, run.will_retry) for run in recorded if isinstance(run, Observation)]
    assert sorted(found, key=str) == [(RunKind.RETRY, False), (None, True)]


def test_volatile_fields_are_not_kept_in_the_payload() -> None:
    assert "last_scheduling_decision" not in mapped("airflow", "list_p_fail").payload
    assert "estimated_run_time" not in mapped("prefect", "filter_f-ok").payload


def test_a_retried_dagster_run_is_two_runs() -> None:
    both = [
        mapping("dagster")(PIPELINE, r, observed_at("dagster", "runs_j_runretry"))
        for r in records("dagster", "runs_j_runretry")
    ]
    assert len({found.external_run_id for found in both if isinstance(found, Observation)}) == 2
    assert {found.progress for found in both if isinstance(found, Observation)} == {1}


# Versions


STEPS = {
    "airflow": [
        ("life_1_failed_before_clear", "life_3_after_clear", "life_4_poll_running_01", "life_4_poll_failed_03"),
        ("life_14_success_cleared_queued", "life_15_success_rerun"),
        ("life_6_slow_running", "life_8_slow_marked_failed"),
        ("life_17_patch_success_to_failed", "life_18_patch_failed_to_success", "life_19_patch_to_queued"),
    ],
    "prefect": [
        ("life_retry_0_failed", "life_retry_2_awaiting", "life_retry_3_pending", "life_retry_3_failed"),
        ("life_cancelling", "life_cancelled"),
    ],
}


@pytest.mark.parametrize(("platform", "steps"), [(p, s) for p, lives in STEPS.items() for s in lives])
def test_each_recorded_transition_is_newer_than_the_one_before(platform: str, steps: tuple[str, ...]) -> None:
    seen = [mapped(platform, name) for name in steps]
    assert len({found.external_run_id for found in seen}) == 1
    versions = [(found.attempt, found.progress, found.source_version) for found in seen]
    assert versions == sorted(versions)
    if "patch" not in steps[0]:
        # A run that is marked as failed and then as successful again changes none of its times.
        assert len(set(versions)) == len(versions)


# Any order


ORDERS = 300


def owners(platform: str) -> Callable[[dict[str, Any]], str]:
    field = {"airflow": "dag_id", "prefect": "deployment_id", "dagster": "jobName"}[platform]
    return lambda record: str(record[field])


def deliveries() -> list[tuple[str, Platform, datetime, dict[str, Any]]]:
    """Every recorded snapshot of all three platforms: run, platform, time, record."""
    found = []
    for platform in ("airflow", "prefect", "dagster"):
        for moment, record in snapshots(platform):
            owner = owners(platform)(record)
            if owner != "None" and shipped()[platform].runs:
                found.append((owner, Platform(platform), moment, record))
    return found


@pytest.mark.slow
def test_three_hundred_shuffled_and_duplicated_deliveries_give_the_same_ledger(engine: sa.Engine) -> None:
    delivered = deliveries()
    assert len(delivered) > 70
    pipelines = _pipelines(engine, {(owner, platform) for owner, platform, _, _ in delivered})
    chunks: list[list[Observation]] = [[] for _ in range(6)]
    for order in range(ORDERS):
        for place, observation in _shuffled(delivered, pipelines[order], random.Random(order)):
            chunks[place].append(observation)
    with engine.connect() as connection:
        for chunk in chunks:
            merge_runs(connection, chunk)
        connection.commit()
    ledgers = _ledgers(engine)
    assert len(ledgers) == ORDERS
    assert len({frozenset(ledger) for ledger in ledgers.values()}) == 1
    statuses = {(run, status) for _, run, status, *_ in next(iter(ledgers.values()))}
    # Among them the run that failed, was cleared and failed again, and the one that was canceled while running.
    assert ("manual__2026-11-23T11:35:51.019467+00:00", "failed") in statuses
    assert ("a0fc229f-0246-4d39-8dca-ed927ac05779", "canceled") in statuses


def _pipelines(engine: sa.Engine, wanted: set[tuple[str, Platform]]) -> list[dict[tuple[str, Platform], UUID]]:
    """The same pipelines for each of the orders, under a separate client."""
    new = [
        NewPipeline(
            f"Client {order}",
            f"client-{order}",
            f"{owner} {platform}",
            f"p{n}",
            platform,
            PipelineType.INGESTION,
            owner,
        )
        for order in range(ORDERS)
        for n, (owner, platform) in enumerate(sorted(wanted))
    ]
    add_pipelines(engine, new)
    found: list[dict[tuple[str, Platform], UUID]] = [{} for _ in range(ORDERS)]
    for pipeline in ingested_pipelines(engine):
        order = int(pipeline.client_slug.removeprefix("client-"))
        found[order][pipeline.external_id, pipeline.platform] = pipeline.id
    return found


def _shuffled(
    delivered: list[Any], ids: dict[tuple[str, Platform], UUID], dice: random.Random
) -> list[tuple[int, Observation]]:
    """All deliveries, some of them twice, in random order, each in one of six batches."""
    doubled = [*delivered, *dice.sample(delivered, len(delivered) // 2)]
    dice.shuffle(doubled)
    cuts = sorted(dice.sample(range(len(doubled)), 5))
    found = []
    for number, (owner, platform, moment, record) in enumerate(doubled):
        observation = mapping_of[platform](ids[owner, platform], record, moment)
        if isinstance(observation, Rejection):
            continue
        found.append((sum(number >= cut for cut in cuts), observation))
    return found


mapping_of = {Platform(platform): mapping(platform) for platform in ("airflow", "prefect", "dagster")}


def _ledgers(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    query = """
        SELECT c.slug AS client, p.slug, external_run_id, status, started_at, finished_at, duration_seconds, error_message,
               status_reason, attempt, progress, source_version, r.payload::text AS payload
        FROM runs r JOIN pipelines p ON p.id = r.pipeline_id JOIN clients c ON c.id = p.client_id
    """
    ledgers: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows(engine, query):
        client, *rest = row.values()
        ledgers.setdefault(client, []).append(tuple(rest))
    return ledgers


# The recorded pages, served again


def test_recorded_pages_are_read_by_their_recorded_cursors() -> None:
    pages = {
        "": "many_cursor_page1",
        **{
            records_cursor(page): following
            for page, following in [
                ("many_cursor_page1", "many_cursor_page2"),
                ("many_cursor_page2", "many_cursor_page3"),
            ]
        },
    }

    def answer(request: Request) -> Reply:
        if request.path.endswith("/auth/token"):
            assert request.json == {"username": "viewer", "password": "good-secret"}
            return served("airflow", "auth_token_201")
        name = pages.get(request.query["cursor"])
        return served("airflow", name) if name else status_reply(404)

    async def scene() -> list[Any]:
        async with FaultServer(answer) as server:
            feed = connect("airflow", SCRIPTS["airflow"](), server.base_url).open_feed()
            events = [event async for event in feed.sync([SyncTarget("p_many", None)])]
            await feed.aclose()
            return events

    events = asyncio.run(scene())
    found = [record["dag_run_id"] for event in events if isinstance(event, RecordBatch) for _, record in event.records]
    assert found == [f"many_{n:04}" for n in (0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203)]
    assert isinstance(events[-1], PipelinesSynced)
    assert events[-1].synced_through == datetime(2026, 11, 23, 11, 32, 48, tzinfo=UTC)


def records_cursor(page: str) -> str:
    from chm_dagster_tests.partners.recorded import body

    cursor: str = body("airflow", page)["next_cursor"]
    return cursor

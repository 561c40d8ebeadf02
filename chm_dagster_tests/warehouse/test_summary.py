"""A client's summary: counts in a window, and the latest run of each pipeline."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, minutes, observation, rows

NONE = dict.fromkeys(("running", "success", "failed", "canceled", "skipped"), 0)


@pytest.fixture
def ids(warehouse: Warehouse) -> dict[str, UUID]:
    """Two clients with pipelines of the same names, and a third client without any."""
    for client in ("Acme", "Beta", "Empty"):
        warehouse.clients.create(client)
    made = {}
    for client in ("acme", "beta"):
        for name in ("Orders", "Stock", "Old"):
            fields = {"name": name, "platform": "dbt", "pipeline_type": "transform"}
            pipeline = warehouse.pipelines.create(client, fields)
            made[pipeline.key] = pipeline.id
    return made


def record_runs(warehouse: Warehouse, pipeline_id: UUID, *runs: tuple[RunStatus, datetime | None]) -> None:
    observations = [
        observation(pipeline_id, f"r{n}", status=status, started_at=started, finished_at=(started or T0) + minutes(1))
        for n, (status, started) in enumerate(runs)
    ]
    with warehouse.engine.begin() as connection:
        merge_runs(connection, observations)


def test_a_summary_counts_each_status_and_lists_each_pipelines_latest_run(
    warehouse: Warehouse, ids: dict[str, UUID]
) -> None:
    record_runs(warehouse, ids["acme/orders"], (RunStatus.FAILED, T0), (RunStatus.SUCCESS, T0 + minutes(5)))
    record_runs(warehouse, ids["acme/old"], (RunStatus.FAILED, T0 + minutes(1)), (RunStatus.SKIPPED, T0 + minutes(2)))
    record_runs(warehouse, ids["beta/orders"], (RunStatus.CANCELED, T0))
    warehouse.pipelines.disable("acme/old")
    summary = warehouse.runs.summary("acme", T0, T0 + minutes(60))
    assert (summary.client_id, summary.client_slug) == (warehouse.clients.get("acme").id, "acme")
    assert (summary.since, summary.until) == (T0, T0 + minutes(60))
    # The disabled pipeline's history counts, but it has no current status.
    assert summary.status_counts == {**NONE, "failed": 2, "success": 1, "skipped": 1}
    latest = [(p.pipeline_slug, p.latest_status, p.latest_run_at) for p in summary.latest_by_pipeline]
    assert latest == [("orders", RunStatus.SUCCESS, T0 + minutes(5)), ("stock", None, None)]
    first = summary.latest_by_pipeline[0]
    assert (first.pipeline_id, first.pipeline_name, first.platform) == (ids["acme/orders"], "Orders", Platform.DBT)


def test_the_window_applies_to_starts_and_not_to_the_latest_run(warehouse: Warehouse, ids: dict[str, UUID]) -> None:
    record_runs(
        warehouse,
        ids["acme/orders"],
        (RunStatus.SUCCESS, T0 - minutes(1)),
        (RunStatus.SUCCESS, T0),
        (RunStatus.FAILED, T0 + minutes(10)),
    )
    summary = warehouse.runs.summary("acme", T0, T0 + minutes(10))
    assert summary.status_counts == {**NONE, "success": 1}
    assert summary.latest_by_pipeline[1].latest_status is RunStatus.FAILED
    assert warehouse.runs.summary("acme", T0, T0 + minutes(11)).status_counts == {**NONE, "success": 1, "failed": 1}


def test_a_run_without_a_start_is_placed_by_its_finish(warehouse: Warehouse, ids: dict[str, UUID]) -> None:
    record_runs(warehouse, ids["acme/orders"], (RunStatus.CANCELED, None))
    (latest, _, _) = sorted(warehouse.runs.summary("acme").latest_by_pipeline, key=lambda p: p.latest_run_at is None)
    assert (latest.latest_status, latest.latest_run_at) == (RunStatus.CANCELED, T0 + minutes(1))


def test_the_default_window_is_the_last_thirty_days(warehouse: Warehouse, ids: dict[str, UUID]) -> None:
    now = datetime.now(UTC)
    record_runs(
        warehouse,
        ids["acme/orders"],
        (RunStatus.SUCCESS, now - timedelta(days=29)),
        (RunStatus.FAILED, now - timedelta(days=31)),
    )
    summary = warehouse.runs.summary("acme")
    assert abs(summary.until - now) < timedelta(minutes=1)
    assert summary.until - summary.since == timedelta(days=30)
    assert summary.status_counts == {**NONE, "success": 1}
    earlier = warehouse.runs.summary("acme", until=now - timedelta(days=30))
    assert earlier.since == now - timedelta(days=60)
    assert earlier.status_counts == {**NONE, "failed": 1}
    assert warehouse.runs.summary("acme", since=now - timedelta(days=40)).status_counts == {
        **NONE,
        "success": 1,
        "failed": 1,
    }


@pytest.mark.parametrize(
    ("since", "until", "field"),
    [
        (T0, T0, "since"),
        (T0, T0 - minutes(1), "since"),
        (datetime(2999, 1, 1, tzinfo=UTC), None, "since"),
        (T0.replace(tzinfo=None), None, "since"),
        (None, T0.replace(tzinfo=None), "until"),
        (None, datetime(1, 1, 5, tzinfo=UTC), "until"),
    ],
)
def test_an_invalid_window_is_rejected(
    warehouse: Warehouse, ids: dict[str, UUID], since: datetime | None, until: datetime | None, field: str
) -> None:
    with pytest.raises(InputError) as error:
        warehouse.runs.summary("acme", since, until)
    assert error.value.field == field


def test_a_client_without_pipelines_has_a_summary_and_an_unknown_one_has_none(
    warehouse: Warehouse, ids: dict[str, UUID]
) -> None:
    summary = warehouse.runs.summary(str(warehouse.clients.get("empty").id))
    assert (summary.client_slug, summary.status_counts, summary.latest_by_pipeline) == ("empty", NONE, [])
    with pytest.raises(NotFound, match="'nobody'"):
        warehouse.runs.summary("nobody")


def test_a_disabled_client_keeps_its_summary(warehouse: Warehouse, ids: dict[str, UUID]) -> None:
    record_runs(warehouse, ids["acme/orders"], (RunStatus.FAILED, T0))
    warehouse.clients.disable("acme")
    assert warehouse.runs.summary("acme", T0, T0 + minutes(1)).status_counts == {**NONE, "failed": 1}


def test_a_summary_takes_as_many_statements_for_many_pipelines_as_for_few(
    warehouse: Warehouse, ids: dict[str, UUID]
) -> None:
    statements: list[str] = []
    sa.event.listen(warehouse.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    warehouse.runs.summary("acme")
    few = len(statements)
    for n in range(5):
        warehouse.pipelines.create("acme", {"name": f"More {n}", "platform": "dbt", "pipeline_type": "transform"})
    statements.clear()
    warehouse.runs.summary("acme")
    assert len(statements) == few <= 3


STARTS = st.none() | st.integers(0, 4).map(lambda n: T0 + minutes(n))


@settings(max_examples=40)
@given(
    runs=st.lists(
        st.tuples(st.sampled_from(["acme/orders", "acme/stock", "beta/orders"]), st.sampled_from(RunStatus), STARTS),
        max_size=15,
    ),
    window=st.tuples(st.integers(0, 3), st.integers(1, 5)),
)
def test_the_summary_agrees_with_counting_by_hand(
    warehouse: Warehouse,
    ids: dict[str, UUID],
    runs: list[tuple[str, RunStatus, datetime | None]],
    window: tuple[int, int],
) -> None:
    since, until = T0 + minutes(window[0]), T0 + minutes(window[0] + window[1])
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs"))
        merge_runs(
            connection,
            [
                observation(ids[key], f"r{n}", status=s, started_at=t, finished_at=None, duration_seconds=None)
                for n, (key, s, t) in enumerate(runs)
            ],
        )
    summary = warehouse.runs.summary("acme", since, until)
    counted: dict[str, int] = dict(NONE)
    for key, status, started in runs:
        # A run without a start counts from when it was first seen, which is now.
        counted[status] += key.startswith("acme") and started is not None and since <= started < until
    assert summary.status_counts == counted
    naive: list[Any] = rows(
        warehouse.engine,
        "SELECT * FROM (SELECT p.slug, r.status, coalesce(r.started_at, r.finished_at, r.created_at) AS at, row_number() OVER (PARTITION BY p.id"
        " ORDER BY coalesce(r.started_at, r.finished_at, r.created_at) DESC, r.finished_at DESC NULLS LAST, r.id DESC) AS n FROM pipelines AS p"
        " JOIN clients AS c ON c.id = p.client_id LEFT JOIN runs AS r ON r.pipeline_id = p.id WHERE c.slug = 'acme') AS x"
        " WHERE n = 1 ORDER BY slug",
    )
    assert [(p.pipeline_slug, p.latest_status, p.latest_run_at) for p in summary.latest_by_pipeline] == [
        (row["slug"], row["status"], row["at"]) for row in naive
    ]

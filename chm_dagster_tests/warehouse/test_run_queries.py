"""Lists of runs and the latest of them: order, windows, pages."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.domain.runs import Run, RunKind, RunStatus
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.paging import encode
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, minutes, observation, rows

ORDERS = "acme/orders"
Moment = datetime | None
INSERT = sa.text(
    "INSERT INTO runs (pipeline_id, external_run_id, status, started_at, finished_at, created_at)"
    " VALUES (:pipeline_id, :run, 'success', :started, :finished, :seen)"
)
EFFECTIVE = "coalesce(started_at, queued_at, finished_at, created_at)"
ORDER = f"{EFFECTIVE} DESC, finished_at DESC NULLS LAST, id DESC"
SEEN = T0 + minutes(2)
"""When CHM first saw the runs."""


def fill(warehouse: Warehouse, pipeline_id: UUID, times: list[tuple[Moment, Moment]], prefix: str = "r") -> None:
    rows_ = [
        {"pipeline_id": pipeline_id, "run": f"{prefix}{n}", "started": started, "finished": finished, "seen": SEEN}
        for n, (started, finished) in enumerate(times)
    ]
    if rows_:
        with warehouse.engine.begin() as connection:
            connection.execute(INSERT, rows_)


def pages(warehouse: Warehouse, limit: int, **filters: Any) -> list[Run]:
    found: list[Run] = []
    cursor = None
    while True:
        page = warehouse.runs.list(ORDERS, limit=limit, cursor=cursor, **filters)
        assert len(page.items) <= limit
        found += page.items
        assert len(found) <= 100, "the pages go round in a circle"
        cursor = page.next_cursor
        if cursor is None:
            return found


MOMENTS = st.none() | st.integers(0, 3).map(lambda n: T0 + minutes(n))


@settings(max_examples=60)
@given(
    times=st.lists(st.tuples(MOMENTS, MOMENTS), max_size=12),
    limit=st.integers(1, 13),
    order=st.sampled_from(["asc", "desc"]),
    since=MOMENTS,
    until=MOMENTS,
)
def test_pages_add_up_to_the_list_in_the_agreed_order(
    warehouse: Warehouse,
    orders: Pipeline,
    times: list[tuple[Moment, Moment]],
    limit: int,
    order: Literal["asc", "desc"],
    since: Moment,
    until: Moment,
) -> None:
    if since is not None and until is not None and since >= until:
        since, until = None, None
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs"))
    fill(warehouse, orders.id, times)
    wanted = [
        row["external_run_id"]
        for row in rows(warehouse.engine, f"SELECT external_run_id, {EFFECTIVE} AS at FROM runs ORDER BY {ORDER}")
        if (since is None or row["at"] >= since) and (until is None or row["at"] < until)
    ]
    if order == "asc":
        wanted.reverse()
    assert [run.external_run_id for run in pages(warehouse, limit, order=order, since=since, until=until)] == wanted


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_every_size_cross_every_kind_of_unknown_time(
    warehouse: Warehouse, orders: Pipeline, order: Literal["asc", "desc"]
) -> None:
    kinds: list[Moment] = [None, T0, T0 + minutes(1)]
    fill(warehouse, orders.id, [(started, finished) for started in kinds for finished in kinds] * 2)
    wanted = [
        r["external_run_id"] for r in rows(warehouse.engine, f"SELECT external_run_id FROM runs ORDER BY {ORDER}")
    ]
    for limit in range(1, 20):
        found = [run.external_run_id for run in pages(warehouse, limit, order=order)]
        assert found == (wanted if order == "desc" else wanted[::-1]), limit


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_runs_that_arrive_between_two_pages_neither_repeat_nor_hide_others(
    warehouse: Warehouse, orders: Pipeline, order: Literal["asc", "desc"]
) -> None:
    times: list[tuple[Moment, Moment]] = [(T0 + minutes(n), None) for n in range(8)]
    fill(warehouse, orders.id, [*times, (None, None)])
    first = warehouse.runs.list(ORDERS, limit=4, order=order)
    fill(
        warehouse,
        orders.id,
        [(T0 - minutes(9), None), (T0 + minutes(3.5), None), (T0 + minutes(99), None), (None, T0)],
        "x",
    )
    rest, cursor = [], first.next_cursor
    while cursor is not None:
        page = warehouse.runs.list(ORDERS, limit=2, order=order, cursor=cursor)
        rest += page.items
        cursor = page.next_cursor
    seen = [run.external_run_id for run in (*first.items, *rest)]
    assert len(seen) == len(set(seen))
    old = [run for run in seen if run.startswith("r")]
    assert old == (
        # r8 has no time of its own: it was first seen at the start of r2, and is the older of the two by its finish.
        ["r0", "r1", "r2", "r8", *(f"r{n}" for n in range(3, 8))]
        if order == "asc"
        else [*(f"r{n}" for n in range(7, 2, -1)), "r8", "r2", "r1", "r0"]
    )


def test_the_latest_run_is_the_first_of_the_list_whatever_times_are_unknown(
    warehouse: Warehouse, orders: Pipeline
) -> None:
    assert warehouse.runs.latest(ORDERS) is None
    histories: list[list[tuple[Moment, Moment]]] = [
        [(None, None)],
        [(None, T0), (None, None)],
        [(T0, None), (None, T0 + minutes(9))],
        [(T0, T0 + minutes(1)), (T0, T0 + minutes(2)), (T0, None)],
        [(T0, T0), (T0, T0)],
    ]
    expected = ["a0", "b1", "c1", "d1", "e1"]
    for letter, times, latest in zip("abcde", histories, expected, strict=True):
        fill(warehouse, orders.id, times, letter)
        found = warehouse.runs.latest(orders.id)
        assert found is not None
        assert found.external_run_id == latest
        assert warehouse.runs.list(ORDERS, limit=1).items == [found]
        with warehouse.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM runs"))


def test_since_is_inclusive_and_until_exclusive(warehouse: Warehouse, orders: Pipeline) -> None:
    fill(warehouse, orders.id, [(T0 + minutes(n), None) for n in range(4)] + [(None, T0)])
    listed = warehouse.runs.list(ORDERS, since=T0 + minutes(1), until=T0 + minutes(3), order="asc")
    assert [run.external_run_id for run in listed.items] == ["r1", "r2"]
    # The last of the five has no start, and takes its place by its finish.
    zone = T0.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+09:00").tzinfo)
    assert len(warehouse.runs.list(ORDERS, since=zone).items) == 5
    assert len(warehouse.runs.list(ORDERS, until=datetime.max.replace(tzinfo=UTC)).items) == 5
    assert warehouse.runs.list(ORDERS, until=datetime.min.replace(tzinfo=UTC)).items == []
    assert len(warehouse.runs.list(ORDERS).items) == 5


def test_runs_are_filtered_by_status_and_belong_to_their_pipeline(warehouse: Warehouse, orders: Pipeline) -> None:
    other = warehouse.pipelines.create("acme", {"name": "Other", "platform": "cron", "pipeline_type": "export"})
    observations = [
        observation(pipeline, f"{status}-{n}", status=status, started_at=T0 + minutes(n))
        for pipeline in (orders.id, other.id)
        for status in RunStatus
        for n in range(2)
    ]
    with warehouse.engine.begin() as connection:
        merge_runs(connection, observations)
    assert len(warehouse.runs.list(ORDERS).items) == 10
    for status in (RunStatus.FAILED, "failed"):
        found = pages(warehouse, 1, status=status)
        assert [(run.external_run_id, run.pipeline_id) for run in found] == [
            ("failed-1", orders.id),
            ("failed-0", orders.id),
        ]


def test_runs_are_filtered_by_kind(warehouse: Warehouse, orders: Pipeline) -> None:
    kinds = [None, *RunKind]
    with warehouse.engine.begin() as connection:
        merge_runs(connection, [observation(orders.id, str(kind), kind=kind) for kind in kinds])
    assert {(run.external_run_id, run.kind) for run in warehouse.runs.list(ORDERS).items} == {
        (str(k), k) for k in kinds
    }
    for kind in (RunKind.BACKFILL, "backfill"):
        assert [run.external_run_id for run in warehouse.runs.list(ORDERS, kind=kind).items] == ["backfill"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"limit": True}, "limit"),
        ({"order": "up"}, "order"),
        ({"status": "lost"}, "status"),
        ({"kind": "automatic"}, "kind"),
        ({"since": datetime(2026, 1, 1)}, "since"),
        ({"until": datetime(2026, 1, 1)}, "until"),
        ({"since": T0, "until": T0}, "since"),
        ({"since": datetime.min.replace(tzinfo=datetime.fromisoformat("2026-01-01T00:00:00+14:00").tzinfo)}, "since"),
        ({"cursor": "rubbish"}, "cursor"),
        ({"cursor": ""}, "cursor"),
    ],
)
def test_an_invalid_argument_is_rejected_by_name(
    warehouse: Warehouse, orders: Pipeline, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError) as error:
        warehouse.runs.list(ORDERS, **arguments)
    assert error.value.field == field


def test_a_thousand_runs_fit_on_one_page(warehouse: Warehouse, orders: Pipeline) -> None:
    fill(warehouse, orders.id, [(T0 + minutes(n), None) for n in range(1_001)])
    assert len(warehouse.runs.list(ORDERS).items) == 100
    page = warehouse.runs.list(ORDERS, limit=1_000)
    assert len(page.items) == 1_000
    assert len(warehouse.runs.list(ORDERS, limit=1_000, cursor=page.next_cursor).items) == 1


def test_unknown_things_are_named(warehouse: Warehouse, orders: Pipeline) -> None:
    for call in (warehouse.runs.list, warehouse.runs.latest, lambda ref: warehouse.runs.get(ref, "r1")):
        with pytest.raises(NotFound, match="no pipeline 'acme/nothing'"):
            call("acme/nothing")
    for run_id in ("r1", "", "a\0", "\ud800", "x" * 600):
        with pytest.raises(NotFound, match=r"^acme/orders has no run '"):
            warehouse.runs.get(ORDERS, run_id)


def plan(warehouse: Warehouse, call: Any) -> str:
    """The plan of the last SELECT from runs of a call, with sequential scans at the planner's choice."""
    statements: list[tuple[str, Any]] = []

    @sa.event.listens_for(warehouse.engine, "before_cursor_execute")
    def note(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, _m: Any) -> None:
        if statement.lstrip().startswith("SELECT") and "runs" in statement:
            statements.append((statement, parameters))

    call()
    sa.event.remove(warehouse.engine, "before_cursor_execute", note)
    statement, parameters = statements[-1]
    with warehouse.engine.connect() as connection:
        return "\n".join(
            row[0] for row in connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters)
        )


def test_the_last_page_costs_no_more_than_the_first(warehouse: Warehouse, orders: Pipeline) -> None:
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO runs (pipeline_id, external_run_id, status, started_at, finished_at) SELECT :id, 'r' || n,"
                " 'success', :t0 + n * interval '1 minute', :t0 + n * interval '1 minute' FROM generate_series(1, 20000) AS n"
            ),
            {"id": orders.id, "t0": T0},
        )
    with warehouse.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE runs"))
    first = warehouse.runs.list(ORDERS, limit=10)
    deep = warehouse.runs.list(ORDERS, limit=10, order="asc").items[-1]
    cursor = encode([deep.effective_at, deep.finished_at, deep.id])
    for call in (
        lambda: warehouse.runs.list(ORDERS, limit=10, cursor=first.next_cursor),
        lambda: warehouse.runs.list(ORDERS, limit=10, cursor=cursor),
        lambda: warehouse.runs.list(ORDERS, limit=10, cursor=first.next_cursor, order="asc"),
        lambda: warehouse.runs.list(ORDERS, limit=10, until=T0 + timedelta(minutes=50)),
        lambda: warehouse.runs.latest(ORDERS),
    ):
        text = plan(warehouse, call)
        assert "Seq Scan on runs" not in text
        removed = [int(line.split(":")[1]) for line in text.splitlines() if "Rows Removed by Filter" in line]
        assert sum(removed) < 20, text

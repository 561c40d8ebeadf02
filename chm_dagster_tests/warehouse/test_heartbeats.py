"""Pings of jobs become runs: in whatever order they come, however often, and from however many at once."""

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.inventory import Pipeline
from chm_dagster.domain.runs import Run, RunStatus
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.heartbeats import MAX_OPEN, Ping, Signal, ping
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows

START, SUCCESS, FAIL = Signal.START, Signal.SUCCESS, Signal.FAIL
BACKUP = "acme/backup"


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def backup(warehouse: Warehouse) -> Pipeline:
    """A cron job that no partner knows."""
    warehouse.clients.create("Acme")
    return warehouse.pipelines.create("acme", {"name": "Backup", "platform": "cron", "pipeline_type": "export"})


@pytest.fixture
def send(engine: Engine, backup: Pipeline) -> Callable[..., Ping]:
    def send(signal: Signal, run_id: str | None = None, **more: Any) -> Ping:
        return ping(engine, backup.id, signal, run_id=run_id, **more)

    return send


@pytest.fixture
def run(warehouse: Warehouse, backup: Pipeline) -> Callable[[str], Run]:
    return lambda run_id: warehouse.runs.get(backup.id, run_id)


def all_runs(warehouse: Warehouse) -> list[Run]:
    return warehouse.runs.list(BACKUP, order="asc").items


Send = Callable[..., Ping]
Find = Callable[[str], Run]


# --- with a run id -------------------------------------------------------------------------------------------------


def test_a_start_and_its_end_are_one_run_with_a_duration(send: Send, run: Find, backup: Pipeline) -> None:
    began, ended = send(START, "monday"), send(SUCCESS, "monday")
    assert began == Ping(backup.id, BACKUP, "monday", RunStatus.RUNNING, "inserted")
    assert ended == Ping(backup.id, BACKUP, "monday", RunStatus.SUCCESS, "updated")
    found = run("monday")
    assert found.started_at and found.finished_at and found.duration_seconds
    assert found.duration_seconds == (found.finished_at - found.started_at).total_seconds() > 0
    assert found.payload == {"source": "heartbeat"}


def test_a_start_that_comes_after_the_end_reopens_nothing(send: Send, run: Find) -> None:
    send(SUCCESS, "monday")
    before = run("monday")
    late = send(START, "monday")
    assert (late.status, late.outcome) == (RunStatus.SUCCESS, "stale")
    assert run("monday") == before


def test_an_end_without_a_start_tells_when_but_not_how_long(send: Send, run: Find) -> None:
    assert send(SUCCESS, "monday").outcome == "inserted"
    found = run("monday")
    assert found.started_at == found.finished_at is not None
    assert found.duration_seconds is None


def test_a_second_start_leaves_the_first_one_its_time(send: Send, run: Find) -> None:
    send(START, "monday")
    before = run("monday")
    assert send(START, "monday").outcome == "unchanged"
    assert run("monday") == before


@pytest.mark.parametrize("signal", [SUCCESS, FAIL])
def test_an_end_that_is_said_again_changes_nothing(send: Send, run: Find, signal: Signal) -> None:
    send(START, "monday")
    send(signal, "monday", message="no space left")
    before = run("monday")
    assert send(signal, "monday", message="no space left").outcome == "unchanged"
    assert send(signal, "monday").outcome == "unchanged"
    assert run("monday") == before


@pytest.mark.parametrize(("first", "last"), [(FAIL, SUCCESS), (SUCCESS, FAIL)])
def test_of_two_ends_the_later_one_holds(send: Send, run: Find, first: Signal, last: Signal) -> None:
    send(START, "monday")
    send(first, "monday", message="no space left")
    middle = run("monday")
    assert send(last, "monday", message="no space left").outcome == "updated"
    found = run("monday")
    assert found.status is (RunStatus.SUCCESS if last is SUCCESS else RunStatus.FAILED)
    assert found.error_message == (None if last is SUCCESS else "no space left")
    assert found.started_at == middle.started_at
    assert found.finished_at and middle.finished_at and found.finished_at > middle.finished_at


def test_a_failure_says_why(send: Send, run: Find) -> None:
    send(FAIL, "monday", message="disk full\n", exit_status=28)
    assert run("monday").error_message == "exit status 28\ndisk full"
    send(FAIL, "tuesday", message="password=hunter2 was refused")
    assert run("tuesday").error_message == "password=*** was refused"
    send(FAIL, "wednesday")
    assert run("wednesday").error_message is None


def test_a_reason_that_comes_with_the_repetition_is_not_lost(send: Send, run: Find) -> None:
    send(FAIL, "monday")
    before = run("monday")
    assert send(FAIL, "monday", message="disk full").outcome == "updated"
    assert run("monday").error_message == "disk full"
    assert run("monday").finished_at == before.finished_at


def test_a_success_has_no_reason(send: Send, run: Find) -> None:
    send(SUCCESS, "monday", message="all good")
    assert run("monday").error_message is None


@pytest.mark.parametrize("run_id", ["", "x" * 513, "a\0b"])
def test_a_run_id_that_cannot_be_one_is_refused(send: Send, run_id: str) -> None:
    with pytest.raises(InputError, match=r"^run_id: "):
        send(START, run_id)


def test_pings_leave_alone_what_else_is_known_of_the_run(send: Send, run: Find, warehouse: Warehouse) -> None:
    told = {"external_run_id": "monday", "status": "running", "rows_processed": 7, "payload": {"host": "db1"}}
    warehouse.runs.record(BACKUP, told)
    send(SUCCESS, "monday")
    found = run("monday")
    assert (found.status, found.rows_processed, found.payload) == (RunStatus.SUCCESS, 7, {"host": "db1"})


def test_on_a_pipeline_that_a_partner_feeds_a_late_start_reopens_nothing_either(engine: Engine, send: Send) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET external_id = 'backup'"))
    send(SUCCESS, "monday")
    assert send(START, "monday").status is RunStatus.SUCCESS


# --- without one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [SUCCESS, FAIL])
def test_an_end_without_an_id_closes_the_newest_run_that_still_goes(send: Send, run: Find, signal: Signal) -> None:
    first, second = send(START), send(START)
    assert first.run_id != second.run_id
    assert send(signal).run_id == second.run_id
    assert run(second.run_id).duration_seconds is not None
    assert run(first.run_id).status is RunStatus.RUNNING
    assert send(signal).run_id == first.run_id


def test_an_end_without_an_id_closes_a_run_that_began_with_one(send: Send) -> None:
    send(START, "monday")
    assert send(SUCCESS).run_id == "monday"


def test_an_end_without_an_id_is_a_run_of_its_own_if_nothing_goes(send: Send, warehouse: Warehouse) -> None:
    send(START, "monday")
    send(SUCCESS, "monday")
    alone, again = send(SUCCESS), send(FAIL)
    assert (alone.outcome, again.outcome) == ("inserted", "inserted")
    assert len({"monday", alone.run_id, again.run_id}) == 3
    assert [r.status for r in all_runs(warehouse)] == [RunStatus.SUCCESS, RunStatus.SUCCESS, RunStatus.FAILED]


def test_an_end_without_an_id_does_not_touch_runs_that_were_told_otherwise(send: Send, warehouse: Warehouse) -> None:
    warehouse.runs.record(BACKUP, {"external_run_id": "by-hand", "status": "running"})
    assert send(SUCCESS).run_id != "by-hand"
    assert warehouse.runs.get(BACKUP, "by-hand").status is RunStatus.RUNNING


def test_an_end_without_an_id_does_not_close_another_pipelines_run(
    engine: Engine, send: Send, warehouse: Warehouse
) -> None:
    warehouse.pipelines.create("acme", {"name": "Reports", "platform": "cron", "pipeline_type": "export"})
    other = ping(engine, "acme/reports", START)
    assert send(SUCCESS).run_id != other.run_id


def test_a_run_whose_end_was_lost_long_ago_is_not_closed(engine: Engine, send: Send) -> None:
    lost, recent = send(START), send(START)
    ages = {lost.run_id: MAX_OPEN + timedelta(minutes=1), recent.run_id: MAX_OPEN - timedelta(minutes=1)}
    for run_id, age in ages.items():
        with engine.begin() as connection:
            update = sa.text("UPDATE runs SET started_at = started_at - :age WHERE external_run_id = :run_id")
            connection.execute(update, {"age": age, "run_id": run_id})
    assert send(SUCCESS).run_id == recent.run_id
    assert send(SUCCESS).run_id not in ages


# --- who may ping --------------------------------------------------------------------------------------------------


def test_a_pipeline_is_named_by_slug_or_id(engine: Engine, backup: Pipeline) -> None:
    assert {ping(engine, ref, START, run_id="monday").pipeline_id for ref in (BACKUP, backup.id, str(backup.id))} == {
        backup.id
    }


def test_an_unknown_pipeline_is_named_in_the_error(engine: Engine, backup: Pipeline) -> None:
    with pytest.raises(NotFound, match="acme/nope"):
        ping(engine, "acme/nope", START)


@pytest.mark.parametrize("disabled", ["pipeline", "client"])
def test_what_is_disabled_takes_no_pings(warehouse: Warehouse, send: Send, disabled: str) -> None:
    if disabled == "pipeline":
        warehouse.pipelines.disable(BACKUP)
    else:
        warehouse.clients.disable("acme")
    with pytest.raises(Conflict, match="disabled"):
        send(SUCCESS)
    assert all_runs(warehouse) == []


# --- all at once ---------------------------------------------------------------------------------------------------


def at_once(database_url: str, pings: list[tuple[Signal, str | None]]) -> list[Ping]:
    """Send each ping from a connection of its own, as nearly at the same time as threads can."""
    ready = threading.Barrier(len(pings))
    answers: list[Ping] = []

    def send(signal: Signal, run_id: str | None) -> None:
        engine = make_engine(database_url, pool_size=1)
        try:
            engine.connect().close()
            ready.wait()
            answers.append(ping(engine, BACKUP, signal, run_id=run_id))
        finally:
            engine.dispose()

    threads = [threading.Thread(target=send, args=one) for one in pings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_ends_at_the_same_time_close_one_run_each(database_url: str, send: Send, warehouse: Warehouse) -> None:
    begun = {send(START).run_id for _ in range(6)}
    closed = [answer.run_id for answer in at_once(database_url, [(SUCCESS, None)] * 6)]
    assert sorted(closed) == sorted(begun)
    assert {r.status for r in all_runs(warehouse)} == {RunStatus.SUCCESS}


def test_the_same_ping_many_times_at_once_is_one_run(database_url: str, backup: Pipeline, warehouse: Warehouse) -> None:
    answers = at_once(database_url, [(SUCCESS, "monday")] * 6)
    assert sorted(answer.outcome for answer in answers) == ["inserted", *["unchanged"] * 5]
    assert len(all_runs(warehouse)) == 1


def test_starts_and_ends_of_a_run_in_any_order_leave_it_ended(send: Send, warehouse: Warehouse) -> None:
    for number in range(20):
        pings = [START, START, SUCCESS, SUCCESS]
        random.Random(number).shuffle(pings)
        for signal in pings:
            send(signal, str(number))
    assert [r.status for r in all_runs(warehouse)] == [RunStatus.SUCCESS] * 20


def test_a_repeated_ping_writes_nothing(engine: Engine, send: Send) -> None:
    send(START, "monday")
    send(FAIL, "monday", message="disk full")
    before = rows(engine, "SELECT xmin::text, ctid::text, * FROM runs")
    for signal in (START, FAIL):
        send(signal, "monday", message="disk full")
    assert rows(engine, "SELECT xmin::text, ctid::text, * FROM runs") == before


def test_looking_for_the_open_run_does_not_read_the_whole_history(engine: Engine, backup: Pipeline, send: Send) -> None:
    with engine.begin() as connection:
        history = """
            INSERT INTO runs (pipeline_id, external_run_id, status, started_at, finished_at, payload)
            SELECT :id, n::text, 'success', now() - n * interval '1 minute', now() - n * interval '1 minute',
                jsonb_build_object('source', 'heartbeat')
            FROM generate_series(1, 50000) AS n
        """
        connection.execute(sa.text(history), {"id": backup.id})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE runs"))
    read = "SELECT sum(heap_blks_hit + heap_blks_read) AS n FROM pg_statio_user_tables WHERE relname = 'runs'"

    def blocks() -> int:
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        return int(rows(engine, read)[0]["n"])

    before = blocks()
    send(SUCCESS)
    engine.dispose()  # a session reports what it has read when it ends
    assert blocks() - before < 100

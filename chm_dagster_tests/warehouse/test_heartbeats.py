"""Pings of jobs become runs, in any order, repeated, and concurrently."""

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.domain.runs import Run, RunStatus
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.ledger.heartbeats import LOST, Ping, Signal, close_lost_runs, ping
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows

START, SUCCESS, FAIL = Signal.START, Signal.SUCCESS, Signal.FAIL
BACKUP = "acme/backup"


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def backup(warehouse: Warehouse) -> Pipeline:
    """A cron job that no partner reports."""
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


def test_an_end_without_a_start_has_a_time_but_no_duration(send: Send, run: Find) -> None:
    assert send(SUCCESS, "monday").outcome == "inserted"
    found = run("monday")
    assert found.started_at == found.finished_at is not None
    assert found.duration_seconds is None


def test_a_second_start_keeps_the_time_of_the_first(send: Send, run: Find) -> None:
    send(START, "monday")
    before = run("monday")
    assert send(START, "monday").outcome == "unchanged"
    assert run("monday") == before


@pytest.mark.parametrize("signal", [SUCCESS, FAIL])
def test_a_repeated_end_changes_nothing(send: Send, run: Find, signal: Signal) -> None:
    send(START, "monday")
    send(signal, "monday", message="no space left")
    before = run("monday")
    assert send(signal, "monday", message="no space left").outcome == "unchanged"
    assert send(signal, "monday").outcome == "unchanged"
    assert run("monday") == before


@pytest.mark.parametrize(("first", "last"), [(FAIL, SUCCESS), (SUCCESS, FAIL)])
def test_the_later_of_two_ends_wins(send: Send, run: Find, first: Signal, last: Signal) -> None:
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


def test_a_reason_that_arrives_with_the_repetition_is_kept(send: Send, run: Find) -> None:
    send(FAIL, "monday")
    before = run("monday")
    assert send(FAIL, "monday", message="disk full").outcome == "updated"
    assert run("monday").error_message == "disk full"
    assert run("monday").finished_at == before.finished_at


def test_a_success_has_no_reason(send: Send, run: Find) -> None:
    send(SUCCESS, "monday", message="all good")
    assert run("monday").error_message is None


@pytest.mark.parametrize("run_id", ["", "x" * 513, "a\0b"])
def test_an_invalid_run_id_is_rejected(send: Send, run_id: str) -> None:
    with pytest.raises(InputError, match=r"^run_id: "):
        send(START, run_id)


def test_pings_keep_everything_else_that_is_known_about_the_run(send: Send, run: Find, warehouse: Warehouse) -> None:
    recorded = {"external_run_id": "monday", "status": "running", "rows_processed": 7, "payload": {"host": "db1"}}
    warehouse.runs.record(BACKUP, recorded)
    send(SUCCESS, "monday")
    found = run("monday")
    assert (found.status, found.rows_processed, found.payload) == (RunStatus.SUCCESS, 7, {"host": "db1"})


def test_a_late_start_reopens_nothing_on_a_synced_pipeline_either(engine: Engine, send: Send) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET external_id = 'backup'"))
    send(SUCCESS, "monday")
    assert send(START, "monday").status is RunStatus.SUCCESS


def test_a_start_after_the_end_of_a_started_run_is_a_new_attempt(send: Send, run: Find) -> None:
    send(START, "monday")
    send(FAIL, "monday", message="disk full")
    first = run("monday")
    again = send(START, "monday")
    assert (again.status, again.outcome) == (RunStatus.RUNNING, "updated")
    found = run("monday")
    assert (found.attempt, found.error_message, found.finished_at) == (first.attempt + 1, None, None)
    assert found.started_at and first.finished_at and found.started_at > first.finished_at
    send(SUCCESS, "monday")
    last = run("monday")
    assert (last.status, last.attempt, last.payload) == (RunStatus.SUCCESS, first.attempt + 1, first.payload)
    assert last.started_at == found.started_at
    assert last.duration_seconds == (last.finished_at - last.started_at).total_seconds()  # type: ignore[operator]


# --- without one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [SUCCESS, FAIL])
def test_an_end_without_an_id_ends_the_oldest_running_run(send: Send, run: Find, signal: Signal) -> None:
    first, second = send(START), send(START)
    assert first.run_id != second.run_id
    assert send(signal).run_id == first.run_id
    assert run(first.run_id).duration_seconds is not None
    assert run(second.run_id).status is RunStatus.RUNNING
    assert send(signal).run_id == second.run_id


def test_an_end_without_an_id_closes_a_run_that_began_with_one(send: Send) -> None:
    send(START, "monday")
    assert send(SUCCESS).run_id == "monday"


def test_an_end_without_an_id_is_a_new_run_if_none_is_running(send: Send, warehouse: Warehouse) -> None:
    send(START, "monday")
    send(SUCCESS, "monday")
    alone, again = send(SUCCESS), send(FAIL)
    assert (alone.outcome, again.outcome) == ("inserted", "inserted")
    assert len({"monday", alone.run_id, again.run_id}) == 3
    assert [r.status for r in all_runs(warehouse)] == [RunStatus.SUCCESS, RunStatus.SUCCESS, RunStatus.FAILED]


def test_an_end_without_an_id_ends_a_run_that_was_recorded_by_hand(send: Send, warehouse: Warehouse) -> None:
    warehouse.runs.record(BACKUP, {"external_run_id": "by-hand", "status": "running"})
    assert send(SUCCESS).run_id == "by-hand"
    assert warehouse.runs.get(BACKUP, "by-hand").status is RunStatus.SUCCESS


def test_an_end_without_an_id_does_not_touch_runs_that_others_report(
    engine: Engine, send: Send, warehouse: Warehouse
) -> None:
    warehouse.runs.record(
        BACKUP, {"external_run_id": "event", "status": "running", "payload": {"source": "openlineage"}}
    )
    assert send(SUCCESS).run_id != "event"
    warehouse.runs.record(BACKUP, {"external_run_id": "at-partner", "status": "running"})
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET external_id = 'backup'"))
    assert send(SUCCESS).run_id not in {"event", "at-partner"}


def test_an_end_without_an_id_does_not_close_another_pipelines_run(
    engine: Engine, send: Send, warehouse: Warehouse
) -> None:
    warehouse.pipelines.create("acme", {"name": "Reports", "platform": "cron", "pipeline_type": "export"})
    other = ping(engine, "acme/reports", START)
    assert send(SUCCESS).run_id != other.run_id


def age(engine: Engine, **ages: timedelta) -> None:
    """Let runs have started that much earlier."""
    for run_id, age in ages.items():
        with engine.begin() as connection:
            update = sa.text("UPDATE runs SET started_at = started_at - :age WHERE external_run_id = :run_id")
            connection.execute(update, {"age": age, "run_id": run_id})


def test_an_end_without_an_id_ends_no_run_whose_own_end_was_lost_long_ago(engine: Engine, send: Send) -> None:
    lost, recent = send(START), send(START)
    age(engine, **{lost.run_id: LOST + timedelta(minutes=1), recent.run_id: LOST - timedelta(minutes=1)})
    assert send(SUCCESS).run_id == recent.run_id
    assert send(SUCCESS).run_id not in {lost.run_id, recent.run_id}


# --- ends that never come -------------------------------------------------------------------------------------------


def test_a_run_whose_end_never_comes_ends_with_an_unknown_outcome(engine: Engine, send: Send, run: Find) -> None:
    send(START, "lost")
    send(START, "recent")
    age(engine, lost=LOST + timedelta(minutes=1), recent=LOST - timedelta(minutes=1))
    assert close_lost_runs(engine) == 1
    found = run("lost")
    assert (found.status, found.status_reason, found.finished_at) == (RunStatus.CANCELED, "unknown outcome", None)
    assert run("recent").status is RunStatus.RUNNING
    assert close_lost_runs(engine) == 0


def test_a_pipeline_that_may_run_for_long_is_given_three_times_as_long(
    engine: Engine, send: Send, run: Find, warehouse: Warehouse
) -> None:
    warehouse.pipelines.update(BACKUP, {"max_runtime_minutes": 5 * 24 * 60})
    send(START, "monday")
    age(engine, monday=timedelta(days=14))
    assert close_lost_runs(engine) == 0
    age(engine, monday=timedelta(days=2))
    assert close_lost_runs(engine) == 1
    assert run("monday").status is RunStatus.CANCELED


def test_a_pipeline_whose_runs_are_short_is_given_a_day(engine: Engine, send: Send, warehouse: Warehouse) -> None:
    warehouse.pipelines.update(BACKUP, {"max_runtime_minutes": 10})
    send(START, "monday")
    age(engine, monday=timedelta(hours=23))
    assert close_lost_runs(engine) == 0
    age(engine, monday=timedelta(hours=2))
    assert close_lost_runs(engine) == 1


def test_an_end_without_an_id_ends_a_run_that_is_past_its_time_last(
    engine: Engine, send: Send, warehouse: Warehouse
) -> None:
    warehouse.pipelines.update(BACKUP, {"max_runtime_minutes": 10})
    lost, first, second = send(START).run_id, send(START).run_id, send(START).run_id
    age(engine, **{lost: timedelta(minutes=31), first: timedelta(minutes=29)})
    assert [send(SUCCESS).run_id for _ in range(3)] == [first, second, lost]


def test_a_true_end_counts_however_late_it_comes(engine: Engine, send: Send, run: Find) -> None:
    send(START, "monday")
    age(engine, monday=LOST + timedelta(days=1))
    close_lost_runs(engine)
    assert send(FAIL, "monday", message="disk full").status is RunStatus.FAILED
    found = run("monday")
    assert (found.status_reason, found.error_message) == (None, "disk full")
    assert found.duration_seconds and found.duration_seconds > LOST.total_seconds()


def test_recordings_by_hand_end_with_an_unknown_outcome_too(engine: Engine, run: Find, warehouse: Warehouse) -> None:
    warehouse.pipelines.create("acme", {"name": "X", "platform": "cron", "pipeline_type": "export"})
    warehouse.runs.record("acme/x", {"external_run_id": "by-hand", "status": "running"})
    age(engine, **{"by-hand": LOST + timedelta(minutes=1)})
    assert close_lost_runs(engine) == 1


def test_runs_of_a_partner_are_the_partners_to_end(engine: Engine, send: Send, warehouse: Warehouse) -> None:
    warehouse.runs.record(BACKUP, {"external_run_id": "scheduled__1", "status": "running"})
    pinged = send(START).run_id
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET external_id = 'backup'"))
    age(engine, **{"scheduled__1": LOST * 2, pinged: LOST * 2})
    assert close_lost_runs(engine) == 1
    assert warehouse.runs.get(BACKUP, "scheduled__1").status is RunStatus.RUNNING


# --- who may ping --------------------------------------------------------------------------------------------------


def test_a_pipeline_is_named_by_slug_or_id(engine: Engine, backup: Pipeline) -> None:
    assert {ping(engine, ref, START, run_id="monday").pipeline_id for ref in (BACKUP, backup.id, str(backup.id))} == {
        backup.id
    }


def test_an_unknown_pipeline_is_named_in_the_error(engine: Engine, backup: Pipeline) -> None:
    with pytest.raises(NotFound, match="acme/nope"):
        ping(engine, "acme/nope", START)


@pytest.mark.parametrize("disabled", ["pipeline", "client"])
def test_disabled_pipelines_and_clients_accept_no_pings(warehouse: Warehouse, send: Send, disabled: str) -> None:
    if disabled == "pipeline":
        warehouse.pipelines.disable(BACKUP)
    else:
        warehouse.clients.disable("acme")
    with pytest.raises(Conflict, match="disabled"):
        send(SUCCESS)
    assert all_runs(warehouse) == []


# --- all at once ---------------------------------------------------------------------------------------------------


def at_once(database_url: str, pings: list[tuple[Signal, str | None]]) -> list[Ping]:
    """Send each ping from its own connection, as simultaneously as threads can."""
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


def test_starts_and_ends_of_a_run_in_any_order_leave_one_run_that_its_last_ping_decides(
    send: Send, warehouse: Warehouse
) -> None:
    for number in range(20):
        pings = [START, START, SUCCESS, SUCCESS]
        random.Random(number).shuffle(pings)
        for signal in [*pings, SUCCESS]:
            send(signal, str(number))
    assert [r.status for r in all_runs(warehouse)] == [RunStatus.SUCCESS] * 20


def test_a_repeated_ping_writes_nothing(engine: Engine, send: Send) -> None:
    send(START, "tuesday")
    send(START, "monday")
    send(FAIL, "monday", message="disk full")
    before = rows(engine, "SELECT xmin::text, ctid::text, * FROM runs")
    send(FAIL, "monday", message="disk full")
    send(START, "tuesday")
    assert rows(engine, "SELECT xmin::text, ctid::text, * FROM runs") == before


@pytest.mark.alone
def test_finding_the_open_run_does_not_read_the_whole_history(engine: Engine, backup: Pipeline, send: Send) -> None:
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
    engine.dispose()  # a session publishes its statistics when it ends
    assert blocks() - before < 100

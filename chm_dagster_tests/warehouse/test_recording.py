"""Runs recorded by hand: step by step, twice, out of order, concurrently, with keys, and next to a partner."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.domain.runs import RESERVED, Observation, Run, RunStatus
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.constraints import impossible_runs
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.ledger.record import BY_KEY, record
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, minutes, observation, rows
from chm_dagster_tests.warehouse.conftest import at_once, once_it_waits

ORDERS = "acme/orders"
START, END = T0.isoformat(), (T0 + minutes(10)).isoformat()
RUNNING = {"external_run_id": "r1", "status": "running", "started_at": START}
SUCCESS = {"external_run_id": "r1", "status": "success", "finished_at": END}
PHYSICAL = "SELECT ctid::text, xmin::text FROM runs ORDER BY id"


@pytest.fixture(autouse=True)
def inventory(orders: Pipeline) -> None:
    """acme/orders exists."""


def outcomes(warehouse: Warehouse, *bodies: dict[str, Any]) -> list[str]:
    return [warehouse.runs.record(ORDERS, body)[1] for body in bodies]


def merge(warehouse: Warehouse, *observations: Observation) -> None:
    with warehouse.engine.begin() as connection:
        merge_runs(connection, observations)


@pytest.fixture
def fed(warehouse: Warehouse) -> Pipeline:
    """acme/fed: a pipeline that a partner reports."""
    fields = {"name": "Fed", "platform": "airflow", "pipeline_type": "ingestion", "external_id": "dag"}
    return warehouse.pipelines.create("acme", fields)


def test_a_status_alone_is_enough_and_means_now(warehouse: Warehouse) -> None:
    before = datetime.now(UTC)
    run, outcome = warehouse.runs.record(ORDERS, {"status": "success"})
    assert outcome == "inserted"
    assert run.external_run_id.startswith("manual-")
    assert run.finished_at is not None
    assert before - timedelta(seconds=2) < run.finished_at < datetime.now(UTC) + timedelta(seconds=2)
    # Its duration is unknown; it is still in its place among the runs.
    assert (run.started_at, run.duration_seconds) == (run.finished_at, None)
    assert warehouse.runs.latest(ORDERS) == run == warehouse.runs.get(ORDERS, run.external_run_id)
    other, _ = warehouse.runs.record(ORDERS, {"status": "running"})
    assert other.external_run_id != run.external_run_id
    assert (other.started_at is not None, other.finished_at) == (True, None)
    assert warehouse.runs.latest(ORDERS) == other


def test_every_field_of_a_run_is_stored(warehouse: Warehouse) -> None:
    said = {
        "external_run_id": "r/1 ü",
        "status": "failed",
        "started_at": T0,
        "finished_at": END,
        "rows_processed": 2**63 - 1,
        "error_message": "no disk\n\tleft",
        "status_reason": "out of space",
        "source_url": "https://cron.example.com/log?run=1",
        "payload": {"host": "db1", "nested": {"n": [1, None]}},
        "attempt": 2,
    }
    run, _ = warehouse.runs.record(ORDERS, said)
    for name, value in said.items():
        assert getattr(run, name) == (T0 + minutes(10) if name == "finished_at" else value), name
    assert run.duration_seconds == 600.0


@pytest.mark.parametrize(
    ("said", "started", "finished", "duration"),
    [
        ({"started_at": START, "finished_at": END}, 0, 10, 600.0),
        ({"started_at": START, "finished_at": END, "duration_seconds": 5}, 0, 10, 600.0),
        ({"started_at": START, "duration_seconds": 300}, 0, 5, 300.0),
        ({"finished_at": END, "duration_seconds": 300}, 5, 10, 300.0),
        ({"finished_at": END}, 10, 10, None),
        ({"finished_at": END, "duration_seconds": 0}, 10, 10, 0.0),
    ],
)
def test_missing_times_follow_from_the_given_ones(
    warehouse: Warehouse, said: dict[str, Any], started: int, finished: int, duration: float | None
) -> None:
    run, _ = warehouse.runs.record(ORDERS, {"status": "success", **said})
    assert (run.started_at, run.finished_at) == (T0 + minutes(started), T0 + minutes(finished))
    assert run.duration_seconds == duration


def test_a_run_is_recorded_step_by_step(warehouse: Warehouse) -> None:
    assert outcomes(warehouse, {**RUNNING, "payload": {"host": "db1"}, "source_url": "https://x.example/1"}) == [
        "inserted"
    ]
    assert outcomes(warehouse, {**SUCCESS, "rows_processed": 7}) == ["updated"]
    run = warehouse.runs.get(ORDERS, "r1")
    assert (run.status, run.started_at, run.finished_at) == (RunStatus.SUCCESS, T0, T0 + minutes(10))
    assert (run.duration_seconds, run.rows_processed) == (600.0, 7)
    assert (run.payload, run.source_url) == ({"host": "db1"}, "https://x.example/1")


def test_the_same_recording_again_writes_nothing(warehouse: Warehouse) -> None:
    bare = {"external_run_id": "r2", "status": "failed"}
    assert outcomes(warehouse, RUNNING, SUCCESS, bare) == ["inserted", "updated", "inserted"]
    physical = rows(warehouse.engine, PHYSICAL)
    assert outcomes(warehouse, SUCCESS, SUCCESS, bare, bare) == ["unchanged"] * 4
    assert rows(warehouse.engine, PHYSICAL) == physical


def test_a_start_that_arrives_after_the_end_reopens_nothing(warehouse: Warehouse) -> None:
    outcomes(warehouse, SUCCESS)
    before = warehouse.runs.get(ORDERS, "r1")
    run, outcome = warehouse.runs.record(ORDERS, RUNNING)
    assert (run, outcome) == (before, "stale")


def test_a_correction_replaces_the_outcome_and_clears_what_no_longer_applies(warehouse: Warehouse) -> None:
    failed = {**RUNNING, "status": "failed", "finished_at": END, "error_message": "no disk", "status_reason": "odd"}
    outcomes(warehouse, failed)
    corrected, outcome = warehouse.runs.record(ORDERS, {"external_run_id": "r1", "status": "success"})
    assert outcome == "updated"
    assert (corrected.error_message, corrected.status_reason) == (None, None)
    assert (corrected.started_at, corrected.finished_at) == (T0, T0 + minutes(10))
    moved, _ = warehouse.runs.record(ORDERS, {**SUCCESS, "finished_at": T0 + minutes(4)})
    assert moved.duration_seconds == 240.0


def test_another_attempt_starts_over_and_an_earlier_one_is_stale(warehouse: Warehouse) -> None:
    outcomes(warehouse, RUNNING, {**SUCCESS, "rows_processed": 5})
    again, outcome = warehouse.runs.record(ORDERS, {"external_run_id": "r1", "status": "running", "attempt": 1})
    assert outcome == "updated"
    assert (again.attempt, again.finished_at, again.rows_processed) == (1, None, None)
    assert again.started_at is not None
    assert again.started_at > T0
    assert outcomes(warehouse, {**SUCCESS, "attempt": 0}) == ["stale"]
    assert outcomes(warehouse, {"external_run_id": "r1", "status": "success"}) == ["updated"]
    assert warehouse.runs.get(ORDERS, "r1").attempt == 1


@pytest.mark.parametrize(
    ("said", "field", "issue"),
    [
        ({"status": None}, "status", "is required"),
        ({"status": "succeeded"}, "status", "must be one of running, success"),
        ({"status": 1}, "status", "a number"),
        ({"external_run_id": " "}, "external_run_id", "empty"),
        ({"external_run_id": "x" * 513}, "external_run_id", "512"),
        ({"external_run_id": "a\0"}, "external_run_id", "NUL"),
        ({"external_run_id": 1.0}, "external_run_id", "a number"),
        ({"started_at": "2026-03-01"}, "started_at", "no time zone"),
        ({"started_at": T0.replace(tzinfo=None)}, "started_at", "no time zone"),
        ({"started_at": 1_772_000_000}, "started_at", "a number"),
        ({"started_at": "1999-12-31T00:00:00Z"}, "started_at", "before the year 2000"),
        ({"finished_at": "2999-01-01T00:00:00Z"}, "finished_at", "in the future"),
        ({"started_at": END, "finished_at": START}, "finished_at", "before the run started"),
        ({"status": "running", "finished_at": END}, "finished_at", "still running"),
        ({"status": "running", "duration_seconds": 1}, "duration_seconds", "still running"),
        ({"duration_seconds": -1}, "duration_seconds", "must be a number of seconds"),
        ({"duration_seconds": float("nan")}, "duration_seconds", "must be a number of seconds"),
        ({"duration_seconds": True}, "duration_seconds", "must be a number of seconds"),
        ({"duration_seconds": 1e12}, "duration_seconds", "must be a number of seconds"),
        ({"rows_processed": -1}, "rows_processed", "must be at least 0"),
        ({"rows_processed": 2**63}, "rows_processed", "must be at most"),
        ({"rows_processed": False}, "rows_processed", "a boolean"),
        ({"error_message": "no"}, "error_message", "a run that is success"),
        ({"error_message": 5, "status": "failed"}, "error_message", "a number"),
        ({"status_reason": ["x"]}, "status_reason", "a list"),
        ({"source_url": "javascript:alert(1)"}, "source_url", "must be an http:// or https:// link"),
        ({"source_url": "https://user:pw@example.com/"}, "source_url", "must be an http:// or https:// link"),
        ({"payload": [1]}, "payload", "a list"),
        ({"payload": "{}"}, "payload", "not text"),
        ({"payload": {RESERVED: {}}}, "payload", "CHM's own"),
        ({"attempt": -1}, "attempt", "must be at least 0"),
        ({"attempt": 2**31}, "attempt", "must be at most"),
        ({"run_id": "r1"}, "run_id", "unknown field"),
        ({"progress": 1}, "progress", "unknown field"),
        ({"source_version": END}, "source_version", "unknown field"),
    ],
)
def test_an_invalid_run_is_rejected_by_field_and_leaves_nothing(
    warehouse: Warehouse, said: dict[str, object], field: str, issue: str
) -> None:
    with pytest.raises(InputError) as error:
        warehouse.runs.record(ORDERS, {"status": "success", **said})
    assert error.value.field == field
    assert issue in error.value.issue
    assert rows(warehouse.engine, "SELECT 1 FROM runs") == []


def test_an_end_before_the_known_start_is_rejected(warehouse: Warehouse) -> None:
    outcomes(warehouse, RUNNING)
    with pytest.raises(InputError, match="before the run started at 2026-03-01T06:00") as error:
        warehouse.runs.record(ORDERS, {**SUCCESS, "finished_at": T0 - minutes(1)})
    assert error.value.field == "finished_at"
    assert warehouse.runs.get(ORDERS, "r1").status is RunStatus.RUNNING


def test_secrets_are_masked_and_hostile_characters_replaced(warehouse: Warehouse) -> None:
    run, _ = warehouse.runs.record(
        ORDERS,
        {
            "status": "failed",
            "error_message": "login failed: password=hunter2 \0 \ud800 " + "x" * 9_000,
            "status_reason": "token=abc12345\nsecond line",
            "source_url": "https://cron.example.com/log?token=abc12345",
            "payload": {"password": "hunter2", "text\0": "\ud800", "nan": float("nan"), "big": 2**70},
        },
    )
    assert run.error_message is not None
    assert run.error_message.startswith("login failed: password=*** \ufffd \ufffd xxx")
    assert len(run.error_message.encode()) <= 8_000
    assert (run.status_reason, run.source_url) == ("token=*** second line", "https://cron.example.com/log")
    assert run.payload == {"password": "***", "text\ufffd": "\ufffd", "nan": None, "big": str(2**70)}


def test_a_payload_that_is_too_large_is_kept_as_a_summary(warehouse: Warehouse) -> None:
    run, _ = warehouse.runs.record(ORDERS, {"status": "success", "payload": {"log": "x" * 100_000, "host": "db1"}})
    assert run.payload["truncated"] is True
    assert run.payload["host"] == "db1"


def test_no_recording_leaves_an_impossible_run(warehouse: Warehouse, orders: Pipeline) -> None:
    for status in RunStatus:
        outcomes(warehouse, {"status": status}, {"status": status, "external_run_id": "one"})
    assert impossible_runs(warehouse.engine, [str(orders.id)]) == []


# --- runs that are reported by others as well ---------------------------------------------------------------------------


def test_a_partner_has_the_last_word_on_a_pipeline_that_it_reports(warehouse: Warehouse, fed: Pipeline) -> None:
    warehouse.runs.record("acme/fed", {**SUCCESS, "started_at": START})
    merge(warehouse, observation(fed.id, "r1", status=RunStatus.RUNNING, progress=0, source_version=T0))
    assert warehouse.runs.get("acme/fed", "r1").status is RunStatus.RUNNING
    run, outcome = warehouse.runs.record("acme/fed", SUCCESS)
    assert (run.status, outcome) == (RunStatus.RUNNING, "stale")


def test_a_late_start_reopens_nothing_next_to_a_partner_either(warehouse: Warehouse, fed: Pipeline) -> None:
    ended, _ = warehouse.runs.record("acme/fed", SUCCESS)
    assert warehouse.runs.record("acme/fed", RUNNING) == (ended, "stale")
    assert warehouse.runs.record("acme/fed", {**RUNNING, "attempt": 1})[1] == "updated"


def test_an_imported_run_can_be_corrected_if_no_partner_reports_it(warehouse: Warehouse, orders: Pipeline) -> None:
    merge(warehouse, observation(orders.id, "r1", progress=1, source_version=T0 + minutes(10)))
    run, outcome = warehouse.runs.record(
        ORDERS, {"external_run_id": "r1", "status": "failed", "error_message": "bad data"}
    )
    assert (run.status, outcome, run.started_at) == (RunStatus.FAILED, "updated", T0)


def test_a_disabled_pipeline_accepts_runs_and_its_history_stays_readable(warehouse: Warehouse) -> None:
    outcomes(warehouse, RUNNING)
    warehouse.pipelines.disable(ORDERS)
    warehouse.clients.disable("acme")
    assert outcomes(warehouse, SUCCESS) == ["updated"]
    assert warehouse.runs.latest(ORDERS) == warehouse.runs.get(ORDERS, "r1")
    assert [run.external_run_id for run in warehouse.runs.list(ORDERS).items] == ["r1"]
    assert warehouse.pipelines.list().items == []


def test_nothing_is_recorded_for_an_unknown_pipeline(warehouse: Warehouse) -> None:
    with pytest.raises(NotFound, match="'acme/nothing'"):
        warehouse.runs.record("acme/nothing", {"status": "success"}, idempotency_key="k")


# --- idempotency keys ----------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_is_the_same_run(warehouse: Warehouse) -> None:
    body = {"status": "success", "finished_at": END, "payload": {"b": 1, "a": 2}}
    first, outcome = warehouse.runs.record(ORDERS, body, idempotency_key="key-1")
    assert outcome == "inserted"
    physical = rows(warehouse.engine, PHYSICAL)
    # The same content in a different form: another order, another offset, an explicit null.
    same = {
        "payload": {"a": 2, "b": 1},
        "finished_at": "2026-03-01T07:10:00+01:00",
        "status": "success",
        "attempt": None,
    }
    for again in (body, same):
        assert warehouse.runs.record(ORDERS, again, idempotency_key="key-1") == (first, "unchanged")
    assert rows(warehouse.engine, PHYSICAL) == physical


def test_a_key_means_the_same_run_whatever_its_status(warehouse: Warehouse) -> None:
    started, _ = warehouse.runs.record(ORDERS, RUNNING, idempotency_key="start")
    warehouse.runs.record(ORDERS, SUCCESS, idempotency_key="end")
    warehouse.runs.record(ORDERS, {**SUCCESS, "rows_processed": 3})
    assert warehouse.runs.record(ORDERS, RUNNING, idempotency_key="late")[1] == "stale"
    with pytest.raises(Conflict):
        warehouse.runs.record(ORDERS, SUCCESS, idempotency_key="late")
    run, outcome = warehouse.runs.record(ORDERS, RUNNING, idempotency_key="start")
    assert (run.id, run.status, run.rows_processed, outcome) == (started.id, RunStatus.SUCCESS, 3, "unchanged")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"status": "success"}, {"status": "failed"}),
        ({"status": "success"}, {"status": "success", "rows_processed": 1}),
        (RUNNING, {**RUNNING, "external_run_id": "r2"}),
        ({"status": "success"}, {"status": "success", "external_run_id": "r2"}),
        ({"status": "success", "external_run_id": "r2"}, {"status": "success"}),
    ],
)
def test_the_same_key_with_another_body_is_a_conflict_and_writes_nothing(
    warehouse: Warehouse, first: dict[str, Any], second: dict[str, Any]
) -> None:
    warehouse.runs.record(ORDERS, first, idempotency_key="key-1")
    physical = rows(warehouse.engine, PHYSICAL)
    with pytest.raises(Conflict, match="new key") as error:
        warehouse.runs.record(ORDERS, second, idempotency_key="key-1")
    assert error.value.details[0][0] == "idempotency_key"
    assert rows(warehouse.engine, PHYSICAL) == physical


def test_a_key_belongs_to_its_pipeline(warehouse: Warehouse, fed: Pipeline) -> None:
    one, _ = warehouse.runs.record(ORDERS, {"status": "success"}, idempotency_key="key-1")
    other, outcome = warehouse.runs.record("acme/fed", {"status": "failed"}, idempotency_key="key-1")
    assert outcome == "inserted"
    assert one.external_run_id != other.external_run_id


def test_a_key_is_remembered_but_neither_stored_in_clear_nor_shown(warehouse: Warehouse) -> None:
    run, _ = warehouse.runs.record(ORDERS, {**SUCCESS, "payload": {"a": 1}}, idempotency_key="order-4711")
    assert run.payload == {"a": 1}
    assert warehouse.runs.list(ORDERS).items == [warehouse.runs.latest(ORDERS)] == [run]
    (stored,) = rows(warehouse.engine, "SELECT payload::text AS text FROM runs")
    assert RESERVED in stored["text"]
    assert "4711" not in stored["text"]


def test_a_new_key_for_a_known_run_does_not_change_the_run(warehouse: Warehouse) -> None:
    run, _ = warehouse.runs.record(ORDERS, SUCCESS)
    assert warehouse.runs.record(ORDERS, SUCCESS, idempotency_key="key-1") == (run, "unchanged")
    assert warehouse.runs.record(ORDERS, SUCCESS) == (run, "unchanged")
    with pytest.raises(Conflict):
        warehouse.runs.record(ORDERS, {**SUCCESS, "rows_processed": 1}, idempotency_key="key-1")


def test_a_run_remembers_its_newest_keys_only(warehouse: Warehouse) -> None:
    for n in range(25):
        warehouse.runs.record(ORDERS, {**SUCCESS, "rows_processed": n}, idempotency_key=f"key-{n}")
    (stored,) = rows(warehouse.engine, f"SELECT payload -> '{RESERVED}' AS keys FROM runs")
    assert len(stored["keys"]) == 20
    for n in (5, 24):
        assert (
            warehouse.runs.record(ORDERS, {**SUCCESS, "rows_processed": n}, idempotency_key=f"key-{n}")[1]
            == "unchanged"
        )


@pytest.mark.parametrize("kept", ["x", ["x"], {"x": 1}, {"x": ["a", "b"]}, {"x": [1]}, None, {}])
def test_a_partner_that_uses_the_reserved_name_confuses_nobody(
    warehouse: Warehouse, orders: Pipeline, kept: object
) -> None:
    merge(warehouse, observation(orders.id, "r1", payload={RESERVED: kept, "id": "r1"}))
    body = {"external_run_id": "r1", "status": "failed"}
    run, outcome = warehouse.runs.record(ORDERS, body, idempotency_key="key-1")
    assert (run.payload, outcome) == ({"id": "r1"}, "updated")
    assert warehouse.runs.record(ORDERS, body, idempotency_key="key-1") == (run, "unchanged")


@pytest.mark.parametrize("key", ["", "  ", "x" * 256, "a\0", "a\nb", "\ud800"])
def test_an_invalid_key_is_rejected(warehouse: Warehouse, key: str) -> None:
    with pytest.raises(InputError) as error:
        warehouse.runs.record(ORDERS, {"status": "success"}, idempotency_key=key)
    assert error.value.field == "idempotency_key"


@pytest.mark.parametrize("body", [{"status": "success"}, SUCCESS])
def test_the_same_key_sent_many_times_at_once_makes_one_run(warehouse: Warehouse, body: dict[str, Any]) -> None:
    answers = at_once([partial(warehouse.runs.record, ORDERS, body, idempotency_key="key-1")] * 8)
    assert sorted(outcome for _, outcome in answers) == ["inserted", *["unchanged"] * 7]
    assert len({run.id for run, _ in answers}) == 1
    assert len(rows(warehouse.engine, "SELECT 1 FROM runs")) == 1


def test_one_key_for_two_runs_at_once_makes_one_run_and_one_conflict(warehouse: Warehouse) -> None:
    calls = [
        partial(warehouse.runs.record, ORDERS, {**SUCCESS, "external_run_id": run}, idempotency_key="key-1")
        for run in ("a", "b", "c", "d")
    ]
    answers = at_once(calls)
    assert sorted(type(a).__name__ for a in answers) == ["Conflict", "Conflict", "Conflict", "tuple"]
    assert len(rows(warehouse.engine, "SELECT 1 FROM runs")) == 1


def test_a_key_in_use_is_waited_for(warehouse: Warehouse) -> None:
    with warehouse.engine.connect() as first:
        record(first, ORDERS, {**SUCCESS, "external_run_id": "a"}, "key-1")
        second = partial(warehouse.runs.record, ORDERS, {**SUCCESS, "external_run_id": "b"}, idempotency_key="key-1")
        answer = once_it_waits(warehouse.engine, second, first.commit)
    assert isinstance(answer, Conflict)
    assert answer.field == "idempotency_key"


def test_an_end_recorded_concurrently_with_the_start_loses_nothing(warehouse: Warehouse) -> None:
    with warehouse.engine.connect() as first:
        record(first, ORDERS, RUNNING, None)
        run, outcome = once_it_waits(warehouse.engine, partial(warehouse.runs.record, ORDERS, SUCCESS), first.commit)
    assert (run.started_at, run.duration_seconds, outcome) == (T0, 600.0, "updated")


def test_keys_are_found_by_their_index(warehouse: Warehouse, orders: Pipeline) -> None:
    merge(warehouse, *(observation(orders.id, f"r{n}") for n in range(3_000)))
    warehouse.runs.record(ORDERS, {"status": "success"}, idempotency_key="key-1")
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("ANALYZE runs"))
    with warehouse.engine.connect() as connection:
        plan = connection.execute(sa.text(f"EXPLAIN {BY_KEY.text}"), {"digest": "d", "pipeline_id": orders.id})
        assert "ix_runs_idempotency_keys" in "\n".join(row[0] for row in plan)


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.none(), max_size=1)
JSON = st.recursive(JUNK, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


@settings(max_examples=150)
@given(
    fields=st.fixed_dictionaries(
        {"status": st.sampled_from(RunStatus)},
        optional={
            "external_run_id": JUNK,
            "started_at": JUNK | st.datetimes() | st.just(START),
            "finished_at": JUNK | st.datetimes(timezones=st.just(UTC)) | st.just(END),
            "duration_seconds": JUNK,
            "rows_processed": JUNK,
            "error_message": JUNK,
            "status_reason": JUNK,
            "source_url": JUNK,
            "payload": JSON,
            "attempt": JUNK,
        },
    ),
    key=st.none() | st.text(max_size=4),
)
def test_any_input_becomes_a_run_or_a_chm_error(warehouse: Warehouse, fields: dict[str, Any], key: str | None) -> None:
    try:
        run, _ = warehouse.runs.record(ORDERS, fields, idempotency_key=key)
    except (InputError, Conflict) as error:
        assert all(field in {*fields, "idempotency_key"} for field, _ in error.details)
        return
    assert isinstance(run, Run)
    assert warehouse.runs.get(ORDERS, run.external_run_id) == run

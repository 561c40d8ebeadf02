"""Groups of errors agree with a small model, and what is stored with a run is the fingerprint of its message."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.error_text import fingerprint
from chm_dagster.domain.runs import RunStatus
from chm_dagster.warehouse.ledger.heartbeats import Signal, ping
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.contracts.histories import DAY, HOUR, NOW, Execution, disable_pipeline, execution, watch, write
from chm_dagster_tests.factories import T0, add_pipeline, minutes, observation, rows

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
MESSAGES = ("disk 1 full", "disk 22 full", "HTTP 401 at https://a.example/1", "HTTP 503 at https://b.example/2", "")
KEYS = (("acme", "orders"), ("acme", "stock"), ("bolt", "orders"))
Histories = dict[tuple[str, str], list[Execution]]


# --- the model -----------------------------------------------------------------------------------------------------------------


def place(run: Execution) -> tuple[datetime, datetime, int]:
    return (run.effective, run.finished or datetime(1, 1, 1, tzinfo=UTC), run.id.int)


def failures(
    histories: Histories, since: datetime, until: datetime
) -> dict[str, dict[tuple[str, str], list[Execution]]]:
    """The failures of a time span by fingerprint and pipeline."""
    found: dict[str, dict[tuple[str, str], list[Execution]]] = {}
    for key, runs in histories.items():
        for run in runs:
            if run.settled and run.status == "failed" and since <= run.effective < until:
                found.setdefault(fingerprint(run.message), {}).setdefault(key, []).append(run)
    return found


def still_failing(runs: Sequence[Execution], text: str) -> bool:
    settled = sorted((run for run in runs if run.settled and run.kind != "backfill"), key=place)
    return bool(settled) and settled[-1].status == "failed" and fingerprint(settled[-1].message) == text


def groups(histories: Histories, since: datetime, until: datetime) -> dict[str, dict[str, Any]]:
    wanted = {}
    for text, by_pipeline in failures(histories, since, until).items():
        times = [run.effective for runs in by_pipeline.values() for run in runs]
        most = sorted(by_pipeline, key=lambda key: (-len(by_pipeline[key]), key))
        wanted[text] = {
            "failures": len(times),
            "clients": len({client for client, _ in by_pipeline}),
            "client_slugs": ", ".join(sorted({client for client, _ in by_pipeline})),
            "pipelines": len(by_pipeline),
            "pipeline_keys": ", ".join("/".join(key) for key in most),
            "still_failing": sum(still_failing(histories[key], text) for key in by_pipeline),
            "first_seen_at": min(times),
            "last_seen_at": max(times),
        }
    return wanted


@st.composite
def runs(draw: st.DrawFn) -> list[Execution]:
    """Up to twelve runs at few moments, with few messages."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        status = draw(st.sampled_from(["failed", "failed", "success", "running", "canceled"]))
        begin = BEGIN + HOUR * draw(st.integers(0, 9))
        end = None if status == "running" else begin + HOUR * draw(st.integers(0, 3))
        kind = draw(st.sampled_from([None, None, "backfill"]))
        retry = status == "failed" and draw(st.sampled_from([False, False, True]))
        message = draw(st.sampled_from(MESSAGES))
        found.append(Execution(UUID(int=number), status, begin, end, kind=kind, will_retry=retry, error=message))
    return found


@pytest.fixture
def pipelines(engine: sa.Engine) -> dict[tuple[str, str], UUID]:
    return {(client, name): add_pipeline(engine, name, client.capitalize()).id for client, name in KEYS}


@settings(max_examples=100)
@given(
    histories=st.fixed_dictionaries({key: runs() for key in KEYS}), since=st.integers(-1, 5), hours=st.integers(1, 12)
)
def test_error_groups_agree_with_the_model(
    engine: sa.Engine, pipelines: dict[tuple[str, str], UUID], histories: Histories, since: int, hours: int
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs"))
        for key, executions in histories.items():
            write(connection, pipelines[key], executions)
    span = {"since": BEGIN + HOUR * since, "until": BEGIN + HOUR * (since + hours)}
    wanted = groups(histories, **span)
    found = ask(engine, "error_groups", **span)
    assert {row["fingerprint"]: {name: row[name] for name in wanted[row["fingerprint"]]} for row in found} == wanted
    assert [row["all_groups"] for row in found] == [len(wanted)] * len(wanted)
    ranks = [(-row["clients"], -row["failures"], -row["last_seen_at"].timestamp()) for row in found]
    assert ranks == sorted(ranks)
    for row in found:
        listed = ask(engine, "failed_runs", **span, error_id=row["error_id"], runs=200)
        assert len(listed) == row["failures"]
        assert listed[0]["effective_at"] == row["last_seen_at"]
        assert {fingerprint(run["error_message"]) for run in listed} == {row["fingerprint"]}


# --- single cases --------------------------------------------------------------------------------------------------------------


def failed(number: int, error: str, hours: float = 1) -> Execution:
    return execution(number, "F", NOW - HOUR * hours, error=error)


def test_filters_narrow_what_is_counted_and_a_limit_says_what_it_leaves_out(engine: sa.Engine) -> None:
    for client in ("Acme", "Bolt"):
        watch(engine, [failed(1, "disk 7 full"), failed(2, "HTTP 401", 30 * 24)], "orders", client)
    watch(engine, [failed(1, "no rows")], "stock", "Bolt")
    first, second = ask(engine, "error_groups")
    assert (first["fingerprint"], first["clients"], second["fingerprint"]) == ("disk <n> full", 2, "no rows")
    (only,) = ask(engine, "error_groups", groups=1)
    assert (only["error_id"], only["all_groups"]) == (first["error_id"], 2)
    (acme,) = ask(engine, "error_groups", client_slug="acme")
    assert (acme["clients"], acme["client_slugs"]) == (1, "acme")
    assert len(ask(engine, "error_groups", since=NOW - 40 * DAY)) == 3
    assert ask(engine, "error_groups", platform="airflow") == []
    assert [row["pipelines"] for row in ask(engine, "error_groups", error_id=second["error_id"])] == [1]
    assert ask(engine, "failed_runs", runs=1)[0]["external_run_id"] == "run-1"


def test_a_disabled_pipeline_counts_but_is_not_still_failing(engine: sa.Engine) -> None:
    watch(engine, [failed(1, "disk full")], "orders")
    assert [row["still_failing"] for row in ask(engine, "error_groups")] == [1]
    disable_pipeline(engine, "orders")
    assert [(row["failures"], row["still_failing"]) for row in ask(engine, "error_groups")] == [(1, 0)]


def test_at_most_ten_clients_and_pipelines_are_named_but_all_are_counted(engine: sa.Engine) -> None:
    for number in range(12):
        watch(engine, [failed(1, "disk full")], "orders", f"Client-{number:02}")
    (row,) = ask(engine, "error_groups")
    assert (row["clients"], row["pipelines"]) == (12, 12)
    assert row["client_slugs"] == ", ".join(f"client-{n:02}" for n in range(10))
    assert len(row["pipeline_keys"].split(", ")) == 10


def test_a_failure_without_a_fingerprint_is_counted_as_such(engine: sa.Engine) -> None:
    watch(engine, [failed(1, "disk full")])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET error_fingerprint = NULL"))
    (row,) = ask(engine, "error_groups")
    assert (row["error_id"], row["fingerprint"], row["failures"], row["still_failing"]) == ("none", None, 1, 1)
    assert len(ask(engine, "failed_runs", error_id="none")) == 1


# --- what is stored ------------------------------------------------------------------------------------------------------------

STORED = "SELECT error_message, status_reason, error_fingerprint, status FROM runs"
_words = st.sampled_from(["disk", "Größe", "https://a.example/x?y=1", "2026-01-01 00:00:00+00", "0xff", "db7.internal"])
texts = st.text(max_size=60) | st.lists(_words | st.integers().map(str), max_size=12).map(" ".join)


def kept(text: str) -> bool:
    """Whether Postgres can hold the text; what partners send is cleaned before it gets this far."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


@settings(max_examples=60)
@given(messages=st.lists(texts.filter(kept), min_size=1, max_size=20))
def test_the_merge_stores_the_fingerprint_of_each_message(engine: sa.Engine, messages: list[str]) -> None:
    pipeline = add_pipeline(engine).id
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs"))
        seen = [
            observation(pipeline, f"r{n}", status=RunStatus.FAILED, error_message=text)
            for n, text in enumerate(messages)
        ]
        merge_runs(connection, seen)
    assert [row["error_fingerprint"] for row in rows(engine, STORED)] == [
        fingerprint(row["error_message"] or row["status_reason"]) for row in rows(engine, STORED)
    ]


def test_a_run_that_no_longer_failed_has_no_fingerprint(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine).id
    bad = observation(pipeline, status=RunStatus.FAILED, status_reason="out of disk 7", source_version=T0)
    good = observation(pipeline, source_version=T0 + minutes(1), observed_at=T0 + minutes(90))
    for seen, wanted in ((bad, "out of disk <n>"), (good, None)):
        with engine.begin() as connection:
            merge_runs(connection, [seen])
        assert [row["error_fingerprint"] for row in rows(engine, STORED)] == [wanted]


def by_heartbeat(warehouse: Warehouse) -> None:
    ping(warehouse.engine, warehouse.pipelines.get("acme/jobs").id, Signal.FAIL, message="no disk 12", exit_status=None)


def by_hand(warehouse: Warehouse) -> None:
    warehouse.runs.record("acme/jobs", {"status": "failed", "error_message": "no disk 13"})


@pytest.mark.parametrize("report", [by_heartbeat, by_hand])
def test_runs_that_no_partner_reports_have_one_too(engine: sa.Engine, report: Callable[[Warehouse], None]) -> None:
    warehouse = Warehouse(engine)
    warehouse.clients.create("Acme")
    warehouse.pipelines.create("acme", {"name": "Jobs", "platform": "cron", "pipeline_type": "export"})
    report(warehouse)
    assert [row["error_fingerprint"] for row in rows(engine, STORED)] == ["no disk <n>"]

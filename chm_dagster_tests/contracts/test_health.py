"""How a pipeline is: each state, the evidence that it takes, and the due times that it depends on."""

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.lineage import LineageEvent, read_event
from chm_dagster.domain.pipelines import Health, OldRuns, Pipeline
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.sync import SyncErrorCode
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.ingestion.run_files import Row
from chm_dagster.ingestion.run_import import import_runs
from chm_dagster.ingestion.run_rows import RowMapper
from chm_dagster.warehouse.ledger.due_times import due_differences, refresh_due
from chm_dagster.warehouse.ledger.heartbeats import Signal, ping
from chm_dagster.warehouse.ledger.lineage import receive
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.ledger.syncs import ledger_writer
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.contracts.histories import DAY, HOUR, Execution, execution, one, watch, write
from chm_dagster_tests.contracts.test_model import histories, plain_histories, settled
from chm_dagster_tests.factories import add_pipeline, minutes, observation, rows
from chm_dagster_tests.lineage.recorded import sent

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""The time at which health is asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a pipeline's row says about it. Without an external id it reports its runs itself."""

    external_id: str | None = "orders"
    connection: str | None = None
    is_active: bool = True
    due_at: datetime | None = None
    grace_minutes: int | None = None
    max_runtime_minutes: int | None = None
    observed_through: datetime | None = NOON
    sync_failing_since: datetime | None = None
    sync_error_code: str | None = None
    created_at: datetime = NOON - 9 * DAY
    known_through: datetime | None = None
    stale_at: datetime | None = None
    doubt: str | None = None
    doubt_since: datetime | None = None


PULLED = Facts()
PUSHED = Facts(external_id=None, observed_through=None)
LATE = dataclasses.replace(PULLED, due_at=NOON - HOUR)
LONG = dataclasses.replace(PULLED, max_runtime_minutes=30)
REFUSED = {"sync_failing_since": NOON - 2 * HOUR, "sync_error_code": "credentials_refused"}
GONE = {"sync_failing_since": NOON - 2 * HOUR, "sync_error_code": "not_at_partner"}


class Ledger:
    """One pipeline whose facts and runs are replaced for every question."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.pipeline = add_pipeline(engine).id

    def health(self, facts: Facts, runs: Sequence[Execution]) -> sa.Row[Any]:
        values = {**dataclasses.asdict(facts), "schedule_cron": facts.due_at and "0 * * * *", "id": self.pipeline}
        values["sync_error"] = facts.sync_error_code and "why"
        last = settled(runs)
        with self.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            connection.execute(sa.text("DELETE FROM runs"))
            names = ", ".join(f"{name} = :{name}" for name in values if name != "id")
            connection.execute(sa.text(f"UPDATE pipelines SET {names} WHERE id = :id"), values)
            write(connection, self.pipeline, runs)
            question = sa.text("SELECT * FROM health_of(:id, :settled, :at)")
            asked = {"id": self.pipeline, "settled": last[0].status if last else None, "at": NOON}
            return connection.execute(question, asked).one()


@pytest.fixture
def ledger(engine: sa.Engine) -> Ledger:
    return Ledger(engine)


GOOD = [execution(1, "S", NOON - 3 * HOUR)]
BAD = [execution(1, "S", NOON - 5 * HOUR), execution(2, "F", NOON - 4 * HOUR), execution(3, "F", NOON - 3 * HOUR)]
RUNNING = [*GOOD, execution(2, "R", NOON - HOUR)]


def change(facts: Facts, **changes: Any) -> Facts:
    return dataclasses.replace(facts, **changes)


# --- each state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "runs", "health", "since", "reason"),
    [
        (PULLED, GOOD, "healthy", None, None),
        (PUSHED, GOOD, "healthy", None, None),
        (change(PULLED, connection="openlineage:acme", observed_through=None), GOOD, "healthy", None, None),
        (change(PULLED, sync_error_code="clock_skew"), GOOD, "healthy", None, None),
        (change(PULLED, **REFUSED), GOOD, "healthy", None, None),  # read a moment before that
        (PULLED, BAD, "failing", NOON - 4 * HOUR, "the latest settled run failed"),
        (change(LATE, max_runtime_minutes=1), BAD, "failing", NOON - 4 * HOUR, "the latest settled run failed"),
        (
            change(PULLED, observed_through=NOON - HOUR),
            BAD,
            "failing",
            NOON - 4 * HOUR,
            "the latest settled run failed; not read since 2026-03-01 11:00 UTC",
        ),
        (LATE, GOOD, "late", NOON - minutes(45), "no run since it was due at 2026-03-01 11:00 UTC"),
        (LATE, [], "late", NOON - minutes(45), "no run since it was due at 2026-03-01 11:00 UTC"),
        (
            change(PUSHED, due_at=NOON - HOUR),
            GOOD,
            "late",
            NOON - minutes(45),
            "no run since it was due at 2026-03-01 11:00 UTC",
        ),
        (LONG, RUNNING, "overrunning", NOON - minutes(30), "has been running for more than 30 min"),
        (change(LONG, due_at=NOON + HOUR), RUNNING, "overrunning", NOON - minutes(30), None),
        (change(LONG, due_at=NOON - 2 * HOUR), RUNNING, "overrunning", NOON - minutes(30), None),
        (change(PUSHED, max_runtime_minutes=30), RUNNING, "overrunning", NOON - minutes(30), None),
        (PULLED, [], "unknown", NOON - 9 * DAY, "no run has settled yet"),
        (PUSHED, [execution(1, "R", NOON)], "unknown", NOON - 9 * DAY, "no run has settled yet"),
        (PULLED, [execution(1, "S", NOON, kind="backfill")], "unknown", NOON - 9 * DAY, "no run has settled yet"),
        (change(PULLED, observed_through=None), GOOD, "unknown", NOON - 9 * DAY, "never read"),
        (
            change(PULLED, observed_through=NOON - HOUR),
            GOOD,
            "unknown",
            NOON - HOUR,
            "not read since 2026-03-01 11:00 UTC",
        ),
        (
            change(PULLED, observed_through=NOON - 2 * HOUR, **REFUSED),
            GOOD,
            "unknown",
            NOON - 2 * HOUR,
            "credentials refused since 2026-03-01 10:00 UTC",
        ),
        (
            change(PULLED, **GONE),
            BAD,
            "unknown",
            NOON - 2 * HOUR,
            "not known to the partner since 2026-03-01 10:00 UTC",
        ),
        (change(PULLED, is_active=False), BAD, "paused", None, "disabled"),
    ],
)
def test_each_state_has_its_evidence_and_says_since_when_and_why(
    ledger: Ledger, facts: Facts, runs: list[Execution], health: str, since: datetime | None, reason: str | None
) -> None:
    found = ledger.health(facts, runs)
    assert (found.health, found.health_since) == (health, since)
    if reason is not None or health == "healthy":
        assert found.health_reason == reason
    assert found.due_at == facts.due_at
    assert found.read_at == facts.observed_through


@pytest.mark.parametrize("code", [code for code in SyncErrorCode if code is not SyncErrorCode.CLOCK_SKEW])
def test_every_reason_for_not_being_read_is_put_into_words(ledger: Ledger, code: SyncErrorCode) -> None:
    blind = change(PULLED, observed_through=NOON - 3 * HOUR, sync_failing_since=NOON - HOUR, sync_error_code=str(code))
    reason = ledger.health(blind, GOOD).health_reason
    assert reason.endswith(" since 2026-03-01 11:00 UTC")
    assert not reason.startswith("not read since")


def test_a_warning_about_clocks_does_not_hide_since_when_a_pipeline_was_not_read(ledger: Ledger) -> None:
    found = ledger.health(change(PULLED, observed_through=NOON - HOUR, sync_error_code="clock_skew"), GOOD)
    assert found.health_reason == "not read since 2026-03-01 11:00 UTC"


@pytest.mark.parametrize(
    ("read_before", "health"),
    [
        (minutes(0), "late"),
        (minutes(39), "unknown"),  # nobody knows what happened since
        (minutes(31), "unknown"),
        (minutes(29), "healthy"),  # read recently, but before the run could be called late
        (minutes(11), "healthy"),  # partners show runs with a delay of up to five minutes
        (minutes(9), "late"),
        (-minutes(9), "late"),
    ],
)
def test_late_is_claimed_only_if_the_pipeline_was_read_after_the_grace_time(
    ledger: Ledger, read_before: timedelta, health: str
) -> None:
    facts = change(PULLED, due_at=NOON - minutes(30), observed_through=NOON - read_before)
    assert ledger.health(facts, GOOD).health == health


@pytest.mark.parametrize(
    ("read_before", "health"),
    [(minutes(0), "overrunning"), (minutes(11), "healthy"), (minutes(9), "overrunning"), (minutes(31), "unknown")],
)
def test_overrunning_is_claimed_only_if_the_run_was_seen_after_its_limit(
    ledger: Ledger, read_before: timedelta, health: str
) -> None:
    runs = [*GOOD, execution(2, "R", NOON - minutes(45))]
    assert ledger.health(change(LONG, observed_through=NOON - read_before), runs).health == health


@pytest.mark.parametrize(("grace", "health"), [(None, "late"), (0, "late"), (59, "late"), (60, "healthy")])
def test_the_grace_time_is_a_quarter_of_an_hour_unless_set(ledger: Ledger, grace: int | None, health: str) -> None:
    facts = change(PUSHED, due_at=NOON - HOUR, grace_minutes=grace)
    assert ledger.health(facts, GOOD).health == health
    assert ledger.health(change(facts, due_at=NOON - minutes(15), grace_minutes=None), GOOD).health == "healthy"


def test_a_due_time_that_did_not_follow_the_runs_raises_no_false_alarm(ledger: Ledger) -> None:
    came = execution(2, "S", LATE.due_at and LATE.due_at - minutes(2))
    assert ledger.health(LATE, [*GOOD, came]).health == "healthy"
    assert ledger.health(LATE, [*GOOD, dataclasses.replace(came, kind="backfill")]).health == "late"


def test_a_run_that_waits_or_fills_the_past_does_not_overrun(ledger: Ledger) -> None:
    waiting = execution(2, "R", None, queued=NOON - 9 * HOUR)
    assert ledger.health(LONG, [*GOOD, waiting]).health == "healthy"
    assert ledger.health(LONG, [*GOOD, dataclasses.replace(RUNNING[1], kind="backfill")]).health == "healthy"


def test_reasons_are_in_utc_whatever_the_session_says(ledger: Ledger) -> None:
    ledger.health(LATE, GOOD)
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL timezone = 'Asia/Kolkata'"))
        question = sa.text("SELECT health_reason FROM health_of(:id, 'success', :at)")
        reason = connection.scalar(question, {"id": ledger.pipeline, "at": NOON})
    assert reason == "no run since it was due at 2026-03-01 11:00 UTC"


# --- a model ---------------------------------------------------------------------------------------------------------


def is_pulled(facts: Facts) -> bool:
    return facts.external_id is not None and not (facts.connection or "").startswith("openlineage:")


def expected(facts: Facts, runs: Sequence[Execution]) -> Health:
    """The health of a pipeline at NOON, from the definitions in contracts/README.md."""
    if not facts.is_active:
        return Health.PAUSED
    if is_pulled(facts) and facts.sync_error_code == "not_at_partner":
        return Health.UNKNOWN
    if settled(runs) and settled(runs)[0].status == "failed":
        return Health.FAILING
    if not is_pulled(facts):
        known = NOON
    elif facts.observed_through is None or NOON - facts.observed_through > timedelta(minutes=30):
        return Health.UNKNOWN
    else:
        known = min(NOON, facts.observed_through - timedelta(minutes=5))
    counting = [run for run in runs if run.kind != "backfill"]
    if facts.due_at is not None:
        grace = timedelta(minutes=15 if facts.grace_minutes is None else facts.grace_minutes)
        came = any(run.effective >= facts.due_at - timedelta(minutes=2) for run in counting)
        if not came and known > facts.due_at + grace:
            return Health.LATE
    if facts.max_runtime_minutes is not None:
        limit = timedelta(minutes=facts.max_runtime_minutes)
        starts = [run.started for run in counting if run.status == "running" and run.started is not None]
        if any(known > start + limit for start in starts):
            return Health.OVERRUNNING
    return Health.HEALTHY if settled(runs) else Health.UNKNOWN


near_noon = st.integers(-50, 10).map(lambda n: NOON + minutes(n))
facts_of_a_pipeline = st.builds(
    Facts,
    external_id=st.sampled_from([None, "orders", "orders"]),
    connection=st.sampled_from([None, None, "acme-airflow", "openlineage:acme"]),
    is_active=st.sampled_from([True] * 9 + [False]),
    due_at=st.none() | near_noon,
    grace_minutes=st.sampled_from([None, None, 0, 5, 30]),
    max_runtime_minutes=st.sampled_from([None, 1, 10, 30]),
    observed_through=st.none() | near_noon | near_noon,
    sync_error_code=st.sampled_from([None] * 5 + ["credentials_refused", "not_at_partner", "clock_skew"]),
)


@st.composite
def recent_runs(draw: st.DrawFn) -> list[Execution]:
    """A few runs in the last hour."""
    runs = []
    for number in range(draw(st.integers(0, 4))):
        started = draw(st.none() | near_noon)
        letter, seen = draw(st.sampled_from("SSSFRRC-")), draw(near_noon)
        finished = None if letter == "R" else draw(st.none() | st.just(started or seen))
        kind = draw(st.sampled_from([None, None, None, "backfill"]))
        runs.append(execution(number, letter, started, finished, seen=seen, kind=kind))
    return runs


@settings(max_examples=400)
@given(facts=facts_of_a_pipeline, runs=recent_runs() | recent_runs() | histories() | plain_histories())
def test_health_agrees_with_a_model_of_its_definition(ledger: Ledger, facts: Facts, runs: list[Execution]) -> None:
    if facts.sync_error_code not in (None, "clock_skew"):
        facts = change(facts, sync_failing_since=NOON - minutes(20))
    found = ledger.health(facts, runs)
    assert found.health == expected(facts, runs)
    assert (found.health_reason is None) == (found.health == Health.HEALTHY)
    assert found.health in (Health.HEALTHY, Health.PAUSED) or found.health_since is not None


def test_failing_is_the_same_in_health_and_in_failing_now(engine: sa.Engine) -> None:
    for number, letters in enumerate(["SF", "FFFF", "FR", "FC", "SFFFSFF", "S", "SR", ""]):
        watch(engine, letters, f"p{number}")
    failing = {row["pipeline_slug"]: row["failing_since"] for row in ask(engine, "failing_now")}
    latest = ask(engine, "latest_status_by_pipeline")
    assert {row["pipeline_slug"]: row["health_since"] for row in latest if row["health"] == "failing"} == failing
    assert len(failing) == 5


# --- the questions ---------------------------------------------------------------------------------------------------


def facts_of(engine: sa.Engine, slug: str, **values: Any) -> None:
    with engine.begin() as connection:
        names = ", ".join(f"{name} = :{name}" for name in values)
        connection.execute(sa.text(f"UPDATE pipelines SET {names} WHERE slug = :slug"), {**values, "slug": slug})


@pytest.fixture
def of_all_kinds(engine: sa.Engine) -> sa.Engine:
    now = datetime.now(UTC)
    for name, letters in {"good": "S", "bad": "SFF", "worse": "FFFF", "blind": "S"}.items():
        watch(engine, letters, name)
    watch(engine, [execution(1, "S", now - 9 * HOUR)], "late")
    watch(engine, [execution(1, "S", now - 9 * HOUR), execution(2, "R", now - 3 * HOUR)], "long")
    watch(engine, "S", "good", "Bolt")
    watch(engine, "", "new", "Crate")
    facts_of(engine, "late", schedule_cron="0 3 * * *", due_at=now - 2 * HOUR)
    facts_of(engine, "long", max_runtime_minutes=60)
    facts_of(engine, "blind", observed_through=now - 2 * HOUR)
    return engine


def test_what_needs_attention_comes_worst_first_then_longest(of_all_kinds: sa.Engine) -> None:
    found = ask(of_all_kinds, "needs_attention")
    assert [(row["client_slug"], row["pipeline_slug"], row["health"]) for row in found] == [
        ("acme", "worse", "failing"),
        ("acme", "bad", "failing"),
        ("acme", "late", "late"),
        ("acme", "long", "overrunning"),
        ("acme", "blind", "unknown"),
        ("crate", "new", "unknown"),
    ]
    assert found[1]["error_message"] == "no disk for run-2"
    assert [row["external_run_id"] for row in found[2:]] == [None] * 4
    assert found[4]["health_reason"].startswith("not read since ")


def test_a_client_is_as_healthy_as_its_worst_pipeline_and_the_worst_comes_first(of_all_kinds: sa.Engine) -> None:
    facts_of(of_all_kinds, "new", schedule_cron="0 3 * * *", due_at=datetime.now(UTC) - 2 * HOUR)
    watch(of_all_kinds, [execution(1, "S", None, queued=datetime.now(UTC))], "quiet", "Dune")
    facts_of(of_all_kinds, "quiet", observed_through=None)
    counts = ("pipelines", "failing", "late", "overrunning", "unknown", "healthy")
    found = ask(of_all_kinds, "latest_status_by_client")
    assert [(row["client_slug"], row["health"], *(row[name] for name in counts)) for row in found] == [
        ("acme", "failing", 6, 2, 1, 1, 1, 1),
        ("crate", "late", 1, 0, 1, 0, 0, 0),
        ("dune", "unknown", 1, 0, 0, 0, 1, 0),
        ("bolt", "healthy", 1, 0, 0, 0, 0, 1),
    ]
    by_slug = {row["client_slug"]: row for row in found}
    assert datetime.now(UTC) - by_slug["acme"]["read_at"] > HOUR
    assert by_slug["dune"]["read_at"] is None


def test_connections_show_how_recently_they_were_read_and_why_not(engine: sa.Engine) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    for name in ("a", "b", "c", "d", "e", "f", "g"):
        watch(engine, "S", name)
    failing = {"sync_error": "401 from the partner", "sync_error_code": "credentials_refused"}
    facts_of(engine, "a", observed_through=now - 2 * HOUR)
    facts_of(engine, "b", observed_through=now - HOUR, stale_at=now + HOUR, sync_attempted_at=now)
    for name, hours in (("c", 3), ("d", 2)):
        facts_of(engine, name, connection="east", observed_through=None, sync_attempted_at=now, **failing)
        facts_of(engine, name, sync_failing_since=now - hours * HOUR)
    gone = {"sync_error": "404 for this", "sync_error_code": "not_at_partner", "sync_failing_since": now - HOUR}
    facts_of(engine, "e", connection="west", observed_through=now, sync_attempted_at=now, **gone)
    facts_of(engine, "f", connection="openlineage:acme")
    facts_of(engine, "g", external_id=None)
    names = ("connection", "pipelines", "unreadable", "read_at", "oldest_read_at", "failing_since", "error_code")
    assert [tuple(row[name] for name in names) for row in ask(engine, "connections")] == [
        (None, 2, 0, now - HOUR, now - 2 * HOUR, None, None),
        ("east", 2, 2, None, None, now - 2 * HOUR, "credentials_refused"),
        ("west", 1, 1, now, now, None, "not_at_partner"),
    ]
    half = HOUR / 2
    assert [(row["stale_at"], row["oldest_stale_at"]) for row in ask(engine, "connections")] == [
        (now + HOUR, now - 2 * HOUR + half),
        (None, None),
        (now + half, now + half),
    ]
    skew = {"sync_error": "the partner's clock is ahead", "sync_error_code": "clock_skew"}
    facts_of(engine, "a", **skew)
    facts_of(engine, "e", sync_failing_since=None, **skew)
    assert [(row["error_code"], row["unreadable"]) for row in ask(engine, "connections")] == [
        ("clock_skew", 0),
        ("credentials_refused", 2),
        ("clock_skew", 0),
    ]
    facts_of(engine, "c", observed_through=now)
    east = ask(engine, "connections")[1]
    assert (east["read_at"], east["oldest_read_at"], east["error"]) == (now, None, "401 from the partner")


# --- due times: every writer -----------------------------------------------------------------------------------------


@pytest.fixture
def warehouse(engine: sa.Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def hourly(warehouse: Warehouse) -> Pipeline:
    """A job that reports itself, every hour on the hour."""
    warehouse.clients.create("Acme")
    fields = {"name": "Backup", "platform": "cron", "pipeline_type": "export", "schedule_cron": "0 * * * *"}
    return warehouse.pipelines.create("acme", fields)


def hour_after(time: datetime) -> datetime:
    """The next full hour, unless the run came early for it."""
    return (time + minutes(2)).replace(minute=0, second=0, microsecond=0) + HOUR


STARTED = datetime.now(UTC).replace(minute=20, second=0, microsecond=0) - 5 * HOUR


def by_merge(engine: sa.Engine, pipeline: Pipeline, at: datetime, tmp_path: Path) -> None:
    with engine.begin() as connection:
        merge_runs(connection, [observation(pipeline.id, started_at=at, finished_at=at, observed_at=at)])


def by_sync(engine: sa.Engine, pipeline: Pipeline, at: datetime, tmp_path: Path) -> None:
    with ledger_writer(engine, "default") as ledger:
        ledger.merge([[observation(pipeline.id, started_at=at, finished_at=at, observed_at=at)]], [pipeline.id])


def by_import(engine: sa.Engine, pipeline: Pipeline, at: datetime, tmp_path: Path) -> None:
    row = Row(2, {"id": "r1", "status": "success", "started_at": at.isoformat()})
    report = import_runs(engine, [row], RowMapper([pipeline], at, only=pipeline), tmp_path / "rejects")
    assert report.counts.inserted == 1


def by_hand(engine: sa.Engine, pipeline: Pipeline, at: datetime, tmp_path: Path) -> None:
    Warehouse(engine).runs.record(pipeline.id, {"status": "success", "started_at": at, "finished_at": at})


def by_event(engine: sa.Engine, pipeline: Pipeline, at: datetime, tmp_path: Path) -> None:
    facts_of(engine, pipeline.slug, external_id="orders", connection="openlineage:acme")
    for kind in ("START", "COMPLETE"):
        event = read_event(sent(kind, at.isoformat()), at)
        assert isinstance(event, LineageEvent)
        assert list(receive(engine, event).values()) in (["inserted"], ["updated"])


Writer = Callable[[sa.Engine, Pipeline, datetime, Path], None]


@pytest.mark.parametrize("writer", [by_merge, by_sync, by_import, by_hand, by_event])
def test_the_due_time_follows_a_run_whoever_writes_it(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline, writer: Writer, tmp_path: Path
) -> None:
    assert hourly.due_at == hour_after(hourly.created_at - minutes(2))
    writer(engine, hourly, STARTED, tmp_path)
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED)
    assert due_differences(engine) == []


def test_an_event_that_moves_its_run_moves_the_due_time(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline, tmp_path: Path
) -> None:
    facts_of(engine, hourly.slug, external_id="orders", connection="openlineage:acme")
    for at in (STARTED, STARTED - 3 * HOUR):  # the first event that arrives is not the first that was sent
        event = read_event(sent("START", at.isoformat()), STARTED)
        assert isinstance(event, LineageEvent)
        receive(engine, event)
    assert rows(engine, "SELECT started_at FROM runs")[0]["started_at"] == STARTED - 3 * HOUR
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED - 3 * HOUR)


def test_the_due_time_follows_a_ping(engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline) -> None:
    by_hand(engine, hourly, STARTED, Path())
    ping(engine, hourly.id, Signal.START)
    run = warehouse.runs.latest(hourly.id)
    assert run is not None and run.status is RunStatus.RUNNING
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(run.effective_at)


def test_a_dry_run_leaves_the_due_time_alone(engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline) -> None:
    with ledger_writer(engine, dry_run=True) as ledger:
        ledger.merge([[observation(hourly.id, started_at=STARTED, finished_at=STARTED)]])
    assert warehouse.pipelines.get(hourly.id).due_at == hourly.due_at


def test_backfills_and_runs_of_the_future_keep_no_schedule(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline
) -> None:
    by_hand(engine, hourly, STARTED, Path())
    ahead = datetime.now(UTC) + 3 * HOUR
    with engine.begin() as connection:
        merge_runs(
            connection,
            [
                observation(hourly.id, "old", started_at=STARTED + HOUR, kind=RunKind.BACKFILL),
                observation(hourly.id, "ahead", started_at=ahead, finished_at=ahead),
            ],
        )
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED)


def test_a_run_that_is_corrected_takes_its_due_time_back(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline, tmp_path: Path
) -> None:
    by_merge(engine, hourly, STARTED, tmp_path)
    with engine.begin() as connection:
        merge_runs(connection, [observation(hourly.id, "r2", started_at=STARTED + HOUR, attempt=0)])
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED + HOUR)
    with engine.begin() as connection:
        merge_runs(connection, [observation(hourly.id, "r2", started_at=STARTED - HOUR, attempt=1)])
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED)


def test_a_new_schedule_counts_from_now_on(warehouse: Warehouse, engine: sa.Engine, hourly: Pipeline) -> None:
    by_hand(engine, hourly, STARTED, Path())
    changed = warehouse.pipelines.update(hourly.id, {"schedule_cron": "30 * * * *"})
    assert changed.due_at is not None and changed.due_at.minute == 30 and changed.due_at > datetime.now(UTC)
    moved = warehouse.pipelines.update(hourly.id, {"schedule_timezone": "Asia/Kolkata"})
    assert moved.due_at is not None and moved.due_at.minute == 0 and moved.due_at > datetime.now(UTC)
    cleared = warehouse.pipelines.update(hourly.id, {"schedule_cron": None, "schedule_timezone": None})
    assert cleared.due_at is None
    set_again = warehouse.pipelines.update(hourly.id, {"schedule_cron": "30 * * * *"})
    assert set_again.due_at is not None and set_again.due_at > datetime.now(UTC)
    assert due_differences(engine) == []


def test_other_changes_leave_the_due_time_alone(warehouse: Warehouse, engine: sa.Engine, hourly: Pipeline) -> None:
    by_hand(engine, hourly, STARTED, Path())
    changed = warehouse.pipelines.update(
        hourly.id, {"name": "Export", "grace_minutes": 3, "schedule_cron": "0 * * * *"}
    )
    assert changed.due_at == hour_after(STARTED)


@pytest.mark.parametrize("what", ["pipeline", "client", "external id", "runs"])
def test_what_starts_anew_is_due_from_now_on(
    warehouse: Warehouse, engine: sa.Engine, hourly: Pipeline, what: str
) -> None:
    by_hand(engine, hourly, STARTED, Path())
    if what == "client":
        warehouse.clients.disable("acme")
        assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED)
        warehouse.clients.update("acme", {"is_active": True})
    elif what == "pipeline":
        warehouse.pipelines.disable(hourly.id)
        warehouse.pipelines.update(hourly.id, {"is_active": True})
    elif what == "external id":
        warehouse.pipelines.update(hourly.id, {"external_id": "another"})
    else:
        warehouse.pipelines.update(hourly.id, {}, runs=OldRuns.REMOVE)
    due_at = warehouse.pipelines.get(hourly.id).due_at
    assert due_at is not None and due_at > datetime.now(UTC)
    assert due_differences(engine) == []


def test_two_writers_at_once_leave_the_due_time_of_the_later_run(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline
) -> None:
    by_hand(engine, hourly, STARTED - 9 * HOUR, Path())
    with engine.begin() as connection:
        merge_runs(connection, [observation(hourly.id, "later", started_at=STARTED, finished_at=STARTED)])
        early = STARTED - 2 * HOUR
        other = threading.Thread(target=by_hand, args=(engine, hourly, early, Path()))
        other.start()
        # It has written its run, and waits for the row of the pipeline.
        while not rows(
            engine, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            assert other.is_alive()
    other.join()
    assert warehouse.pipelines.get(hourly.id).due_at == hour_after(STARTED)


def test_a_schedule_that_cannot_be_read_stops_no_writer_and_is_reported(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline
) -> None:
    facts_of(engine, "backup", schedule_timezone="Mars/Base")
    by_hand(engine, hourly, STARTED, Path())
    assert warehouse.pipelines.get(hourly.id).due_at is None
    (found,) = due_differences(engine)
    assert (found["pipeline"], found["problem"]) == (
        "acme/backup",
        "its schedule cannot be read: 0 * * * * in Mars/Base",
    )


def test_a_due_time_that_is_out_of_date_is_reported_and_mended(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline
) -> None:
    facts_of(engine, "backup", due_at=NOON)
    assert due_differences(engine) == [
        {"pipeline": "acme/backup", "due_at": NOON, "expected": hourly.due_at, "problem": "due_at is out of date"}
    ]
    with engine.begin() as connection:
        assert refresh_due(connection) == 1
        assert refresh_due(connection) == 0
        assert refresh_due(connection, []) == 0
    assert warehouse.pipelines.get(hourly.id).due_at == hourly.due_at


def test_every_scheduled_sync_refreshes_due_times_which_a_run_of_the_future_left_behind(
    engine: sa.Engine, warehouse: Warehouse, hourly: Pipeline, tmp_path: Path
) -> None:
    """A partner's clock that is ahead: when the time of its run has come, nothing else is written."""
    facts_of(engine, "backup", due_at=NOON)
    ingest(engine, {}, [], LandingZone(tmp_path).open("by-hand"))
    assert warehouse.pipelines.get(hourly.id).due_at == NOON
    ingest(engine, {}, [], LandingZone(tmp_path).open("scheduled"), scheduled=True)
    assert warehouse.pipelines.get(hourly.id).due_at == hourly.due_at


def test_only_a_pipeline_with_a_schedule_can_be_due(engine: sa.Engine) -> None:
    watch(engine, "S")
    with pytest.raises(sa.exc.IntegrityError, match="ck_pipelines_due_at_has_schedule"):
        facts_of(engine, "orders", due_at=NOON)


# --- cases from public reports ---------------------------------------------------------------------------------------


def test_a_daily_job_without_a_run_for_four_days_is_late(
    engine: sa.Engine, warehouse: Warehouse, tmp_path: Path
) -> None:
    warehouse.clients.create("Acme")
    fields = {"name": "Backup", "platform": "cron", "pipeline_type": "export", "grace_minutes": 60}
    schedule = {"schedule_cron": "0 3 * * *", "schedule_timezone": "Europe/Berlin"}
    pipeline = warehouse.pipelines.create("acme", {**fields, **schedule})
    now = datetime.now(UTC)
    daily = [
        Row(n, {"id": f"d{n}", "status": "success", "started_at": (now - n * DAY).isoformat()}) for n in range(4, 12)
    ]
    import_runs(engine, daily, RowMapper([pipeline], now, only=pipeline), tmp_path / "rejects")
    row = one(engine, "needs_attention")
    assert row["health"] == "late"
    assert 2 * DAY < now - row["due_at"] <= 4 * DAY
    assert one(engine, "latest_status_by_client")["health"] == "late"


def test_starts_that_never_end_are_overrunning(engine: sa.Engine, warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme")
    fields = {"name": "Poller", "platform": "cron", "pipeline_type": "ingestion", "schedule_cron": "*/5 * * * *"}
    poller = warehouse.pipelines.create("acme", {**fields, "max_runtime_minutes": 10})
    for _ in range(4):
        ping(engine, poller.id, Signal.START)
    assert one(engine, "needs_attention")["health"] == "unknown"
    started = datetime.now(UTC) - 3 * HOUR
    warehouse.runs.record(poller.id, {"external_run_id": "old", "status": "running", "started_at": started})
    row = one(engine, "needs_attention")
    assert (row["health"], row["health_reason"]) == ("overrunning", "has been running for more than 10 min")
    assert row["health_since"] == started + minutes(10)


def identity(row: dict[str, Any]) -> tuple[UUID, str]:
    return row["pipeline_id"], row["health"]


def test_the_questions_agree_about_every_pipeline(of_all_kinds: sa.Engine) -> None:
    latest = ask(of_all_kinds, "latest_status_by_pipeline")
    attention = ask(of_all_kinds, "needs_attention")
    assert {identity(row) for row in latest if row["health"] != "healthy"} == {identity(row) for row in attention}
    for row in attention:
        (same,) = [other for other in latest if other["pipeline_id"] == row["pipeline_id"]]
        for name in ("health_since", "health_reason", "due_at", "read_at"):
            assert row[name] == same[name]


# --- what limits the knowledge of a pipeline ---------------------------------------------------------------------------

DOUBT = {"doubt": "2 records of the last sync were rejected: no id", "doubt_since": NOON - HOUR}


@pytest.mark.parametrize(
    ("facts", "runs"),
    [(PULLED, GOOD), (LATE, GOOD), (LONG, RUNNING), (PULLED, [])],
    ids=["good", "late", "long", "new"],
)
def test_records_that_could_not_be_understood_leave_only_unknown(
    ledger: Ledger, facts: Facts, runs: Sequence[Execution]
) -> None:
    found = ledger.health(change(facts, **DOUBT), runs)
    assert (found.health, found.health_since, found.health_reason) == ("unknown", NOON - HOUR, DOUBT["doubt"])


def test_a_failure_stays_evidence_beside_records_that_could_not_be_understood(ledger: Ledger) -> None:
    found = ledger.health(change(PULLED, **DOUBT), BAD)
    assert (found.health, found.health_since) == ("failing", NOON - 4 * HOUR)
    assert found.health_reason == f"the latest settled run failed; {DOUBT['doubt']}"


@pytest.mark.parametrize(("limit", "health"), [(minutes(-1), "unknown"), (minutes(1), "healthy")])
def test_how_long_a_sync_says_how_a_pipeline_is_comes_from_the_sync(
    ledger: Ledger, limit: timedelta, health: str
) -> None:
    read = change(PULLED, observed_through=NOON - 2 * HOUR, known_through=NOON - 2 * HOUR, stale_at=NOON + limit)
    assert ledger.health(read, GOOD).health == health


@pytest.mark.parametrize(("overlap", "health"), [(minutes(40), "late"), (minutes(60), "healthy")])
def test_a_run_is_missing_once_the_overlap_of_its_connection_has_passed(
    ledger: Ledger, overlap: timedelta, health: str
) -> None:
    due = change(LATE, due_at=NOON - HOUR, grace_minutes=10, known_through=NOON - overlap)
    assert ledger.health(due, GOOD).health == health


DUE = change(PUSHED, due_at=NOON - HOUR)
HOURLY_RUN = [*GOOD, execution(2, "S", NOON - HOUR)]


@pytest.mark.parametrize(
    ("facts", "runs", "lost", "heard", "health"),
    [
        (DUE, GOOD, -65, -58, "unknown"),
        (DUE, GOOD, -50, -30, "unknown"),
        (DUE, GOOD, -180, -63, "late"),
        (DUE, GOOD, -44, -20, "late"),
        (DUE, HOURLY_RUN, -65, -58, "healthy"),
        (change(DUE, due_at=NOON + HOUR), GOOD, -65, -58, "healthy"),
        (change(PUSHED, max_runtime_minutes=30), RUNNING, -20, -10, "unknown"),
        (change(PUSHED, max_runtime_minutes=30), RUNNING, -70, -61, "overrunning"),
        (DUE, BAD, -65, -58, "failing"),
        (LATE, GOOD, -65, -58, "late"),
    ],
    ids=["due", "grace", "before", "after", "ran", "not due", "end lost", "before start", "failed", "read"],
)
def test_an_outage_of_the_api_accuses_nobody_whose_report_it_may_have_lost(
    ledger: Ledger, facts: Facts, runs: Sequence[Execution], lost: int, heard: int, health: str
) -> None:
    span = {"lost": (NOON + minutes(lost)).isoformat(), "heard": (NOON + minutes(heard)).isoformat()}
    with ledger.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE clients SET api_gaps = jsonb_build_array(CAST(:span AS jsonb))"), {"span": json.dumps(span)}
        )
    found = ledger.health(facts, runs)
    assert found.health == health
    if health == "unknown":
        assert found.health_since == NOON + minutes(lost)
        assert found.health_reason == (
            f"CHM's API did not answer from {NOON + minutes(lost):%Y-%m-%d %H:%M}"
            f" to {NOON + minutes(heard):%Y-%m-%d %H:%M} UTC"
        )


def test_an_api_that_is_down_accuses_nobody_either(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET heard_through = :at"), {"at": NOON - minutes(50)})
    found = ledger.health(DUE, GOOD)
    assert (found.health, found.health_reason) == ("unknown", "CHM's API has not answered since 2026-03-01 11:10 UTC")
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET heard_through = :at"), {"at": NOON - timedelta(seconds=20)})
    assert ledger.health(DUE, GOOD).health == "late"

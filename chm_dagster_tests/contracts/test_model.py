"""The queries agree with a small model that reads a pipeline's runs one by one."""

import dataclasses
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.warehouse.named_queries import ask
from chm_dagster_tests.contracts.histories import LETTERS, Execution, write
from chm_dagster_tests.factories import add_pipeline

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
END = BEGIN + timedelta(days=500)
"""Later than every run, whatever today is: the pipeline was read until then."""
NEVER = datetime(1, 1, 1, tzinfo=UTC)
SETTLED = ("success", "failed")
LETTER = {status: letter for letter, status in LETTERS.items()}


# --- the model: runs in, expected rows out -----------------------------------------------------------------------------------


def latest_first(runs: Sequence[Execution]) -> list[Execution]:
    def place(run: Execution) -> tuple[datetime, datetime, int]:
        return (run.effective, run.finished or NEVER, run.id.int)

    return sorted(runs, key=place, reverse=True)


def settled(runs: Sequence[Execution]) -> list[Execution]:
    """The runs that health depends on."""
    return [run for run in latest_first(runs) if run.settled and run.kind != "backfill"]


def failing(runs: Sequence[Execution]) -> dict[str, Any] | None:
    streak = list(itertools.takewhile(lambda run: run.status == "failed", settled(runs)))
    if not streak:
        return None
    good = next((run for run in settled(runs) if run.status == "success"), None)
    return {
        "failing_since": min(run.effective for run in streak),
        "failures": len(streak),
        "broken": len(streak) >= (30 if good else 10),
        "last_success_at": good.effective if good else None,
        "external_run_id": f"run-{streak[0].id.int}",
    }


def status_by(runs: Sequence[Execution], moment: datetime) -> str | None:
    def had_settled(run: Execution) -> bool:
        return max(run.effective, run.finished or run.effective) <= moment

    return next((run.status for run in settled(runs) if had_settled(run)), None)


def change(runs: Sequence[Execution], moment: datetime) -> str | None:
    now = settled(runs)[0].status if settled(runs) else None
    then = status_by(runs, moment)
    if now is None or (then, now) == ("success", "success"):
        return None
    names = {("success", "failed"): "regression", ("failed", "success"): "fixed", ("failed", "failed"): "still failing"}
    return "new" if then is None else names[(then, now)]


def flakiness(runs: Sequence[Execution]) -> dict[str, Any] | None:
    judged = settled(runs)[:30]
    pairs = [(old.status, new.status) for new, old in itertools.pairwise(judged)]
    recoveries, flips = pairs.count(("failed", "success")), sum(old != new for old, new in pairs)
    if len(judged) < 10 or recoveries < 2 or flips / len(pairs) < 0.2 or is_down(judged) or is_cured(judged):
        return None
    history = "".join(LETTER[run.status] for run in reversed(judged))
    return {"flip_rate": flips / len(pairs), "flips": flips, "recoveries": recoveries, "history": history}


def is_down(judged: Sequence[Execution]) -> bool:
    streak = list(itertools.takewhile(lambda run: run.status == "failed", judged))
    return bool(streak) and apart(judged[0], streak[-1]) >= timedelta(days=7)


def is_cured(judged: Sequence[Execution]) -> bool:
    failure = next(run for run in judged if run.status == "failed")
    return apart(judged[0], failure) >= timedelta(days=30)


def apart(newer: Execution, older: Execution) -> timedelta:
    return newer.effective - older.effective


def as_they_were(runs: Sequence[Execution], at: datetime) -> list[Execution]:
    """The runs as a ledger that knows everything had them then. What a run's end brought came with its end."""
    return [
        dataclasses.replace(run, status="running", finished=None, will_retry=False)
        if run.finished is not None and run.finished > at
        else run
        for run in runs
        if run.effective <= at
    ]


def flips_between(runs: Sequence[Execution], since: datetime, until: datetime) -> tuple[int, int]:
    """The flips among the runs of a window, and how many of them could flip."""
    inside = [run for run in settled(runs) if since <= run.effective < until]
    return sum(new.status != old.status for new, old in itertools.pairwise(inside)), max(len(inside) - 1, 0)


# --- the runs ----------------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn, statuses: Sequence[str] = tuple(LETTERS.values())) -> list[Execution]:
    """Up to 45 runs, some at the same time, some without a start, each finished at its start or later."""
    unit = draw(st.sampled_from([timedelta(minutes=1), timedelta(hours=9), timedelta(days=3)]))
    moments = st.none() | st.integers(0, 12)
    runs = []
    for number in range(draw(st.integers(0, 45))):
        status = draw(st.sampled_from(statuses))
        started, finished, queued, seen = draw(moments), draw(moments), draw(moments), draw(st.integers(0, 12))
        if started is not None and finished is not None:
            finished += started
        if status == "running":
            finished = None
        times = [None if n is None else BEGIN + unit * n for n in (started, finished, queued)]
        kind = draw(st.sampled_from([None, None, "scheduled", "backfill"]))
        will_retry = status == "failed" and draw(st.sampled_from([False, False, True]))
        runs.append(Execution(UUID(int=number), status, *times, BEGIN + unit * seen, kind, will_retry))
    return runs


@st.composite
def plain_histories(draw: st.DrawFn) -> list[Execution]:
    """Consecutive runs, enough for flakiness to show."""
    every = draw(st.sampled_from([timedelta(hours=1), timedelta(hours=20), timedelta(days=2), timedelta(days=8)]))
    letters = draw(st.text("SSFFRC-", max_size=50) | st.text("SF", min_size=9, max_size=40))
    return [
        Execution(UUID(int=n), LETTERS[letter], BEGIN + every * n, None if letter == "R" else BEGIN + every * n)
        for n, letter in enumerate(letters)
    ]


class Ledger:
    """One pipeline whose runs are replaced for every example."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.pipeline = add_pipeline(engine).id
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET observed_through = :end"), {"end": END})

    def hold(self, runs: Sequence[Execution]) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            connection.execute(sa.text("DELETE FROM runs"))
            write(connection, self.pipeline, runs)

    def ask(self, name: str, **parameters: Any) -> dict[str, Any] | None:
        rows = ask(self.engine, name, **parameters)
        assert len(rows) <= 1
        return rows[0] if rows else None


@pytest.fixture
def ledger(engine: sa.Engine) -> Ledger:
    return Ledger(engine)


def picked(row: dict[str, Any] | None, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    """The columns of a row that the model computes."""
    return None if row is None or wanted is None else {name: row[name] for name in wanted}


# --- they agree ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(runs=histories() | histories(("failed", "success")) | plain_histories())
def test_failing_now_agrees_with_the_model(ledger: Ledger, runs: list[Execution]) -> None:
    ledger.hold(runs)
    row, wanted = ledger.ask("failing_now"), failing(runs)
    assert (row is None) == (wanted is None)
    assert picked(row, wanted) == wanted


@settings(max_examples=150)
@given(runs=histories() | plain_histories(), hours=st.integers(-1, 300), data=st.data())
def test_changed_since_agrees_with_the_model(ledger: Ledger, runs: list[Execution], hours: int, data: Any) -> None:
    ledger.hold(runs)
    moments = [moment for run in runs for moment in (run.started, run.finished, run.queued) if moment is not None]
    since = data.draw(st.sampled_from([BEGIN + timedelta(hours=hours), *moments]))
    row = ledger.ask("changed_since", since=since)
    assert (row and row["change"]) == change(runs, since)
    assert row is None or row["status_then"] == status_by(runs, since)


@settings(max_examples=150)
@given(runs=plain_histories() | histories(("failed", "success")))
def test_flaky_agrees_with_the_model(ledger: Ledger, runs: list[Execution]) -> None:
    ledger.hold(runs)
    row, wanted = ledger.ask("flaky_pipelines"), flakiness(runs)
    assert (row is None) == (wanted is None)
    assert picked(row, wanted) == wanted


@settings(max_examples=100)
@given(runs=histories())
def test_the_latest_run_and_the_strip_agree_with_the_model(ledger: Ledger, runs: list[Execution]) -> None:
    ledger.hold(runs)
    latest, ordered = ledger.ask("latest_status_by_pipeline"), latest_first(runs)
    client, strip = ledger.ask("latest_status_by_client"), ledger.ask("recent_runs_by_pipeline")
    assert latest is not None and client is not None and strip is not None
    assert latest["external_run_id"] == (f"run-{ordered[0].id.int}" if ordered else None)
    assert latest["settled_status"] == (settled(runs)[0].status if settled(runs) else None)
    assert client["failing"] == (1 if failing(runs) else 0)
    assert strip["statuses"] == "".join(LETTER[run.status] for run in reversed(ordered[:30]))


@settings(max_examples=150)
@given(
    runs=histories() | histories(("failed", "success")) | plain_histories(), hours=st.integers(-1, 300), data=st.data()
)
def test_every_answer_about_a_time_is_that_of_the_runs_as_they_were(
    ledger: Ledger, runs: list[Execution], hours: int, data: Any
) -> None:
    ledger.hold(runs)
    moments = [moment for run in runs for moment in (run.effective, run.finished) if moment is not None]
    at = data.draw(st.sampled_from([BEGIN + timedelta(hours=hours), *moments]))
    since, then = at - timedelta(hours=24), as_they_were(runs, at)
    for name, wanted in (("failing_now", failing(then)), ("flaky_pipelines", flakiness(then))):
        row = ledger.ask(name, at=at)
        assert (row is None) == (wanted is None), name
        assert picked(row, wanted) == wanted
    changed = ledger.ask("changed_since", at=at)
    assert (changed and changed["change"]) == change(then, since)
    latest, strip = ledger.ask("latest_status_by_pipeline", at=at), ledger.ask("recent_runs_by_pipeline", at=at)
    client, ordered = ledger.ask("latest_status_by_client", at=at), latest_first(then)
    assert latest is not None and client is not None and strip is not None
    assert latest["external_run_id"] == (f"run-{ordered[0].id.int}" if ordered else None)
    assert latest["status"] == (ordered[0].status if ordered else None)
    assert latest["finished_at"] == (ordered[0].finished if ordered else None)
    assert latest["settled_status"] == (settled(then)[0].status if settled(then) else None)
    assert latest["health"] == {"failed": "failing", "success": "healthy", None: "unknown"}[latest["settled_status"]]
    assert client["failing"] == (1 if failing(then) else 0)
    assert strip["statuses"] == "".join(LETTER[run.status] for run in reversed(ordered[:30]))
    attention = ledger.ask("needs_attention", at=at)
    assert (attention and attention["health"]) == (None if latest["health"] == "healthy" else latest["health"])


@settings(max_examples=100)
@given(
    runs=histories() | histories(("failed", "success")) | plain_histories(),
    since=st.sampled_from([-1, 0, 0, 1, 5]),
    days=st.sampled_from([0, 1, 2, 12, 40, 400]),
)
def test_flips_and_failures_over_time_agree_with_the_model(
    ledger: Ledger, runs: list[Execution], since: int, days: int
) -> None:
    ledger.hold(runs)
    start, end = BEGIN + timedelta(days=since), BEGIN + timedelta(days=since + days)
    flips = ask(ledger.engine, "flakiness_over_time", since=start, until=end)
    failures = ask(ledger.engine, "failures_over_time", since=start, until=end)
    could_flip = sum(round(row["flips"] / row["flip_rate"]) for row in flips if row["flip_rate"])
    inside = [run for run in runs if run.settled and start <= run.effective < end]
    wanted, could = flips_between(runs, start, end)
    assert sum(row["flips"] for row in flips) == wanted
    assert could_flip <= could
    assert sum(row["settled_runs"] for row in flips) == sum(run.kind != "backfill" for run in inside)
    assert sum(row["failures"] for row in failures) == sum(run.status == "failed" for run in inside)
    assert len(flips) == len(failures) == days

"""What is true now: failing, changed, latest and flaky, for hand-made histories."""

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.runs import Observation, RunStatus
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.named_queries import ask
from chm_dagster_tests.contracts.histories import (
    DAY,
    HOUR,
    NOW,
    Execution,
    disable_client,
    disable_pipeline,
    execution,
    one,
    slugs,
    store,
    strip,
    watch,
)
from chm_dagster_tests.factories import add_pipeline, minutes, observation

# --- failing now -----------------------------------------------------------------------------------------------------------


def test_a_failing_pipeline_shows_since_when_how_often_and_why(engine: sa.Engine) -> None:
    pipeline = watch(engine, "SSFFF")
    row = one(engine, "failing_now")
    assert row.pop("failing_seconds") == pytest.approx(
        (datetime.now(NOW.tzinfo) - (NOW - 3 * HOUR)).total_seconds(), abs=60
    )
    assert row == {
        "client_id": row["client_id"],
        "client_slug": "acme",
        "client_name": "Acme",
        "pipeline_id": pipeline,
        "pipeline_slug": "orders",
        "pipeline_name": "orders",
        "platform": "custom",
        "environment": "prod",
        "failing_since": NOW - 3 * HOUR,
        "failures": 3,
        "broken": False,
        "last_success_at": NOW - 4 * HOUR,
        "external_run_id": "run-4",
        "effective_at": NOW - HOUR,
        "started_at": NOW - HOUR,
        "finished_at": NOW - HOUR + minutes(10),
        "error_message": "no disk for run-4",
        "status_reason": None,
        "source_url": "https://partner.example/run-4",
    }


@pytest.mark.parametrize(
    ("letters", "failures"),
    [
        ("", None),
        ("S", None),
        ("F", 1),
        ("FS", None),
        ("SF", 1),
        ("FFSFF", 2),
        ("FR", 1),  # a running run has not settled
        ("SR", None),
        ("FC", 1),  # a canceled run does not either
        ("F-", 1),  # nor does a skipped run fix anything
        ("SFCFR-F", 3),  # or end the streak
        ("SC", None),
        ("R", None),
        ("C-", None),
    ],
)
def test_only_settled_runs_count_as_failures_or_end_them(engine: sa.Engine, letters: str, failures: int | None) -> None:
    watch(engine, letters)
    assert [row["failures"] for row in ask(engine, "failing_now")] == ([] if failures is None else [failures])


@pytest.mark.parametrize(
    ("letters", "broken"),
    [
        ("F" * 9, False),  # too few runs
        ("F" * 10, True),  # all that exist
        ("C" + "F" * 10, True),
        ("S" + "F" * 29, False),
        ("S" + "F" * 30, True),  # all of the last thirty
        ("S" + "F" * 15 + "CC--" + "F" * 15, True),
    ],
)
def test_a_pipeline_that_always_fails_is_broken(engine: sa.Engine, letters: str, broken: bool) -> None:
    watch(engine, letters)
    assert one(engine, "failing_now")["broken"] is broken
    assert ask(engine, "flaky_pipelines", threshold=0.0) == []


def test_a_streak_is_counted_up_to_a_thousand_but_dated_exactly(engine: sa.Engine) -> None:
    watch(engine, strip("S" + "F" * 1_100, every=minutes(5)))
    row = one(engine, "failing_now")
    assert (row["failures"], row["failing_since"]) == (1_000, NOW - HOUR - minutes(5) * 1_099)
    assert row["last_success_at"] == NOW - HOUR - minutes(5) * 1_100


def test_of_runs_that_started_together_the_one_that_finished_last_counts(engine: sa.Engine) -> None:
    start = NOW - HOUR
    watch(
        engine,
        [
            execution(1, "F", start, start + minutes(5)),
            execution(2, "S", start, start + minutes(6)),
            execution(3, "F", start, start + minutes(7)),
        ],
    )
    row = one(engine, "failing_now")
    assert (row["failures"], row["external_run_id"], row["failing_since"]) == (1, "run-3", start)


def test_of_runs_with_equal_times_the_largest_id_counts(engine: sa.Engine) -> None:
    watch(engine, [execution(n, letter, NOW - HOUR) for n, letter in enumerate("FSFF")])
    row = one(engine, "failing_now")
    assert (row["failures"], row["external_run_id"]) == (2, "run-3")


def test_a_run_without_a_start_takes_its_place_by_when_it_was_queued_or_finished(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "F", None, NOW), execution(2, "S", NOW - 9 * DAY)])
    watch(engine, [execution(1, "F", NOW - 9 * DAY), execution(2, "S", None, NOW)], "stock")
    watch(
        engine,
        [
            execution(1, "S", None, NOW - DAY, queued=NOW - 8 * DAY),
            execution(2, "F", NOW - 7 * DAY),
            execution(3, "F", None, NOW, queued=NOW - 6 * DAY),
        ],
        "queue",
    )
    found = {row["pipeline_slug"]: row for row in ask(engine, "failing_now")}
    assert {slug: (row["failures"], row["failing_since"]) for slug, row in found.items()} == {
        "orders": (1, NOW),
        "queue": (2, NOW - 7 * DAY),
    }
    assert found["orders"]["last_success_at"] == NOW - 9 * DAY
    assert (found["queue"]["last_success_at"], found["queue"]["effective_at"]) == (NOW - 8 * DAY, NOW - 6 * DAY)


def test_a_run_without_any_time_counts_from_when_it_was_first_seen(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", NOW - 9 * DAY), execution(2, "F", None, seen=NOW - DAY)])
    row = one(engine, "failing_now")
    assert (row["failing_since"], row["started_at"], row["finished_at"]) == (NOW - DAY, None, None)
    assert one(engine, "latest_status_by_pipeline")["effective_at"] == NOW - DAY


def test_a_failed_backfill_does_not_make_a_pipeline_fail_and_a_good_one_does_not_fix_it(engine: sa.Engine) -> None:
    backfill = {"kind": "backfill"}
    watch(engine, [execution(1, "S", NOW - DAY), execution(2, "F", NOW - HOUR, **backfill)], "good")
    watch(engine, [execution(1, "F", NOW - DAY), execution(2, "S", NOW - HOUR, **backfill)], "bad")
    watch(engine, [execution(1, "F", NOW - HOUR, **backfill)], "only")
    assert slugs(ask(engine, "failing_now")) == ["bad"]
    latest = {row["pipeline_slug"]: row for row in ask(engine, "latest_status_by_pipeline")}
    assert {slug: (row["status"], row["kind"], row["settled_status"]) for slug, row in latest.items()} == {
        "bad": ("success", "backfill", "failed"),
        "good": ("failed", "backfill", "success"),
        "only": ("failed", "backfill", None),
    }
    changes = {row["pipeline_slug"]: row["change"] for row in ask(engine, "changed_since", since=NOW - 2 * HOUR)}
    assert changes == {"bad": "still failing"}
    assert one(engine, "latest_status_by_client")["failing"] == 1
    assert sum(row["failures"] for row in ask(engine, "failures_over_time")) == 3


@pytest.mark.parametrize("kind", ["scheduled", "manual", "retry", None])
def test_a_run_of_any_other_kind_counts_for_health(engine: sa.Engine, kind: str | None) -> None:
    watch(engine, [execution(1, "S", NOW - DAY), execution(2, "F", NOW - HOUR, kind=kind)])
    assert one(engine, "failing_now")["failures"] == 1


def test_backfills_between_other_runs_make_nothing_flaky(engine: sa.Engine) -> None:
    runs = strip("SFSFSFSFSFSF")
    watch(engine, [dataclasses.replace(run, kind="backfill") if run.status == "failed" else run for run in runs])
    assert ask(engine, "flaky_pipelines", threshold=0.0) == []
    assert sum(row["flips"] for row in ask(engine, "flakiness_over_time")) == 0


def test_a_failure_that_will_be_retried_has_not_settled(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", NOW - DAY), execution(2, "F", NOW - HOUR, will_retry=True)])
    assert ask(engine, "failing_now") == []
    assert one(engine, "latest_status_by_pipeline")["settled_status"] == "success"
    assert sum(row["failures"] for row in ask(engine, "failures_over_time")) == 0
    assert one(engine, "failure_rate_by_platform")["settled_runs"] == 1


def test_a_pipeline_that_only_failed_without_ever_starting_fails_since_it_gave_up(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "F", None, NOW - HOUR)])
    row = one(engine, "failing_now")
    assert (row["failures"], row["failing_since"], row["last_success_at"]) == (1, NOW - HOUR, None)


def test_a_failed_run_that_is_cleared_and_runs_again_is_no_longer_failing(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    seen = NOW - HOUR

    def tell(run: str, status: RunStatus, **changes: Any) -> None:
        nonlocal seen
        seen += minutes(1)
        cleared: Observation = observation(
            pipeline.id, run, status=status, source_version=seen, observed_at=seen, **changes
        )
        with engine.begin() as connection:
            merge_runs(connection, [cleared])

    tell("r1", RunStatus.SUCCESS, started_at=NOW - 5 * HOUR, finished_at=NOW - 4 * HOUR)
    tell("r2", RunStatus.FAILED, started_at=NOW - 3 * HOUR, finished_at=NOW - 2 * HOUR)
    assert one(engine, "failing_now")["external_run_id"] == "r2"
    tell("r2", RunStatus.RUNNING, started_at=NOW - HOUR)
    assert ask(engine, "failing_now") == []
    row = one(engine, "latest_status_by_pipeline")
    assert (row["status"], row["settled_status"], row["finished_at"]) == ("running", "success", None)
    # It had failed by then, but the ledger has since reopened it: as of then it was in progress.
    assert ask(engine, "changed_since", since=NOW - 2 * HOUR) == []
    tell("r2", RunStatus.FAILED, started_at=NOW - HOUR, finished_at=NOW)
    assert one(engine, "changed_since", since=NOW - 2 * HOUR)["change"] == "regression"


# --- changed since ---------------------------------------------------------------------------------------------------------

T = NOW - DAY


def settled(number: int, letter: str, hours: float, took: timedelta = HOUR / 6) -> Execution:
    """A run that started so many hours after T."""
    start = T + HOUR * hours
    return execution(number, letter, start, start + took)


@pytest.mark.parametrize(
    ("then", "later", "change"),
    [
        ("S", "S", None),
        ("S", "F", "regression"),
        ("F", "S", "fixed"),
        ("F", "F", "still failing"),
        ("F", "", "still failing"),
        ("S", "", None),
        ("", "S", "new"),
        ("", "F", "new"),
        ("S", "FS", None),  # a blip that is over
        ("F", "SF", "still failing"),
        ("S", "R", None),
        ("S", "C", None),
        ("F", "-", "still failing"),
        ("C-R", "S", "new"),  # nothing had settled
        ("FC", "S", "fixed"),
        ("", "RC-", None),
        ("", "", None),
    ],
)
def test_a_change_is_relative_to_what_had_settled_by_then(
    engine: sa.Engine, then: str, later: str, change: str | None
) -> None:
    before = [settled(n, letter, n - len(then)) for n, letter in enumerate(then)]
    after = [settled(100 + n, letter, n + 1) for n, letter in enumerate(later)]
    watch(engine, [e if e.status != "running" else execution(e.id.int, "R", e.started) for e in before + after])
    assert [row["change"] for row in ask(engine, "changed_since", since=T)] == ([change] if change else [])


def test_a_run_in_progress_at_the_time_had_not_settled_by_then(engine: sa.Engine) -> None:
    watch(engine, [settled(1, "S", -3), settled(2, "F", -1, took=2 * HOUR)], "broke")
    watch(engine, [settled(1, "F", -3), settled(2, "S", -1, took=2 * HOUR)], "mended")
    watch(engine, [settled(1, "F", -1, took=2 * HOUR)], "first")
    found = {row["pipeline_slug"]: (row["change"], row["status_then"]) for row in ask(engine, "changed_since", since=T)}
    assert found == {"broke": ("regression", "success"), "mended": ("fixed", "failed"), "first": ("new", None)}


def test_a_run_that_settled_exactly_then_had_settled_by_then(engine: sa.Engine) -> None:
    watch(engine, [settled(1, "S", -3), settled(2, "F", -1, took=HOUR)])
    assert one(engine, "changed_since", since=T)["change"] == "still failing"
    assert one(engine, "changed_since", since=T - timedelta(microseconds=1))["change"] == "regression"


def test_a_run_that_outlasts_a_later_one_does_not_hide_it(engine: sa.Engine) -> None:
    # The long run started first, so the short one is the latest, then and now.
    watch(engine, [settled(1, "S", -9), settled(2, "F", -8, took=20 * HOUR), settled(3, "S", -2)])
    assert ask(engine, "changed_since", since=T) == []


def test_runs_without_a_start_had_settled_once_they_finished(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "F", None, T - HOUR), settled(2, "S", 1)], "mended")
    watch(engine, [execution(1, "F", None, T + HOUR), settled(2, "S", 2)], "first")
    watch(engine, [Execution(settled(1, "F", -2).id, "failed", T - 2 * HOUR, None), settled(2, "S", 1)], "unfinished")
    found = {row["pipeline_slug"]: row["change"] for row in ask(engine, "changed_since", since=T)}
    assert found == {"mended": "fixed", "first": "new", "unfinished": "fixed"}


def test_changes_come_worst_first(engine: sa.Engine) -> None:
    histories = {"a-new": " S", "b-fixed": "FS", "c-still": "FF", "d-regression": "SF", "e-regression": "SF"}
    for name, (then, now) in histories.items():
        before = [settled(1, then, -2)] if then.strip() else []
        watch(engine, [*before, settled(2, now, 2)], name)
    assert slugs(ask(engine, "changed_since", since=T)) == [
        "d-regression",
        "e-regression",
        "c-still",
        "b-fixed",
        "a-new",
    ]


def test_without_a_time_it_compares_with_a_day_ago(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "F", NOW - timedelta(hours=26)), execution(2, "S", NOW - HOUR)], "a")
    watch(engine, [execution(1, "F", NOW - timedelta(hours=22)), execution(2, "S", NOW - HOUR)], "b")
    assert {row["pipeline_slug"]: row["change"] for row in ask(engine, "changed_since")} == {"a": "fixed", "b": "new"}


# --- flaky -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "flips", "recoveries", "rate"),
    [
        ("SSSSSSSSSSFSSSSSSSSSS", 2, 1, None),  # one blip
        ("SSFSSSFFSSFSSSSFSSSSS", 8, 4, 8 / 20),  # intermittent
        ("SFSFSFSFSFSFSFSFSFSFS", 20, 10, 1.0),  # alternating
        ("SSSSSFFFFFFFFFSSSSSSS", 2, 1, None),  # one outage, fixed
        ("SSSSSSSFFFFFFFFFFFFFF", 1, 0, None),  # broken since
        ("FFFFFFFFFFFFFFFFFFFFF", 0, 0, None),  # always broken
        ("SFSFSFSFS", 8, 4, None),  # too few runs
        ("SFSFSFSFSF", 9, 4, 1.0),  # just enough
        ("SSSSSFSSSFSSSSSSSSSSS", 4, 2, 4 / 20),  # at the threshold
        ("SSSSSFSSSFSSSSSSSSSSSS", 4, 2, None),  # below it
        ("FFFFFFFFFSF", 2, 1, None),  # one recovery only
        ("SFFFFFFSFFS", 4, 2, 4 / 10),
        ("SF" * 20 + "S" * 30, 0, 0, None),  # it came and went, thirty settled runs ago
        ("S" * 40 + "SFSFSFSF", 7, 3, 7 / 29),
    ],
)
def test_flaky_pipelines_flip_between_success_and_failure(
    engine: sa.Engine, letters: str, flips: int, recoveries: int, rate: float | None
) -> None:
    watch(engine, letters)
    found = ask(engine, "flaky_pipelines")
    assert [row["flip_rate"] for row in found] == ([] if rate is None else [pytest.approx(rate)])
    for row in found:
        assert (row["flips"], row["recoveries"], row["history"]) == (flips, recoveries, letters[-30:])
        assert (row["settled_runs"], row["failures"]) == (len(letters[-30:]), letters[-30:].count("F"))


def test_canceled_skipped_and_running_runs_do_not_affect_flakiness(engine: sa.Engine) -> None:
    watch(engine, "SFSFSFSFSFSF", "plain")
    watch(engine, "SCF-SRFS-CFSFCSRFSF--", "mixed")
    watch(engine, "SCSCSCSCSCSCSCSC", "canceled")
    watch(engine, "FCFCFCFCFCFCFCFC", "broken")
    found = {row["pipeline_slug"]: (row["history"], row["flip_rate"]) for row in ask(engine, "flaky_pipelines")}
    assert found == {"plain": ("SFSFSFSFSFSF", 1.0), "mixed": ("SFSFSFSFSFSF", 1.0)}


def test_the_threshold_can_be_chosen(engine: sa.Engine) -> None:
    watch(engine, "SSSSSFSSSFSSSSSSSSSSSSSSSSSSSS")
    rate = pytest.approx(4 / 29)
    assert ask(engine, "flaky_pipelines") == []
    assert one(engine, "flaky_pipelines", threshold=0.1)["flip_rate"] == rate
    assert ask(engine, "flaky_pipelines", threshold=0.14) == []


def test_the_flakiest_come_first(engine: sa.Engine) -> None:
    watch(engine, "SSFSSFSSFSS", "a-some")
    watch(engine, "SFSFSFSFSFS", "b-most")
    watch(engine, "SSFSSFSSFSS", "a-some", "Aaron")
    found = ask(engine, "flaky_pipelines")
    assert [(row["client_slug"], row["pipeline_slug"]) for row in found] == [
        ("acme", "b-most"),
        ("aaron", "a-some"),
        ("acme", "a-some"),
    ]


@pytest.mark.parametrize(
    ("letters", "listed"),
    [
        ("SFSFSFSFSFSFSFFFFFFF", True),  # failing for six days, from first to last
        ("SFSFSFSFSFSFSFFFFFFFF", False),  # for seven: that is down
        ("SFSFSFSFSFSFSFCCCCCCCCF", False),
        ("SFSFSFSFSFSFSFCCCCCCCC", True),  # the last failure is all there is
    ],
)
def test_a_pipeline_that_has_failed_for_a_week_is_down_and_not_flaky(
    engine: sa.Engine, letters: str, listed: bool
) -> None:
    watch(engine, strip(letters, every=DAY))
    assert bool(ask(engine, "flaky_pipelines")) is listed


@pytest.mark.parametrize(("letters", "listed"), [("SFSFSFSFSFSSSS", True), ("SFSFSFSFSFSSSSS", False)])
def test_a_pipeline_that_has_not_failed_for_thirty_days_is_cured(engine: sa.Engine, letters: str, listed: bool) -> None:
    # The last failure is four or five runs before the latest one.
    watch(engine, strip(letters, every=7 * DAY))
    assert bool(ask(engine, "flaky_pipelines")) is listed


def test_an_old_history_is_measured_by_its_own_clock(engine: sa.Engine) -> None:
    watch(engine, strip("SFSFSFSFSFSF", latest=NOW - 900 * DAY))
    assert one(engine, "flaky_pipelines")["latest_run_at"] == NOW - 900 * DAY


# --- latest ----------------------------------------------------------------------------------------------------------------


def test_the_latest_run_is_shown_whatever_its_status_and_also_if_there_is_none(engine: sa.Engine) -> None:
    for name, letters in {"a": "SF", "b": "FR", "c": "FSC", "d": "-", "e": ""}.items():
        watch(engine, letters, name)
    found = ask(engine, "latest_status_by_pipeline")
    assert [(row["pipeline_slug"], row["status"], row["settled_status"]) for row in found] == [
        ("a", "failed", "failed"),
        ("b", "running", "failed"),
        ("c", "canceled", "success"),
        ("d", "skipped", None),
        ("e", None, None),
    ]
    assert found[0]["error_message"] == "no disk for run-1"
    assert found[0]["duration_seconds"] == 600
    assert found[4]["started_at"] is None


def test_a_waiting_run_is_the_latest_from_when_it_was_queued_and_settles_nothing(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "F", NOW - HOUR), execution(2, "R", None, queued=NOW - minutes(30))])
    row = one(engine, "latest_status_by_pipeline")
    assert (row["status"], row["settled_status"], row["started_at"]) == ("running", "failed", None)
    assert row["queued_at"] == row["effective_at"] == NOW - minutes(30)
    watch(engine, [execution(1, "S", NOW - HOUR), execution(2, "R", None, queued=NOW - DAY)], "late")
    assert {row["pipeline_slug"]: row["status"] for row in ask(engine, "latest_status_by_pipeline")} == {
        "late": "success",
        "orders": "running",
    }


def test_the_status_of_a_client_follows_from_its_pipelines(engine: sa.Engine) -> None:
    for name, letters in {"a": "SF", "b": "FR", "c": "FSC", "d": "-", "e": "", "f": "SS"}.items():
        watch(engine, letters, name)
    watch(engine, "S", "a", "Bolt")
    watch(engine, "R", "a", "Crate")
    add_pipeline(engine, "gone", "Dune")
    disable_pipeline(engine, "gone")
    found = ask(engine, "latest_status_by_client")
    counted = ("health", "pipelines", "failing", "success", "failed", "running", "canceled", "skipped", "never_ran")
    assert {row["client_slug"]: tuple(row[name] for name in counted) for row in found} == {
        "acme": ("failing", 6, 2, 1, 1, 1, 1, 1, 1),
        "bolt": ("healthy", 1, 0, 1, 0, 0, 0, 0, 0),
        "crate": ("unknown", 1, 0, 0, 0, 1, 0, 0, 0),
        "dune": ("unknown", 0, 0, 0, 0, 0, 0, 0, 0),
    }
    assert [row["client_slug"] for row in found] == ["acme", "crate", "dune", "bolt"]  # the worst first
    assert found[0]["latest_run_at"] == NOW - HOUR


def test_a_strip_shows_the_last_runs_of_each_pipeline_oldest_first(engine: sa.Engine) -> None:
    watch(engine, "SSFC-R", "a")
    watch(engine, "", "b")
    found = ask(engine, "recent_runs_by_pipeline")
    assert [(row["statuses"], row["latest_run_at"]) for row in found] == [("SSFC-R", NOW - HOUR), ("", None)]
    assert [row["statuses"] for row in ask(engine, "recent_runs_by_pipeline", runs=2)] == ["-R", ""]
    assert [row["statuses"] for row in ask(engine, "recent_runs_by_pipeline", runs=-5)] == ["R", ""]


@pytest.mark.parametrize(("runs", "shown"), [(None, 30), (10_000, 200)])
def test_a_strip_has_a_maximum_length(engine: sa.Engine, runs: int | None, shown: int) -> None:
    watch(engine, "F" + "S" * 210)
    assert one(engine, "recent_runs_by_pipeline", runs=runs)["statuses"] == "S" * shown


# --- filters ---------------------------------------------------------------------------------------------------------------

NOW_QUERIES = (
    "failing_now",
    "changed_since",
    "flaky_pipelines",
    "latest_status_by_pipeline",
    "recent_runs_by_pipeline",
)


@pytest.mark.parametrize("name", NOW_QUERIES)
def test_disabled_clients_and_pipelines_are_not_part_of_now(engine: sa.Engine, name: str) -> None:
    for client in ("Acme", "Bolt"):
        for pipeline in ("kept", "gone"):
            watch(engine, strip("SFSFSFSFSFSF"), pipeline, client)
    disable_client(engine, "bolt")
    disable_pipeline(engine, "gone")
    parameters = {"since": NOW - 20 * HOUR} if name == "changed_since" else {}
    found = ask(engine, name, **parameters)
    assert [(row["client_slug"], row["pipeline_slug"]) for row in found] == [("acme", "kept")]


def test_a_disabled_client_is_not_listed_and_a_disabled_pipeline_does_not_count(engine: sa.Engine) -> None:
    watch(engine, "F", "a")
    watch(engine, "S", "b")
    watch(engine, "F", "a", "Bolt")
    disable_pipeline(engine, "a")
    disable_client(engine, "bolt")
    row = one(engine, "latest_status_by_client")
    assert (row["client_slug"], row["health"], row["pipelines"], row["failed"]) == ("acme", "healthy", 1, 0)


@pytest.mark.parametrize("name", [*NOW_QUERIES, "latest_status_by_client"])
def test_a_question_can_be_about_one_client_or_one_environment(engine: sa.Engine, name: str) -> None:
    for client in ("Acme", "Bolt"):
        for pipeline in ("live", "trial"):
            watch(engine, strip("SFSFSFSFSFSF"), pipeline, client)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET environment = 'staging' WHERE slug = 'trial'"))
    narrow = ask(engine, name, client_slug="bolt", environment="staging")
    assert {row["client_slug"] for row in narrow} == {"bolt"}
    if name == "latest_status_by_client":
        assert [(row["pipelines"], row["failing"]) for row in narrow] == [(1, 1)]
    else:
        assert [(row["pipeline_slug"], row["environment"]) for row in narrow] == [("trial", "staging")]
        assert len(ask(engine, name, client_slug="bolt")) == 2
        assert len(ask(engine, name, environment="staging")) == 2
        assert len(ask(engine, name)) == 4
    assert ask(engine, name, client_slug="nobody") == []


def test_runs_of_different_pipelines_are_not_mixed_up(engine: sa.Engine) -> None:
    watch(engine, "SSSS", "a")
    other = watch(engine, "FFFF", "b")
    store(engine, other, [execution(99, "F", NOW)])
    assert [(row["pipeline_slug"], row["failures"]) for row in ask(engine, "failing_now")] == [("b", 5)]

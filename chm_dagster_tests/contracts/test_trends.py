"""Trends: over time, by client, by platform, and durations."""

from collections import Counter
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from chm_dagster.warehouse.named_queries import ask
from chm_dagster_tests.contracts.histories import (
    DAY,
    HOUR,
    NOW,
    disable_client,
    disable_pipeline,
    execution,
    store,
    strip,
    watch,
)
from chm_dagster_tests.factories import add_pipeline

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
WEEK = {"since": MONDAY, "until": MONDAY + 7 * DAY}
TRENDS = (
    "flakiness_over_time",
    "failures_over_time",
    "failure_counts_by_client",
    "failure_rate_by_platform",
    "duration_distribution",
)


def at(hours: float) -> datetime:
    return MONDAY + HOUR * hours


def total(rows: list[dict[str, Any]]) -> int:
    """The number of failures in a result."""
    return sum(
        row["flips"] if "flips" in row else row["failed"] if "failed" in row else row["failures"] for row in rows
    )


# --- over time -------------------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_day_including_days_without_any(engine: sa.Engine) -> None:
    watch(engine, [execution(n, "F", at(h)) for n, h in enumerate((0, 1, 23.99, 48))], "a")
    watch(engine, [execution(1, "F", at(2)), execution(2, "S", at(3)), execution(3, "C", at(4))], "b")
    watch(engine, [execution(1, "F", at(50))], "c", "Bolt")
    found = ask(engine, "failures_over_time", since=MONDAY, until=MONDAY + 3 * DAY)
    assert [tuple(row.values()) for row in found] == [
        (MONDAY, 4, 2, 1),
        (MONDAY + DAY, 0, 0, 0),
        (MONDAY + 2 * DAY, 2, 2, 2),
    ]


@pytest.mark.parametrize(
    ("bucket", "starts"),
    [
        ("hour", [at(n) for n in range(24 * 10)]),
        ("day", [at(24 * n) for n in range(10)]),
        ("week", [MONDAY, MONDAY + 7 * DAY]),
        ("month", [datetime(2026, 3, 1, tzinfo=UTC)]),
    ],
)
@pytest.mark.parametrize("name", ["failures_over_time", "flakiness_over_time"])
def test_buckets_are_whole_in_utc_whatever_the_window_cuts(
    engine: sa.Engine, name: str, bucket: str, starts: list[datetime]
) -> None:
    watch(engine, [execution(1, "F", at(0.2)), execution(2, "S", at(0.6)), execution(3, "F", at(230))])
    since, until = MONDAY + timedelta(seconds=1), MONDAY + 10 * DAY
    found = ask(engine, name, bucket=bucket, since=since, until=until)
    assert [row["bucket"] for row in found] == starts
    assert total(found) == 2


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Santiago", "Atlantic/Azores", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize("bucket", ["day", "week", "month"])
@pytest.mark.parametrize("name", ["failures_over_time", "flakiness_over_time"])
def test_days_weeks_and_months_begin_at_midnight_of_the_time_zone(
    engine: sa.Engine, name: str, bucket: str, zone: str
) -> None:
    """Over a year with both changes of the clock; in Santiago and the Azores they are at midnight."""
    place, utc = ZoneInfo(zone), datetime(2025, 3, 1, 12, tzinfo=UTC)
    times = [utc + n * timedelta(hours=7) for n in range(1250)]
    watch(engine, [execution(n, "FS"[n % 2], moment) for n, moment in enumerate(times)])

    def first(moment: datetime) -> datetime:
        day = moment.astimezone(place).date()
        day -= timedelta(days={"day": 0, "week": day.weekday(), "month": day.day - 1}[bucket])
        # The later of two: of a midnight that comes twice, and of the readings of one that a clock skips.
        return max(datetime.combine(day, time(fold=fold), place).astimezone(UTC) for fold in (0, 1))

    wanted: Counter[datetime] = Counter()
    for n, moment in enumerate(times):
        wanted[first(moment)] += 1 if name == "flakiness_over_time" else 1 - n % 2
    found = ask(engine, name, bucket=bucket, since=times[0], until=times[-1] + HOUR, timezone=zone)
    field = "settled_runs" if name == "flakiness_over_time" else "failures"
    assert {row["bucket"]: row[field] for row in found if row[field]} == {k: n for k, n in wanted.items() if n}


@pytest.mark.parametrize("name", ["failures_over_time", "flakiness_over_time"])
def test_hours_are_those_of_utc_in_every_time_zone(engine: sa.Engine, name: str) -> None:
    watch(engine, [execution(n, "F", at(n / 4)) for n in range(40)])
    window = {"bucket": "hour", "since": MONDAY, "until": MONDAY + 12 * HOUR}
    assert ask(engine, name, timezone="Asia/Kathmandu", **window) == ask(engine, name, **window)


@pytest.mark.parametrize("name", TRENDS)
def test_a_window_includes_its_start_and_excludes_its_end(engine: sa.Engine, name: str) -> None:
    edges = (-0.01, 0, 1, 24)
    watch(engine, [execution(n, letter, at(h)) for (n, letter), h in zip(enumerate("FSFS"), edges, strict=True)], "a")
    watch(engine, [execution(n, letter, at(h)) for (n, letter), h in zip(enumerate("FFSF"), edges, strict=True)], "b")
    found = ask(engine, name, since=MONDAY, until=MONDAY + DAY)
    # Each of the two has one flip inside, from the beginning to an hour later, and one failure.
    assert total(found) == 2
    if name.endswith("over_time"):
        assert [row["bucket"] for row in found] == [MONDAY]


@pytest.mark.parametrize("name", ["failures_over_time", "flakiness_over_time"])
def test_a_window_of_centuries_shows_the_end_of_it(engine: sa.Engine, name: str) -> None:
    found = ask(engine, name, bucket="hour", since=datetime(1, 1, 2, tzinfo=UTC), until=MONDAY + HOUR)
    assert (len(found), found[-1]["bucket"]) == (10_000, MONDAY)
    assert len(ask(engine, name, bucket="hour", since=MONDAY, until=datetime(9999, 12, 30, tzinfo=UTC))) == 10_000


@pytest.mark.parametrize("name", TRENDS)
def test_a_window_that_ends_before_it_begins_holds_nothing(engine: sa.Engine, name: str) -> None:
    watch(engine, [execution(1, "F", at(1)), execution(2, "S", at(2))])
    assert total(ask(engine, name, since=MONDAY + DAY, until=MONDAY)) == 0


def test_flips_are_counted_where_the_later_run_started(engine: sa.Engine) -> None:
    letters = "SFF-SCSF"  # a day each
    watch(engine, strip(letters, every=DAY, latest=MONDAY + 7 * DAY), "a")
    watch(engine, [execution(1, "S", at(1)), execution(2, "F", at(25))], "b")
    found = ask(engine, "flakiness_over_time", since=MONDAY, until=MONDAY + 8 * DAY)
    assert [(row["settled_runs"], row["flips"], row["recoveries"], row["flip_rate"]) for row in found] == [
        (2, 0, 0, None),  # nothing has an earlier run
        (2, 2, 0, 1.0),
        (1, 0, 0, 0.0),
        (0, 0, 0, None),
        (1, 1, 1, 1.0),
        (0, 0, 0, None),
        (1, 0, 0, 0.0),
        (1, 1, 0, 1.0),
    ]


@pytest.mark.parametrize(
    ("finishes", "flips"),
    [((5, 7, 6), 2), ((5, 6, 7), 1), ((5, 5, 5), 1), ((7, 6, 5), 1), ((7, 5, 6), 2)],
)
def test_runs_that_started_together_flip_in_the_order_in_which_they_finished(
    engine: sa.Engine, finishes: tuple[int, ...], flips: int
) -> None:
    watch(engine, [execution(n, "FFS"[n], at(1), at(1) + timedelta(minutes=m)) for n, m in enumerate(finishes)])
    assert total(ask(engine, "flakiness_over_time", **WEEK)) == flips


@pytest.mark.parametrize(
    ("name", "days"), [*((name, 30) for name in TRENDS if "client" not in name), ("failure_counts_by_client", 7)]
)
def test_without_a_window_the_last_days_are_used(engine: sa.Engine, name: str, days: int) -> None:
    edge = NOW - days * DAY
    watch(engine, [execution(1, "F", edge - HOUR), execution(2, "F", edge + HOUR), execution(3, "S", edge + 2 * HOUR)])
    store(engine, add_pipeline(engine, "later").id, [execution(4, "F", NOW + HOUR), execution(5, "S", NOW + 2 * HOUR)])
    assert total(ask(engine, name)) == 1


# --- by client, by platform ------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_client_with_what_they_are_a_share_of(engine: sa.Engine) -> None:
    watch(engine, [execution(n, letter, at(n)) for n, letter in enumerate("SFSFCR-")], "a", "Acme")
    watch(engine, [execution(1, "S", at(1))], "b", "Acme")
    watch(engine, [execution(n, "F", at(n)) for n in range(3)], "a", "Bolt")
    watch(engine, [execution(1, "S", at(1))], "a", "Calm")
    add_pipeline(engine, "a", "Idle")
    found = ask(engine, "failure_counts_by_client", **WEEK)
    assert [tuple(row.values())[1:] for row in found] == [
        ("bolt", "Bolt", True, 3, 1, 3, 1.0, at(2)),
        ("acme", "Acme", True, 2, 1, 5, 0.4, at(3)),
        ("calm", "Calm", True, 0, 0, 1, 0.0, None),
        ("idle", "Idle", True, 0, 0, 0, None, None),
    ]


def test_platforms_are_compared_by_the_share_of_runs_that_failed(engine: sa.Engine) -> None:
    ids = [watch(engine, [], name) for name in "abcd"]
    for pipeline, platform, letters in zip(
        ids, ("dbt", "dbt", "airflow", "cron"), ("SF", "SS", "FFFS", "RC-"), strict=True
    ):
        store(engine, pipeline, [execution(n, letter, at(n)) for n, letter in enumerate(letters)])
        with engine.begin() as connection:
            query = sa.text("UPDATE pipelines SET platform = :platform WHERE id = :id")
            connection.execute(query, {"platform": platform, "id": pipeline})
    found = ask(engine, "failure_rate_by_platform", **WEEK)
    assert [tuple(row.values()) for row in found] == [("airflow", 1, 4, 3, 0.75), ("dbt", 2, 4, 1, 0.25)]


# --- durations -------------------------------------------------------------------------------------------------------------


def test_durations_fall_into_buckets_that_meet_at_their_bounds(engine: sa.Engine) -> None:
    bounds = [row["from_seconds"] for row in ask(engine, "duration_distribution")]
    assert bounds == [0, 1, 5, 15, 30, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200, 86400]
    runs = [
        execution(n, "S" if n % 2 else "F", at(1), at(1) + timedelta(seconds=seconds))
        for n, seconds in enumerate(s for bound in bounds for s in (bound, bound + 0.9))
    ]
    watch(engine, [*runs, execution(900, "R", at(1)), execution(901, "C", at(1)), execution(902, "S", at(1), at(0))])
    found = ask(engine, "duration_distribution", **WEEK)
    assert [(row["success"], row["failed"]) for row in found] == [(1, 1)] * 15
    assert [row["share"] for row in found] == [pytest.approx(1 / 15)] * 15
    assert [row["bucket"] for row in found] == list(range(15))
    assert [row["to_seconds"] for row in found] == [*bounds[1:], None]


def test_an_empty_histogram_has_all_its_buckets_and_no_shares(engine: sa.Engine) -> None:
    found = ask(engine, "duration_distribution")
    assert [(row["success"], row["failed"], row["share"]) for row in found] == [(0, 0, None)] * 15


def test_durations_can_be_those_of_one_pipeline_or_platform(engine: sa.Engine) -> None:
    for client in ("Acme", "Bolt"):
        for name in ("a", "b"):
            watch(engine, [execution(1, "F", at(1))], name, client)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET platform = 'dbt' WHERE slug = 'b'"))
    for narrowed, wanted in (
        ({"pipeline_slug": "a", "client_slug": "bolt"}, 1),
        ({"pipeline_slug": "a"}, 2),
        ({"platform": "dbt"}, 2),
        ({"platform": "dbt", "pipeline_slug": "a"}, 0),
    ):
        assert total(ask(engine, "duration_distribution", **WEEK, **narrowed)) == wanted


# --- filters ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRENDS)
def test_trends_include_disabled_clients_and_pipelines(engine: sa.Engine, name: str) -> None:
    for client in ("Acme", "Bolt"):
        for pipeline in ("kept", "gone"):
            watch(engine, [execution(1, "S", at(1)), execution(2, "F", at(2))], pipeline, client)
    disable_client(engine, "bolt")
    disable_pipeline(engine, "gone")
    found = ask(engine, name, **WEEK)
    assert total(found) == 4
    if name == "failure_counts_by_client":
        assert [(row["client_slug"], row["client_is_active"]) for row in found] == [("acme", True), ("bolt", False)]


def test_a_disabled_client_without_a_failure_is_not_listed(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", at(1))], "a", "Acme")
    disable_client(engine, "acme")
    assert ask(engine, "failure_counts_by_client", **WEEK) == []


@pytest.mark.parametrize("name", TRENDS)
def test_a_trend_can_be_one_clients_or_one_environments(engine: sa.Engine, name: str) -> None:
    for client in ("Acme", "Bolt"):
        for pipeline in ("live", "trial"):
            watch(engine, [execution(1, "S", at(1)), execution(2, "F", at(2))], pipeline, client)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET environment = 'staging' WHERE slug = 'trial'"))
    assert total(ask(engine, name, **WEEK)) == 4
    assert total(ask(engine, name, **WEEK, client_slug="acme")) == 2
    assert total(ask(engine, name, **WEEK, environment="staging")) == 2
    assert total(ask(engine, name, **WEEK, environment="staging", client_slug="acme")) == 1
    assert total(ask(engine, name, **WEEK, client_slug="nobody")) == 0


@pytest.mark.parametrize("name", TRENDS)
def test_runs_without_a_start_belong_to_the_bucket_of_their_effective_time(engine: sa.Engine, name: str) -> None:
    watch(engine, [execution(1, "S", at(1)), execution(2, "F", None, at(2)), execution(3, "F", None, queued=at(-90))])
    # Nobody knows how long the failure took.
    assert total(ask(engine, name, **WEEK)) == (0 if name == "duration_distribution" else 1)

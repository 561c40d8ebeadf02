from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.schedule import Cron, Slots, awaited, next_slot
from chm_dagster.domain.validation import read_value
from chm_dagster.errors import InputError

BERLIN = "Europe/Berlin"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "zone", "after", "due"),
    [
        ("0 6 * * *", None, "2026-03-01 05:59", "2026-03-01 06:00"),
        ("0 6 * * *", None, "2026-03-01 06:00", "2026-03-02 06:00"),
        ("0 6 * * MON-FRI", BERLIN, "2026-03-06 12:00", "2026-03-09 05:00"),
        ("*/15 * * * *", None, "2026-03-01 06:00:30", "2026-03-01 06:15"),
        # 2026-03-29, 02:00 to 03:00 does not exist in Berlin: a daily job at 02:30 is due once, at 03:00 local time.
        ("30 2 * * *", BERLIN, "2026-03-28 12:00", "2026-03-29 01:00"),
        ("30 2 * * *", BERLIN, "2026-03-29 01:00", "2026-03-30 00:30"),
        # 2026-10-25, 02:00 to 03:00 comes twice: due once.
        ("30 2 * * *", BERLIN, "2026-10-24 12:00", "2026-10-25 00:30"),
        ("30 2 * * *", BERLIN, "2026-10-25 00:30", "2026-10-26 01:30"),
        # A job that runs every half hour runs in both of them.
        ("*/30 * * * *", BERLIN, "2026-10-25 00:30", "2026-10-25 01:00"),
        ("*/30 * * * *", BERLIN, "2026-10-25 01:00", "2026-10-25 01:30"),
        # Asked within the second of the two hours.
        ("30 2 * * *", BERLIN, "2026-10-25 01:10", "2026-10-26 01:30"),
        # Leap days.
        ("0 0 29 2 *", None, "2026-03-01 00:00", "2028-02-29 00:00"),
        ("0 0 L * *", None, "2028-02-01 00:00", "2028-02-29 00:00"),
        # The last Friday of a month; the second Monday.
        ("0 18 * * 5L", None, "2026-11-01 00:00", "2026-11-27 18:00"),
        ("0 9 * * 1#2", None, "2026-11-01 00:00", "2026-11-09 09:00"),
    ],
)
def test_the_next_slot_of_a_schedule(expression: str, zone: str | None, after: str, due: str) -> None:
    assert next_slot(expression, zone, utc(after)) == utc(due)


def test_a_run_that_starts_a_little_early_belongs_to_its_slot() -> None:
    assert awaited_after("0 6 * * *", "2026-03-01 05:59:10") == utc("2026-03-02 06:00")
    assert awaited_after("0 6 * * *", "2026-03-01 05:50") == utc("2026-03-01 06:00")


def awaited_after(expression: str, *runs: str) -> datetime | None:
    return list(awaited(Slots(expression, None), utc("2026-02-28 00:00"), map(utc, runs)))[-1]


def test_slots_and_runs_are_matched_one_to_one() -> None:
    hourly, four, almost_five, almost_six = (
        "0 * * * *",
        "2026-03-01 04:00",
        "2026-03-01 04:58:30",
        "2026-03-01 05:58:30",
    )
    # Early, as the slot before has its run.
    assert awaited_after(hourly, four, almost_five) == utc("2026-03-01 06:00")
    # Late, as it has none, and so is the next one.
    assert awaited_after(hourly, "2026-03-01 03:00", almost_five) == utc("2026-03-01 05:00")
    assert awaited_after(hourly, "2026-03-01 03:00", almost_five, almost_six) == utc("2026-03-01 06:00")
    assert awaited_after(hourly, four, almost_five, almost_six) == utc("2026-03-01 07:00")
    # Of the first run it is not known what came before.
    assert awaited_after(hourly, almost_five) == utc("2026-03-01 06:00")


def test_slots_of_more_weeks_than_are_kept_stay_right() -> None:
    """The weeks that are kept make room for others, and come back the same."""
    slots, first = Slots("0 6 * * 1", "Europe/Berlin"), utc("2026-01-01 00:00")
    forth = [slots.after(first + timedelta(weeks=week)) for week in range(200)]
    back = [slots.after(first + timedelta(weeks=week)) for week in reversed(range(200))]
    assert forth == back[::-1]
    assert forth == [next_slot("0 6 * * 1", "Europe/Berlin", first + timedelta(weeks=week)) for week in range(200)]
    assert len(slots._weeks) <= 64


@pytest.mark.parametrize(
    ("expression", "issue"),
    [
        ("0 0 30 2 *", "never comes true"),
        ("0 0 31 2,4,6 *", "never comes true"),
        ("0 0 32 1 *", "must be a cron expression"),
        ("0 0 1 13 *", "must be a cron expression"),
        ("0 24 * * *", "must be a cron expression"),
        ("@ daily * * *", "must be a cron expression"),
        ("0 0 5-1 * *", "must be a cron expression"),
        ("0 0 ? * *", "must be a cron expression"),
        ("0 6 * *", "this has 4"),
    ],
)
def test_an_invalid_schedule_is_rejected(expression: str, issue: str) -> None:
    with pytest.raises(InputError, match=issue):
        read_value(Cron, expression, "schedule_cron")


@given(
    expression=st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "0 0 29 2 *", "15 6 1,15 * *", "0 */6 * * 1-5", "0 0 L * *"]
    ),
    zone=st.sampled_from([None, BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
    after=st.datetimes(datetime(2024, 1, 1), datetime(2034, 1, 1), timezones=st.just(UTC)),
)
@settings(max_examples=300, deadline=None)
def test_slots_come_in_order_and_never_before_they_are_asked_for(
    expression: str, zone: str | None, after: datetime
) -> None:
    first = next_slot(expression, zone, after)
    assert first is not None
    assert first > after
    second = next_slot(expression, zone, first)
    assert second is not None
    assert second > first
    local = first.astimezone(ZoneInfo(zone or "UTC"))
    assert local.second == 0


CRONS = [
    "*/30 * * * *",
    "30 2 * * *",
    "15,45 2 * * *",
    "0 0 29 2 *",
    "0 0 L * *",
    "59 23 * * 4",
    "0 1-3 * * *",
    "7 3 1 1 *",
]


@given(
    st.sampled_from(CRONS),
    st.sampled_from([None, BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1))
    | st.datetimes(datetime(2026, 10, 24, 23), datetime(2026, 10, 25, 4))
    | st.sampled_from([datetime(2026, 10, 28, 23)]),
)
def test_slots_are_those_of_the_schedule_one_after_the_other(
    expression: str, zone: str | None, moment: datetime
) -> None:
    after, slots = moment.replace(tzinfo=UTC), Slots(expression, zone)
    first = slots.after(after)
    assert first == next_slot(expression, zone, after)
    assert first is not None
    assert first > after
    assert slots.at_or_before(first) == first
    second = slots.after(first)
    assert second is not None
    assert slots.at_or_before(second - timedelta(seconds=1)) == first
    assert (
        slots.count(first, second, 9),
        slots.count(first, second, 1),
        slots.count(first, first - timedelta(1), 9),
    ) == (2, 1, 0)

"""When there is maintenance: one-off and recurring windows, overlaps, and days on which clocks change."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.maintenance import CALENDAR_ENTRIES, calendar_of, is_open, state_of, times_of

Window = dict[str, Any]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def one_off(start: str, end: str) -> Window:
    return {"start": f"{start}:00Z", "end": f"{end}:00Z"}


def recurring(cron: str, minutes: int, zone: str = "Europe/Berlin") -> Window:
    return {"cron": cron, "minutes": minutes, "timezone": zone}


def between(windows: list[Window], start: str, end: str) -> list[tuple[str, str]]:
    found = times_of(windows, utc(start), utc(end))
    return [(f"{first:%m-%d %H:%M}", f"{last:%m-%d %H:%M}") for first, last in found]


@pytest.mark.parametrize(
    ("cron", "minutes", "day", "expected"),
    [
        # 29 March 2026: 02:00 becomes 03:00, so 02:30 does not exist; cron runs such a job once, at 03:00.
        ("30 2 * * *", 60, "2026-03-29", [("03-29 01:00", "03-29 02:00")]),
        ("0 1 * * *", 120, "2026-03-29", [("03-29 00:00", "03-29 02:00")]),
        # 25 October 2026: 03:00 becomes 02:00, so 02:30 exists twice; cron runs such a job once.
        ("30 2 * * *", 60, "2026-10-25", [("10-25 00:30", "10-25 01:30")]),
        ("0 1 * * *", 120, "2026-10-25", [("10-24 23:00", "10-25 01:00")]),
    ],
)
def test_where_clocks_change_a_window_opens_once_and_lasts_its_minutes(
    cron: str, minutes: int, day: str, expected: list[tuple[str, str]]
) -> None:
    start = utc(day) - timedelta(hours=2)
    found = times_of([recurring(cron, minutes)], start, start + timedelta(hours=24))
    assert [(f"{first:%m-%d %H:%M}", f"{last:%m-%d %H:%M}") for first, last in found] == expected


def test_windows_that_overlap_or_touch_are_one() -> None:
    windows = [
        one_off("2026-03-02T10:00", "2026-03-02T12:00"),
        one_off("2026-03-02T11:00", "2026-03-02T11:30"),
        recurring("0 12 * * *", 60, "UTC"),
        recurring("30 13 * * *", 30, "UTC"),
    ]
    expected = [("03-02 10:00", "03-02 13:00"), ("03-02 13:30", "03-02 14:00")]
    assert between(windows, "2026-03-02", "2026-03-03") == expected
    assert between(windows[::-1], "2026-03-02", "2026-03-03") == expected


def test_a_recurring_window_may_last_longer_than_its_period() -> None:
    found = between([recurring("0 0 * * *", 1_500, "UTC")], "2026-03-02T10:00", "2026-03-04T10:00")
    assert found == [("03-02 00:00", "03-05 01:00")]


def test_a_window_holds_its_start_and_not_its_end() -> None:
    window = one_off("2026-03-02T10:00", "2026-03-02T12:00")
    assert is_open([window], utc("2026-03-02T10:00"))
    assert not is_open([window], utc("2026-03-02T12:00"))
    assert not is_open([window], utc("2026-03-02T10:00") - timedelta.resolution)
    hours = (9, 10, 12)
    assert [state_of(window, utc(f"2026-03-02T{hour:02}:00")) for hour in hours] == ["planned", "open", "over"]


minutes_of_march = st.integers(0, 4 * 1_440).map(lambda n: utc("2026-03-27") + timedelta(minutes=n))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    if draw(st.booleans()):
        start = draw(minutes_of_march)
        end = start + timedelta(minutes=draw(st.integers(1, 600)))
        return {"start": start.isoformat(), "end": end.isoformat()}
    return recurring(draw(st.sampled_from(["0 2 * * *", "30 2 * * *", "15 */3 * * *"])), draw(st.integers(1, 600)))


@given(
    windows=st.lists(windows(), max_size=4), start=minutes_of_march, length=st.integers(1, 2_000), at=st.floats(0, 1)
)
def test_a_moment_is_in_maintenance_if_any_window_is_open(
    windows: list[Window], start: datetime, length: int, at: float
) -> None:
    end = start + timedelta(minutes=length)
    found = times_of(windows, start, end)
    assert all(first < last for first, last in found)
    assert all(one[1] < next_[0] for one, next_ in itertools.pairwise(found))
    assert all(first < end and last > start for first, last in found)
    moment = start + at * (end - start) * 0.999
    assert any(first <= moment < last for first, last in found) == any(is_open([w], moment) for w in windows)


@given(windows=st.lists(windows(), min_size=1, max_size=3), now=minutes_of_march, ahead=st.integers(0, 13 * 1_440))
def test_the_calendar_says_what_the_windows_say(windows: list[Window], now: datetime, ahead: int) -> None:
    calendar = calendar_of(windows, now)
    assert calendar is not None
    moment = now + timedelta(minutes=ahead)
    if moment < datetime.fromisoformat(calendar["through"]):
        times = [
            (datetime.fromisoformat(entry["start"]), datetime.fromisoformat(entry["end"]))
            for entry in calendar["entries"]
        ]
        assert any(first <= moment < last for first, last in times) == is_open(windows, moment)


def test_a_calendar_is_bounded_and_says_up_to_where_it_is_complete() -> None:
    now = utc("2026-03-02")
    calendar = calendar_of([{**recurring("*/5 * * * *", 1), "reason": "Often"}], now)
    assert calendar is not None
    assert len(calendar["entries"]) == CALENDAR_ENTRIES - 1
    assert calendar["entries"][0] == {"start": "2026-03-02T00:00:00Z", "end": "2026-03-02T00:01:00Z", "reason": "Often"}
    assert now < datetime.fromisoformat(calendar["through"]) < now + timedelta(days=1)
    assert calendar_of([], now) is None

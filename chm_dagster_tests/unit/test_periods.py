"""Weeks and months in a client's time zone."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from chm_dagster.domain.periods import Period, PeriodKind, ReportPeriod, last_over
from chm_dagster.errors import InputError

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "first", "after", "before"),
    [
        ("2026-W47", date(2026, 11, 16), date(2026, 11, 23), "2026-W46"),
        ("2026-W53", date(2026, 12, 28), date(2027, 1, 4), "2026-W52"),
        ("2027-W01", date(2027, 1, 4), date(2027, 1, 11), "2026-W53"),
        ("2026-W01", date(2025, 12, 29), date(2026, 1, 5), "2025-W52"),
        ("2024-W09", date(2024, 2, 26), date(2024, 3, 4), "2024-W08"),
        ("2024-02", date(2024, 2, 1), date(2024, 3, 1), "2024-01"),
        ("2026-12", date(2026, 12, 1), date(2027, 1, 1), "2026-11"),
        ("2026-01", date(2026, 1, 1), date(2026, 2, 1), "2025-12"),
    ],
)
def test_a_period_is_read_and_written(text: str, first: date, after: date, before: str) -> None:
    period = Period.read(text)
    assert (period.first, period.after, str(period), str(period.before())) == (first, after, text, before)


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("2025-W53", "2025-W53 does not exist: that year has no such ISO week"),
        ("2026-W00", "2026-W00 does not exist: that year has no such ISO week"),
        ("2026-W4", "must be an ISO week such as 2026-W47, from 2000 to 9000"),
        ("0000-W01", "0000-W01 does not exist: that year has no such ISO week"),
        ("1999-W10", "must be an ISO week such as 2026-W47, from 2000 to 9000"),
        ("9999-W52", "must be an ISO week such as 2026-W47, from 2000 to 9000"),
        ("2026-W47\n", "must be an ISO week such as 2026-W47, from 2000 to 9000"),
    ],
)
def test_what_is_no_week_is_refused(text: str, issue: str) -> None:
    with pytest.raises(InputError) as refused:
        Period.week(text)
    assert (refused.value.field, refused.value.issue) == ("week", issue)


@pytest.mark.parametrize("text", ["2026-13", "2026-00", "0000-01", "2026-1", "2026", "9999-12", "٢٠٢٦-١٠"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be a month such as 2026-10"):
        Period.month(text)


@pytest.mark.parametrize(
    ("week", "start", "hours"),
    [
        ("2026-W12", datetime(2026, 3, 15, 23, tzinfo=UTC), 168),
        ("2026-W13", datetime(2026, 3, 22, 23, tzinfo=UTC), 167),  # clocks go forward on Sunday
        ("2026-W43", datetime(2026, 10, 18, 22, tzinfo=UTC), 169),  # and back
    ],
)
def test_a_week_follows_the_clocks_of_its_zone(week: str, start: datetime, hours: int) -> None:
    period = Period.week(week)
    days = list(period.days(BERLIN))
    assert (period.start(BERLIN), period.end(BERLIN) - period.start(BERLIN)) == (start, timedelta(hours=hours))
    assert [day.end for day in days[:-1]] == [day.start for day in days[1:]]
    assert (days[0].start, days[-1].end, len(days)) == (period.start(BERLIN), period.end(BERLIN), 7)


def test_a_day_begins_when_its_clocks_do_where_midnight_does_not_exist() -> None:
    # Cairo put its clocks forward at midnight of Friday 2026-04-24.
    days = {day.date: day for day in Period.week("2026-W17").days(ZoneInfo("Africa/Cairo"))}
    friday = days[date(2026, 4, 24)]
    assert (friday.start, friday.end - friday.start) == (datetime(2026, 4, 23, 22, tzinfo=UTC), timedelta(hours=23))


def test_a_leap_day_is_a_day_of_its_week_and_month() -> None:
    for text in ("2024-W09", "2024-02"):
        assert date(2024, 2, 29) in [day.date for day in Period.read(text).days(UTC_ZONE)]


UTC_ZONE = ZoneInfo("UTC")


@pytest.mark.parametrize(
    ("now", "zone", "week"),
    [
        (datetime(2026, 11, 23, 8, tzinfo=UTC), "Europe/Berlin", "2026-W47"),
        (datetime(2026, 11, 22, 23, tzinfo=UTC), "Europe/Berlin", "2026-W47"),
        (datetime(2026, 11, 22, 22, 59, tzinfo=UTC), "Europe/Berlin", "2026-W46"),
        (datetime(2026, 11, 22, 11, tzinfo=UTC), "Pacific/Auckland", "2026-W47"),
        (datetime(2026, 11, 23, 7, tzinfo=UTC), "America/Los_Angeles", "2026-W46"),
    ],
)
def test_the_last_week_is_the_last_one_that_is_over(now: datetime, zone: str, week: str) -> None:
    period = last_over(PeriodKind.WEEK, now, ZoneInfo(zone))
    assert (str(period), period.kind) == (week, PeriodKind.WEEK)
    assert period.end(ZoneInfo(zone)) <= now


@pytest.mark.parametrize(
    ("now", "zone", "month"),
    [
        (datetime(2028, 2, 29, 23, 59, tzinfo=UTC), "UTC", "2028-01"),
        (datetime(2028, 3, 1, tzinfo=UTC), "UTC", "2028-02"),
        (datetime(2028, 2, 29, 10, tzinfo=UTC), "Pacific/Kiritimati", "2028-02"),
        (datetime(2028, 3, 1, 10, 59, tzinfo=UTC), "Pacific/Pago_Pago", "2028-01"),
        (datetime(2028, 3, 1, 11, tzinfo=UTC), "Pacific/Pago_Pago", "2028-02"),
        (datetime(2027, 1, 1, 12, tzinfo=UTC), "Europe/Berlin", "2026-12"),
    ],
)
def test_the_last_month_is_the_last_one_that_is_over(now: datetime, zone: str, month: str) -> None:
    period = last_over(PeriodKind.MONTH, now, ZoneInfo(zone))
    assert (str(period), period.kind) == (month, PeriodKind.MONTH)
    assert period.end(ZoneInfo(zone)) <= now


@pytest.mark.parametrize(
    ("month", "days", "hours"),
    [("2028-02", 29, 29 * 24), ("2027-02", 28, 28 * 24), ("2026-03", 31, 31 * 24 - 1), ("2026-10", 31, 31 * 24 + 1)],
)
def test_a_month_has_its_days_and_follows_the_clocks_of_its_zone(month: str, days: int, hours: int) -> None:
    period = Period.month(month)
    assert len(list(period.days(BERLIN))) == days
    assert period.end(BERLIN) - period.start(BERLIN) == timedelta(hours=hours)


def test_a_client_gets_reports_of_weeks_of_months_or_of_both() -> None:
    assert [tuple(map(str, one.kinds)) for one in ReportPeriod] == [("week",), ("month",), ("week", "month")]

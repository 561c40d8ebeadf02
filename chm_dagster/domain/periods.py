"""The periods that reports cover: ISO weeks from Monday to Monday, and months, in a client's time zone. Pure."""

import dataclasses
import enum
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from chm_dagster.domain.validation import shown
from chm_dagster.errors import InputError

_WEEK = re.compile(r"(\d{4})-W(\d{2})", re.ASCII)
_MONTH = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_FIRST_YEAR, _LAST_YEAR = 2000, 9000
"""Years in which every neighbour of a period is a date, too."""


class PeriodKind(enum.StrEnum):
    """How long a period is."""

    WEEK = "week"
    MONTH = "month"


class ReportPeriod(enum.StrEnum):
    """Of which periods a client gets reports by itself."""

    WEEK = "week"
    MONTH = "month"
    BOTH = "both"

    @property
    def kinds(self) -> tuple[PeriodKind, ...]:
        """The kinds of these periods."""
        return tuple(PeriodKind) if self is ReportPeriod.BOTH else (PeriodKind(self),)


@dataclasses.dataclass(frozen=True, slots=True)
class Day:
    """A day of a period, from `start` up to `end` in UTC: 23 to 25 hours where clocks change."""

    date: date
    start: datetime
    end: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Period:
    """A week or a month; `first` is its first day."""

    kind: PeriodKind
    first: date

    @classmethod
    def week(cls, text: str, field: str = "week") -> "Period":
        """The ISO week of `2026-W47`. Raises InputError."""
        found = _WEEK.fullmatch(text)
        try:
            first = date.fromisocalendar(int(found[1]), int(found[2]), 1) if found else None
        except ValueError:
            raise InputError(field, f"{shown(text)} does not exist: that year has no such ISO week") from None
        return cls._checked(PeriodKind.WEEK, first, field, "an ISO week such as 2026-W47")

    @classmethod
    def month(cls, text: str, field: str = "month") -> "Period":
        """The month of `2026-10`. Raises InputError."""
        found = _MONTH.fullmatch(text)
        first = (
            date(int(found[1]), int(found[2]), 1) if found and found[1] > "0000" and "01" <= found[2] <= "12" else None
        )
        return cls._checked(PeriodKind.MONTH, first, field, "a month such as 2026-10")

    @classmethod
    def _checked(cls, kind: PeriodKind, first: date | None, field: str, form: str) -> "Period":
        if first is None or not _FIRST_YEAR <= first.year <= _LAST_YEAR:
            raise InputError(field, f"must be {form}, from {_FIRST_YEAR} to {_LAST_YEAR}")
        return cls(kind, first)

    @classmethod
    def read(cls, text: str) -> "Period":
        """The period that `str` gave this name. Raises InputError."""
        return cls.week(text, "period") if "W" in text else cls.month(text, "period")

    @classmethod
    def of(cls, kind: PeriodKind, day: date) -> "Period":
        """The week or month that a day is in."""
        return cls(kind, day.replace(day=1) if kind is PeriodKind.MONTH else day - timedelta(days=day.weekday()))

    def __str__(self) -> str:
        """`2026-W47` or `2026-10`."""
        if self.kind is PeriodKind.MONTH:
            return f"{self.first:%Y-%m}"
        year, week, _ = self.first.isocalendar()
        return f"{year:04}-W{week:02}"

    @property
    def after(self) -> date:
        """The first day after it."""
        if self.kind is PeriodKind.WEEK:
            return self.first + timedelta(weeks=1)
        return (self.first + timedelta(days=31)).replace(day=1)

    def before(self) -> "Period":
        """The period before this one."""
        return Period.of(self.kind, self.first - timedelta(days=1))

    def start(self, zone: ZoneInfo) -> datetime:
        """When it begins, in UTC."""
        return _midnight(self.first, zone)

    def end(self, zone: ZoneInfo) -> datetime:
        """The first moment after it, in UTC."""
        return _midnight(self.after, zone)

    def days(self, zone: ZoneInfo) -> Iterator[Day]:
        """Its days in order."""
        day = self.first
        while day < self.after:
            following = day + timedelta(days=1)
            yield Day(day, _midnight(day, zone), _midnight(following, zone))
            day = following


def last_over(kind: PeriodKind, now: datetime, zone: ZoneInfo) -> Period:
    """The last week or month that is over at `now`."""
    return Period.of(kind, now.astimezone(zone).date()).before()


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    # Where clocks are put forward at midnight, this is the moment at which they are.
    return datetime.combine(day, time(), zone).astimezone(UTC)

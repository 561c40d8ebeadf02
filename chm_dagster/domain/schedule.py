"""When a pipeline is expected to run: a cron expression of five fields, and a time zone."""

import bisect
import contextlib
import functools
import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, Field

from chm_dagster.domain.fields import Line
from chm_dagster.domain.validation import did_you_mean, refusal

MAX_CRON_CHARS = 200
EARLY = timedelta(minutes=2)
"""How long before its slot a run may start and still belong to it: clocks differ."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WEEK = timedelta(weeks=1)
_MAX_WEEKS = 64
_LEAP_YEAR = datetime(2024, 1, 1, tzinfo=UTC)
_NOT_PLACES = frozenset({"localtime", "Factory"})


def _single_blanks(value: object) -> object:
    # Crontabs often use tabs.
    return " ".join(value.split()) if isinstance(value, str) else value


def _cron(expression: str) -> str:
    fields = expression.split()
    if len(fields) != 5:
        raise refusal(f"must have five fields, such as 0 6 * * 1-5; this has {len(fields)}")
    if not _is_readable(fields):
        raise refusal("must be a cron expression of minute, hour, day, month and weekday, such as 0 6 * * 1-5")
    if _next(expression, _LEAP_YEAR) is None:
        raise refusal("never comes true; check its day and month")
    return expression


def _is_readable(fields: list[str]) -> bool:
    """Whether each field is well formed. A well-formed expression may still name a day that no month has."""
    minute, hour, day, month, weekday = fields
    try:
        CronSim(f"{minute} {hour} {day} * {weekday}", _LEAP_YEAR)
        CronSim(f"0 0 * {month} *", _LEAP_YEAR)
    except CronSimError:
        return False
    return True


def _next(expression: str, after: datetime) -> datetime | None:
    try:
        # In the second of two hours that have the same name, the search begins in the first one.
        return next(slot for slot in CronSim(expression, after) if slot.astimezone(UTC) > after)
    except (CronSimError, StopIteration, OverflowError):
        return None


def next_slot(expression: str, zone: str | None, after: datetime) -> datetime | None:
    """The first time after `after` at which a schedule is due, in UTC; None if no such time comes within 50 years.

    `zone` is an IANA name, None for UTC. Clock changes are handled as Debian's cron does: a job at a fixed time runs
    once on either day, a job that runs every so many minutes follows the clock.
    """
    slot = _next(expression, after.astimezone(zoneinfo.ZoneInfo(zone) if zone else UTC))
    return None if slot is None else slot.astimezone(UTC)


class Slots:
    """The times at which a schedule is due, in UTC, found quickly however often they are asked for.

    They are the same as those of `next_slot`; each exists once, also where clocks are set back.
    """

    def __init__(self, expression: str, zone: str | None) -> None:
        self._expression, self._name = expression, zone
        self._zone = zoneinfo.ZoneInfo(zone) if zone else UTC
        self._weeks: dict[int, tuple[datetime, ...]] = {}

    def after(self, moment: datetime) -> datetime | None:
        """The first slot after `moment`; None if none comes within 50 years."""
        week = _week(moment)
        for slots in map(self._week, (week, week + 1)):
            index = bisect.bisect_right(slots, moment)
            if index < len(slots):
                return slots[index]
        return next_slot(self._expression, self._name, moment)

    def at_or_before(self, moment: datetime) -> datetime | None:
        """The last slot up to `moment`; None if none was in the 50 years before."""
        week = _week(moment)
        for slots in map(self._week, (week, week - 1)):
            index = bisect.bisect_right(slots, moment)
            if index:
                return slots[index - 1]
        try:
            # The simulator leaves out the moment that it starts from.
            start = (moment.replace(microsecond=0) + timedelta(seconds=1)).astimezone(self._zone)
            found = (slot.astimezone(UTC) for slot in CronSim(self._expression, start, reverse=True))
            return next(slot for slot in found if slot <= moment)
        except (CronSimError, StopIteration, OverflowError):
            return None

    def count(self, first: datetime, last: datetime, limit: int) -> int:
        """How many slots lie from `first` to `last`, both included; `limit` at most."""
        found, slot = 0, self.at_or_before(first)
        slot = slot if slot == first else self.after(first)
        while slot is not None and slot <= last and found < limit:
            found, slot = found + 1, self.after(slot)
        return found

    def _week(self, week: int) -> tuple[datetime, ...]:
        slots = self._weeks.get(week)
        if slots is None:
            begin = _EPOCH + timedelta(weeks=week)
            # From the day before: a search leaves out the moment at which it begins.
            slots = tuple(sorted(set(self._between(begin - timedelta(days=1), begin + timedelta(weeks=1)))))
            if len(self._weeks) >= _MAX_WEEKS:
                self._weeks.clear()
            self._weeks[week] = slots
        return slots

    def _between(self, start: datetime, end: datetime) -> Iterator[datetime]:
        with contextlib.suppress(CronSimError, OverflowError):
            for local in CronSim(self._expression, start.astimezone(self._zone)):
                slot = local.astimezone(UTC)
                if slot >= end:
                    return
                yield slot


def awaited(slots: Slots, floor: datetime, runs: Iterable[datetime]) -> Iterator[datetime | None]:
    """The slot that is awaited from `floor` on, and then from each run on. `runs` are their starts, in order.

    A run stands for all slots since the run before. One that starts up to `EARLY` before a slot belongs to that slot,
    unless the slot before still waits for it. Of the first run it is not known what came before.
    """
    yield slots.after(floor)
    answered: datetime | None = None
    for start in runs:
        slot = slots.after(start)
        is_early = slot is not None and slot - EARLY <= start
        if slot is not None and is_early and _is_free(slots.at_or_before(start), floor, answered):
            answered, slot = slot, slots.after(slot)
        else:
            answered = start
        yield slot


def _is_free(before: datetime | None, floor: datetime, answered: datetime | None) -> bool:
    """Whether the slot before needs no run any more: it is answered, or was never expected."""
    return answered is None or before is None or before <= max(floor, answered)


@functools.lru_cache(maxsize=4096)
def slots_of(expression: str, zone: str | None) -> Slots:
    """The slots of a schedule; pipelines with the same schedule share them."""
    return Slots(expression, zone)


def _week(moment: datetime) -> int:
    return (moment - _EPOCH) // _WEEK


def _time_zone(name: str) -> str:
    if name not in _zones():
        city = next((zone for zone in sorted(_zones()) if zone.rpartition("/")[2].lower() == name.lower()), "")
        hint = f"; did you mean {city}?" if city else _close(name)
        raise refusal(f"must be the name of an IANA time zone{hint}")
    return name


def _close(name: str) -> str:
    close = did_you_mean(name, _zones())
    return f"; {close}" if close else ", such as Europe/Berlin or UTC"


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NOT_PLACES


Cron = Annotated[Line, Field(max_length=MAX_CRON_CHARS), BeforeValidator(_single_blanks), AfterValidator(_cron)]
"""A cron expression of five fields with one blank between them."""
TimeZone = Annotated[Line, Field(max_length=100), AfterValidator(_time_zone)]
"""The name of an IANA time zone."""

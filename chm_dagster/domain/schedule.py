"""When a pipeline is expected to run: a cron expression of five fields, and a time zone."""

import difflib
import functools
import re
import zoneinfo
from datetime import UTC, datetime

from croniter import CroniterError, croniter

from chm_dagster.domain.fields import line
from chm_dagster.errors import InputError

MAX_CRON_CHARS = 200
# Without croniter's random (R) and hashed (H) fields: those are another time for everyone who asks.
_FIELD = re.compile(
    r"(?:[\d*,/#?lw-]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat)+",
    re.ASCII | re.IGNORECASE,
)
_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)
_NOT_PLACES = frozenset({"localtime", "Factory"})


def cron(value: object, field: str) -> str:
    """A cron expression of five fields, with one blank between them. Raises InputError, also if it never comes true."""
    # Crontabs are often set with tabs.
    fields = line(MAX_CRON_CHARS)(" ".join(value.split()) if isinstance(value, str) else value, field).split()
    if len(fields) != 5:
        raise InputError(field, f"has {len(fields)} fields; send five, such as 0 6 * * 1-5")
    expression = " ".join(fields)
    if not all(_FIELD.fullmatch(part) for part in fields) or not croniter.is_valid(expression):
        raise InputError(field, "not a cron expression; send minute, hour, day, month and weekday, such as 0 6 * * 1-5")
    try:
        croniter(expression, _SOME_DAY).get_next(datetime)
    except CroniterError:
        raise InputError(field, "never comes true; check its day and month") from None
    return expression


def time_zone(value: object, field: str) -> str:
    """The name of an IANA time zone. Raises InputError."""
    name: str = line(100)(value, field)
    if name not in _zones():
        close = difflib.get_close_matches(name, _zones(), n=1)
        hint = f"did you mean {close[0]}?" if close else "send a name such as Europe/Berlin or UTC"
        raise InputError(field, f"not an IANA time zone; {hint}")
    return name


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NOT_PLACES

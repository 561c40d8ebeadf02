"""Times as people write and read them: `24h`, `2026-01-31`, `2 h ago`, `1 h 5 min`."""

import re
from datetime import UTC, datetime, timedelta

from chm_dagster.errors import InputError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d{1,6}) ?(s|m|min|h|d|w)", re.ASCII)
_WANTED = "write a time such as 2026-01-31 or 2026-01-31T06:00:00+00:00, or a span such as 90m, 24h or 7d"


def parse_moment(text: str, field: str, now: datetime, *, ahead: bool = False) -> datetime:
    """A time from ISO 8601 (UTC where no zone is given), or from a span before `now` (`24h`); `ahead`: after it.

    Raises InputError.
    """
    spelled = _SPAN.fullmatch(text.strip())
    try:
        if spelled is not None:
            distance = timedelta(seconds=int(spelled[1]) * _UNITS[spelled[2]])
            return now + distance if ahead else now - distance
        moment = datetime.fromisoformat(text.strip())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InputError(field, f"not a time; {_WANTED}") from None


def age(moment: datetime, now: datetime) -> str:
    """How long ago, in one unit: `12 s ago`, `5 min ago`, `2 h ago`, `3 d ago`; the date beyond 90 days."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) >= 90 * 86_400:
        return f"{moment:%Y-%m-%d}"
    if abs(seconds) < 1:
        return "just now"
    text = _rounded(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _rounded(seconds: float) -> str:
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3_600:
        return f"{seconds // 60:.0f} min"
    if seconds < 48 * 3_600:
        return f"{seconds // 3_600:.0f} h"
    return f"{seconds // 86_400:.0f} d"


def span(seconds: float) -> str:
    """A duration in its two largest units: `0.4 s`, `45 s`, `10 min`, `1 h 5 min`, `2 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])

"""Maintenance windows: planned times in which a client or a pipeline may fail without anybody being notified.

A window is either one-off, from `start` to `end`, or recurring: it opens whenever `cron` is due and lasts `minutes`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, NotRequired

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from typing_extensions import TypedDict

from chm_dagster.domain import limits
from chm_dagster.domain.fields import RELATIVE_PATTERN, Line, now_of, read_time
from chm_dagster.domain.schedule import Cron, TimeZone, slots_of
from chm_dagster.domain.validation import Problem, issue, refusal, shown
from chm_dagster.domain.values import believable, kind
from chm_dagster.errors import InputError

MAX_WINDOWS = 100
MAX_WINDOW_MINUTES = 10_080
"""A week. Longer maintenance is not recurring."""
MAX_REASON_CHARS = 200


def _moment(value: object, info: ValidationInfo) -> str:
    """A time as text in UTC: windows are stored as JSON."""
    if not isinstance(value, str | datetime):
        raise refusal(f"must be a time such as 2026-01-31T08:00:00Z, not {kind(value)}")
    try:
        moment = read_time(value, "", now_of(info), ahead=True, zone=(info.context or {}).get("zone"))
        return believable(moment, "", limits.FAR).isoformat().replace("+00:00", "Z")
    except InputError as refused:
        raise refusal(refused.issue) from None


Moment = Annotated[
    str,
    BeforeValidator(_moment),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": RELATIVE_PATTERN}]},
        mode="validation",
    ),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class MaintenanceWindow(TypedDict):
    """A window: `start` and `end`, or `cron` and `minutes`."""

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=False)  # type: ignore[misc]

    start: NotRequired[Annotated[Moment, Field(description="One-off: when it begins.")]]
    end: NotRequired[Annotated[Moment, Field(description="One-off: when it ends. A span such as 4h counts from now.")]]
    cron: NotRequired[Annotated[Cron, Field(description="Recurring: when it opens.", examples=["0 2 * * 0"])]]
    timezone: NotRequired[
        Annotated[TimeZone, Field(description="Recurring: the IANA time zone of `cron`; UTC if it is left out.")]
    ]
    minutes: NotRequired[
        Annotated[int, Field(strict=True, ge=1, le=MAX_WINDOW_MINUTES, description="Recurring: how long it lasts.")]
    ]
    reason: NotRequired[
        Annotated[Line, Field(max_length=MAX_REASON_CHARS, description="Why, for people.", examples=["Upgrade"])]
    ]


_NEEDED = {"start": "end", "end": "start", "cron": "minutes", "minutes": "cron", "timezone": "cron"}
_ONE_OFF, _RECURRING = frozenset({"start", "end"}), frozenset({"cron", "timezone", "minutes"})


def _conflicts(window: Mapping[str, Any]) -> Iterable[Problem]:
    one_off, recurring = _ONE_OFF & window.keys(), _RECURRING & window.keys()
    if one_off and recurring:
        yield min(recurring), "has no meaning beside start and end; make it a window of its own"
    elif not one_off and not recurring:
        yield "start", "is required, with end; or cron and minutes, for a window that recurs"
    else:
        for name, other in _NEEDED.items():
            if name in window and other not in window:
                yield other, f"is required beside {name}"
        if {"start", "end"} <= window.keys() and _time(window["end"]) <= _time(window["start"]):
            yield "end", "must be after start"


def _whole(window: MaintenanceWindow) -> MaintenanceWindow:
    problems = list(_conflicts(window))
    if problems:
        raise refusal("; ".join(f"{field}: {said}" for field, said in problems))
    return window


def _numbered(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Say which window a problem is in, and in which of its fields; null counts as no windows."""
    try:
        return handler([] if value is None else value)
    except ValidationError as error:
        known = MaintenanceWindow.__annotations__
        raise refusal(
            "; ".join(
                ": ".join([*_place(found["loc"]), issue(found, known)]) for found in error.errors(include_url=False)
            )
        ) from None


def _place(location: tuple[int | str, ...]) -> list[str]:
    if not location:
        return []
    number, *names = location
    return [f"window {int(number) + 1}", *(shown(name) for name in names[:1])]


_Windows = Annotated[list[Annotated[MaintenanceWindow, AfterValidator(_whole)]], Field(max_length=MAX_WINDOWS)]
Maintenance = Annotated[_Windows, WrapValidator(_numbered, json_schema_input_type=_Windows | None)]
"""The windows of a client or a pipeline."""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


Interval = tuple[datetime, datetime]
CALENDAR = timedelta(days=14)
CALENDAR_ENTRIES = 200


def times_of(windows: Iterable[Mapping[str, Any]], start: datetime, end: datetime) -> tuple[Interval, ...]:
    """The times of maintenance that overlap `start` to `end`, whole, in UTC and in order; none overlaps another.

    A recurring window lasts its minutes also where clocks change, and opens as its cron expression would run a job.
    """
    found = sorted(interval for window in windows for interval in _intervals(window, start, end))
    return tuple(_merged(found))


def is_open(windows: Iterable[Mapping[str, Any]], moment: datetime) -> bool:
    """Whether there is maintenance at this moment. A window's end is not within it."""
    return bool(times_of(windows, moment, moment + timedelta.resolution))


def calendar_of(windows: Sequence[Mapping[str, Any]], now: datetime) -> dict[str, Any] | None:
    """The windows that are open or to come, spelled out for those who cannot read cron; None without windows.

    `entries` are complete up to `through`: each has `start`, `end` and, if given, `reason`.
    """
    if not windows:
        return None
    through, entries = limits.FAR, []
    for window in windows:
        horizon = now + CALENDAR if "cron" in window else limits.FAR
        spans = list(islice(_merged(_intervals(window, now, horizon)), CALENDAR_ENTRIES))
        if len(spans) == CALENDAR_ENTRIES:
            horizon = spans.pop()[0]
        through = min(through, horizon)
        reason = {"reason": window["reason"]} if "reason" in window else {}
        entries += [{"start": _spelled(start), "end": _spelled(end), **reason} for start, end in spans]
    return {"through": _spelled(through), "entries": sorted(entries, key=lambda entry: entry["start"])}


def _intervals(window: Mapping[str, Any], start: datetime, end: datetime) -> Iterator[Interval]:
    if "cron" not in window:
        opens, closes = _time(window["start"]), _time(window["end"])
        if opens < end and closes > start:
            yield opens, closes
        return
    length = timedelta(minutes=window["minutes"])
    slots = slots_of(window["cron"], window.get("timezone"))
    slot = slots.after(start - length)
    while slot is not None and slot < end:
        yield slot, slot + length
        slot = slots.after(slot)


def _merged(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Intervals in order, with those that touch or overlap made one."""
    current: Interval | None = None
    for start, end in intervals:
        if current is None or start > current[1]:
            if current is not None:
                yield current
            current = start, end
        else:
            current = current[0], max(current[1], end)
    if current is not None:
        yield current


def _spelled(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def timing(window: Mapping[str, Any]) -> str:
    """When it is, in words."""
    if "cron" in window:
        return f"{window['cron']} {window.get('timezone', 'UTC')}, for {window['minutes']} min"
    return " to ".join(f"{_time(window[name]):%Y-%m-%d %H:%M} UTC" for name in ("start", "end"))


def state_of(window: Mapping[str, Any], now: datetime) -> str:
    """`open`, `over`, or `planned`: it is to come, or to come again."""
    if is_open([window], now):
        return "open"
    return "over" if "cron" not in window and _time(window["end"]) <= now else "planned"

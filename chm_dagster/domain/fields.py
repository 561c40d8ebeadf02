"""Read what people and programs send for one thing: each field by its reader, all problems told at once.

A form is the fields of a thing by name. Every value that a reader lets through is one that the database takes; the
constraints stand behind it all the same. Pure: no I/O, no clock.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from chm_dagster.domain import values
from chm_dagster.domain.runs import INT_MAX
from chm_dagster.errors import InputError

Reader = Callable[[object, str], Any]
"""Takes a value that is not None, and the field's name. Returns what to store; raises InputError."""
Problem = tuple[str, str]
"""A field and what is wrong with it."""

FAR = datetime(9999, 12, 30, tzinfo=UTC)
"""No time that the database holds is later; see `tables.readable_time`."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """How one field is read. `required`: a new thing needs it; `nullable`: None clears it."""

    read: Reader
    required: bool = False
    nullable: bool = False


Form = Mapping[str, Field]


def read_new(given: Mapping[str, object], form: Form) -> dict[str, Any]:
    """The fields of a new thing; None counts as not given. Raises InputError with all problems."""
    present = {name: value for name, value in given.items() if value is not None or name not in form}
    missing = [(name, "missing; it is required") for name, f in form.items() if f.required and name not in present]
    return _read(present, form, *missing)


def read_changes(given: Mapping[str, object], form: Form) -> dict[str, Any]:
    """The fields to change; None clears a field that may be empty. Raises InputError with all problems."""
    return _read(given, form)


def _read(given: Mapping[str, object], form: Form, *missing: Problem) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        try:
            clean[name] = _value(name, value, form)
        except InputError as refused:
            problems.extend(refused.details)
    # Last: a misspelt name is why another one is missing.
    refuse([*problems, *missing])
    return clean


def _value(name: object, value: object, form: Form) -> Any:
    field = form.get(name) if isinstance(name, str) else None
    if field is None or not isinstance(name, str):
        raise InputError(shown(name), f"unknown field; {_suggestion(str(name), form)}")
    if value is None:
        if not field.nullable:
            raise InputError(name, "cannot be empty; leave it out to keep it as it is")
        return None
    return field.read(value, name)


def refuse(problems: Iterable[Problem]) -> None:
    """Raises InputError if there is any problem."""
    found = list(problems)
    if found:
        (field, issue), *others = found
        raise InputError(field, issue, *others)


def shown(value: object) -> str:
    """What somebody sent, short and without anything that could do harm in a message."""
    text = str(value)[:100]
    return text if text.isprintable() else repr(text)[1:-1]


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name[:100].lower(), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def line(longest: int) -> Reader:
    """A text of one line; blanks around it are taken off."""

    def read(value: object, field: str) -> str:
        text = _text(value, field).strip()
        if not text:
            raise InputError(field, "empty; send a text")
        if len(text) > longest:
            raise InputError(field, f"longer than {longest} characters; send a shorter text")
        if _CONTROL.search(text):
            raise InputError(field, "holds a control character; send plain text on one line")
        return text

    return read


def paragraphs(longest: int) -> Reader:
    """A text that may have lines; a blank one counts as none."""

    def read(value: object, field: str) -> str | None:
        text = _text(value, field)
        if len(text) > longest:
            raise InputError(field, f"longer than {longest} characters; send a shorter text")
        if values.clean_text(text) != text:
            raise InputError(field, "holds a NUL or half a surrogate pair; send plain text")
        return text if text.strip() else None

    return read


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(field, f"{values.kind(value)}; send a text")
    # A StrEnum is a str to Python, but not to every driver.
    return str(value)


def word(vocabulary: type[StrEnum]) -> Reader:
    """One word of a vocabulary."""

    def read(value: object, field: str) -> StrEnum:
        text = _text(value, field)
        if text not in {str(member) for member in vocabulary}:
            raise InputError(field, f"not one of {', '.join(vocabulary)}")
        return vocabulary(text)

    return read


def whole_number(least: int, most: int = INT_MAX) -> Reader:
    """An integer from `least` to `most`."""

    def read(value: object, field: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(field, f"{_number_kind(value)}; send a whole number")
        if not least <= value <= most:
            raise InputError(field, f"out of range; send a whole number from {least} to {most}")
        return int(value)

    return read


def _number_kind(value: object) -> str:
    if isinstance(value, float):
        return "not a whole number"
    return "a text" if isinstance(value, str) else values.kind(value)


def flag(value: object, field: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(field, "not a boolean; send true or false")
    return value


def moment(latest: datetime = FAR) -> Reader:
    """A time, as ISO 8601 text with an offset or as an aware `datetime`, from the year 2000 to `latest`; in UTC."""

    def read(value: object, field: str) -> datetime:
        text = value.isoformat() if isinstance(value, datetime) else value
        parsed = values.parse_time(text, field, latest)
        assert parsed is not None  # noqa: S101 - only None is read as None
        return parsed

    return read


def unique_id(value: object, field: str) -> UUID:
    """A UUID, or its text."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and len(value) == 36:
        try:
            return UUID(value)
        except ValueError:
            pass
    raise InputError(field, "not a UUID; send one such as 01890a5d-ac96-774b-bcce-b302099a8057")


def bound(value: datetime | None, field: str) -> datetime | None:
    """A limit of a window in UTC: any aware time. Raises InputError for one without a zone."""
    if value is None:
        return None
    if value.tzinfo is None or value.utcoffset() is None:
        raise InputError(field, "has no time zone; send ISO 8601 with an offset, such as 2026-01-31T08:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InputError(field, "out of range; send a time between the years 1 and 9999") from None

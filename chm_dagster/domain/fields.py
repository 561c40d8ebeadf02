"""The types of fields that several nouns have, such as slugs and times as people write them (`24h`, `yesterday`). Each
says what it accepts, and the API's contract says the same.
"""

import re
import unicodedata
from collections.abc import Container
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, ValidationInfo, WithJsonSchema

from chm_dagster.domain import limits, values
from chm_dagster.domain.validation import refusal
from chm_dagster.errors import InputError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}

_SPAN = re.compile(r"(\d{1,6}) ?(s|m|min|h|d|w)", re.ASCII)

_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}

RELATIVE_PATTERN = "^([0-9]{1,6} ?(s|m|min|h|d|w)|now|yesterday|today|tomorrow)$"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_WANTED = "such as 2026-01-31T08:00:00Z, or 90m, 24h, 7d, yesterday"


def read_time(value: object, field: str, now: datetime, *, ahead: bool = False, zone: tzinfo | None = None) -> datetime:
    """A time in UTC from ISO 8601, from a span before `now` (`24h`; after it with `ahead`), or from a day's name.

    A time without an offset is in `zone`; without a zone it is refused. Days begin at midnight in `zone`, else in UTC.
    Raises InputError, also for a time before 1970: questions reach back from a time, and there must be some before it.
    """
    found = _in_utc(_moment(value, field, now, ahead=ahead, zone=zone or UTC), field, zone)
    if found < _EPOCH:
        raise InputError(field, "must be a time from the year 1970 on")
    return found


def _moment(value: object, field: str, now: datetime, *, ahead: bool, zone: tzinfo) -> datetime:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise InputError(field, f"must be a time {_WANTED}")
    text = value.strip()
    try:
        relative = _relative(text, now, ahead=ahead, zone=zone)
        if relative is not None:
            return relative
        return datetime.fromisoformat(text[:-1] + "Z" if text.endswith("z") else text)
    except (ValueError, OverflowError):
        raise InputError(field, f"must be a time {_WANTED}") from None


def _relative(text: str, now: datetime, *, ahead: bool, zone: tzinfo) -> datetime | None:
    if text == "now":
        return now
    if text in _DAYS:
        day = now.astimezone(zone).date() + timedelta(days=_DAYS[text])
        return datetime.combine(day, time(), zone).astimezone(UTC)
    span = _SPAN.fullmatch(text)
    if span is None:
        return None
    distance = timedelta(seconds=int(span[1]) * _UNITS[span[2]])
    return now + distance if ahead else now - distance


def _in_utc(moment: datetime, field: str, zone: tzinfo | None) -> datetime:
    if moment.utcoffset() is None:
        if zone is None:
            raise InputError(field, "has no time zone; send ISO 8601 with an offset, such as 2026-01-31T08:00:00Z")
        moment = moment.replace(tzinfo=zone)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InputError(field, "must be a time between the years 1 and 9999") from None


def bound(value: datetime | None, field: str) -> datetime | None:
    """The limit of a window in UTC: any time with an offset. Raises InputError for one without."""
    return None if value is None else _in_utc(value, field, None)


SLUG_PATTERN = "^[a-z0-9]+(-[a-z0-9]+)*$"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_RANGES = r"\u0000-\u001f\u007f-\u009f"
_LINE_PATTERN = rf"^[^{_CONTROL_RANGES}]*[^\s{_CONTROL_RANGES}][^{_CONTROL_RANGES}]*$"


def _one_line(text: str) -> str:
    if _CONTROL.search(text):
        raise refusal("must be one line without control characters")
    return text


def _slug(text: str) -> str:
    if text and not is_slug(text):
        raise refusal("must be a slug of a-z, 0-9 and single dashes between them, such as cafe-nord")
    return text


def _plain(text: str) -> str:
    if values.clean_text(text) != text:
        raise refusal("must be plain text, without NUL or half a surrogate pair")
    return text


def _digits(value: object) -> object:
    """An integer of 64 bits as its digits: many partners number their pipelines."""
    is_id = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64
    return str(value) if is_id else value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refusal("must not be empty")
    return text


def _none_if_blank(text: str) -> str | None:
    return text if text.strip() else None


_ATOM = r"[\w!#$%&'*+/=?^`{|}~-]+"
_BARE = rf"{_ATOM}(\.{_ATOM})*@[^\W_]([\w-]*[^\W_])?(\.[^\W_]([\w-]*[^\W_])?)*"
_ADDRESS = re.compile(rf"{_BARE}|[\w .'-]*<{_BARE}>")
"""One receiver, with or without a name: of several, a mail server may refuse one without anybody noticing."""
NO_ADDRESS = "must be an email address, such as ops@example.com"


def is_address(text: str) -> bool:
    """Whether the text is one email address, with or without a name."""
    return _ADDRESS.fullmatch(text) is not None


def _address(text: str) -> str:
    if not is_address(text):
        raise refusal(NO_ADDRESS)
    return text


def _one_word(text: str) -> str:
    if "," in text:
        raise refusal("must have no comma; write several tags as a list")
    return text


def _none_is_empty(value: object) -> object:
    return [] if value is None else value


def _once_each(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


def _at_most(number: int) -> BeforeValidator:
    """Blanks around a text count as well: the description of the API cannot say that they do not."""

    def check(value: object) -> object:
        if isinstance(value, str) and len(value) > number:
            raise refusal(f"must be at most {number} characters")
        return value

    return BeforeValidator(check)


Line = Annotated[
    str,
    Strict(),
    StringConstraints(strip_whitespace=True, min_length=1),
    AfterValidator(_one_line),
    Field(json_schema_extra={"pattern": _LINE_PATTERN}),
]
"""Text on one line. Blanks around it are removed."""
Name = Annotated[Line, Field(max_length=limits.MAX_NAME_CHARS), _at_most(limits.MAX_NAME_CHARS)]
Slug = Annotated[
    str,
    Strict(),
    StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.MAX_SLUG_CHARS),
    AfterValidator(_slug),
    Field(json_schema_extra={"pattern": SLUG_PATTERN}),
]
OwnerName = Annotated[Line, Field(max_length=limits.MAX_OWNER_CHARS)]
ConnectionName = Annotated[Line, Field(max_length=limits.MAX_CONNECTION_CHARS)]
ExternalId = Annotated[
    str,
    BeforeValidator(_digits, json_schema_input_type=str | Annotated[int, Field(gt=-(2**64), lt=2**64)]),
    Strict(),
    StringConstraints(min_length=1, max_length=limits.MAX_EXTERNAL_ID_CHARS),
    AfterValidator(_not_blank),
    AfterValidator(_plain),
]
"""An id at a partner, byte for byte."""
Paragraphs = Annotated[
    str,
    Strict(),
    StringConstraints(max_length=limits.MAX_DESCRIPTION_CHARS),
    AfterValidator(_plain),
    AfterValidator(_none_if_blank),
]
"""Text of several lines; blank text counts as none."""
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=limits.INT_MAX)]
Minutes = Annotated[int, Strict(), Field(ge=0, le=limits.MAX_MINUTES)]
PositiveMinutes = Annotated[int, Strict(), Field(ge=1, le=limits.MAX_MINUTES)]
EmailAddress = Annotated[Line, Field(max_length=limits.MAX_ADDRESS_CHARS), AfterValidator(_address)]
Tag = Annotated[
    Line,
    Field(max_length=limits.MAX_TAG_CHARS, json_schema_extra={"pattern": _LINE_PATTERN.replace("[^", "[^,")}),
    AfterValidator(_one_word),
]
_Tags = Annotated[list[Tag], Field(max_length=limits.MAX_TAGS)]
Tags = Annotated[
    _Tags, BeforeValidator(_none_is_empty, json_schema_input_type=_Tags | None), AfterValidator(_once_each)
]
"""Words to group by, each once."""
IdempotencyKey = Annotated[Line, Field(max_length=limits.MAX_KEY_CHARS)]
Reference = UUID | Annotated[Line, Field(max_length=300)]
"""An id, or the slugs that people write instead."""


# --- times ---------------------------------------------------------------------------------------------------------


def now_of(info: ValidationInfo) -> datetime:
    """The time of the request: whoever validates may give it as context, so that tests need no clock."""
    given: datetime | None = (info.context or {}).get("now")
    return given or datetime.now(UTC)


def _time(value: object, info: ValidationInfo, *, ahead: bool) -> datetime:
    if not isinstance(value, str | datetime):
        raise refusal(f"must be a time such as 2026-01-31T08:00:00Z, not {values.kind(value)}")
    try:
        return read_time(value, "", now_of(info), ahead=ahead, zone=_zone_of(info))
    except InputError as refused:
        raise refusal(refused.issue) from None


def _zone_of(info: ValidationInfo) -> tzinfo | None:
    """The zone of times without an offset: from the context, or from a field `timezone` that is validated before."""
    given: tzinfo | None = (info.context or {}).get("zone")
    name = info.data.get("timezone")
    return given or (ZoneInfo(name) if name else None)


def _past(value: object, info: ValidationInfo) -> datetime:
    return _time(value, info, ahead=False)


def _future(value: object, info: ValidationInfo) -> datetime:
    return _within(_time(value, info, ahead=True), limits.FAR)


def _of_run(value: object, info: ValidationInfo) -> datetime:
    return _within(_past(value, info), now_of(info) + values.SLACK)


def _within(moment: datetime, latest: datetime) -> datetime:
    try:
        return values.believable(moment, "", latest)
    except InputError as refused:
        raise refusal(refused.issue) from None


_TIME_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": RELATIVE_PATTERN}]}
)
PastTime = Annotated[datetime, BeforeValidator(_past), _TIME_SCHEMA]
"""A time, or a span before now."""
FutureTime = Annotated[datetime, BeforeValidator(_future), _TIME_SCHEMA]
"""A time, or a span from now on."""
RunTime = Annotated[datetime, BeforeValidator(_of_run), _TIME_SCHEMA]
"""A time at which a run may have started or finished: from the year 2000 to a day from now."""


def slugify(name: str) -> str:
    """`[a-z0-9-]+` made from a name: `Café Nord GmbH` -> `cafe-nord-gmbh`. Empty if no character survives."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def is_slug(text: str) -> bool:
    """Whether the text is a well-formed slug."""
    return len(text) <= limits.MAX_SLUG_CHARS and re.fullmatch(SLUG_PATTERN, text) is not None


def free_slug(base: str, taken: Container[str]) -> str:
    """`base`, or the first of `base-2`, `base-3`, ... that is not taken, cut to the maximum length of a slug."""
    slug = base[: limits.MAX_SLUG_CHARS].rstrip("-")
    number = 1
    while slug in taken:
        number += 1
        suffix = f"-{number}"
        slug = base[: limits.MAX_SLUG_CHARS - len(suffix)].rstrip("-") + suffix
    return slug

"""Convert values from partners into values that the runs table accepts, or reject them with a reason.

Partners send NUL, lone surrogates, NaN, integers of 5,000 digits, local times and tokens in error texts. Postgres
rejects a whole batch for one of them, so each is handled here, once for every platform. A bad value that identifies or
orders a run (id, status, times, attempt) raises `InputError`, whose text says what to send; any other bad value becomes
None, and the rest of the run is kept.

Pure: no clock, no I/O. `latest` is always the latest believable time, a day after the observation.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
import orjson

from chm_dagster.domain.error_text import error_excerpt
from chm_dagster.domain.limits import (
    BIGINT_MAX,
    EARLIEST,
    INT_MAX,
    MAX_DURATION_SECONDS,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_CHARS,
    MAX_RUN_ID_CHARS,
    MAX_URL_CHARS,
)
from chm_dagster.domain.redaction import (
    HOSTILE,
    MASK,
    have_ordinary_names,
    is_count_name,
    is_ordinary,
    is_secret_name,
    may_hold_secret,
    redact,
)
from chm_dagster.errors import InputError

MAX_DEPTH = 32
SLACK = timedelta(days=1)
"""How far a partner's clock, or a planned start, may be ahead of our clock."""

_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,12})?)?(?:[Zz]|[+-]\d\d(?::?[0-5]\d)?)",
    re.ASCII,
)
_NAIVE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ][\d:.,]+)?", re.ASCII)
_LINK = re.compile(
    r"https?://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?(?:[/?#][^\x00-\x20\x7f-\xa0\"<>\\^`{|}\ud800-\udfff]*)?",
    re.IGNORECASE,
)
_USUAL_CHARS = len("2026-01-31T08:00:00.000000Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_ISO_WANTED = "send ISO 8601 with an offset, such as 2026-01-31T08:00:00Z"


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates, which Postgres rejects, replaced by U+FFFD."""
    return text if text.isascii() and "\0" not in text else HOSTILE.sub("\ufffd", text)


def run_id(value: object, field: str = "id") -> str:
    """A run's id, byte for byte: never stripped, folded or normalized. An integer becomes its decimal digits.

    Raises InputError for everything that is not a key of 1 to 512 characters, and for floats, which are not exact.
    """
    if isinstance(value, str):
        if not value.strip():
            raise InputError(field, "empty; every run needs one")
        if len(value) > MAX_RUN_ID_CHARS:
            raise InputError(field, f"longer than {MAX_RUN_ID_CHARS} characters; send a shorter one")
        if clean_text(value) != value:
            raise InputError(field, "holds a NUL or half a surrogate pair; send plain text")
        return value
    if value is None:
        raise InputError(field, "missing; every run needs one")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(field, f"{kind(value)}; send a string or an integer")
    # 512 digits have at most 1,701 bits; the digits of a larger one are refused by Python itself.
    if value.bit_length() > 1_701 or len(digits := str(value)) > MAX_RUN_ID_CHARS:
        raise InputError(field, f"longer than {MAX_RUN_ID_CHARS} digits; send a shorter one")
    return digits


def parse_time(value: object, field: str, latest: datetime) -> datetime | None:
    """A time in UTC from ISO 8601 with `Z` or an offset; None for None. Digits beyond microseconds are dropped.

    Raises InputError for a time without a zone, a number, a date, a leap second, 24:00, a week date, a time before
    the year 2000 or after `latest`.
    """
    if value is None:
        return None
    moment = iso_time(value, field)
    return moment if EARLIEST <= moment <= latest else believable(moment, field, latest)


def iso_time(value: object, field: str) -> datetime:
    """A time of any year in UTC, read as `parse_time` does. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(field, f"{kind(value)}; {_ISO_WANTED}")
    try:
        moment: datetime = msgspec.convert(value, datetime)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return _careful_time(value, field)
    # Quick and right for the form that nearly all times have; but it rounds digits beyond microseconds.
    usual = moment.tzinfo is UTC and len(value) <= _USUAL_CHARS
    return moment if usual else _careful_time(value, field)


def _careful_time(value: str, field: str) -> datetime:
    if _ISO.fullmatch(value) is None:
        naive = _NAIVE.fullmatch(value) is not None
        raise InputError(field, f"has no time zone; {_ISO_WANTED}" if naive else f"not a time; {_ISO_WANTED}")
    try:
        moment = datetime.fromisoformat(value[:-1] + "Z" if value[-1] == "z" else value)
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(field, f"not a time; {_ISO_WANTED}") from None


def parse_epoch(value: object, unit: Literal["s", "ms", "us"], field: str, latest: datetime) -> datetime | None:
    """A time in UTC from a count of `unit` since 1970, as a number or as digits; None for None.

    Raises InputError for a boolean, a number that is not finite, and a time before the year 2000 or after `latest`,
    which means a wrong unit.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field, f"{kind(value)}; send a number since 1970-01-01T00:00:00Z")
    try:
        scaled = value * _EPOCH_UNITS[unit]
        moment = _EPOCH + timedelta(microseconds=scaled if isinstance(scaled, int) else round(scaled))
    except (ValueError, OverflowError):
        raise InputError(field, "out of range; send a number since 1970-01-01T00:00:00Z") from None
    return believable(moment, field, latest)


def believable(moment: datetime, field: str, latest: datetime) -> datetime:
    """The time, unless it is before the year 2000 or after `latest`. Raises InputError."""
    if moment < EARLIEST:
        raise InputError(field, "before the year 2000; send null for a time that is not known")
    if moment > latest:
        raise InputError(field, "more than a day in the future; check the clock and the unit")
    return moment


def kind(value: object) -> str:
    """What a value is, for a message: `a boolean`, `a number`, `text`, `a list`, `an object`."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "something else"


def attempt(value: object, field: str = "attempt") -> int:
    """The partner's attempt number; 0 for None. Raises InputError unless it is an integer from 0 to 2,147,483,647."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InputError(field, f"not an integer from 0 to {INT_MAX}; leave it out if there is none")
    return value


def row_count(value: object) -> int | None:
    """A count of rows from an integer or digits; None for anything else, and beyond a bigint."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= BIGINT_MAX:
        return None
    return value


def duration(started: datetime | None, finished: datetime | None, claimed: object = None) -> float | None:
    """Seconds from start to finish; the partner's own figure if one of the two is not known.

    None for a run that finished before it started, and for a figure that is negative, not finite or over ten years.
    """
    if started is not None and finished is not None:
        seconds = (finished - started).total_seconds()
        return seconds if seconds >= 0 else None
    if isinstance(claimed, bool) or not isinstance(claimed, int | float) or not 0 <= claimed < MAX_DURATION_SECONDS:
        return None
    return float(claimed)


def error_text(value: object, *, harmless: bool = False) -> str | None:
    """An error message without secrets, of at most 8,000 bytes of what is useful; JSON if it is no text. None if blank.

    `harmless`: it comes from a `masked_record` and needs no second check.
    """
    if not value:
        return None
    if isinstance(value, str):
        text = value if harmless else redact(clean_text(value))
    else:
        text = orjson.dumps(clean_json(value)).decode()
    return error_excerpt(text) if text.strip() else None


def reason_text(value: object) -> str | None:
    """A status reason on one line, without secrets, of at most 200 characters; None for a blank or no text."""
    if not isinstance(value, str) or not value.strip():
        return None
    text = " ".join(redact(clean_text(value)).split())
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 1] + "…"


def link(value: object, *, harmless: bool = False) -> str | None:
    """A web address that is safe to show; None for other values, and for addresses with a user or a secret in the path.

    A query and a fragment with a secret are removed. `harmless`: `masked_record` found nothing to mask in it.
    """
    if not isinstance(value, str) or len(value) > MAX_URL_CHARS or _LINK.fullmatch(value) is None:
        return None
    if harmless or not may_hold_secret(value) or redact(value) == value:
        return value
    try:
        bare = urlunsplit(urlsplit(value)._replace(query="", fragment=""))
    except ValueError:
        return None
    return bare if redact(bare) == bare else None


def clean_json(value: object, depth: int = 0) -> Any:
    """A copy that jsonb accepts and anyone may read: secrets masked, hostile characters and numbers replaced.

    NaN and infinity become None, integers beyond 64 bits become text, nesting beyond 32 levels becomes a note.
    """
    if isinstance(value, str):
        return redact(clean_text(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _clean_int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, Mapping | list | tuple):
        return f"({type(value).__name__})"
    if depth >= MAX_DEPTH:
        return f"(nested deeper than {MAX_DEPTH} levels)"
    if isinstance(value, Mapping):
        return _clean_object(value, depth + 1)
    return [clean_json(item, depth + 1) for item in value]


def _clean_int(value: int) -> int | str:
    if -BIGINT_MAX - 1 <= value <= BIGINT_MAX:
        return value
    bits = value.bit_length()
    return str(value) if bits <= 4_096 else f"(an integer of {bits} bits)"


def _clean_object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if have_ordinary_names(value):
        return {name: clean_json(item, depth) for name, item in value.items()}
    cleaned = {}
    for name, item in value.items():
        plain = clean_json(name) if isinstance(name, str) else str(clean_json(name))
        cleaned[plain] = MASK if _is_secret(plain, item) else clean_json(item, depth)
    # Lists of variables write a field as {"name": "DB_PASSWORD", "value": "..."}.
    label = value.get("name", value.get("key"))
    if "value" in cleaned and isinstance(label, str) and _is_secret(label, value["value"]):
        cleaned["value"] = MASK
    return cleaned


def _is_secret(name: str, item: object) -> bool:
    if item is None or isinstance(item, bool) or not is_secret_name(name):
        return False
    return not (isinstance(item, int | float) and is_count_name(name))


def clean_record(record: object) -> Any:
    """A raw record that may be stored: without secrets, at most 64,000 bytes of JSON."""
    return fitting_record(masked_record(record))


def masked_record(record: object) -> Any:
    """`clean_json` of a raw record. An ordinary record is returned as it is, not copied."""
    return record if isinstance(record, dict) and is_ordinary(record) else clean_json(record)


def fitting_record(masked: object) -> Any:
    """A masked record, or a summary if it is larger than 64,000 bytes of JSON."""
    if len(orjson.dumps(masked)) <= MAX_PAYLOAD_BYTES:
        return masked
    return _summary(masked, orjson.dumps(masked, option=orjson.OPT_SORT_KEYS))


def _summary(cleaned: object, encoded: bytes) -> dict[str, Any]:
    """What is kept of a record that is too large: its size, its digest, and the small top-level fields."""
    summary: dict[str, Any] = {
        "truncated": True,
        "bytes": len(encoded),
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }
    room = MAX_PAYLOAD_BYTES - len(orjson.dumps(summary))
    scalars = cleaned.items() if isinstance(cleaned, dict) else ()
    sizes = sorted(
        (len(orjson.dumps({name: value})), name)
        for name, value in scalars
        if name not in summary and not isinstance(value, dict | list)
    )
    for size, name in sizes:
        room -= size
        if room < 0:
            break
        summary[name] = cleaned[name]  # type: ignore[index]
    return summary

"""Turn values that a partner sent into values that the runs table takes, or refuse them with a reason.

Partners send NUL, lone surrogates, NaN, integers of 5,000 digits, local times and tokens in error texts. Postgres
refuses a whole batch for one of them, so each is settled here, once for every platform. What identifies or orders a
run (id, status, times, attempt) is refused with `InputError`, whose text says how to send it; the rest of a run is
worth keeping without the bad part, which becomes None.

Pure: no clock, no I/O. `latest` is always the newest believable time, a day after the observation.
"""

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import orjson

from chm_dagster.domain.redaction import MASK, is_count_name, is_secret_name, may_hold_secret, redact
from chm_dagster.domain.runs import (
    BIGINT_MAX,
    EARLIEST,
    INT_MAX,
    MAX_ERROR_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_CHARS,
    MAX_RUN_ID_CHARS,
    MAX_URL_CHARS,
)
from chm_dagster.errors import InputError

MAX_DEPTH = 32
MAX_DURATION_SECONDS = 3650 * 86_400.0
"""A partner's own figure beyond ten years is a wrong unit."""
SLACK = timedelta(days=1)
"""How far ahead of ours a partner's clock, or a planned start, may be."""

_HOSTILE = re.compile("[\x00\ud800-\udfff]")
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,12})?)?(?:[Zz]|[+-]\d\d(?::?[0-5]\d)?)",
    re.ASCII,
)
_NAIVE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ][\d:.,]+)?", re.ASCII)
_LINK = re.compile(
    r"https?://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?(?:[/?#][^\x00-\x20\x7f-\xa0\"<>\\^`{|}\ud800-\udfff]*)?",
    re.IGNORECASE,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_ISO_WANTED = "send ISO 8601 with an offset, such as 2026-01-31T08:00:00Z"


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates, which Postgres refuses, replaced by U+FFFD."""
    return text if text.isascii() and "\0" not in text else _HOSTILE.sub("\ufffd", text)


def cap_bytes(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """At most `limit` bytes of UTF-8, cut between characters, with a note on how long the text was."""
    if len(text) * 4 <= limit:
        return text
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    note = f"... ({len(text)} characters in all)"
    return encoded[: limit - len(note)].decode(errors="ignore") + note


def run_id(value: object, field: str = "id") -> str:
    """The run's id, byte for byte: never stripped, folded or normalised. An integer becomes its decimal digits.

    Raises InputError for everything that cannot be a key of 1 to 512 characters, or is no exact one (a float).
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
    return moment if EARLIEST <= moment <= latest else _believable(moment, field, latest)


def iso_time(value: object, field: str) -> datetime:
    """A time of any year in UTC, read as `parse_time` does. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(field, f"{kind(value)}; {_ISO_WANTED}")
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

    Raises InputError for a boolean, a number that is not finite, and a time before the year 2000 or after `latest`:
    that is how a wrong unit shows.
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
    return _believable(moment, field, latest)


def _believable(moment: datetime, field: str, latest: datetime) -> datetime:
    if moment < EARLIEST:
        raise InputError(field, "before the year 2000; send null for a time that is not known")
    if moment > latest:
        raise InputError(field, "more than a day in the future; check the clock and the unit")
    return moment


def kind(value: object) -> str:
    """What a value is, in the words of a message: `a boolean`, `a number`, `a list`, `an object`, `not a text`."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "not a text"


def attempt(value: object, field: str = "attempt") -> int:
    """The source's try counter; 0 for None. Raises InputError unless it is an integer from 0 to 2,147,483,647."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InputError(field, f"not an integer from 0 to {INT_MAX}; leave it out if there is none")
    return value


def row_count(value: object) -> int | None:
    """A count of rows from an integer or from digits; None for what is not one, or is beyond a bigint."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= BIGINT_MAX:
        return None
    return value


def duration(started: datetime | None, finished: datetime | None, claimed: object = None) -> float | None:
    """Seconds from start to finish; the partner's own figure only where one of the two is not known.

    None for a run that finished before it started, and for a figure that is negative, not finite or over ten years.
    """
    if started is not None and finished is not None:
        seconds = (finished - started).total_seconds()
        return seconds if seconds >= 0 else None
    if isinstance(claimed, bool) or not isinstance(claimed, int | float) or not 0 <= claimed < MAX_DURATION_SECONDS:
        return None
    return float(claimed)


def error_text(value: object, *, harmless: bool = False) -> str | None:
    """An error message without secrets, of at most 8,000 bytes; what is no text is written as JSON. None if blank.

    `harmless`: it comes from a `masked_record`, and is not looked through again.
    """
    if not value:
        return None
    if isinstance(value, str):
        text = value if harmless else redact(clean_text(value))
    else:
        text = orjson.dumps(clean_json(value)).decode()
    return cap_bytes(text) if text.strip() else None


def reason_text(value: object) -> str | None:
    """A status reason on one line, without secrets, of at most 200 characters; None for a blank or no text."""
    if not isinstance(value, str) or not value.strip():
        return None
    text = " ".join(redact(clean_text(value)).split())
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 1] + "…"


def link(value: object, *, harmless: bool = False) -> str | None:
    """A web address that is safe to show; None for what is none, has a user in it, or holds a secret in its path.

    A query and a fragment go when a secret is in them. `harmless`: `masked_record` found nothing in it to mask.
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
    """A copy that jsonb takes and anyone may read: secrets masked, hostile characters and numbers replaced.

    NaN and infinity become None, integers beyond 64 bits text, what is nested deeper than 32 levels a note.
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
    if _have_ordinary_names(value):
        return {name: clean_json(item, depth) for name, item in value.items()}
    cleaned = {}
    for name, item in value.items():
        plain = clean_json(name) if isinstance(name, str) else str(clean_json(name))
        cleaned[plain] = MASK if _is_secret(plain, item) else clean_json(item, depth)
    # Lists of variables spell a field out as {"name": "DB_PASSWORD", "value": "..."}.
    label = value.get("name", value.get("key"))
    if "value" in cleaned and isinstance(label, str) and _is_secret(label, value["value"]):
        cleaned["value"] = MASK
    return cleaned


def _is_secret(name: str, item: object) -> bool:
    if item is None or isinstance(item, bool) or not is_secret_name(name):
        return False
    return not (isinstance(item, int | float) and is_count_name(name))


def clean_record(record: object) -> Any:
    """A raw record as it may be stored: without secrets, of at most 64,000 bytes of JSON."""
    return fitting_record(masked_record(record))


def masked_record(record: object) -> Any:
    """`clean_json` of a raw record. An ordinary record is handed back as it is, not copied."""
    return record if isinstance(record, dict) and _is_ordinary(record) else clean_json(record)


def fitting_record(masked: object) -> Any:
    """A masked record, or a summary where it is over 64,000 bytes of JSON."""
    if len(orjson.dumps(masked)) <= MAX_PAYLOAD_BYTES:
        return masked
    return _summary(masked, orjson.dumps(masked, option=orjson.OPT_SORT_KEYS))


def _is_ordinary(record: dict[Any, Any]) -> bool:
    """True only if `clean_json` would change nothing: not large, and no trace of a secret or a hostile value."""
    texts: list[str] = []
    if not _gather(record, texts, 0):
        return False
    text = "\n".join(texts)
    return clean_text(text) == text and not may_hold_secret(text)


def _gather(value: dict[Any, Any] | list[Any], texts: list[str], depth: int) -> bool:
    """Collect all texts of a small JSON value; False as soon as something in it is not ordinary."""
    if depth > 3 or len(value) > 256:
        return False
    items: Iterable[Any] = value
    if isinstance(value, dict):
        if not _have_ordinary_names(value):
            return False
        items = value.values()
    for item in items:
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif item is None or kind is bool:
            continue
        elif kind is int:
            if not -BIGINT_MAX <= item <= BIGINT_MAX:
                return False
        elif kind is float:
            if not math.isfinite(item):
                return False
        elif kind not in (dict, list) or not _gather(item, texts, depth + 1):
            return False
    return True


def _have_ordinary_names(record: Mapping[Any, Any]) -> bool:
    try:
        names = "\n".join(record)
    except TypeError:
        return False
    # A partner's records share their names, so that one look-up answers for all of them. Only short ones are kept.
    return len(names) <= 2_000 and _are_ordinary_names(names)


@functools.lru_cache(maxsize=1024)
def _are_ordinary_names(names: str) -> bool:
    # A field "value" may be the other half of a secret's name.
    plain = clean_text(names) == names and redact(names) == names
    return plain and not any(name == "value" or is_secret_name(name) for name in names.split("\n"))


def _summary(cleaned: object, encoded: bytes) -> dict[str, Any]:
    """What is kept of a record that is too large: its size, its digest, and the small fields of its top level."""
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

"""Pages of a list: where one ends is a position in the list's order, so that rows that come or go between two pages
neither repeat nor hide others.
"""

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson

from chm_dagster.domain.fields import is_slug
from chm_dagster.errors import InputError

T = TypeVar("T")
MAX_LIMIT = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and the cursor that continues it; None at its end."""

    items: list[T]
    next_cursor: str | None


Part = Callable[[Any], Any]
"""Reads one part of a position; raises ValueError for what it does not know."""


def slug(value: Any) -> str:
    """A slug in a position."""
    if not isinstance(value, str) or not is_slug(value):
        raise ValueError
    return value


def uuid(value: Any) -> UUID:
    """An id in a position."""
    if not isinstance(value, str):
        raise ValueError
    return UUID(value)


def time(value: Any) -> datetime:
    """A time in a position."""
    if not isinstance(value, str):
        raise ValueError
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError
    return found


def optional_time(value: Any) -> datetime | None:
    """A time in a position; None where the row has none."""
    return None if value is None else time(value)


def encode(position: Sequence[object]) -> str:
    """An opaque, url-safe text for a position."""
    return base64.urlsafe_b64encode(orjson.dumps(list(position))).decode().rstrip("=")


def decode(cursor: str, parts: Sequence[Part]) -> tuple[Any, ...]:
    """The position that `encode` was given. Raises InputError for any other text."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(position, list):
            raise ValueError
        return tuple(read(value) for read, value in zip(parts, position, strict=True))
    except (ValueError, OverflowError, binascii.Error):
        raise InputError("cursor", "not a cursor of this list; send the next_cursor of the page before") from None


def check_limit(limit: int) -> int:
    """Raises InputError unless the limit is an integer from 1 to 1,000."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise InputError("limit", f"out of range; send a whole number from 1 to {MAX_LIMIT}")
    return limit


def page(items: list[T], limit: int, position: Callable[[T], Sequence[object]]) -> Page[T]:
    """The page of up to `limit` items; `items` holds one more if there is another page."""
    shown = items[:limit]
    return Page(shown, encode(position(shown[-1])) if len(items) > limit else None)


def every(ask: Callable[..., Page[T]], *, size: int = MAX_LIMIT, **filters: Any) -> Iterator[T]:
    """The items of a whole list, read in pages of `size`; `ask` is the method that lists them."""
    cursor = None
    while True:
        found = ask(**filters, limit=size, cursor=cursor)
        yield from found.items
        cursor = found.next_cursor
        if cursor is None:
            return

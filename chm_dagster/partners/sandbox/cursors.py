"""Cursors of the sandbox: opaque, and refused when they are not its own.

A cursor carries the listing (its instant included) and the place in it, so that pages taken later still belong to the
same snapshot. A checksum keyed with the seed makes every other string a clear 400 instead of an odd answer.
"""

import base64
import binascii
import hashlib

from chm_dagster.errors import InputError
from chm_dagster.partners.sandbox.world import Listing, Position

_REFUSED = InputError("cursor", "not a cursor of this listing; start again without one")
_MAX_CHARS = 300


def runs_cursor(seed: int, listing: Listing, position: Position) -> str:
    """The cursor of the page of `listing` that starts at `position`."""
    scope = -1 if listing.pipeline is None else listing.pipeline
    return _pack(seed, "r", listing.as_of_us, listing.since_us, scope, *position)


def read_runs_cursor(seed: int, cursor: str, pipeline: int | None) -> tuple[Listing, Position]:
    """What `runs_cursor` was given. Raises InputError if it was made elsewhere or for another scope."""
    numbers = _unpack(seed, "r", cursor, 5)
    listing = Listing(numbers[0], numbers[1], None if numbers[2] == -1 else numbers[2])
    if listing.pipeline != pipeline:
        raise _REFUSED
    return listing, Position(numbers[3], numbers[4])


def pipelines_cursor(seed: int, index: int) -> str:
    """The cursor of the page of pipelines that starts at `index`."""
    return _pack(seed, "p", index)


def read_pipelines_cursor(seed: int, cursor: str) -> int:
    """What `pipelines_cursor` was given. Raises InputError."""
    return _unpack(seed, "p", cursor, 1)[0]


def _pack(seed: int, kind: str, *numbers: int) -> str:
    text = ":".join([kind, *map(str, numbers)])
    return base64.urlsafe_b64encode(f"{text}:{_checksum(seed, text)}".encode()).decode().rstrip("=")


def _unpack(seed: int, kind: str, cursor: str, count: int) -> list[int]:
    try:
        padded = cursor[:_MAX_CHARS] + "=" * (-len(cursor) % 4)
        text, _, checksum = base64.b64decode(padded, b"-_", validate=True).decode().rpartition(":")
    except (binascii.Error, ValueError):
        raise _REFUSED from None
    parts = text.split(":")
    if parts[0] != kind or len(parts) != count + 1 or checksum != _checksum(seed, text):
        raise _REFUSED
    return [int(part) for part in parts[1:]]


def _checksum(seed: int, text: str) -> str:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=6).hexdigest()

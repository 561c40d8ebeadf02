"""CHM's own blindness: what its operator is notified of, because no client is to blame for it. Pure.

A connection that cannot be read is announced once, and once more when it can be read again. That CHM itself did not
look is announced once, when it looks again; how long a connection was not read is counted from then on.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import msgspec

from chm_dagster.domain.sync import FRESH_FOR

_NAMESPACE = UUID("4f6b1f0c-2a55-4c7a-9d2e-93a2c5c8a001")
STOPPED_AFTER = timedelta(minutes=10)
"""So long without an evaluation, CHM was stopped."""
REFUSED_AFTER = timedelta(minutes=10)
"""How long a connection may fail before it is announced."""


class NoteKind(enum.StrEnum):
    """What an operator is notified of."""

    BLIND = "blind"
    SEES_AGAIN = "sees_again"
    WAS_STOPPED = "was_stopped"


class Note(msgspec.Struct, frozen=True):
    """A notice about CHM itself. `key` stays the same however often it is sent."""

    key: str
    kind: NoteKind
    text: str


class ConnectionState(msgspec.Struct, frozen=True):
    """How reading a connection goes. `read_at` is that of the pipeline that was read longest ago; None: never.

    `is_api`: it is CHM's own API, to which jobs report their own runs; what they send while it is down is lost.
    `stale_at` is until when the sync of that pipeline says how it is.
    """

    name: str
    pipelines: int
    read_at: datetime | None
    failing_since: datetime | None
    error: str
    is_api: bool = False
    stale_at: datetime | None = None


class Watch(msgspec.Struct, frozen=True):
    """What CHM knows of its own sight: when it last looked, since when it does, and since when it is blind for what."""

    looked_at: datetime | None = None
    running_since: datetime | None = None
    blind: Mapping[str, datetime] = msgspec.field(default_factory=dict)


def look(before: Watch, connections: Iterable[ConnectionState], now: datetime) -> tuple[Watch, Sequence[Note]]:
    """What is known after a look at `now`, and what is to be announced."""
    notes: list[Note] = []
    running_since = before.running_since or now
    if before.looked_at is not None and now - before.looked_at > STOPPED_AFTER:
        running_since = now
        notes.append(_stopped(before.looked_at, now))
    blind: dict[str, datetime] = {}
    for one in connections:
        known = before.blind.get(one.name)
        since = _blind_since(one, running_since, now)
        if known is None and since is not None:
            blind[one.name] = since
            notes.append(_note(NoteKind.BLIND, one, since, _why(one, since)))
        elif known is not None and not _reads_again(one, known, running_since, now):
            blind[one.name] = known
        elif known is not None:
            notes.append(_note(NoteKind.SEES_AGAIN, one, known, _again(one, known, now)))
    return Watch(now, running_since, blind), notes


def _blind_since(one: ConnectionState, running_since: datetime, now: datetime) -> datetime | None:
    """Since when a connection cannot be read, if that is long enough to be announced."""
    # While CHM was stopped nobody tried to read it.
    if one.failing_since is not None and now - max(one.failing_since, running_since) >= REFUSED_AFTER:
        return one.failing_since
    read = one.read_at or running_since
    return read if now - max(read, running_since) > _fresh_for(one) else None


def _fresh_for(one: ConnectionState) -> timedelta:
    """How long a complete sync of the connection counts: until scheduled ones were missed.

    Of a pipeline that fails it counts for less; `REFUSED_AFTER` is about those.
    """
    return FRESH_FOR if one.read_at is None or one.stale_at is None else max(FRESH_FOR, one.stale_at - one.read_at)


def _reads_again(one: ConnectionState, since: datetime, running_since: datetime, now: datetime) -> bool:
    return (
        one.failing_since is None
        and one.read_at is not None
        and one.read_at > since
        and now - one.read_at <= _fresh_for(one)
    )


def _again(one: ConnectionState, since: datetime, now: datetime) -> str:
    if one.is_api:
        return (
            f"{one.name} is up again at {_at(now)}, after {_length(now - since)}; what was reported meanwhile is lost"
        )
    return f"{one.name} can be read again at {_at(now)}, after {_length(now - since)}; what was missed is read now"


def _why(one: ConnectionState, since: datetime) -> str:
    number = f"{one.pipelines:,} pipeline" + ("" if one.pipelines == 1 else "s")
    if one.is_api:
        return f"{one.name} has been down since {_at(since)}. What {number} would report to it is lost"
    why = f": {one.error}" if one.error else ""
    return f"{one.name} has not been read since {_at(since)}{why}. Nothing is known of its {number} since then"


def _stopped(looked_at: datetime, now: datetime) -> Note:
    text = (
        f"CHM did not look from {_at(looked_at)} to {_at(now)} ({_length(now - looked_at)}). Partners are read from"
        " where it stopped; reports of jobs that report their own runs may be lost"
    )
    return Note(str(uuid5(_NAMESPACE, f"stopped/{looked_at.isoformat()}")), NoteKind.WAS_STOPPED, text)


def _note(kind: NoteKind, one: ConnectionState, since: datetime, text: str) -> Note:
    return Note(str(uuid5(_NAMESPACE, f"{kind}/{one.name}/{since.isoformat()}")), kind, text)


def _at(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _length(span: timedelta) -> str:
    minutes = round(span.total_seconds() / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours and rest else f"{hours} h" if hours else f"{rest} min"

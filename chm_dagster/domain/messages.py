"""Messages to people: notices grouped for one receiver, with everything that their text needs. Pure.

A message is stored as a whole before it is sent, so that a repeated attempt sends the same content under the same id.
It is stored in parts, the items of each rule with that rule: whoever deletes a rule deletes no other rule's items.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import msgspec

from chm_dagster.domain.alerts import Evidence, NoticeKind, Receiver
from chm_dagster.domain.blindness import Note
from chm_dagster.domain.error_text import fingerprint
from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.rules import Channel, RuleType

_NAMESPACE = UUID("b9c6f9b4-5d0d-4a53-8a4f-3f1c0d1b7f02")
GIVE_UP_AFTER = timedelta(days=1)
"""How long a message is tried before it counts as undeliverable."""
SAME_ERROR_CLIENTS = 3
"""So many clients with the same error share an entry of a message."""
SAME_ERROR_WITHIN = timedelta(minutes=30)
MAX_OPENINGS, OPENINGS_WITHIN = 12, timedelta(hours=1)
"""So many messages about something new a receiver gets within that time; later ones are held back."""
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=15), timedelta(hours=1)


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One notice, with the names and the run that it is about. Times are aware and in UTC.

    `error` is the telling line of the latest failed run, `source_url` the link to it at the partner. `same_error_at`
    names other clients of whose failures with the same error the receiver was notified shortly before.
    """

    key: str
    kind: NoticeKind
    rule_id: UUID
    rule_type: RuleType
    threshold: int | None
    window_minutes: int | None
    episode_id: UUID
    client_slug: str
    client_name: str
    pipeline_slug: str
    pipeline_name: str
    platform: Platform
    environment: str
    since: datetime
    evidence: Evidence
    until: datetime | None = None
    reason: str = ""
    acknowledged_by: str = ""
    error: str = ""
    source_url: str | None = None
    same_error_at: tuple[str, ...] = ()

    @property
    def pipeline_key(self) -> str:
        """`client-slug/pipeline-slug`."""
        return f"{self.client_slug}/{self.pipeline_slug}"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one receiver gets at once. `id` is the idempotency key: it is the same for every attempt.

    `next_at` is when it is to be sent next; None: it is undeliverable, `error` says why. `retried_at` is when a person
    had it tried anew. A message to the operator has `notes` instead of items. `held_until`: until then nothing new is
    announced to this receiver. `unannounced` counts the episodes of the last hour that were over before anybody was
    notified.
    """

    id: UUID
    channel: Channel
    destination: str
    created_at: datetime
    items: tuple[Item, ...]
    next_at: datetime | None
    attempts: int = 0
    error: str = ""
    retried_at: datetime | None = None
    notes: tuple[Note, ...] = ()
    held_until: datetime | None = None
    unannounced: int = 0

    @property
    def receiver(self) -> Receiver:
        """The channel, and who gets it there."""
        return self.channel, self.destination

    def failed(self, now: datetime, error: str, *, retry: bool, retry_after: float | None = None) -> "Message":
        """The message after an attempt that failed at `now`: when to try again, or that nothing is left to try."""
        attempts = self.attempts + 1
        next_at = next_attempt(self.retried_at or self.created_at, attempts, now, retry_after) if retry else None
        return msgspec.structs.replace(self, attempts=attempts, error=error, next_at=next_at)

    def parts(self) -> "dict[UUID, Message]":
        """The message with the items of each rule alone, by the rule's id. `joined` puts them together again."""
        rules = dict.fromkeys(item.rule_id for item in self.items)
        return {
            rule: msgspec.structs.replace(self, items=tuple(item for item in self.items if item.rule_id == rule))
            for rule in rules
        }


def next_attempt(
    created_at: datetime, attempts: int, now: datetime, retry_after: float | None = None
) -> datetime | None:
    """When to try again after so many failed attempts, the last one at `now`; None: never.

    Waits 15 s, 30 s, 1 min ... up to an hour, or for the `retry_after` seconds that the receiver asked for if that is
    longer, but never longer than an hour. After a day it is undeliverable.
    """
    wait = min(_FIRST_WAIT * 2 ** min(attempts - 1, 20), _LONGEST_WAIT)
    wait = max(wait, min(timedelta(seconds=retry_after or 0), _LONGEST_WAIT))
    return now + wait if now + wait < created_at + GIVE_UP_AFTER else None


_ORDER = {kind: number for number, kind in enumerate(NoticeKind)}


@dataclasses.dataclass(frozen=True, slots=True)
class SameError:
    """New failures with the same error. `clients` names all clients that have it, also those known before."""

    items: tuple[Item, ...]
    clients: tuple[str, ...]


def entries(message: Message) -> list[Item | SameError]:
    """The items of a message in order; new failures with the same error at three clients or more are one entry."""
    alike: dict[str, list[Item]] = {}
    for item in message.items:
        if item.kind is NoticeKind.OPENED and (error := fingerprint(item.error)):
            alike.setdefault(error, []).append(item)
    groups: dict[str, SameError] = {}
    for items in alike.values():
        clients = dict.fromkeys([*(one.client_name for one in items), *(n for one in items for n in one.same_error_at)])
        if len(items) > 1 and len(clients) >= SAME_ERROR_CLIENTS:
            groups |= dict.fromkeys((item.key for item in items), SameError(tuple(items), tuple(clients)))
    found = (groups.get(item.key, item) for item in message.items)
    return list({id(entry): entry for entry in found}.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Openings:
    """What a receiver was notified of lately: when something new was announced, and how many episodes never were."""

    times: tuple[datetime, ...] = ()
    unannounced: int = 0

    def held_until(self, now: datetime) -> datetime | None:
        """Until when nothing new is announced, because the receiver has had enough; None: it may be."""
        recent = sorted(time for time in self.times if time > now - OPENINGS_WITHIN)
        return recent[-MAX_OPENINGS] + OPENINGS_WITHIN if len(recent) >= MAX_OPENINGS else None


def grouped(
    found: Iterable[tuple[Channel, str, Item]], now: datetime, openings: Mapping[Receiver, Openings] | None = None
) -> list[Message]:
    """One message for each receiver: by kind, then by client, the pipeline with the longest episode first."""
    receivers: dict[Receiver, list[Item]] = {}
    for channel, destination, item in found:
        receivers.setdefault((channel, destination), []).append(item)
    before = openings or {}
    return [_message(receiver, items, now, before.get(receiver, Openings())) for receiver, items in receivers.items()]


def joined(parts: Iterable[Message]) -> list[Message]:
    """The messages that these parts make up, the oldest first. A part that was readdressed is a message of its own."""
    found: dict[tuple[UUID, Receiver], list[Message]] = {}
    for part in parts:
        found.setdefault((part.id, part.receiver), []).append(part)
    messages = (
        msgspec.structs.replace(same[0], items=_ordered(item for part in same for item in part.items))
        for same in found.values()
    )
    return sorted(messages, key=lambda message: (message.created_at, message.id, message.receiver))


def _ordered(items: Iterable[Item]) -> tuple[Item, ...]:
    key = lambda item: (_ORDER[item.kind], item.client_slug, item.since, item.pipeline_slug, item.key)  # noqa: E731
    return tuple(sorted(items, key=key))


def _message(receiver: Receiver, items: Sequence[Item], now: datetime, before: Openings) -> Message:
    ordered = _ordered(items)
    message = Message(uuid5(_NAMESPACE, "/".join([*receiver, *(i.key for i in ordered)])), *receiver, now, ordered, now)
    if not any(item.kind is NoticeKind.OPENED for item in ordered):
        return message
    held = dataclasses.replace(before, times=(*before.times, now)).held_until(now)
    return (
        message if held is None else msgspec.structs.replace(message, held_until=held, unannounced=before.unannounced)
    )

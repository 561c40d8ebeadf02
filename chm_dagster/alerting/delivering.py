"""Delivery: every message that waits and is due goes to its receiver, the oldest of a receiver first.

At least once: a message is taken out of the outbox after its receiver has accepted it, so a crash in between repeats it
under the same id.
"""

import asyncio
import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Protocol

from chm_dagster.domain.alerts import Receiver
from chm_dagster.domain.messages import Message
from chm_dagster.domain.rules import Channel
from chm_dagster.errors import ChmError, Permanent, RateLimited
from chm_dagster.http.failures import Misconfigured, StatusError
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.outbox import delivering

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Receivers of a channel that are sent to at the same time."""
BUDGET_SECONDS = 60.0
"""How long a channel may take in one delivery, apart from its last attempts."""
LOOK_SECONDS = 1.0
"""How often a delivery looks for messages that have fallen due meanwhile."""
INTERNAL = "internal error"
"""The beginning of an error that is a mistake of CHM's own."""


class Waiting(Protocol):
    """Messages that wait to be sent."""

    def messages(self) -> list[Message]:
        """Those that no receiver has accepted, the oldest first."""

    def delivered(self, message: Message) -> None:
        """The receiver has accepted the message."""

    def postponed(self, message: Message) -> None:
        """An attempt has failed; `message` says what is next."""


class Sender(Protocol):
    """Sends a message once."""

    async def send(self, message: Message, now: datetime) -> None:
        """Return when the receiver has accepted it. Raises a ChmError."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of the messages that were due: accepted, to be tried again, or undeliverable from here on."""

    delivered: tuple[Message, ...] = ()
    postponed: tuple[Message, ...] = ()
    undeliverable: tuple[Message, ...] = ()


def deliver(
    engine: Engine,
    sender: Sender,
    clock: Callable[[], datetime],
    *,
    operator: Waiting | None = None,
    budget: float = BUDGET_SECONDS,
) -> DeliveryReport | None:
    """Send what is due; None if another process is delivering. Raises DatabaseUnavailable.

    Each receiver has a lane of its own: one that does not answer delays no other one, and later messages to it wait
    until it is tried again. A channel that takes longer than its `budget` of seconds goes on in the next delivery, so
    that what is due by then on other channels is sent meanwhile. What waits for the `operator` is sent beside the rest.
    """
    with delivering(engine) as outbox:
        if outbox is None:
            return None
        places = [outbox] if operator is None else [outbox, operator]
        return asyncio.run(_from_all([_Delivery(place, sender, clock, budget) for place in places]))


async def _from_all(deliveries: "Sequence[_Delivery]") -> DeliveryReport:
    reports = await asyncio.gather(*(delivery.run() for delivery in deliveries))
    return DeliveryReport(
        tuple(message for report in reports for message in report.delivered),
        tuple(message for report in reports for message in report.postponed),
        tuple(message for report in reports for message in report.undeliverable),
    )


class _Delivery:
    """One delivery: lanes that run side by side, and what became of the messages."""

    def __init__(self, outbox: Waiting, sender: Sender, clock: Callable[[], datetime], budget: float) -> None:
        self._outbox, self._sender, self._clock, self._budget = outbox, sender, clock, budget
        self._lanes: dict[Receiver, asyncio.Task[None]] = {}
        self._begun: dict[Channel, float] = {}
        self._delivered: list[Message] = []
        self._failed: list[Message] = []

    async def run(self) -> DeliveryReport:
        """Send until nothing is due that may be sent now. What falls due meanwhile is sent as well."""
        while True:
            for receiver, messages in await asyncio.to_thread(self._due):
                if receiver not in self._lanes and self._has_room(receiver[0]):
                    self._begun.setdefault(receiver[0], time.monotonic())
                    self._lanes[receiver] = asyncio.create_task(self._lane(messages))
            if not self._lanes:
                break
            await asyncio.wait(self._lanes.values(), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for receiver, lane in list(self._lanes.items()):
                if lane.done():
                    del self._lanes[receiver]
                    lane.result()
        return DeliveryReport(
            tuple(self._delivered),
            tuple(message for message in self._failed if message.next_at is not None),
            tuple(message for message in self._failed if message.next_at is None),
        )

    def _due(self) -> list[tuple[Receiver, list[Message]]]:
        """The messages that wait for each receiver, the oldest first, if the first one that is tried is due."""
        receivers: dict[Receiver, list[Message]] = {}
        for message in self._outbox.messages():
            if message.next_at is not None:
                receivers.setdefault(message.receiver, []).append(message)
        now = self._clock()
        return [(receiver, waiting) for receiver, waiting in receivers.items() if _is_due(waiting, now)]

    def _has_room(self, channel: Channel) -> bool:
        return self._in_budget(channel) and sum(of == channel for of, _ in self._lanes) < AT_ONCE

    def _in_budget(self, channel: Channel) -> bool:
        return time.monotonic() - self._begun.get(channel, time.monotonic()) < self._budget

    async def _lane(self, waiting: Sequence[Message]) -> None:
        for message in waiting:
            if not _is_due([message], self._clock()):
                if message.error.startswith(INTERNAL):
                    continue
                return
            if not self._in_budget(message.channel):
                return
            after, is_own_mistake = await _attempt(self._sender, message, self._clock)
            if after is None:
                await asyncio.to_thread(self._outbox.delivered, message)
                self._delivered.append(message)
                continue
            await asyncio.to_thread(self._outbox.postponed, after)
            self._failed.append(after)
            if after.next_at is not None and not is_own_mistake:
                return


def _is_due(waiting: Sequence[Message], now: datetime) -> bool:
    """Whether one can be sent now. A message that a mistake of CHM's own holds up holds up no other one."""
    for message in waiting:
        if message.next_at is not None and message.next_at <= now:
            return True
        if not message.error.startswith(INTERNAL):
            return False
    return False


async def _attempt(sender: Sender, message: Message, clock: Callable[[], datetime]) -> tuple[Message | None, bool]:
    """None if the receiver accepted the message, else the message as it is to be kept; and whether CHM is to blame."""
    try:
        await sender.send(message, clock())
        return None, False
    except ChmError as error:
        wait = error.retry_after if isinstance(error, RateLimited) else None
        after = message.failed(clock(), str(error), retry=not _is_final(error), retry_after=wait)
        logger.warning("message %s, attempt %d: %s", message.id, after.attempts, error)
        return after, False
    except Exception as error:
        # A mistake of CHM's own in one message must not keep the others from their receivers. Neither the text of such
        # an error nor its causes are logged: they may quote an address or a password.
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{PurePath(where.filename).name}:{where.lineno}"
        logger.error("message %s cannot be sent: %s in %s", message.id, type(error).__name__, place)
        return message.failed(clock(), f"{INTERNAL}: {type(error).__name__}", retry=True), True


_FINAL = frozenset({400, 410, 413, 415, 422})
"""Statuses that are about this message or say that the receiver is gone for good. The others a person can mend."""


def _is_final(error: ChmError) -> bool:
    """Whether the message will be refused again whatever anybody mends, such as a wrong address or password."""
    if isinstance(error, StatusError):
        return error.status in _FINAL
    return isinstance(error, Permanent) and not isinstance(error, Misconfigured)

"""When to ask a partner again, how long to wait before that, and when to stop asking.

Retries live in this one layer: layers multiply, and three of them turn one request into 27. The figures are those of
the AWS SDKs: three attempts, full jitter up to 20 s, a bucket of 500 tokens that a retry empties and a success fills.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from chm_dagster.errors import AuthError, PartnerError, Permanent, RateLimited, Transient

RETRY_COST = 5
TIMEOUT_COST = 10
LONGEST_RETRY_AFTER = 86_400.0
"""Seconds. A partner with a broken clock must not put itself off for a year."""

_T = TypeVar("_T")


class Misconfigured(Permanent):
    """The partner refused in a way that most likely holds for the whole connection: a redirect, or no trust in TLS."""


class RetryBudget:
    """A token bucket that stops a failing partner from being asked three times for everything."""

    def __init__(self, tokens: int) -> None:
        self._capacity = tokens
        self._tokens = tokens

    def spend(self, cost: int) -> bool:
        """Take `cost` tokens for a retry; False, and nothing taken, if they are not there."""
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def earn(self) -> None:
        """One token back for one success."""
        self._tokens = min(self._capacity, self._tokens + 1)


def full_jitter(retry: int, *, base: float, cap: float, random: Callable[[], float]) -> float:
    """Seconds to wait before the given retry (1, 2, ...): evenly from 0 to `base * 2**(retry - 1)`, at most `cap`."""
    return random() * min(cap, base * 2.0 ** (retry - 1))


def http_date(value: str | None) -> datetime | None:
    """An HTTP date header as an aware UTC time; None if it is missing or is no date."""
    if value is None:
        return None
    try:
        when = parsedate_to_datetime(value)
        # The zone "-0000" parses as naive; RFC 5322 means UTC by it.
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after_seconds(value: str | None, *, server_time: datetime | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, 0 to a day; None if it is missing or junk.

    A date counts from the server's own clock, because ours may be off; a date in the past asks for nothing.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER)
    when = http_date(text)
    if when is None:
        return None
    return min(max(0.0, (when - (server_time or now)).total_seconds()), LONGEST_RETRY_AFTER)


class Breaker:
    """Stops a sweep from asking a partner that cannot answer.

    It opens for good on refused credentials, on a wish to wait for longer than `patience` seconds, and on `limit`
    failures in a row that were Transient or Misconfigured. From then on every call raises the error that opened it,
    and asks nothing.
    The very first call goes alone: wrong credentials cost one request, however many workers wait.
    """

    def __init__(self, *, patience: float, limit: int = 5) -> None:
        self._patience = patience
        self._limit = limit
        self._in_a_row = 0
        self._opened_by: PartnerError | None = None
        self._heard = False
        self._first = asyncio.Lock()

    async def call(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Await `ask()`, and learn from how it ends. Raises its PartnerError, or the one that opened the breaker."""
        if not self._heard:
            async with self._first:
                if not self._heard:
                    try:
                        return await self._observed(ask)
                    finally:
                        self._heard = True
        return await self._observed(ask)

    async def _observed(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        if self._opened_by is not None:
            raise self._opened_by.with_traceback(None)
        try:
            answer = await ask()
        except PartnerError as error:
            self._learn(error)
            raise
        self._in_a_row = 0
        return answer

    def _learn(self, error: PartnerError) -> None:
        # Anything else is an answer about one thing that was asked for, and so a sign of life.
        self._in_a_row = self._in_a_row + 1 if isinstance(error, (Transient, Misconfigured)) else 0
        too_long = isinstance(error, RateLimited) and (error.retry_after or 0.0) > self._patience
        if self._opened_by is None and (isinstance(error, AuthError) or too_long or self._in_a_row >= self._limit):
            self._opened_by = error

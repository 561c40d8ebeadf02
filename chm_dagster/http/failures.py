"""Failures of requests: an error with a safe message, the decision whether to retry, and when and how often.

Messages are built from the client's label, the path below the base URL and a status. URLs, queries, headers, bodies
and the libraries' exceptions (which carry all of them) never get into one.
"""

import asyncio
import dataclasses
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import httpx

from chm_dagster.errors import AuthError, Permanent, RateLimited, RemoteError, ResponseTooLarge, SchemaDrift, Transient
from chm_dagster.http.auth import redirect_host
from chm_dagster.http.body import BodyError, TooLargeError, UnknownEncodingError

RETRY_COST = 5
TIMEOUT_COST = 10
MAX_TOO_LARGE = 10
"""A caller asks for smaller pages after one, so only a server that ignores their size sends so many in a row."""
LONGEST_RETRY_AFTER = 86_400.0
"""Seconds. A server with a broken clock must not postpone us by a year."""

_T = TypeVar("_T")

_MAX_SHOWN_PATH = 200


class StatusError(Permanent):
    """The server rejected the request with this HTTP `status`; retrying cannot help.

    `body` is the JSON of the response, None if it is no JSON or long. It may hold anything, so it is for code alone.
    `is_page`: the response is a web page, which a proxy or a login may have sent in place of the server.
    """

    def __init__(self, message: str, status: int, *, is_page: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_page = is_page
        self.body: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt. Returned, not raised, so that no library exception is attached to it as context."""

    error: RemoteError
    retry: bool = False
    cost: int = RETRY_COST
    retry_after: float | None = None
    status: int | None = None
    """401 or 403 if the credentials were refused."""

    @property
    def denied(self) -> bool:
        """Whether logging in again may help."""
        return self.status in (401, 403)


ErrorMeaning = Callable[[int, Any], Literal["denied", "rate_limited"] | None]
"""What an error response means that its status does not say, from the status and the JSON of its body."""


@dataclasses.dataclass(frozen=True, slots=True)
class Classifier:
    """Classifies the responses of one server. `auth_hint` says how to fix refused credentials."""

    label: str
    address: str
    """`host:port`"""
    auth_hint: str
    max_wait: float
    deadline: float
    connect_timeout: float

    def message(self, path: str, what: str) -> str:
        """The text of an error about this path."""
        shown = path if len(path) <= _MAX_SHOWN_PATH else path[:_MAX_SHOWN_PATH] + "..."
        return f"{self.label}: {shown or '/'}: {what}"

    def rejected(
        self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime, *, known: bool
    ) -> Failure | None:
        """Why a response is unusable by its status and headers; None if its body may be read.

        `known`: the same credentials have worked before, so a 403 is about this resource.
        """
        status = response.status_code
        if 200 <= status < 300:
            return self._unreadable(path, response)
        if status in (429, 503) or (status == 403 and _is_rate_limit(response)):
            return self._overloaded(path, response, server_time, now)
        if status == 403 and known:
            what = "refused (403): the credentials are accepted, but they may not read this"
            return Failure(StatusError(self.message(path, what), status), status=status)
        if status in (401, 403):
            what = f"{self.label}: credentials refused ({status}); {self.auth_hint}"
            return Failure(AuthError(what), status=status)
        if 300 <= status < 400:
            to = redirect_host(response.headers.get("location", ""), self.address)
            hint = "check the credentials if that is a login page, else set base_url to the final address"
            what = f"redirect ({status}) to {to} not followed; {hint}"
            return Failure(Misconfigured(self.message(path, what)))
        if status == 408 or (status >= 500 and status not in (501, 505)):
            return Failure(Transient(self.message(path, f"answered {status}")), retry=True)
        is_page = response.headers.get("content-type", "").lower().startswith("text/html")
        what = (
            f"refused ({status}), with a web page and not with JSON; check base_url"
            if is_page
            else f"refused ({status})"
        )
        return Failure(StatusError(self.message(path, what), status, is_page=is_page))

    def reread(self, path: str, error: StatusError, meaning: ErrorMeaning) -> Failure:
        """The failure, now that the body of the response is known."""
        match meaning(error.status, error.body):
            case "denied":
                what = f"{self.label}: credentials refused ({error.status}); {self.auth_hint}"
                return Failure(AuthError(what), status=401)
            case "rate_limited":
                what = f"answered {error.status}, too many requests"
                return Failure(RateLimited(self.message(path, what), None), retry=True)
        return Failure(error, status=error.status)

    def _unreadable(self, path: str, response: httpx.Response) -> Failure | None:
        status = response.status_code
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if status in (204, 205):
            return Failure(SchemaDrift(self.message(path, f"the response has no content ({status})")))
        if not _may_be_json(kind):
            return Failure(SchemaDrift(self.message(path, f"not JSON but {_shown_type(kind)}")))
        return None

    def _overloaded(self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime) -> Failure:
        status = response.status_code
        wish = retry_after_seconds(response.headers.get("retry-after"), server_time=server_time, now=now)
        if wish is None and status != 503:
            wish = reset_seconds(response.headers.get("x-ratelimit-reset"), server_time=server_time, now=now)
        too_long = wish is not None and wish > self.max_wait
        if status != 503 or too_long:
            wait = "" if wish is None else f", asks to wait for {wish:.0f} s"
            error: Transient = RateLimited(self.message(path, f"answered {status}{wait}"), wish)
        else:
            error = Transient(self.message(path, f"answered {status}"))
        return Failure(error, retry=not too_long, retry_after=wish)

    def broken(self, path: str, error: Exception, cap: int) -> Failure:
        """Classify an exception. `cap` is the allowed body size in bytes."""
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return self._unreachable(error)
        if isinstance(error, (TimeoutError, httpx.TimeoutException)):
            what = f"no complete response from {self.address} within {self.deadline:g} s"
            return Failure(Transient(self.message(path, what)), retry=True, cost=TIMEOUT_COST)
        if isinstance(error, TooLargeError):
            return Failure(ResponseTooLarge(self.message(path, f"the response is larger than {cap} bytes")))
        if isinstance(error, UnknownEncodingError):
            return Failure(SchemaDrift(self.message(path, "the response has an encoding that was not accepted")))
        what = f"the response from {self.address} broke off ({_BREAKS.get(type(error), 'connection lost')})"
        return Failure(Transient(self.message(path, what)), retry=True)

    def _unreachable(self, error: httpx.TransportError) -> Failure:
        if isinstance(error, httpx.ConnectTimeout):
            what, passes = f"timed out after {self.connect_timeout:g} s", True
        else:
            what, passes = _connect_problem(error)
        message = f"{self.label}: cannot connect to {self.address} ({what})"
        if not passes:
            return Failure(Misconfigured(message))
        cost = TIMEOUT_COST if isinstance(error, httpx.ConnectTimeout) else RETRY_COST
        return Failure(Transient(message), retry=True, cost=cost)


_BREAKS: dict[type[Exception], str] = {
    httpx.RemoteProtocolError: "closed early, or not HTTP",
    httpx.ReadError: "connection reset",
    BodyError: "incomplete, or damaged compression",
}


def _is_rate_limit(response: httpx.Response) -> bool:
    """Whether a 403 is about too many requests, as GitHub's are, and not about credentials."""
    return "retry-after" in response.headers or response.headers.get("x-ratelimit-remaining", "").strip() == "0"


def _may_be_json(kind: str) -> bool:
    return "json" in kind or kind in ("", "text/plain", "application/octet-stream", "text/javascript")


def _shown_type(kind: str) -> str:
    return kind if re.fullmatch(r"[a-z0-9.+/-]{1,80}", kind) else "another content type"


def _connect_problem(error: BaseException) -> tuple[str, bool]:
    """Why a connection could not be opened, in safe words, and whether that may pass by itself."""
    passing_tls = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS certificate not trusted: {_certificate_problem(cause)}", False
        if isinstance(cause, passing_tls):
            return "closed during the TLS handshake", True
        if isinstance(cause, ssl.SSLError):
            plain = getattr(cause, "reason", None) in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
            return "the server does not speak TLS on this port" if plain else "TLS handshake failed", False
        if isinstance(cause, socket.gaierror):
            return "name lookup failed" if cause.errno == socket.EAI_AGAIN else "unknown host", True
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower(), True
        cause = cause.__cause__ or cause.__context__
    return "could not be reached", True


def _certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    # OpenSSL's own texts; the one about the host quotes names out of the certificate.
    text = str(error.verify_message)
    return "hostname mismatch" if text.lower().startswith(("hostname", "ip address")) else text[:100]


class Misconfigured(Permanent):
    """A failure that most likely affects every request to this server: a redirect, or an untrusted certificate."""


class RetryBudget:
    """A token bucket that limits retries while a server keeps failing."""

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
    """The Retry-After header in seconds, 0 to a day; None if it is missing or malformed.

    A date is relative to the server's clock, because ours may be off; a date in the past means 0.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER)
    when = http_date(text)
    if when is None:
        return None
    return min(max(0.0, (when - (server_time or now)).total_seconds()), LONGEST_RETRY_AFTER)


def reset_seconds(value: str | None, *, server_time: datetime | None, now: datetime) -> float | None:
    """Seconds until the time in an X-RateLimit-Reset header, 0 to a day; None if it is missing or malformed."""
    text = (value or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        return None
    return min(max(0.0, float(text) - (server_time or now).timestamp()), LONGEST_RETRY_AFTER)


class CircuitBreaker:
    """Stops calling a server that cannot answer.

    It opens for good on refused credentials, on a Retry-After beyond `patience` seconds, after `limit` Transient or
    Misconfigured failures in a row, and after MAX_TOO_LARGE responses in a row that were too large. From then on every
    call raises the error that opened it, without a request.
    The first call runs alone: wrong credentials cost one request, however many workers wait.
    """

    def __init__(self, *, patience: float, limit: int = 5) -> None:
        self._patience = patience
        self._limit = limit
        self._in_a_row = self._too_large = 0
        self._opened_by: RemoteError | None = None
        self._responded = False
        self._first = asyncio.Lock()

    async def call(self, send: Callable[[], Awaitable[_T]]) -> _T:
        """Await `send()` and record the outcome. Raises its RemoteError, or the one that opened the breaker."""
        if not self._responded:
            async with self._first:
                if not self._responded:
                    try:
                        return await self._observed(send)
                    finally:
                        self._responded = True
        return await self._observed(send)

    async def _observed(self, send: Callable[[], Awaitable[_T]]) -> _T:
        if self._opened_by is not None:
            raise self._opened_by.with_traceback(None)
        try:
            result = await send()
        except RemoteError as error:
            self._learn(error)
            raise
        self._in_a_row = self._too_large = 0
        return result

    def _learn(self, error: RemoteError) -> None:
        # Any other error is about one resource, and shows that the server works.
        self._in_a_row = self._in_a_row + 1 if isinstance(error, (Transient, Misconfigured)) else 0
        self._too_large = self._too_large + 1 if isinstance(error, ResponseTooLarge) else 0
        wait = (error.retry_after or 0.0) if isinstance(error, RateLimited) else 0.0
        too_often = self._in_a_row >= self._limit or self._too_large >= MAX_TOO_LARGE
        if self._opened_by is None and (isinstance(error, AuthError) or wait > self._patience or too_often):
            self._opened_by = error

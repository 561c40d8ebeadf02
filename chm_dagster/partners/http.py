"""One way to ask a partner for JSON over HTTP that cannot hang, flood, leak or be fooled.

httpx's own timeouts are per socket operation, so a body of a byte a second never ends: each attempt runs under one
deadline. Errors are made from the connection's name, the path below the base URL and a status; URLs, queries,
headers, bodies and the libraries' exceptions (which carry all of them) never leave this module.
"""

import asyncio
import dataclasses
import logging
import random as _random
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from chm_dagster.errors import AuthError, ConfigError, PartnerError, Permanent, RateLimited, SchemaDrift, Transient
from chm_dagster.partners.body import BodyError, TooLargeError, UnknownEncodingError, parse_json, read_body
from chm_dagster.partners.redaction import silence_http_loggers
from chm_dagster.partners.retry import (
    RETRY_COST,
    TIMEOUT_COST,
    Misconfigured,
    RetryBudget,
    full_jitter,
    http_date,
    retry_after_seconds,
)

logger = logging.getLogger(__name__)

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_CLOCK_ALLOWANCE = timedelta(days=1)
_MAX_SHOWN_PATH = 200


@dataclasses.dataclass(frozen=True, slots=True)
class HttpPolicy:
    """How patient, how parallel and how generous one connection is. Times are in seconds."""

    concurrency: int = 8
    deadline: float = 30.0
    """For one attempt, from its first byte sent to the last byte of its body."""
    connect_timeout: float = 5.0
    max_body_bytes: int = 32 * 1024 * 1024
    """After decompression."""
    attempts: int = 3
    backoff_base: float = 0.5
    backoff_cap: float = 20.0
    max_wait: float = 60.0
    """The longest Retry-After that is waited for; a longer one raises RateLimited."""
    retry_tokens: int = 500


DEFAULT_POLICY = HttpPolicy()


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object that a partner sent.

    `observed_at` is when the request started, by our clock. `server_time` is the answer's Date header; None if it is
    missing, junk, or more than a day ahead of our clock: a watermark must not be set by it. Both are aware, in UTC.
    """

    body: dict[str, Any]
    observed_at: datetime
    server_time: datetime | None


class Refused(Permanent):
    """The partner refused the request for good with this HTTP `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """How an attempt ended. It is returned and not raised, so that no library exception hangs on it as context."""

    error: PartnerError
    retry: bool = False
    cost: int = RETRY_COST
    retry_after: float | None = None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PartnerHttp:
    """The HTTP side of one connection: GET only, JSON objects only. To be used within one event loop.

    `token` is sent as a bearer token. `clock` gives aware times; `sleep` and `random` (0 to 1) serve the backoff.
    Raises ConfigError for a base URL or a token that cannot be used.
    """

    def __init__(
        self,
        connection: str,
        base_url: str,
        *,
        token: str | None,
        policy: HttpPolicy = DEFAULT_POLICY,
        clock: Callable[[], datetime] = _utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        silence_http_loggers()
        self.connection = connection
        self.policy = policy
        url = _checked_base(connection, base_url)
        self._host = url.host
        self._base = str(url).rstrip("/")
        self._clock, self._sleep, self._random = clock, sleep, random
        self._slots = asyncio.Semaphore(policy.concurrency)
        self._budget = RetryBudget(policy.retry_tokens)
        self._client = _client(policy, _headers(connection, token), https=url.scheme == "https")

    def __repr__(self) -> str:
        return f"PartnerHttp(connection={self.connection!r}, host={self._host!r})"

    async def __aenter__(self) -> "PartnerHttp":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection's sockets."""
        await self._client.aclose()

    async def get_json(self, path_segments: Sequence[str], params: Mapping[str, str] | None = None) -> Answer:
        """GET `{base_url}/{segments}`; each segment is percent-encoded as a whole.

        An attempt is repeated after a timeout, a broken connection, 408, 429, 5xx except 501 and 505, and after a body
        that says it is JSON and does not parse: where the end of the body is the end of the connection, that is all
        one sees of a cut. If it still does not parse at the last attempt, the partner is wrong, not the network.

        Raises AuthError (401, 403), RateLimited (429 at the last attempt, or a Retry-After beyond `max_wait`),
        Transient, Permanent (`Refused` with the status, `Misconfigured` for a redirect and for TLS that cannot be
        trusted), SchemaDrift (not a JSON object).
        """
        path = self._path(path_segments)
        # The slot is kept while waiting: a partner that asks for quiet gets it.
        async with self._slots:
            attempt = 1
            while True:
                outcome = await self._attempt(path, params or {})
                if isinstance(outcome, Answer):
                    self._budget.earn()
                    return outcome
                wait = self._wait(outcome, attempt)
                if wait is None:
                    break
                logger.info("%s; attempt %d, next in %.1f s", outcome.error, attempt, wait)
                await self._sleep(wait)
                attempt += 1
        raise outcome.error

    def _wait(self, failure: _Failure, attempt: int) -> float | None:
        if not failure.retry or attempt >= self.policy.attempts or not self._budget.spend(failure.cost):
            return None
        own = full_jitter(attempt, base=self.policy.backoff_base, cap=self.policy.backoff_cap, random=self._random)
        return own + (failure.retry_after or 0.0)

    def _path(self, segments: Sequence[str]) -> str:
        encoded = []
        for segment in segments:
            try:
                # Dots survive encoding, and a path normaliser anywhere on the way would walk up to another resource.
                plain = "" if segment in (".", "..") else quote(segment, safe="")
            except UnicodeEncodeError:
                plain = ""
            if not plain:
                raise Permanent(f"connection {self.connection}: the id {segment!r} cannot be part of a URL's path")
            encoded.append(plain)
        return "".join(f"/{segment}" for segment in encoded)

    def _says(self, path: str, what: str) -> str:
        shown = path if len(path) <= _MAX_SHOWN_PATH else path[:_MAX_SHOWN_PATH] + "..."
        return f"connection {self.connection}: {shown or '/'}: {what}"

    async def _attempt(self, path: str, params: Mapping[str, str]) -> Answer | _Failure:
        observed_at = self._clock()
        try:
            async with (
                asyncio.timeout(self.policy.deadline),
                self._client.stream("GET", self._base + path, params=dict(params)) as response,
            ):
                server_time = _plausible(http_date(response.headers.get("date")), observed_at)
                failure = self._refusal(path, response, server_time, observed_at)
                if failure is not None:
                    return failure
                body = await read_body(response, self.policy.max_body_bytes)
        except (httpx.InvalidURL, UnicodeEncodeError):
            return _Failure(Permanent(self._says(path, "the id or the cursor does not fit into a URL")))
        except (TimeoutError, OSError, httpx.HTTPError, httpx.StreamError, BodyError) as error:
            return self._broken(path, error)
        return self._decoded(path, body, observed_at, server_time)

    def _refusal(
        self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime
    ) -> _Failure | None:
        status = response.status_code
        if 200 <= status < 300:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if status in (204, 205):
                return _Failure(SchemaDrift(self._says(path, f"an answer without content ({status})")))
            if not _may_be_json(kind):
                return _Failure(SchemaDrift(self._says(path, f"not JSON but {_shown_type(kind)}")))
            return None
        if status in (401, 403):
            hint = "set the variable that holds its token"
            return _Failure(AuthError(f"connection {self.connection}: credentials refused ({status}); {hint}"))
        if 300 <= status < 400:
            to = _redirect_host(response.headers.get("location", ""), self._host)
            what = f"redirect ({status}) to {to} not followed; set base_url to the final address"
            return _Failure(Misconfigured(self._says(path, what)))
        if status in (429, 503):
            return self._asked_to_wait(path, response, server_time, now)
        if status == 408 or (status >= 500 and status not in (501, 505)):
            return _Failure(Transient(self._says(path, f"answered {status}")), retry=True)
        return _Failure(Refused(self._says(path, f"refused ({status})"), status))

    def _asked_to_wait(
        self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime
    ) -> _Failure:
        status = response.status_code
        wish = retry_after_seconds(response.headers.get("retry-after"), server_time=server_time, now=now)
        too_long = wish is not None and wish > self.policy.max_wait
        if status == 429 or too_long:
            wait = "" if wish is None else f", asks to wait for {wish:.0f} s"
            error: Transient = RateLimited(self._says(path, f"answered {status}{wait}"), wish)
        else:
            error = Transient(self._says(path, f"answered {status}"))
        return _Failure(error, retry=not too_long, retry_after=wish)

    def _broken(self, path: str, error: Exception) -> _Failure:
        if isinstance(error, (TimeoutError, httpx.TimeoutException)):
            return _Failure(Transient(self._says(path, "no full answer in time")), retry=True, cost=TIMEOUT_COST)
        if isinstance(error, TooLargeError):
            what = f"the answer is larger than {self.policy.max_body_bytes} bytes"
            return _Failure(Permanent(self._says(path, what)))
        if isinstance(error, UnknownEncodingError):
            return _Failure(SchemaDrift(self._says(path, "compressed in a way that was not asked for")))
        if isinstance(error, httpx.ConnectError):
            if _is_tls_refusal(error):
                return _Failure(Misconfigured(self._says(path, "no TLS connection that can be trusted")))
            return _Failure(Transient(self._says(path, "could not be reached")), retry=True)
        return _Failure(Transient(self._says(path, f"the answer broke off ({type(error).__name__})")), retry=True)

    def _decoded(
        self, path: str, body: bytes, observed_at: datetime, server_time: datetime | None
    ) -> Answer | _Failure:
        if not body.strip():
            return _Failure(SchemaDrift(self._says(path, "an empty answer")))
        try:
            value = parse_json(body)
        except (ValueError, RecursionError):
            return _Failure(SchemaDrift(self._says(path, f"{len(body)} bytes that are not valid JSON")), retry=True)
        if not isinstance(value, dict):
            return _Failure(SchemaDrift(self._says(path, f"a JSON {type(value).__name__} and not an object")))
        return Answer(value, observed_at, server_time)


def _checked_base(connection: str, base_url: str) -> httpx.URL:
    url: httpx.URL | None
    try:
        urlsplit(base_url).port  # noqa: B018 - raises on what is no port
        url = httpx.URL(base_url.strip())
    except (ValueError, TypeError, httpx.InvalidURL):
        url = None
    # Raised out here, because the caught exceptions quote parts of the URL.
    if url is None or url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"connection {connection}: base_url is not a URL that starts with http:// or https://")
    if url.userinfo or "?" in base_url or "#" in base_url:
        raise ConfigError(
            f"connection {connection}: base_url must be free of user, password, query and fragment; "
            "put the token into the variable that holds it"
        )
    return url


def _headers(connection: str, token: str | None) -> dict[str, str]:
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "chm-dagster"}
    if token is not None:
        # A header that cannot be sent would be quoted by the library that refuses it.
        if not _TOKEN.fullmatch(token):
            raise ConfigError(f"connection {connection}: the token is empty or holds a blank or a special character")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _client(policy: HttpPolicy, headers: Mapping[str, str], *, https: bool) -> httpx.AsyncClient:
    # Trusts nobody yet, which is what a plain http connection needs; loading certificates takes its time.
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if https:
        trust = httpx.create_ssl_context(trust_env=False)
        # The machine's own store as well, for partners behind a company's certificate authority.
        trust.load_default_certs()
    return httpx.AsyncClient(
        headers=headers,
        verify=trust,
        http2=https,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(policy.deadline, connect=policy.connect_timeout, pool=None),
        limits=httpx.Limits(max_connections=policy.concurrency, max_keepalive_connections=policy.concurrency),
    )


def _plausible(server_time: datetime | None, now: datetime) -> datetime | None:
    return None if server_time is None or server_time > now + _CLOCK_ALLOWANCE else server_time


def _may_be_json(kind: str) -> bool:
    return "json" in kind or kind in ("", "text/plain", "application/octet-stream", "text/javascript")


def _shown_type(kind: str) -> str:
    return kind if re.fullmatch(r"[a-z0-9.+/-]{1,80}", kind) else "another content type"


def _redirect_host(location: str, own: str) -> str:
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = ""
    if host is None:
        return own
    return host if _HOST.fullmatch(host) else "an unreadable address"


def _is_tls_refusal(error: BaseException) -> bool:
    passing = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, passing):
            return True
        cause = cause.__cause__ or cause.__context__
    return False

"""An HTTP client for JSON APIs with a total deadline per attempt, body caps, a retry budget and redacted errors.

httpx's timeouts apply to single socket operations, so a body that trickles in never times out: here each attempt has
one deadline. Errors are worded by `Classifier` in `failures.py`; URLs, headers and bodies never get into one.
"""

import asyncio
import dataclasses
import logging
import random as _random
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
import orjson

from chm_dagster.errors import Permanent, ResponseTooLarge, SchemaDrift, Transient
from chm_dagster.http import silence_http_loggers
from chm_dagster.http.auth import (
    NO_PARTS,
    Auth,
    AuthParts,
    StaticAuth,
    address_of,
    bearer,
    checked_base,
    checked_target,
    encoded_segment,
    link_below,
)
from chm_dagster.http.body import (
    MAX_ERROR_BODY,
    MAX_VALUES,
    BodyError,
    TooManyValuesError,
    error_body,
    parse_json,
    read_body,
    streamed,
)
from chm_dagster.http.failures import (
    LONGEST_RETRY_AFTER,
    Classifier,
    ErrorMeaning,
    Failure,
    RetryBudget,
    StatusError,
    full_jitter,
    http_date,
)
from chm_dagster.http.pace import Pace

logger = logging.getLogger(__name__)

_CLOCK_ALLOWANCE = timedelta(days=1)
_SHAPES: Mapping[str, tuple[type, ...]] = {"object": (dict,), "list": (list,), "any": (object,)}


@dataclasses.dataclass(frozen=True, slots=True)
class HttpPolicy:
    """Timeouts, concurrency, size limits and retries of one client. Times are in seconds."""

    concurrency: int = 8
    deadline: float = 30.0
    """For one attempt: from the first byte sent to the last byte of the response body."""
    connect_timeout: float = 5.0
    max_body_bytes: int = 32 * 1024 * 1024
    """After decompression."""
    attempts: int = 3
    backoff_base: float = 0.5
    backoff_cap: float = 20.0
    max_wait: float = 60.0
    """The longest Retry-After that the client honors by waiting; a longer one raises RateLimited."""
    retry_tokens: int = 500
    requests_per_minute: float | None = None
    """Requests are spaced evenly to stay below it. None: no limit besides `concurrency`."""


DEFAULT_POLICY = HttpPolicy()


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request below the base URL. `body` is sent as JSON, `form` as a form; `shape` is the JSON type to expect.

    POST and PUT are meant for queries and other repeatable requests: they are retried like a GET. For others, set a
    policy of one attempt.
    """

    path: Sequence[str] = ()
    params: Sequence[tuple[str, str]] = ()
    method: Literal["GET", "POST", "PUT"] = "GET"
    body: Any = None
    form: Mapping[str, str] | None = None
    slash: bool = False
    """Whether the path ends with a slash."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: Literal["object", "list", "any"] = "object"
    max_body_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """A JSON response: an object, unless the request set another `shape`.

    `observed_at` is when the request started, by our clock. `server_time` is the Date header; None if it is missing,
    malformed, or more than a day ahead of our clock. Both are aware, in UTC. `next_link` is the URL of the next page
    if a Link header has one. `headers` are case-insensitive.
    """

    body: Any
    observed_at: datetime
    server_time: datetime | None
    next_link: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class HttpClient:
    """Sends requests to one JSON API below `base_url`. Use it within one event loop.

    `label` starts every error message and log line (`connection acme`). `token` is sent as a bearer token; use `auth`
    for anything else. `headers` go with every request. `meaning` says what errors mean besides their status. `clock`
    returns aware times; `sleep` and `random` (0 to 1) drive the backoff; `pace` is shared with clients that draw on the
    same quota. Raises ConfigError for an invalid base URL or
    token.
    """

    def __init__(
        self,
        label: str,
        base_url: str,
        *,
        token: str | None = None,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        policy: HttpPolicy = DEFAULT_POLICY,
        meaning: ErrorMeaning = lambda status, body: None,
        clock: Callable[[], datetime] = _utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = _random.random,
        pace: Pace | None = None,
    ) -> None:
        silence_http_loggers()
        self.label = label
        self.policy = policy
        self.auth = auth or (StaticAuth() if token is None else bearer(label, token))
        url = checked_base(label, base_url)
        self._host = url.host
        self._base = str(url).rstrip("/")
        self._meaning = meaning
        self._clock, self._sleep, self._random = clock, sleep, random
        self._slots = asyncio.Semaphore(policy.concurrency)
        self._budget = RetryBudget(policy.retry_tokens)
        self._classifier = Classifier(
            label,
            address=address_of(url),
            auth_hint=self.auth.hint,
            max_wait=policy.max_wait,
            deadline=policy.deadline,
            connect_timeout=policy.connect_timeout,
        )
        self._pace = pace or Pace()
        self._accepted = False
        self._client = _client(policy, {**_HEADERS, **(headers or {})}, https=url.scheme == "https")

    def __repr__(self) -> str:
        return f"HttpClient(label={self.label!r}, host={self._host!r})"

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all sockets."""
        await self._client.aclose()

    def now(self) -> datetime:
        """The client's clock, which also sets `Response.observed_at`."""
        return self._clock()

    async def get_json(self, path_segments: Sequence[str], params: Mapping[str, str] | None = None) -> Response:
        """GET the JSON object at `{base_url}/{segments}`. Raises the same errors as `send`."""
        return await self.send(Request(path_segments, tuple((params or {}).items())))

    async def send(self, request: Request) -> Response:
        """Send a request and return its JSON response. Each path segment is percent-encoded as a whole.

        Retries timeouts, broken connections, 408, 429, 5xx except 501 and 505, and bodies that claim to be JSON but do
        not parse: if the end of the connection marks the end of the body, a cut looks just like that. A body that does
        not parse at the last attempt is SchemaDrift. After a 401 or 403 the request is repeated once if `auth` can be
        renewed.

        Raises AuthError (401, 403), RateLimited (429 at the last attempt, or a Retry-After beyond `max_wait`),
        Transient, Permanent (`StatusError` for a status, `Misconfigured` for a redirect or an untrusted certificate,
        `ResponseTooLarge`: fewer records at a time may fit), SchemaDrift (not JSON, or not of the expected shape).
        """
        # Waiting keeps the slot: a server that asks us to slow down gets fewer requests, not the same number.
        async with self._slots:
            outcome, parts = await self._retried(request, self.auth)
            if isinstance(outcome, Failure) and outcome.denied and self._renewed(parts, outcome):
                outcome, _ = await self._retried(request, self.auth)
        if isinstance(outcome, Failure):
            raise outcome.error
        self._accepted = True
        return outcome

    async def send_unauthenticated(self, request: Request) -> Response:
        """Like `send`, without credentials and without waiting for a slot: `auth` logs in while holding one."""
        outcome, _ = await self._retried(request, StaticAuth())
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    async def sign_in(self) -> None:
        """Log in, if `auth` does. Raises RemoteError."""
        await self.auth.authenticate(self.send_unauthenticated, self._client.build_request("GET", self._base))

    def parse_link(self, link: str) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
        """Split a link from a response into path segments and parameters. Raises SchemaDrift outside `base_url`."""
        found = link_below(self._base, link)
        if found is None:
            raise SchemaDrift(f"{self.label}: the link to the next page leads away from base_url")
        return found

    def _renewed(self, parts: AuthParts, failure: Failure) -> bool:
        return self.auth.renew(parts, expired=failure.status == 401)

    async def _retried(self, request: Request, auth: Auth) -> tuple[Response | Failure, AuthParts]:
        """The outcome of the last attempt, and what authenticated it. Each attempt is authenticated anew."""
        path = self._path(request.path) + ("/" if request.slash else "")
        content = self._content(path, request)
        attempt = 1
        while True:
            await self._paced()
            try:
                bare = self._build(path, request, content, NO_PARTS)
            except (httpx.InvalidURL, UnicodeEncodeError):
                return self._unsendable(path), NO_PARTS
            parts = await auth.authenticate(self.send_unauthenticated, bare)
            self._accepted = self._accepted or auth.has_login
            outcome = await self._attempt(path, request, content, parts)
            if isinstance(outcome, Response):
                self._budget.earn()
                return outcome, parts
            wait = self._wait(outcome, attempt)
            if wait is None:
                return outcome, parts
            logger.info("%s; attempt %d, next in %.1f s", outcome.error, attempt, wait)
            await self._sleep(wait)
            attempt += 1

    async def _paced(self) -> None:
        if self.policy.requests_per_minute is not None:
            seconds = self._pace.seconds_to_wait(self.policy.requests_per_minute)
            if seconds > 0:
                await self._sleep(seconds)

    def _wait(self, failure: Failure, attempt: int) -> float | None:
        if not failure.retry or attempt >= self.policy.attempts or not self._budget.spend(failure.cost):
            return None
        own = full_jitter(attempt, base=self.policy.backoff_base, cap=self.policy.backoff_cap, random=self._random)
        return own + (failure.retry_after or 0.0)

    def _path(self, segments: Sequence[str]) -> str:
        encoded = []
        for segment in segments:
            safe = encoded_segment(segment)
            if not safe:
                raise Permanent(f"{self.label}: the id {segment!r} cannot be part of a URL path")
            encoded.append(safe)
        return "".join(f"/{segment}" for segment in encoded)

    def _content(self, path: str, request: Request) -> bytes | None:
        """The request body. Raises Permanent for values that JSON cannot hold."""
        if request.form is not None:
            return str(httpx.QueryParams(dict(request.form))).encode()
        try:
            return None if request.body is None else orjson.dumps(request.body)
        except TypeError:
            pass
        raise Permanent(self._classifier.message(path, "the ids cannot be written as JSON"))

    def _build(self, path: str, request: Request, content: bytes | None, auth: AuthParts) -> httpx.Request:
        kind = "application/json" if request.form is None else "application/x-www-form-urlencoded"
        headers = {**({} if content is None else {"Content-Type": kind}), **request.headers, **auth[0]}
        params = httpx.QueryParams([*request.params, *auth[1]])
        url = self._base + path
        return self._client.build_request(request.method, url, params=params, content=content, headers=headers)

    async def _attempt(self, path: str, request: Request, content: bytes | None, auth: AuthParts) -> Response | Failure:
        observed_at = self._clock()
        cap = request.max_body_bytes or self.policy.max_body_bytes
        try:
            built = self._build(path, request, content, auth)
            async with asyncio.timeout(self.policy.deadline), streamed(self._client, built) as response:
                server_time = _plausible(http_date(response.headers.get("date")), observed_at)
                failure = self._classifier.rejected(path, response, server_time, observed_at, known=self._accepted)
                if failure is not None:
                    if isinstance(failure.error, StatusError):
                        failure.error.body = await error_body(response)
                        return self._classifier.reread(path, failure.error, self._meaning)
                    return failure
                body = await read_body(response, cap)
                link = response.links.get("next", {}).get("url")
        except (httpx.InvalidURL, UnicodeEncodeError):
            return self._unsendable(path)
        except (TimeoutError, OSError, httpx.HTTPError, httpx.StreamError, BodyError) as error:
            return self._classifier.broken(path, error, cap)
        value = self._decoded(path, body, request.shape)
        if isinstance(value, Failure):
            return value
        return Response(value, observed_at, server_time, link, response.headers)

    def _unsendable(self, path: str) -> Failure:
        return Failure(Permanent(self._classifier.message(path, "the id or the cursor does not fit into a URL")))

    def _decoded(self, path: str, body: bytes, shape: str) -> Any:
        message = self._classifier.message
        if not body.strip():
            return Failure(SchemaDrift(message(path, "the response is empty")))
        try:
            value = parse_json(body)
        except TooManyValuesError:
            return Failure(ResponseTooLarge(message(path, f"the response holds more than {MAX_VALUES} values")))
        except ValueError:
            return Failure(SchemaDrift(message(path, f"{len(body)} bytes that are not valid JSON")), retry=True)
        if not isinstance(value, _SHAPES[shape]):
            return Failure(SchemaDrift(message(path, f"a JSON {type(value).__name__} and not {_SHAPE_NAMES[shape]}")))
        return value


_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "chm-dagster"}
_SHAPE_NAMES = {"object": "an object", "list": "a list"}


def _client(policy: HttpPolicy, headers: Mapping[str, str], *, https: bool) -> httpx.AsyncClient:
    # Plain http needs no certificates, and loading them is slow.
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if https:
        trust = httpx.create_ssl_context(trust_env=False)
        # The system's store as well, for servers behind a company's own certificate authority.
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


async def post_once(
    label: str,
    url: str,
    content: bytes,
    headers: Mapping[str, str],
    *,
    policy: HttpPolicy = DEFAULT_POLICY,
    reads_body: bool = False,
) -> bytes:
    """POST to an address that is a secret, once. A status of 2xx is success, whatever follows.

    With `reads_body`, returns the body of the response, which may have 64 kB. Nothing of the URL but its host is in an
    error. No redirect is followed. Raises ConfigError for an unusable URL, and the errors of `HttpClient.send`.
    """
    silence_http_loggers()
    target = checked_target(label, url)
    classifier = Classifier(
        label, address_of(target), "check the address and its secret", LONGEST_RETRY_AFTER, policy.deadline, 5.0
    )
    async with _client(policy, {"User-Agent": "chm-dagster", **headers}, https=target.scheme == "https") as client:
        failure = None
        now = _utc_now()
        try:
            request = client.build_request("POST", target, content=content)
            async with asyncio.timeout(policy.deadline), streamed(client, request) as response:
                if 200 <= response.status_code < 300:
                    return await read_body(response, MAX_ERROR_BODY) if reads_body else b""
                server_time = _plausible(http_date(response.headers.get("date")), now)
                failure = classifier.rejected("", response, server_time, now, known=False)
        except (TimeoutError, OSError, httpx.HTTPError, httpx.StreamError, BodyError) as error:
            failure = classifier.broken("", error, MAX_ERROR_BODY)
    # Raised outside of the handlers: the libraries' exceptions carry the URL.
    raise failure.error if failure is not None else Transient(f"{label}: unusable response")

"""One way to ask a partner for JSON over HTTP that cannot hang, flood, leak or be fooled.

httpx's own timeouts are per socket operation, so a body of a byte a second never ends: each attempt runs under one
deadline. What went wrong is told in the words of `verdicts` alone.
"""

import asyncio
import dataclasses
import logging
import random as _random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
import orjson

from chm_dagster.errors import Permanent, SchemaDrift
from chm_dagster.partners.addresses import checked_base, encoded_segment, link_below
from chm_dagster.partners.body import BodyError, parse_json, read_body
from chm_dagster.partners.credentials import Credentials, Fixed, Proof, bearer
from chm_dagster.partners.redaction import silence_http_loggers
from chm_dagster.partners.retry import RetryBudget, full_jitter, http_date
from chm_dagster.partners.verdicts import Failure, Verdicts

logger = logging.getLogger(__name__)

_CLOCK_ALLOWANCE = timedelta(days=1)
_SHAPES: Mapping[str, tuple[type, ...]] = {"object": (dict,), "list": (list,), "any": (object,)}


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
    requests_per_minute: float | None = None
    """Requests are spaced evenly to stay below it; None leaves it to `concurrency`."""


DEFAULT_POLICY = HttpPolicy()


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """A request below the base URL. `body` is sent as JSON, `form` as a form; `shape` is what the answer must be.

    POST is for partners whose queries are POSTs: it is repeated after a failure like a GET.
    """

    path: Sequence[str] = ()
    params: Sequence[tuple[str, str]] = ()
    method: Literal["GET", "POST"] = "GET"
    body: Any = None
    form: Mapping[str, str] | None = None
    slash: bool = False
    """Whether the path ends with a slash."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: Literal["object", "list", "any"] = "object"
    max_body_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """JSON that a partner sent: an object, unless another shape was asked for.

    `observed_at` is when the request started, by our clock. `server_time` is the answer's Date header; None if it is
    missing, junk, or more than a day ahead of our clock: a watermark must not be set by it. Both are aware, in UTC.
    `next_link` is the address of the next page where a Link header names one.
    """

    body: Any
    observed_at: datetime
    server_time: datetime | None
    next_link: str | None = None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PartnerHttp:
    """The HTTP side of one connection: it asks for JSON below `base_url`. To be used within one event loop.

    `token` is sent as a bearer token; `credentials` are any other proof. `headers` go with every request. `clock` gives
    aware times; `sleep` and `random` (0 to 1) serve the backoff. Raises ConfigError for a base URL or a token that
    cannot be used.
    """

    def __init__(
        self,
        connection: str,
        base_url: str,
        *,
        token: str | None = None,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        policy: HttpPolicy = DEFAULT_POLICY,
        clock: Callable[[], datetime] = _utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        silence_http_loggers()
        self.connection = connection
        self.policy = policy
        self.credentials = credentials or (Fixed() if token is None else bearer(connection, token))
        url = checked_base(connection, base_url)
        self._host = url.host
        self._base = str(url).rstrip("/")
        self._clock, self._sleep, self._random = clock, sleep, random
        self._slots = asyncio.Semaphore(policy.concurrency)
        self._budget = RetryBudget(policy.retry_tokens)
        self._verdicts = Verdicts(connection, url.host, self.credentials.hint, policy.max_wait)
        self._next_start = 0.0
        self._accepted = False
        self._client = _client(policy, {**_HEADERS, **(headers or {})}, https=url.scheme == "https")

    def __repr__(self) -> str:
        return f"PartnerHttp(connection={self.connection!r}, host={self._host!r})"

    async def __aenter__(self) -> "PartnerHttp":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection's sockets."""
        await self._client.aclose()

    def now(self) -> datetime:
        """Our own clock, which also stamps the answers."""
        return self._clock()

    async def get_json(self, path_segments: Sequence[str], params: Mapping[str, str] | None = None) -> Answer:
        """GET the JSON object at `{base_url}/{segments}`. Raises what `ask` raises."""
        return await self.ask(Ask(path_segments, tuple((params or {}).items())))

    async def ask(self, ask: Ask) -> Answer:
        """Send a request; each segment of its path is percent-encoded as a whole.

        An attempt is repeated after a timeout, a broken connection, 408, 429, 5xx except 501 and 505, and after a body
        that says it is JSON and does not parse: where the end of the body is the end of the connection, that is all
        one sees of a cut. If it still does not parse at the last attempt, the partner is wrong, not the network.
        After a 401 or 403 it is repeated once if the credentials can be renewed.

        Raises AuthError (401, 403), RateLimited (429 at the last attempt, or a Retry-After beyond `max_wait`),
        Transient, Permanent (`Refused` with the status, `Misconfigured` for a redirect and for TLS that cannot be
        trusted), SchemaDrift (not JSON of the wanted shape).
        """
        # The slot is kept while waiting: a partner that asks for quiet gets it.
        async with self._slots:
            proof = await self.credentials.proof(self.ask_unproven)
            self._accepted = self._accepted or self.credentials.signs_in
            outcome = await self._repeated(ask, proof)
            if isinstance(outcome, Failure) and outcome.denied and self._renewed(proof, outcome):
                outcome = await self._repeated(ask, await self.credentials.proof(self.ask_unproven))
        if isinstance(outcome, Failure):
            raise outcome.error
        self._accepted = True
        return outcome

    async def ask_unproven(self, ask: Ask) -> Answer:
        """Like `ask`, without credentials and outside of the slots: for signing in, which happens within one."""
        outcome = await self._repeated(ask, ({}, ()))
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def below(self, link: str) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
        """Path segments and parameters of a link that the partner sent. Raises SchemaDrift for one that leads away."""
        found = link_below(self._base, link)
        if found is None:
            raise SchemaDrift(f"connection {self.connection}: the link to the next page leads away from base_url")
        return found

    def _renewed(self, proof: Proof, failure: Failure) -> bool:
        return self.credentials.renew(proof, ended=failure.status == 401)

    async def _repeated(self, ask: Ask, proof: Proof) -> Answer | Failure:
        path = self._path(ask.path) + ("/" if ask.slash else "")
        content = self._content(path, ask)
        attempt = 1
        while True:
            await self._pace()
            outcome = await self._attempt(path, ask, content, proof)
            if isinstance(outcome, Answer):
                self._budget.earn()
                return outcome
            wait = self._wait(outcome, attempt)
            if wait is None:
                return outcome
            logger.info("%s; attempt %d, next in %.1f s", outcome.error, attempt, wait)
            await self._sleep(wait)
            attempt += 1

    async def _pace(self) -> None:
        if self.policy.requests_per_minute is not None:
            now = asyncio.get_running_loop().time()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / self.policy.requests_per_minute
            if start > now:
                await self._sleep(start - now)

    def _wait(self, failure: Failure, attempt: int) -> float | None:
        if not failure.retry or attempt >= self.policy.attempts or not self._budget.spend(failure.cost):
            return None
        own = full_jitter(attempt, base=self.policy.backoff_base, cap=self.policy.backoff_cap, random=self._random)
        return own + (failure.retry_after or 0.0)

    def _path(self, segments: Sequence[str]) -> str:
        encoded = []
        for segment in segments:
            plain = encoded_segment(segment)
            if not plain:
                raise Permanent(f"connection {self.connection}: the id {segment!r} cannot be part of a URL's path")
            encoded.append(plain)
        return "".join(f"/{segment}" for segment in encoded)

    def _content(self, path: str, ask: Ask) -> bytes | None:
        """The body to send. Raises Permanent for what JSON cannot hold."""
        if ask.form is not None:
            return str(httpx.QueryParams(dict(ask.form))).encode()
        try:
            return None if ask.body is None else orjson.dumps(ask.body)
        except TypeError:
            pass
        raise Permanent(self._verdicts.says(path, "the ids do not fit into JSON"))

    def _request(self, path: str, ask: Ask, content: bytes | None, proof: Proof) -> httpx.Request:
        kind = {"Content-Type": "application/x-www-form-urlencoded" if ask.form is not None else "application/json"}
        headers = {**(kind if content is not None else {}), **ask.headers, **proof[0]}
        params = httpx.QueryParams([*ask.params, *proof[1]])
        return self._client.build_request(
            ask.method, self._base + path, params=params, content=content, headers=headers
        )

    async def _attempt(self, path: str, ask: Ask, content: bytes | None, proof: Proof) -> Answer | Failure:
        observed_at = self._clock()
        cap = ask.max_body_bytes or self.policy.max_body_bytes
        try:
            request = self._request(path, ask, content, proof)
            async with asyncio.timeout(self.policy.deadline), _streamed(self._client, request) as response:
                server_time = _plausible(http_date(response.headers.get("date")), observed_at)
                failure = self._verdicts.refusal(path, response, server_time, observed_at, known=self._accepted)
                if failure is not None:
                    return failure
                body = await read_body(response, cap)
                link = response.links.get("next", {}).get("url")
        except (httpx.InvalidURL, UnicodeEncodeError):
            return Failure(Permanent(self._verdicts.says(path, "the id or the cursor does not fit into a URL")))
        except (TimeoutError, OSError, httpx.HTTPError, httpx.StreamError, BodyError) as error:
            return self._verdicts.broken(path, error, cap)
        value = self._decoded(path, body, ask.shape)
        return value if isinstance(value, Failure) else Answer(value, observed_at, server_time, link)

    def _decoded(self, path: str, body: bytes, shape: str) -> Any:
        says = self._verdicts.says
        if not body.strip():
            return Failure(SchemaDrift(says(path, "an empty answer")))
        try:
            value = parse_json(body)
        except (ValueError, RecursionError):
            return Failure(SchemaDrift(says(path, f"{len(body)} bytes that are not valid JSON")), retry=True)
        if not isinstance(value, _SHAPES[shape]):
            return Failure(SchemaDrift(says(path, f"a JSON {type(value).__name__} and not {_SHAPE_NAMES[shape]}")))
        return value


_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "chm-dagster"}
_SHAPE_NAMES = {"object": "an object", "list": "a list"}


@asynccontextmanager
async def _streamed(client: httpx.AsyncClient, request: httpx.Request) -> AsyncIterator[httpx.Response]:
    response = await client.send(request, stream=True)
    try:
        yield response
    finally:
        await response.aclose()


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

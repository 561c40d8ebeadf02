"""Where requests may go and how they sign in: checked URLs, static headers or parameters, or a session that a login
opens.

Secrets live in these objects only; none appears in a repr, an error or a log line.
"""

import asyncio
import base64
import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import httpx

from chm_dagster.errors import AuthError, ConfigError, RemoteError, SchemaDrift, Transient

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def checked_base(label: str, base_url: str) -> httpx.URL:
    """The base URL, parsed. Raises ConfigError, without showing it, for an unusable one."""
    url = _parsed(base_url)
    if url is None:
        raise ConfigError(f"{label}: base_url is not a URL that starts with http:// or https://")
    if url.userinfo or "?" in base_url or "#" in base_url:
        raise ConfigError(
            f"{label}: base_url must be free of user, password, query and fragment; "
            "put the token into the variable that holds it"
        )
    return url


def checked_target(label: str, target: str) -> httpx.URL:
    """The address of a webhook, parsed. Raises ConfigError, without showing it, for an unusable one."""
    url = _parsed(target)
    if url is None or url.userinfo:
        raise ConfigError(f"{label}: its address is not a URL that starts with https:// or http://, without a user")
    return url


def _parsed(text: str) -> httpx.URL | None:
    """An HTTP URL with a host; None for anything else. It raises nothing: the errors of parsers quote the URL."""
    try:
        urlsplit(text).port  # noqa: B018 - raises on what is no port
        url = httpx.URL(text.strip())
        has_host = bool(url.host)  # raises on invalid Punycode
    except (ValueError, TypeError, httpx.InvalidURL):
        return None
    return url if has_host and url.scheme in ("http", "https") else None


def address_of(url: httpx.URL) -> str:
    """`host:port`, for messages."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port or _DEFAULT_PORTS[url.scheme]}"


def encoded_segment(segment: str) -> str:
    """The segment, percent-encoded as a whole; empty for one that cannot be part of a path."""
    # Dots survive encoding, and any path normalizer on the way would resolve them to another resource.
    if segment in (".", ".."):
        return ""
    try:
        return quote(segment, safe="")
    except UnicodeEncodeError:
        return ""


def redirect_host(location: str, own: str) -> str:
    """The target host of a redirect in a form that is safe to show; `own` for a relative one."""
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = ""
    if host is None:
        return own
    return host if _HOST.fullmatch(host) else "an unreadable address"


def link_below(base_url: str, link: str) -> tuple[Sequence[str], Sequence[tuple[str, str]]] | None:
    """Path segments below the base URL and parameters of a link from a response; None if it leaves the base URL.

    A link without a host refers to the host of the base URL.
    """
    try:
        base, there = urlsplit(base_url), urlsplit(link)
        if there.netloc and _origin(there.scheme, there.hostname, there.port) != _origin(
            base.scheme, base.hostname, base.port
        ):
            return None
        params = parse_qsl(there.query, keep_blank_values=True, errors="strict")
    except ValueError:
        return None
    root = base.path.rstrip("/")
    if there.username or there.password or not there.path.startswith(f"{root}/"):
        return None
    return [unquote(part) for part in there.path[len(root) + 1 :].split("/")], params


def _origin(scheme: str, host: str | None, port: int | None) -> tuple[str, str | None, int | None]:
    return scheme, host, port or _DEFAULT_PORTS.get(scheme)


_HEADER_VALUE = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
TOKEN_HINT = "set the variable that holds its token"  # noqa: S105 - words, not a token
SESSION_TRUST_SECONDS = 60.0
"""A 403 within this time of the login is a lack of rights: logging in again would not help."""

Send = Callable[[Any], Awaitable[Any]]
"""Sends an `http.client.Request` without credentials and returns the Response."""

AuthParts = tuple[Mapping[str, str], Sequence[tuple[str, str]]]
"""Headers and query parameters."""
NO_PARTS: AuthParts = ({}, ())


class Auth(Protocol):
    """How requests are authenticated. `hint` says how to fix refused credentials."""

    hint: str
    has_login: bool
    """Whether a successful `authenticate` means that the server has accepted the credentials."""

    @property
    def sends_credentials(self) -> bool:
        """Whether it adds anything to requests."""
        ...

    async def authenticate(self, send: Send, request: httpx.Request) -> AuthParts:
        """Headers and parameters for one attempt of `request`, which is complete but for them.

        `send` reaches the same server without credentials. Raises RemoteError if the login fails.
        """
        ...

    def renew(self, refused: AuthParts, *, expired: bool) -> bool:
        """Whether authenticating again may help after these parts were refused.

        `expired`: the server answered 401. A 403 may also be a lack of rights.
        """
        ...


class StaticAuth:
    """The same headers and parameters on every request; anonymous if there are none."""

    has_login = False

    def __init__(
        self, headers: Mapping[str, str] | None = None, params: Sequence[tuple[str, str]] = (), hint: str = TOKEN_HINT
    ) -> None:
        self.hint = hint
        self._parts: AuthParts = (dict(headers or {}), tuple(params))

    @property
    def sends_credentials(self) -> bool:
        """Whether there are any."""
        return any(self._parts)

    async def authenticate(self, send: Send, request: httpx.Request) -> AuthParts:
        """Always the same parts."""
        return self._parts

    def renew(self, refused: AuthParts, *, expired: bool) -> bool:
        """Never: nothing would change."""
        return False


def bearer(label: str, token: str, hint: str = TOKEN_HINT) -> StaticAuth:
    """A bearer token. Raises ConfigError, without showing it, for one that a header cannot carry."""
    # The library that refuses an invalid header would quote it.
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{label}: the token is empty or holds a blank or a special character")
    return StaticAuth({"Authorization": f"Bearer {token}"}, hint=hint)


def header(label: str, name: str, value: str, hint: str = TOKEN_HINT) -> StaticAuth:
    """Any other header. Raises ConfigError, without showing it, for a value that a header cannot carry."""
    if not _HEADER_VALUE.fullmatch(value):
        raise ConfigError(f"{label}: a credential is empty or holds a special character")
    return StaticAuth({name: value}, hint=hint)


def basic(label: str, pair: str, hint: str = TOKEN_HINT) -> StaticAuth:
    """HTTP Basic from `user:password`. Raises ConfigError for a pair without a colon."""
    if ":" not in pair:
        raise ConfigError(f"{label}: the user and password are not written as user:password")
    encoded = base64.b64encode(pair.encode(errors="surrogatepass")).decode()
    return StaticAuth({"Authorization": f"Basic {encoded}"}, hint=hint)


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """What a login returns, and for how many seconds it is valid; None if the server does not say."""

    value: Any = dataclasses.field(repr=False)
    seconds: float | None = None


EXPIRY_MARGIN_SECONDS = 60.0
"""How long before a token expires it is replaced, so that no request carries one that expires on its way."""


class LoginSession:
    """A token that `log_in` fetches on first use, again shortly before it expires, and when the server refuses it.

    `log_in` gets a `send` function for the client's own server and returns the token; it raises RemoteError.
    Concurrent requests share one login. `clock` returns seconds.
    """

    has_login = True
    sends_credentials = True

    def __init__(
        self,
        label: str,
        log_in: Callable[[Send], Awaitable[Token]],
        *,
        name: str = "Authorization",
        prefix: str = "Bearer ",
        hint: str = TOKEN_HINT,
        clock: Callable[[], float],
    ) -> None:
        self.hint = hint
        self._label = label
        self._log_in = log_in
        self._name, self._prefix = name, prefix
        self._clock = clock
        self._lock = asyncio.Lock()
        self._current: AuthParts | None = None
        self._since = 0.0
        self._until: float | None = None

    async def authenticate(self, send: Send, request: httpx.Request) -> AuthParts:
        """The session's token; logs in if there is none that stays valid for a while."""
        async with self._lock:
            if self._current is None or (self._until is not None and self._clock() >= self._until):
                token = await self._fetched(send)
                self._current = ({self._name: self._prefix + self._checked(token.value)}, ())
                self._since = self._clock()
                self._until = None if token.seconds is None else self._since + _useful(token.seconds)
            return self._current

    async def _fetched(self, send: Send) -> Token:
        try:
            return await self._log_in(send)
        except (AuthError, Transient):
            raise
        except RemoteError as error:
            # Whatever the reason, there is no session, and no other request would fare better.
            refusal: RemoteError = AuthError(f"{error}; login failed; {self.hint}")
        raise refusal

    def _checked(self, token: Any) -> str:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise SchemaDrift(f"{self._label}: the login response holds no usable token")
        return token

    def renew(self, refused: AuthParts, *, expired: bool) -> bool:
        """True if another request has logged in again meanwhile, or if this session may have expired."""
        if refused is not self._current:
            return True
        if not expired and self._clock() - self._since < SESSION_TRUST_SECONDS:
            return False
        self._current = None
        return True


def _useful(seconds: float) -> float:
    return max(seconds - EXPIRY_MARGIN_SECONDS, seconds / 2)

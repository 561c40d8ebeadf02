"""How requests prove who asks: with a fixed header or parameter, or with a session that is opened by signing in.

Secrets live in these objects only; none of them shows one in a repr, an error or a log line.
"""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from chm_dagster.errors import AuthError, ConfigError, PartnerError, SchemaDrift, Transient

_SENDABLE = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
TOKEN_HINT = "set the variable that holds its token"  # noqa: S105 - words, not a token
SESSION_TRUST_SECONDS = 60.0
"""A session this young is not the reason for a 403: signing in again would not help."""

Transport = Callable[[Any], Awaitable[Any]]
"""Sends a request (an `http.Ask`) without a proof, and gives its answer."""

Proof = tuple[Mapping[str, str], Sequence[tuple[str, str]]]
"""Headers and query parameters."""


class Credentials(Protocol):
    """What a connection proves itself with. `hint` tells a person what to do when it is refused."""

    hint: str
    signs_in: bool
    """Whether having a proof means that the partner has already accepted us."""

    @property
    def is_proof(self) -> bool:
        """Whether anything is sent at all."""
        ...

    async def proof(self, transport: Transport) -> Proof:
        """What to send along. `transport` asks the partner without any proof.

        Raises PartnerError if a session cannot be opened.
        """
        ...

    def renew(self, refused: Proof, *, ended: bool) -> bool:
        """Whether another try with a new proof may succeed where this one was refused.

        `ended` is what a 401 says: nobody is signed in. A 403 may mean that too, or a lack of rights.
        """
        ...


class Fixed:
    """The same headers and parameters with every request; no proof at all without any."""

    signs_in = False

    def __init__(
        self, headers: Mapping[str, str] | None = None, params: Sequence[tuple[str, str]] = (), hint: str = TOKEN_HINT
    ) -> None:
        self.hint = hint
        self._proof: Proof = (dict(headers or {}), tuple(params))

    @property
    def is_proof(self) -> bool:
        """Whether there are any."""
        return any(self._proof)

    async def proof(self, transport: Transport) -> Proof:
        """The same as ever."""
        return self._proof

    def renew(self, refused: Proof, *, ended: bool) -> bool:
        """Never: there is nothing new to send."""
        return False


def bearer(connection: str, token: str, hint: str = TOKEN_HINT) -> Fixed:
    """A bearer token. Raises ConfigError, without showing it, for one that cannot be sent."""
    # A header that cannot be sent would be quoted by the library that refuses it.
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"connection {connection}: the token is empty or holds a blank or a special character")
    return Fixed({"Authorization": f"Bearer {token}"}, hint=hint)


def header(connection: str, name: str, value: str, hint: str = TOKEN_HINT) -> Fixed:
    """A header of any name. Raises ConfigError, without showing it, for a value that cannot be sent."""
    return Fixed({name: sendable(connection, value)}, hint=hint)


def basic(connection: str, pair: str, hint: str = TOKEN_HINT) -> Fixed:
    """HTTP Basic from `user:password`. Raises ConfigError for a pair without a colon."""
    if ":" not in pair:
        raise ConfigError(f"connection {connection}: the user and password are not written as user:password")
    encoded = base64.b64encode(pair.encode(errors="surrogatepass")).decode()
    return Fixed({"Authorization": f"Basic {encoded}"}, hint=hint)


def sendable(connection: str, value: str) -> str:
    """The value, if a header can carry it. Raises ConfigError, without showing it, if not."""
    if not _SENDABLE.fullmatch(value):
        raise ConfigError(f"connection {connection}: a credential is empty or holds a special character")
    return value


class Session:
    """A token that `sign_in` fetches when it is first needed, and again, once, when it is refused.

    `sign_in` is given the connection's own transport, if the token comes from there, and returns the partner's token;
    it raises PartnerError. Workers that need a session at the same time wait for one sign-in. `clock` counts seconds.
    """

    signs_in = True
    is_proof = True

    def __init__(
        self,
        connection: str,
        sign_in: Callable[[Transport], Awaitable[Any]],
        *,
        name: str = "Authorization",
        prefix: str = "Bearer ",
        hint: str = TOKEN_HINT,
        clock: Callable[[], float],
    ) -> None:
        self.hint = hint
        self._connection = connection
        self._sign_in = sign_in
        self._name, self._prefix = name, prefix
        self._clock = clock
        self._lock = asyncio.Lock()
        self._current: Proof | None = None
        self._since = 0.0

    async def proof(self, transport: Transport) -> Proof:
        """The session's token, fetched if there is none."""
        async with self._lock:
            if self._current is None:
                token = self._checked(await self._fetched(transport))
                self._current = ({self._name: self._prefix + token}, ())
                self._since = self._clock()
            return self._current

    async def _fetched(self, transport: Transport) -> Any:
        try:
            return await self._sign_in(transport)
        except (AuthError, Transient):
            raise
        except PartnerError as error:
            # Whatever else it says, nobody is signed in, and asking for something else will not change that.
            refusal: PartnerError = AuthError(f"{error}; signing in failed; {self.hint}")
        raise refusal

    def _checked(self, token: Any) -> str:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise SchemaDrift(f"connection {self._connection}: signing in gave no usable token")
        return token

    def renew(self, refused: Proof, *, ended: bool) -> bool:
        """True if somebody else has signed in anew meanwhile, or if this session may have ended."""
        if refused is not self._current:
            return True
        if not ended and self._clock() - self._since < SESSION_TRUST_SECONDS:
            return False
        self._current = None
        return True

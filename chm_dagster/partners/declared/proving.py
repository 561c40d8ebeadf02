"""From the configuration of an API's ways to prove who asks, and a connection's secrets, to credentials."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from chm_dagster.errors import ConfigError
from chm_dagster.partners.credentials import Credentials, Fixed, Session, Transport, basic, header
from chm_dagster.partners.declared.places import find
from chm_dagster.partners.declared.template import ABSENT, fill, names, render
from chm_dagster.partners.declared.ways import Auth, FixedAuth, Login, NoAuth
from chm_dagster.partners.http import Ask, HttpPolicy, PartnerHttp

_PREFIX = "credentials."


def needed(auth: Auth) -> frozenset[str]:
    """The names of the credentials that this way takes."""
    parts = auth.model_dump()
    return frozenset(name.removeprefix(_PREFIX) for name in names([parts]) if name.startswith(_PREFIX))


def fitting(ways: Sequence[Auth], given: frozenset[str]) -> Auth | None:
    """The way that takes exactly these credentials; None without one."""
    return next((way for way in ways if needed(way) == given), None)


def ways_in_words(ways: Sequence[Auth]) -> str:
    """All ways, as a person may choose from them: `username + password, or token, or none at all`."""
    return ", or ".join(" + ".join(sorted(needed(way))) or "none at all" for way in ways)


class Prover:
    """Makes the credentials of one connection. `secrets` are its credentials by name; `variables` hold them."""

    def __init__(
        self,
        connection: str,
        secrets: Mapping[str, str],
        variables: Sequence[str],
        options: Mapping[str, Any],
        policy: HttpPolicy,
    ) -> None:
        self._connection = connection
        self._values = {
            **{f"{_PREFIX}{name}": value for name, value in secrets.items()},
            **{f"options.{name}": value for name, value in options.items() if value is not None},
        }
        self._policy = policy
        self._hint = f"check {' and '.join(variables)}" if variables else "it takes credentials; name them"

    def credentials(self, auth: Auth) -> Credentials:
        """The credentials. Raises ConfigError, without showing it, for one that cannot be sent."""
        if isinstance(auth, NoAuth):
            return Fixed(hint=self._hint)
        if isinstance(auth, FixedAuth):
            return self._fixed(auth)
        return self._session(auth)

    def _fixed(self, auth: FixedAuth) -> Fixed:
        value = fill(auth.value, lambda name: self._values.get(name, ABSENT))
        if value is ABSENT:
            raise ConfigError(f"connection {self._connection}: not all of its credentials are known")
        if auth.kind == "basic":
            return basic(self._connection, value, self._hint)
        if auth.kind == "query":
            return Fixed(params=[(auth.name, value)], hint=self._hint)
        return header(self._connection, auth.name, value, self._hint)

    def _session(self, login: Login) -> Session:
        return Session(
            self._connection,
            lambda transport: self._signed_in(login, transport),
            name=login.name,
            prefix=login.prefix,
            hint=self._hint,
            clock=lambda: asyncio.get_running_loop().time(),
        )

    async def _signed_in(self, login: Login, transport: Transport) -> Any:
        ask = Ask(
            path=[part for part in str(render(login.path, self._values)).split("/") if part],
            method="POST",
            body=None if login.body is None else render(login.body, self._values),
            form=None if login.form is None else render(login.form, self._values),
        )
        if login.url is None:
            answer = await transport(ask)
        else:
            url = str(render(login.url, self._values))
            nobody = Fixed(hint=self._hint)
            async with PartnerHttp(self._connection, url, credentials=nobody, policy=self._policy) as elsewhere:
                answer = await elsewhere.ask_unproven(ask)
        return next(iter(find(answer.body, login.token)), None)

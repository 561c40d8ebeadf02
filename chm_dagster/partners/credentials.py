"""Authentication methods: how an API's configuration describes them, and how a connection's secrets become one."""

import asyncio
import base64
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, field_validator

from chm_dagster.domain.validation import did_you_mean
from chm_dagster.errors import ConfigError
from chm_dagster.http import auth as http_auth
from chm_dagster.http.client import HttpClient, HttpPolicy, Request
from chm_dagster.http.signatures import AwsSignature, JwtSigner
from chm_dagster.partners.engine.selectors import ABSENT, Model, checked_names, fill, find, names, render

_PREFIX = "credentials."


class _Templates(Model):
    """A method whose texts are templates over credentials and options."""

    @field_validator("*")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, frozenset(), ("credentials.", "options."))


class FixedAuth(_Templates):
    """A header or a parameter on every request. `value` is a template over ${credentials.name}."""

    kind: Literal["header", "query", "basic"]
    """`basic` encodes value, written as user:password, as HTTP Basic."""
    name: str = "Authorization"
    value: str


class NoAuth(Model):
    """No credentials."""

    kind: Literal["none"]


class Login(_Templates):
    """A token that a login request returns: from the partner itself, or from `url` (OAuth2 client credentials)."""

    kind: Literal["login"]
    url: str | None = None
    """The address of another token service, a template over ${options.name}."""
    path: str = ""
    """The path below base_url, or below url."""
    body: dict[str, Any] | None = None
    """Sent as JSON."""
    form: dict[str, str] | None = None
    """Sent as a form."""
    basic: str | None = None
    """Sent as HTTP Basic, written as user:password."""
    token: str = "access_token"  # noqa: S105 - the name of a field
    """Where the token is in the response."""
    name: str = "Authorization"
    prefix: str = "Bearer "


class Aws(_Templates):
    """Requests signed with AWS Signature Version 4."""

    kind: Literal["aws"]
    service: str
    """The name of the service in signatures, such as `states`."""
    region: str = "${options.region}"
    access_key_id: str = "${credentials.access_key_id}"
    secret_access_key: str = "${credentials.secret_access_key}"  # noqa: S105 - a template
    session_token: str | None = None
    """Of temporary credentials: `${credentials.session_token}`."""


class GoogleAccount(_Templates):
    """A token for a Google service account, from the JSON file with its key."""

    kind: Literal["google"]
    service_account: str = "${credentials.service_account}"
    """The content of the file."""
    scope: str = "https://www.googleapis.com/auth/cloud-platform"


class GithubApp(_Templates):
    """A token for an installation of a GitHub App."""

    kind: Literal["github_app"]
    app_id: str = "${credentials.app_id}"
    """The app's id, or its client id."""
    installation_id: str = "${credentials.installation_id}"
    private_key: str = "${credentials.private_key}"
    """In PEM form; line breaks may be written as \\n."""


Auth = Annotated[FixedAuth | NoAuth | Login | Aws | GoogleAccount | GithubApp, Field(discriminator="kind")]


def credential_names(method: Auth) -> frozenset[str]:
    """The names of the credentials that a method needs."""
    used = names([method.model_dump()])
    return frozenset(name.removeprefix(_PREFIX) for name in used if name.startswith(_PREFIX))


def matching(methods: Sequence[Auth], given: frozenset[str]) -> Auth | None:
    """The method that needs exactly these credentials; None if there is none."""
    return next((method for method in methods if credential_names(method) == given), None)


def credential_problem(methods: Sequence[Auth], given: Sequence[str]) -> tuple[str | None, str] | None:
    """What is wrong with the names of a connection's credentials, and which of them; None if a method takes them."""
    if matching(methods, frozenset(given)) is not None:
        return None
    choices = ", or ".join(_choice(method) for method in methods)
    known = sorted({name for method in methods for name in credential_names(method)})
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return None, f"this API takes {choices}"
    return unknown, f"unknown credential; {did_you_mean(unknown, known) or f'this API takes {choices}'}"


def _choice(method: Auth) -> str:
    return " and ".join(sorted(credential_names(method))) or "no credentials"


LogIn = Callable[[http_auth.Send], Awaitable[http_auth.Token]]
_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class Authenticator:
    """Builds the authentication of one connection's requests from its secrets.

    `secrets` are the credentials by name; `hint` says how to fix refused ones.
    """

    def __init__(
        self,
        label: str,
        secrets: Mapping[str, str],
        hint: str,
        options: Mapping[str, Any],
        policy: HttpPolicy,
    ) -> None:
        self._label = label
        self._values = {
            **{f"{_PREFIX}{name}": value for name, value in secrets.items()},
            **{f"options.{name}": value for name, value in options.items() if value is not None},
        }
        self._policy = policy
        self._hint = hint

    def auth(self, method: Auth) -> http_auth.Auth:
        """The authentication. Raises ConfigError, without showing it, for a secret that cannot be sent."""
        if isinstance(method, NoAuth):
            return http_auth.StaticAuth(hint=self._hint)
        if isinstance(method, FixedAuth):
            return self._fixed(method)
        if isinstance(method, Aws):
            return self._aws(method)
        if isinstance(method, GoogleAccount):
            return self._session(self._google_login(method))
        if isinstance(method, GithubApp):
            return self._session(self._github_login(method))
        return self._session(lambda send: self._log_in(method, send), name=method.name, prefix=method.prefix)

    def _session(self, log_in: LogIn, **sent_as: str) -> http_auth.LoginSession:
        clock = lambda: asyncio.get_running_loop().time()  # noqa: E731 - there is no loop yet
        return http_auth.LoginSession(self._label, log_in, hint=self._hint, clock=clock, **sent_as)

    def _aws(self, method: Aws) -> AwsSignature:
        return AwsSignature(
            self._label,
            service=method.service,
            region=self._text(method.region),
            access_key_id=self._text(method.access_key_id),
            secret_access_key=self._text(method.secret_access_key),
            session_token=None if method.session_token is None else self._text(method.session_token),
            hint=self._hint,
        )

    def _google_login(self, method: GoogleAccount) -> LogIn:
        account = _service_account(self._label, self._text(method.service_account), self._hint)
        key, key_id = account.private_key, account.private_key_id
        signer = JwtSigner(self._label, key, extra="google", hint=self._hint, key_id=key_id)
        claims = {"iss": account.client_email, "aud": account.token_uri, "scope": self._text(method.scope)}

        async def log_in(send: http_auth.Send) -> http_auth.Token:
            form = {"grant_type": _JWT_GRANT, "assertion": signer.assertion(claims)}
            response = await self._ask(account.token_uri, Request(method="POST", form=form))
            return _token(response.body, "access_token")

        return log_in

    def _github_login(self, method: GithubApp) -> LogIn:
        signer = JwtSigner(self._label, self._text(method.private_key), extra="github-app", hint=self._hint)
        claims = {"iss": self._text(method.app_id)}
        path = ["app", "installations", self._text(method.installation_id), "access_tokens"]

        async def log_in(send: http_auth.Send) -> http_auth.Token:
            headers = {"Authorization": f"Bearer {signer.assertion(claims)}"}
            return _token((await send(Request(path, method="POST", headers=headers))).body, "token")

        return log_in

    def _fixed(self, method: FixedAuth) -> http_auth.StaticAuth:
        value = self._text(method.value)
        if method.kind == "basic":
            return http_auth.basic(self._label, value, self._hint)
        if method.kind == "query":
            return http_auth.StaticAuth(params=[(method.name, value)], hint=self._hint)
        return http_auth.header(self._label, method.name, value, self._hint)

    def _text(self, template: str) -> str:
        filled = fill(template, lambda name: self._values.get(name, ABSENT))
        if filled is ABSENT:
            raise ConfigError(f"{self._label}: a credential or an option of its login is not set")
        return str(filled)

    async def _log_in(self, login: Login, send: http_auth.Send) -> http_auth.Token:
        headers = {}
        if login.basic is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self._text(login.basic).encode()).decode()}"
        request = Request(
            path=[part for part in str(render(login.path, self._values)).split("/") if part],
            method="POST",
            body=None if login.body is None else render(login.body, self._values),
            form=None if login.form is None else render(login.form, self._values),
            headers=headers,
        )
        response = await (send(request) if login.url is None else self._ask(self._text(login.url), request))
        return _token(response.body, login.token)

    async def _ask(self, url: str, request: Request) -> Any:
        """The response of a token service."""
        anonymous = http_auth.StaticAuth(hint=self._hint)
        async with HttpClient(self._label, url, auth=anonymous, policy=self._policy) as client:
            return await client.send_unauthenticated(request)


@dataclasses.dataclass(frozen=True, slots=True)
class _ServiceAccount:
    client_email: str
    token_uri: str
    private_key: str = dataclasses.field(repr=False)
    private_key_id: str | None


def _service_account(label: str, text: str, hint: str) -> _ServiceAccount:
    """The parts of a service account's JSON file. Raises ConfigError, without showing it."""
    try:
        content = orjson.loads(text)
    except ValueError:
        content = None
    fields = content if isinstance(content, dict) else {}
    values = [fields.get(name) for name in ("client_email", "token_uri", "private_key")]
    if not all(isinstance(value, str) and value for value in values):
        raise ConfigError(
            f"{label}: the service account is not the content of a JSON key file with client_email, token_uri and "
            f"private_key; {hint}"
        )
    email, token_uri, key = map(str, values)
    key_id = fields.get("private_key_id")
    return _ServiceAccount(email, token_uri, key, key_id if isinstance(key_id, str) else None)


def _token(body: Any, selector: str) -> http_auth.Token:
    """The token in a login response, and how long it is valid, if OAuth's or GitHub's field says so."""
    seconds = find(body, "expires_in")[:1]
    expires_at = find(body, "expires_at")[:1]
    lifetime = None
    if seconds and isinstance(seconds[0], int | float) and not isinstance(seconds[0], bool) and seconds[0] > 0:
        lifetime = float(seconds[0])
    elif expires_at and isinstance(expires_at[0], str):
        lifetime = _seconds_until(expires_at[0])
    return http_auth.Token(next(iter(find(body, selector)), None), lifetime)


def _seconds_until(text: str) -> float | None:
    try:
        end = datetime.fromisoformat(text)
    except ValueError:
        return None
    left = (end - datetime.now(UTC)).total_seconds() if end.tzinfo is not None else 0.0
    # A clock that is off makes no token useless: then the server says when it has expired.
    return left if left > 0 else None

"""Ways to prove who asks, as a configuration describes them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from chm_dagster.partners.declared.base import Model, checked_names


class FixedAuth(Model):
    """A header or a parameter with every request. `value` is a template over ${credentials.name}."""

    kind: Literal["header", "query", "basic"]
    """`basic` encodes value, written as user:password, as HTTP Basic."""
    name: str = "Authorization"
    value: str

    @field_validator("value")
    @classmethod
    def _names_are_known(cls, value: str) -> str:
        return str(checked_names(value, frozenset(), ("credentials.", "options.")))


class NoAuth(Model):
    """No credentials."""

    kind: Literal["none"]


class Login(Model):
    """A token that is fetched with credentials: from the partner itself, or from `url` (OAuth2 client credentials)."""

    kind: Literal["login"]
    url: str | None = None
    """The address of a token service elsewhere, a template over ${options.name}."""
    path: str = ""
    """The path below base_url, or below url."""
    body: dict[str, Any] | None = None
    """Sent as JSON."""
    form: dict[str, str] | None = None
    """Sent as a form."""
    token: str = "access_token"  # noqa: S105 - the name of a field
    """Where the token is in the answer."""
    name: str = "Authorization"
    prefix: str = "Bearer "

    @field_validator("url", "path", "body", "form")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, frozenset(), ("credentials.", "options."))


Auth = Annotated[FixedAuth | NoAuth | Login, Field(discriminator="kind")]

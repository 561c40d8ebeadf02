"""The file partners.yaml: its connections, validated, each with the API that it speaks."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.redaction import looks_like_secret
from chm_dagster.domain.validation import did_you_mean
from chm_dagster.errors import ConfigError
from chm_dagster.http.auth import checked_base
from chm_dagster.partners.credentials import credential_problem
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.selectors import Model
from chm_dagster.partners.platforms import GENERIC, api_of, shipped
from chm_dagster.yaml_document import Document, Location, parse, validate

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,199}$"


def _has_form(pattern: str, issue: str) -> AfterValidator:
    """A pattern with a message of its own."""

    def check(value: str) -> str:
        if re.match(pattern, value) is None:
            raise ValueError(issue)
        return value

    return AfterValidator(check)


Name = Annotated[
    str,
    _has_form(_NAME, "a name has letters, digits, dots, dashes and underscores, at most 100, and no sign first"),
    WithJsonSchema({"type": "string", "pattern": _NAME}),
]
Variable = Annotated[
    str,
    _has_form(_VARIABLE, "must be the name of an environment variable, never the secret itself"),
    WithJsonSchema({"type": "string", "pattern": _VARIABLE}),
]
Setting = str | int | float | bool | None


class Http(Model):
    """Timeouts, concurrency and size limits of one connection's requests."""

    concurrency: int = Field(default=4, ge=1, le=64)
    """The most requests at the same time."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    deadline_seconds: float = Field(default=30, gt=0, le=600)
    """For one attempt: from the first byte sent to the last byte of the response."""
    max_body_megabytes: float = Field(default=32, gt=0, le=512)


class ConnectionConfig(Model):
    """One partner instance."""

    platform: Platform | None = None
    """Whose pipelines it reads. Pipelines of this platform that name no connection use it, if it is the only one of
    the platform, or its default."""
    api: str | None = None
    """Which API it speaks, if that does not follow from the platform: see `chm partner list --apis`."""
    rest: Rest | None = None
    """The description of an API that CHM does not ship with."""
    base_url: str | None = None
    base_url_env: Variable | None = None
    """The environment variable that holds base_url."""
    credentials: dict[str, Variable] = {}
    """For each credential, the name of the environment variable that holds it; never the secret itself."""
    options: dict[str, Setting] = {}
    """Settings of the API."""
    default: bool = False
    """Whether it is the default among several connections of its platform."""
    overlap_minutes: float | None = Field(default=None, ge=0)
    history_days: float | None = Field(default=None, gt=0)
    http: Http = Http()


class PartnersFile(Model):
    """Connections to partners, by name."""

    connections: dict[Name, ConnectionConfig]


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """One configured connection, and the description of the API that it speaks."""

    name: str
    config: ConnectionConfig
    rest: Rest

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"connection {self.name}"

    @property
    def platform(self) -> Platform:
        """Whose pipelines it reads."""
        return self.config.platform or self.rest.platform

    @property
    def options(self) -> dict[str, Any]:
        """Its options, with the defaults of those that it does not set."""
        return {name: self.config.options.get(name, option.default) for name, option in self.rest.options.items()}


def read_connections(path: Path) -> list[Connection]:
    """The connections of the file. Raises ConfigError with a line for each problem, by line number and field."""
    document = parse(_contents(path), path.name)
    return connections_of(document)


def _contents(path: Path) -> str:
    problem = "is not UTF-8"
    try:
        return path.read_text(encoding="utf-8")
    except IsADirectoryError:
        problem = "is a directory"
    except FileNotFoundError:
        problem = "does not exist"
    except OSError as error:
        problem = f"cannot be read ({(error.strerror or 'unknown reason').lower()})"
    except UnicodeDecodeError:
        pass
    raise ConfigError(f"{path.name} {problem}; CHM_PARTNERS_FILE names it")


def connections_of(document: Document) -> list[Connection]:
    """The connections in a document. Raises ConfigError."""
    _refuse_secrets(document)
    file = validate(PartnersFile, document, "see contracts/partners.example.yaml")
    found = [Connection(name, config, _api(config)) for name, config in file.connections.items()]
    problems = [
        document.message(["connections", one.name, *location], issue)
        for one in found
        for location, issue in _problems(one)
    ]
    problems += [document.message(["connections", name, "default"], issue) for name, issue in _second_defaults(found)]
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _refuse_secrets(document: Document) -> None:
    """Raises ConfigError for secrets in the place of a connection's name: names appear in logs and tables."""
    connections = document.data.get("connections") if isinstance(document.data, Mapping) else None
    for name in connections if isinstance(connections, Mapping) else ():
        if isinstance(name, str) and looks_like_secret(name):
            line, _ = document.locate(["connections", name])
            issue = "the name of this connection looks like a secret; choose another, since names appear in logs"
            raise ConfigError(f"{document.name}, line {line}, connections: {issue}")


def _api(config: ConnectionConfig) -> Rest:
    if config.rest is not None:
        return config.rest
    api = config.api or (api_of(config.platform) if config.platform else GENERIC)
    # An unknown name is reported with the other problems of the connection.
    return shipped().get(api) or shipped()[GENERIC]


def _problems(one: Connection) -> Iterator[tuple[Location, str]]:
    config = one.config
    apis = [*shipped()]
    if config.api is not None and config.rest is not None:
        yield ["api"], "set either api or rest, not both"
    elif config.api is not None and config.api not in apis:
        yield ["api"], f"unknown API; {did_you_mean(config.api, apis) or 'see `chm partner list --apis`'}"
        return
    elif config.platform is None and config.api is None and config.rest is None:
        yield [], "set its platform or its api, or describe the API under rest"
        return
    yield from _address_problems(one)
    yield from _option_problems(one)
    problem = credential_problem(one.rest.auth, list(config.credentials))
    if problem is not None:
        name, issue = problem
        yield ["credentials"] if name is None else ["credentials", name], issue


def _option_problems(one: Connection) -> Iterator[tuple[Location, str]]:
    given = one.config.options
    for name in given:
        if name not in one.rest.options:
            known = sorted(one.rest.options)
            hint = did_you_mean(name, known) or (f"this API has {', '.join(known)}" if known else "this API has none")
            yield ["options", name], f"unknown option; {hint}"
    for name, option in one.rest.options.items():
        value = given.get(name)
        if value is None:
            if option.required:
                yield ["options", name], f"missing: {option.description}"
        elif option.type == "boolean" and not isinstance(value, bool):
            yield ["options", name], "must be true or false"
        elif option.type == "number" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            yield ["options", name], "must be a number, 0 or more"


def _address_problems(one: Connection) -> Iterator[tuple[Location, str]]:
    config = one.config
    if config.base_url is not None and config.base_url_env is not None:
        yield ["base_url_env"], "set either base_url or base_url_env, not both"
    elif config.base_url is not None:
        try:
            checked_base(one.label, config.base_url)
        except ConfigError as error:
            yield ["base_url"], str(error).partition(": base_url ")[2]
    elif config.base_url_env is None and not one.rest.base_url:
        yield ["base_url"], "missing; or name the variable that holds it as base_url_env"


def _second_defaults(found: Sequence[Connection]) -> Iterator[tuple[str, str]]:
    first: dict[Platform, str] = {}
    for one in found:
        if one.config.default and first.setdefault(one.platform, one.name) != one.name:
            yield one.name, f"{first[one.platform]} is already the default of platform {one.platform.value}"


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    schema = PartnersFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "CHM's partners.yaml", **schema}

"""From a connection in partners.yaml to a partner that can be asked."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from chm_dagster.domain.inventory import Platform
from chm_dagster.errors import AuthError, ConfigError, PartnerError
from chm_dagster.partners.addresses import checked_base
from chm_dagster.partners.connections_file import Connection, PartnersFile
from chm_dagster.partners.declared.feed import RestFeed
from chm_dagster.partners.declared.mapping import RestMapping
from chm_dagster.partners.declared.model import Option, Rest
from chm_dagster.partners.declared.proving import Prover, fitting, ways_in_words
from chm_dagster.partners.declared.template import render
from chm_dagster.partners.declared.ways import FixedAuth, NoAuth
from chm_dagster.partners.generic.feed import GenericFeed
from chm_dagster.partners.generic.mapping import GenericMapping
from chm_dagster.partners.http import HttpPolicy, PartnerHttp
from chm_dagster.partners.platforms.hooks import enricher_of
from chm_dagster.partners.platforms.registry import GENERIC, api_of, shipped
from chm_dagster.partners.port import Capabilities, Failed, Finding, Partner, Probe, RunFeed, SourcePipeline, Target
from chm_dagster.partners.sweeping import DEFAULT_OVERLAP, Event
from chm_dagster.partners.yaml_lines import Document, meant

_GENERIC_AUTH = (NoAuth(kind="none"), FixedAuth(kind="header", value="Bearer ${credentials.token}"))
_GENERIC_OPTIONS = {
    "reopens": Option(description="Whether a finished run may run again under its id.", type="boolean", default=False)
}
_MEGABYTE = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """One connection of the file, and the API that it speaks; `rest` is None for CHM's own."""

    name: str
    connection: Connection
    rest: Rest | None

    @property
    def platform(self) -> Platform:
        """Whose pipelines it tells of."""
        return self.connection.platform or (self.rest.platform if self.rest else Platform.CUSTOM)

    @property
    def options(self) -> Mapping[str, Option]:
        """The settings that its API knows."""
        return self.rest.options if self.rest else _GENERIC_OPTIONS

    @property
    def ways(self) -> Sequence[Any]:
        """The ways to prove who asks that its API knows."""
        return self.rest.auth if self.rest else _GENERIC_AUTH

    @property
    def settings(self) -> dict[str, Any]:
        """Its options, with the defaults of those that it does not set."""
        return {name: self.connection.options.get(name, option.default) for name, option in self.options.items()}


def instances(file: PartnersFile, document: Document) -> list[Instance]:
    """The file's connections. Raises ConfigError with a line for each that cannot be, by line number and field."""
    found = [Instance(name, connection, _rest(connection)) for name, connection in file.connections.items()]
    problems = [
        document.says(["connections", one.name, *place], what) for one in found for place, what in _problems(one)
    ]
    problems += [document.says(["connections", name, "default"], what) for name, what in _second_defaults(found)]
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _rest(connection: Connection) -> Rest | None:
    if connection.rest is not None:
        return connection.rest
    return shipped().get(connection.api or (api_of(connection.platform) if connection.platform else GENERIC))


def _problems(one: Instance) -> Iterator[tuple[Sequence[str], str]]:
    connection = one.connection
    apis = [GENERIC, *shipped()]
    if connection.api is not None and connection.rest is not None:
        yield ["api"], "api and rest exclude each other"
    elif connection.api is not None and connection.api not in apis:
        yield ["api"], f"there is no API {connection.api!r}{meant(connection.api, apis)}"
        return
    elif connection.platform is None and connection.api is None and connection.rest is None:
        yield [], "say its platform, or its api, or describe it under rest"
        return
    yield from _address_problems(one)
    yield from _option_problems(one)
    if fitting(one.ways, frozenset(connection.credentials)) is None:
        yield ["credentials"], f"it takes {ways_in_words(one.ways)}"


def _option_problems(one: Instance) -> Iterator[tuple[Sequence[str], str]]:
    given = one.connection.options
    for name in given:
        if name not in one.options:
            yield ["options", name], f"unknown option{meant(name, sorted(one.options))}"
    for name, option in one.options.items():
        value = given.get(name)
        if value is None:
            if option.required:
                yield ["options", name], f"missing: {option.description}"
        elif option.type == "boolean" and not isinstance(value, bool):
            yield ["options", name], "true or false belongs here"
        elif option.type == "number" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            yield ["options", name], "a number from 0 on belongs here"


def _address_problems(one: Instance) -> Iterator[tuple[Sequence[str], str]]:
    connection = one.connection
    if connection.base_url is not None and connection.base_url_env is not None:
        yield ["base_url_env"], "base_url and base_url_env exclude each other"
    elif connection.base_url is not None:
        try:
            checked_base(one.name, connection.base_url)
        except ConfigError as error:
            yield ["base_url"], str(error).partition(": base_url ")[2]
    elif connection.base_url_env is None and not (one.rest and one.rest.base_url):
        yield ["base_url"], "missing; or name the variable that holds it as base_url_env"


def _second_defaults(found: Sequence[Instance]) -> Iterator[tuple[str, str]]:
    first: dict[Platform, str] = {}
    for one in found:
        if one.connection.default and first.setdefault(one.platform, one.name) != one.name:
            yield one.name, f"{first[one.platform]} is the default of platform {one.platform.value} already"


MakeHttp = Callable[..., PartnerHttp]


def partner(one: Instance, variables: Mapping[str, str], make_http: MakeHttp = PartnerHttp) -> Partner:
    """The connection as ingestion sees it; `variables` are the environment's. Makes no request."""

    def open_feed() -> RunFeed:
        try:
            return _feed(one, variables, make_http)
        except ConfigError as error:
            # It fails this connection and not the others.
            return UnusableFeed(AuthError(str(error)))

    if one.rest is None:
        mapping: Any = GenericMapping(reopens=bool(one.settings["reopens"]))
    else:
        mapping = RestMapping(one.rest.runs, reopens=one.rest.reopens, ui=_ui(one.rest, one, variables))
    return Partner(one.name, open_feed, mapping, one.platform, one.connection.default, _capabilities(one))


def _base_url(one: Instance, variables: Mapping[str, str]) -> str:
    connection = one.connection
    if connection.base_url_env is not None:
        return _variable(one, connection.base_url_env, "base_url_env", variables)
    return connection.base_url or (one.rest.base_url if one.rest else None) or ""


def _variable(one: Instance, name: str, field: str, variables: Mapping[str, str]) -> str:
    value = variables.get(name, "").strip()
    if not value:
        raise ConfigError(f"connection {one.name}: the environment variable {name} is not set ({field})")
    return value


def _feed(one: Instance, variables: Mapping[str, str], make_http: MakeHttp) -> RunFeed:
    connection = one.connection
    base_url = _base_url(one, variables)
    secrets = {n: _variable(one, v, f"credentials.{n}", variables) for n, v in connection.credentials.items()}
    policy = _policy(one)
    way = fitting(one.ways, frozenset(secrets))
    prover = Prover(one.name, secrets, sorted(connection.credentials.values()), one.settings, policy)
    credentials = None if way is None else prover.credentials(way)
    if one.rest is None:
        return GenericFeed(make_http(one.name, base_url, credentials=credentials, policy=policy), overlap=_overlap(one))
    known = {f"options.{name}": value for name, value in one.settings.items() if value is not None}
    headers = render({**one.rest.headers}, known) if one.rest.headers else {}
    http = make_http(one.name, base_url, credentials=credentials, headers=headers, policy=policy)
    return _rest_feed(one, one.rest, http)


def _rest_feed(one: Instance, rest: Rest, http: PartnerHttp) -> RunFeed:
    days = one.connection.history_days or rest.history_days
    return RestFeed(
        rest,
        http,
        options=one.settings,
        overlap=_overlap(one),
        history=None if days is None else timedelta(days=days),
        enricher=enricher_of(rest, one.settings),
    )


def _policy(one: Instance) -> HttpPolicy:
    http = one.connection.http
    return HttpPolicy(
        concurrency=http.concurrency,
        deadline=http.deadline_seconds,
        max_body_bytes=round(http.max_body_megabytes * _MEGABYTE),
        requests_per_minute=http.requests_per_minute or (one.rest.requests_per_minute if one.rest else None),
    )


def _overlap(one: Instance) -> timedelta:
    minutes = one.connection.overlap_minutes
    if minutes is not None:
        return timedelta(minutes=minutes)
    return timedelta(minutes=one.rest.overlap_minutes) if one.rest else DEFAULT_OVERLAP


def _ui(rest: Rest, one: Instance, variables: Mapping[str, str]) -> str:
    """The address of the partner's pages for people; empty if it is not known."""
    if rest.ui_url is not None:
        found = render(rest.ui_url, {f"options.{name}": value for name, value in one.settings.items() if value})
        if isinstance(found, str):
            return found.rstrip("/")
    try:
        base_url = _base_url(one, variables)
    except ConfigError:
        return ""
    return base_url.rstrip("/").removesuffix(rest.ui_strip)


def _capabilities(one: Instance) -> Capabilities:
    rest = one.rest
    if rest is None:
        reopens = bool(one.settings["reopens"])
        return Capabilities("account", reopens, gives_errors=True, gives_rows=True, lists_pipelines=True)
    narrow = "ids" if rest.scope.narrow == "many" else "pipeline"
    return Capabilities(
        scope="account" if rest.scope.account else narrow,  # type: ignore[arg-type]
        reopens=rest.reopens,
        gives_errors=bool(rest.runs.error) or rest.enrich is not None,
        gives_rows=bool(rest.runs.rows) or rest.enrich is not None,
        finds_deletions=rest.lookup is not None,
        looks_further=rest.enrich is not None,
        lists_pipelines=rest.discover is not None,
        retention_days=rest.retention_days,
        requests_per_minute=rest.requests_per_minute,
    )


class UnusableFeed:
    """A connection that cannot be asked: every question ends with `error`."""

    overlap = DEFAULT_OVERLAP

    def __init__(self, error: PartnerError) -> None:
        self._error = error

    async def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Event, None]:
        """Fails all targets."""
        if targets:
            yield Failed(tuple(dict.fromkeys(t.external_id for t in targets)), self._error)

    async def check(self) -> Probe:
        """Says why."""
        return Probe(False, str(self._error), (Finding("config", False, str(self._error)),))

    async def discover(self) -> Sequence[SourcePipeline]:
        """Raises the error."""
        raise self._error

    async def aclose(self) -> None:
        """Nothing to close."""

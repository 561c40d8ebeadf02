"""From a configured connection to an open feed: credentials from the environment, an HTTP client, the API's feed."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.sync import fresh_for
from chm_dagster.errors import AuthError, ConfigError, RemoteError
from chm_dagster.http.auth import Auth
from chm_dagster.http.client import HttpClient, HttpPolicy
from chm_dagster.http.failures import ErrorMeaning
from chm_dagster.http.pace import Paces
from chm_dagster.partners.credentials import Authenticator, matching
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.selectors import render
from chm_dagster.partners.engine.sync import RestFeed
from chm_dagster.partners.partners_file import Connection, ConnectionConfig, Http, read_connections
from chm_dagster.partners.platforms import GENERIC, details_of, mapper_of, reopens, shipped
from chm_dagster.partners.port import (
    DEFAULT_OVERLAP,
    Capabilities,
    Finding,
    Partner,
    PipelinesFailed,
    Probe,
    RecordBatch,
    RunFeed,
    SourcePipeline,
    SyncEvent,
    SyncTarget,
)

DEFAULT = "default"
"""The name of the connection that the environment describes."""
TOKEN_VARIABLE = "CHM_PARTNER_API_TOKEN"  # noqa: S105 - a name

_MEGABYTE = 1024 * 1024


# --- which connections there are


def load_partners(
    file: Path | None,
    variables: Mapping[str, str],
    base_url: str | None,
    token: str | None,
    *,
    sync_cron: str | None = None,
) -> dict[str, Partner]:
    """All partners by the name of their connection: those of partners.yaml, and the one that the environment describes.

    `variables` hold the credentials under the names that the file gives them. A connection with a missing credential
    or an unusable address fails when it is used, and does not affect the others. `sync_cron` is the schedule by which
    they are read, every five minutes by default. Raises ConfigError for an invalid file. Makes no request.
    """
    paces = Paces()
    named = {one.name: partner(one, variables, paces=paces) for one in configured(file)}
    partners = default_partners(base_url, token) | named
    if sync_cron is None:
        return partners
    lasting = fresh_for(sync_cron)
    return {name: dataclasses.replace(one, fresh_for=lasting) for name, one in partners.items()}


def configured(file: Path | None) -> list[Connection]:
    """The connections of partners.yaml; none without a file. Raises ConfigError."""
    return [] if file is None else read_connections(file)


def named_variables(file: Path | None) -> set[str]:
    """The environment variables that the file names. Raises ConfigError."""
    configs = [one.config for one in configured(file)]
    addresses = {config.base_url_env for config in configs if config.base_url_env is not None}
    return addresses | {variable for config in configs for variable in config.credentials.values()}


def default_partners(base_url: str | None, token: str | None) -> dict[str, Partner]:
    """The partner of the environment: CHM's own API at this address. None without a base URL."""
    if base_url is None:
        return {}
    credentials = {} if token is None else {"token": TOKEN_VARIABLE}
    variables = {} if token is None else {TOKEN_VARIABLE: token}
    config = ConnectionConfig(api=GENERIC, base_url=base_url, credentials=credentials, http=Http(concurrency=8))
    one = partner(Connection(DEFAULT, config, shipped()[GENERIC]), variables)
    # It serves pipelines of every platform that has no connection of its own.
    return {DEFAULT: dataclasses.replace(one, platform=None)}


# --- one connection, ready to use

MakeHttp = Callable[..., HttpClient]


def partner(
    one: Connection, variables: Mapping[str, str], make_http: MakeHttp = HttpClient, paces: Paces | None = None
) -> Partner:
    """The connection as ingestion uses it; `variables` are the environment's. Makes no request.

    Connections with the same `paces` and credentials share the requests per minute that their server allows.
    """
    shared = paces or Paces()

    def open_feed() -> RunFeed:
        try:
            return _open_feed(one, variables, make_http, shared)
        except ConfigError as error:
            # It fails this connection only.
            return UnusableFeed(AuthError(str(error)))

    mapper = mapper_of(one.rest, one.options, _ui(one, variables))
    return Partner(
        one.name, open_feed, mapper, one.platform, one.config.default, _capabilities(one), overlap=_overlap(one)
    )


def _open_feed(one: Connection, variables: Mapping[str, str], make_http: MakeHttp, paces: Paces) -> RunFeed:
    """Credentials, then the HTTP client, then the feed of its API. Raises ConfigError."""
    policy = _policy(one)
    auth = _auth(one, variables, policy)
    base_url = _base_url(one, variables)
    http = make_http(
        one.label,
        base_url,
        auth=auth,
        headers=_headers(one),
        policy=policy,
        meaning=_meaning(one.rest),
        pace=paces.of(base_url, [variables[name] for name in one.config.credentials.values()]),
    )
    days = one.config.history_days or one.rest.history_days
    return RestFeed(
        one.rest,
        http,
        options=one.options,
        overlap=_overlap(one),
        history=None if days is None else timedelta(days=days),
        details=details_of(one.rest, one.options),
    )


def _auth(one: Connection, variables: Mapping[str, str], policy: HttpPolicy) -> Auth | None:
    named = one.config.credentials
    secrets = {name: _variable(one, v, f"credentials.{name}", variables) for name, v in named.items()}
    method = matching(one.rest.auth, frozenset(secrets))
    if method is None:
        return None
    return Authenticator(one.label, secrets, _hint(one), one.options, policy).auth(method)


def _meaning(rest: Rest) -> ErrorMeaning:
    """What error responses mean besides what their status says."""

    def meaning(status: int, body: Any) -> Literal["denied", "rate_limited"] | None:
        if any(wanted.matches(status, body) for wanted in rest.denied):
            return "denied"
        return "rate_limited" if any(wanted.matches(status, body) for wanted in rest.rate_limited) else None

    return meaning


def _hint(one: Connection) -> str:
    """What to do when the partner refuses the credentials."""
    if one.config.credentials:
        return f"check {' and '.join(sorted(one.config.credentials.values()))}"
    return f"set {TOKEN_VARIABLE}" if one.name == DEFAULT else "name its credentials in partners.yaml"


def _base_url(one: Connection, variables: Mapping[str, str]) -> str:
    if one.config.base_url_env is not None:
        return _variable(one, one.config.base_url_env, "base_url_env", variables)
    return one.config.base_url or _filled(one, one.rest.base_url or "") or ""


def _variable(one: Connection, name: str, field: str, variables: Mapping[str, str]) -> str:
    value = variables.get(name, "").strip()
    if not value:
        raise ConfigError(f"{one.label}: the environment variable {name} is not set ({field})")
    return value


def _headers(one: Connection) -> Mapping[str, str]:
    known = {f"options.{name}": value for name, value in one.options.items() if value is not None}
    headers: Mapping[str, str] = render({**one.rest.headers}, known) if one.rest.headers else {}
    return headers


def _policy(one: Connection) -> HttpPolicy:
    http = one.config.http
    return HttpPolicy(
        concurrency=http.concurrency,
        deadline=http.deadline_seconds,
        max_body_bytes=round(http.max_body_megabytes * _MEGABYTE),
        requests_per_minute=http.requests_per_minute or one.rest.requests_per_minute,
    )


def _overlap(one: Connection) -> timedelta:
    minutes = one.config.overlap_minutes
    return timedelta(minutes=one.rest.overlap_minutes if minutes is None else minutes)


def _ui(one: Connection, variables: Mapping[str, str]) -> str:
    """The address of the partner's pages for people; empty if it is unknown."""
    if one.rest.ui_url is not None:
        found = _filled(one, one.rest.ui_url)
        if found is not None:
            return found.rstrip("/")
    try:
        base_url = _base_url(one, variables)
    except ConfigError:
        return ""
    return base_url.rstrip("/").removesuffix(one.rest.ui_strip)


def _filled(one: Connection, template: str) -> str | None:
    """An address with the connection's options in it; None if one of them is not set."""
    found = render(template, {f"options.{name}": value for name, value in one.options.items() if value})
    return found if isinstance(found, str) else None


def _capabilities(one: Connection) -> Capabilities:
    rest = one.rest
    narrow = "ids" if rest.scope.filter_by == "ids" else "pipeline"
    has_details = rest.extension in ("airflow", "dagster", "github")
    return Capabilities(
        scope="account" if rest.scope.account else narrow,  # type: ignore[arg-type]
        reopens=reopens(rest, one.options),
        gives_errors=bool(rest.runs.error) or has_details,
        gives_rows=bool(rest.runs.rows) or rest.extension in ("airflow", "dagster"),
        finds_deletions=rest.lookup is not None,
        follows_open=True,
        follows_failing=rest.lookup is not None and rest.lookup.failing,
        looks_further=has_details,
        looks_up_ends=rest.extension == "github",
        lists_pipelines=rest.discover is not None,
        retention_days=rest.retention_days,
        requests_per_minute=rest.requests_per_minute,
    )


class UnusableFeed:
    """A connection that cannot be used: everything fails with `error`."""

    overlap = DEFAULT_OVERLAP

    def __init__(self, error: RemoteError) -> None:
        self._error = error

    async def sync(self, targets: Sequence[SyncTarget]) -> AsyncGenerator[SyncEvent, None]:
        """Fails all targets."""
        if targets:
            yield PipelinesFailed(tuple(dict.fromkeys(t.external_id for t in targets)), self._error)

    async def recent(self, targets: Sequence[SyncTarget]) -> Sequence[RecordBatch] | None:
        """Raises the error."""
        raise self._error

    async def check(self, external_id: str | None = None) -> Probe:
        """Reports the error."""
        return Probe(False, str(self._error), (Finding("config", False, str(self._error)),))

    async def discover(self) -> Sequence[SourcePipeline]:
        """Raises the error."""
        raise self._error

    async def aclose(self) -> None:
        """Nothing to close."""


# --- which connection a pipeline belongs to


class Owned(Protocol):
    """A pipeline, as far as its connection depends on it."""

    @property
    def key(self) -> str:
        """`client-slug/pipeline-slug`."""
        ...

    @property
    def platform(self) -> Platform:
        """Where it runs."""
        ...

    @property
    def connection(self) -> str | None:
        """The name of its connection; None for the platform's default."""
        ...


def partner_of(pipeline: Owned, partners: Mapping[str, Partner]) -> Partner:
    """The partner that this pipeline's runs come from. Raises ConfigError naming what is missing.

    A pipeline that names no connection uses the default one of its platform, or the only one, or else the one that
    the environment describes.
    """
    if pipeline.connection is not None:
        partner = partners.get(pipeline.connection)
        if partner is None:
            known = ", ".join(sorted(partners))
            raise ConfigError(f"{pipeline.key}: there is no connection {pipeline.connection!r}; configured: {known}")
        return partner
    of_platform = [partner for partner in partners.values() if partner.platform is pipeline.platform]
    preferred = [partner for partner in of_platform if partner.is_default] or of_platform
    if len(preferred) > 1:
        names = ", ".join(sorted(partner.name for partner in preferred))
        raise ConfigError(f"{pipeline.key}: name its connection, one of {names}; or make one of them the default")
    if preferred:
        return preferred[0]
    if DEFAULT in partners:
        return partners[DEFAULT]
    raise ConfigError(
        f"{pipeline.key}: no partner is configured for platform {pipeline.platform.value}; "
        "add a connection to partners.yaml, or set CHM_PARTNER_API_BASE_URL"
    )

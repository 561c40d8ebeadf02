"""Which partner instances there are, and how each is reached."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from chm_dagster.domain.inventory import Platform
from chm_dagster.errors import ConfigError
from chm_dagster.partners.connections_file import read_file
from chm_dagster.partners.generic.feed import GenericFeed
from chm_dagster.partners.generic.mapping import GenericMapping
from chm_dagster.partners.http import PartnerHttp
from chm_dagster.partners.instances import Instance, instances, partner
from chm_dagster.partners.port import Capabilities, Partner, RunFeed

DEFAULT = "default"


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """A partner instance that speaks the generic API. `reopens` says that a finished run may run again under its id."""

    name: str
    base_url: str
    token: str | None = dataclasses.field(default=None, repr=False)
    reopens: bool = False

    def partner(self) -> Partner:
        """The connection as ingestion sees it."""
        capabilities = Capabilities(
            scope="account", reopens=self.reopens, gives_errors=True, gives_rows=True, lists_pipelines=True
        )
        return Partner(self.name, self._open_feed, GenericMapping(reopens=self.reopens), capabilities=capabilities)

    def _open_feed(self) -> RunFeed:
        return GenericFeed(PartnerHttp(self.name, self.base_url, token=self.token))


def default_partners(base_url: str | None, token: str | None) -> dict[str, Partner]:
    """The partners that the environment alone describes: one generic connection, or none without a base URL."""
    if base_url is None:
        return {}
    return {DEFAULT: Connection(DEFAULT, base_url, token).partner()}


def all_partners(
    file: Path | None, variables: Mapping[str, str], base_url: str | None, token: str | None
) -> dict[str, Partner]:
    """The partners of the file partners.yaml, and the default one that the environment describes.

    `variables` holds the credentials by the names that the file gives them. A connection without its credentials, or
    with an address that cannot be used, says so when it is asked; the others are not held up. Raises ConfigError for
    a file that cannot be understood.
    """
    partners = default_partners(base_url, token)
    return partners | {one.name: partner(one, variables) for one in configured(file)}


def configured(file: Path | None) -> list[Instance]:
    """The connections of partners.yaml; none without a file. Raises ConfigError."""
    return [] if file is None else instances(*read_file(file))


def named_variables(file: Path | None) -> set[str]:
    """The environment variables that the file names. Raises ConfigError."""
    connections = [one.connection for one in configured(file)]
    addresses = {c.base_url_env for c in connections if c.base_url_env is not None}
    return addresses | {variable for c in connections for variable in c.credentials.values()}


class Owned(Protocol):
    """A pipeline, as far as it says whose it is."""

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
        """Which partner instance tells of it."""
        ...


def partner_of(pipeline: Owned, partners: Mapping[str, Partner]) -> Partner:
    """The partner that tells of this pipeline's runs. Raises ConfigError naming what is missing.

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

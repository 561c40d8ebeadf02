"""Which partner instances there are, and how each is reached."""

import dataclasses
from collections.abc import Mapping

from chm_dagster.domain.inventory import IngestedPipeline
from chm_dagster.errors import ConfigError
from chm_dagster.partners.generic.feed import GenericFeed
from chm_dagster.partners.generic.mapping import GenericMapping
from chm_dagster.partners.http import PartnerHttp
from chm_dagster.partners.port import Partner, RunFeed

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
        return Partner(self.name, self._open_feed, GenericMapping(reopens=self.reopens))

    def _open_feed(self) -> RunFeed:
        return GenericFeed(PartnerHttp(self.name, self.base_url, token=self.token))


def default_partners(base_url: str | None, token: str | None) -> dict[str, Partner]:
    """The partners that the environment alone describes: one generic connection, or none without a base URL."""
    if base_url is None:
        return {}
    return {DEFAULT: Connection(DEFAULT, base_url, token).partner()}


def partner_of(pipeline: IngestedPipeline, partners: Mapping[str, Partner]) -> Partner:
    """The partner that tells of this pipeline's runs. Raises ConfigError naming what is missing."""
    name = pipeline.connection or DEFAULT
    partner = partners.get(name)
    if partner is not None:
        return partner
    if name == DEFAULT:
        raise ConfigError(f"{pipeline.key}: no partner is configured; set CHM_PARTNER_API_BASE_URL")
    raise ConfigError(f"{pipeline.key}: there is no connection {name!r}; configured: {', '.join(sorted(partners))}")

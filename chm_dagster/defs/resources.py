"""Resources: each configures, and vends a plain object of the layers below."""

from pathlib import Path

import dagster as dg

from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.connections import default_partners
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.engine import Engine, make_engine


class WarehouseResource(dg.ConfigurableResource[Engine]):
    """CHM's database. Vends a SQLAlchemy engine."""

    url: str

    def create_resource(self, context: dg.InitResourceContext) -> Engine:
        """An engine; it connects when it is first used."""
        return make_engine(self.url)


class PartnersResource(dg.ConfigurableResource[dict[str, Partner]]):
    """The partners' APIs. Vends the partners by connection name."""

    base_url: str = ""
    token: str = ""

    def create_resource(self, context: dg.InitResourceContext) -> dict[str, Partner]:
        """No request is made before a sweep."""
        return default_partners(self.base_url or None, self.token or None)


class LandingResource(dg.ConfigurableResource[LandingZone]):
    """Where the partners' raw answers are kept, one folder for each Dagster run."""

    root: str

    def create_resource(self, context: dg.InitResourceContext) -> LandingZone:
        """The folder is made when something lands."""
        return LandingZone(Path(self.root))

"""Resources: each configures, and vends a plain object of the layers below."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.connections import all_partners
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse


class WarehouseResource(dg.ConfigurableResource[Warehouse]):
    """CHM's database. Vends a `Warehouse`: clients, pipelines, runs, rules and the named health queries."""

    url: str

    def create_resource(self, context: dg.InitResourceContext) -> Warehouse:
        """A warehouse; it connects when it is first used."""
        return Warehouse(make_engine(self.url))

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Warehouse, None, None]:
        """A warehouse whose connections are closed when the step, or the sensor's tick, is done with it."""
        warehouse = self.create_resource(context)
        try:
            yield warehouse
        finally:
            warehouse.close()


class PartnersResource(dg.ConfigurableResource[dict[str, Partner]]):
    """The partners' APIs. Vends the partners by connection name.

    `file` is partners.yaml, `variables` are the credentials that it names; `base_url` and `token` make the default
    connection.
    """

    base_url: str = ""
    token: str = ""
    file: str = ""
    variables: dict[str, str] = {}

    def create_resource(self, context: dg.InitResourceContext) -> dict[str, Partner]:
        """No request is made before a sweep. Fails with one line for each mistake in the file."""
        file = Path(self.file) if self.file else None
        return all_partners(file, self.variables, self.base_url or None, self.token or None)


class LandingResource(dg.ConfigurableResource[LandingZone]):
    """Where the partners' raw answers are kept, one folder for each Dagster run."""

    root: str

    def create_resource(self, context: dg.InitResourceContext) -> LandingZone:
        """The folder is made when something lands."""
        return LandingZone(Path(self.root))

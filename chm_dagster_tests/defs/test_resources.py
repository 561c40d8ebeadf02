"""The warehouse as assets and sensors get it: a plain object, whose connections do not outlive its use."""

import dagster as dg
import psycopg

from chm_dagster.defs.resources import WarehouseResource
from chm_dagster.warehouse.warehouse import Warehouse


def sessions(url: str) -> int:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'chm'"
        (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)


def test_an_asset_uses_the_warehouse_and_leaves_no_session_behind(
    database_url: str, instance: dg.DagsterInstance
) -> None:
    open_meanwhile: list[int] = []

    @dg.asset
    def inventory(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
        warehouse.clients.create("Acme")
        open_meanwhile.append(sessions(database_url))
        names = [client.name for client in warehouse.clients.list().items]
        return dg.MaterializeResult(metadata={"clients": names, "failing": len(warehouse.ask("failing_now"))})

    result = dg.materialize(
        [inventory], resources={"warehouse": WarehouseResource(url=database_url)}, instance=instance
    )
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert (metadata["clients"].value, metadata["failing"].value) == (["Acme"], 0)
    assert open_meanwhile == [1]
    assert sessions(database_url) == 0

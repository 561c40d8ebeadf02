"""Add and remove single maintenance windows, whoever else does so at the same time."""

from collections.abc import Callable

import sqlalchemy as sa

from chm_dagster.domain.clients import Client
from chm_dagster.domain.maintenance import MaintenanceWindow
from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.errors import NotFound
from chm_dagster.warehouse.constraints import Source, writing
from chm_dagster.warehouse.inventory.clients import Clients
from chm_dagster.warehouse.inventory.pipelines import Pipelines
from chm_dagster.warehouse.tables import clients, pipelines

Windows = list[MaintenanceWindow]


def add_window(source: Source, owner: Client | Pipeline, window: MaintenanceWindow) -> Client | Pipeline:
    """Add a window to a client or a pipeline. Raises InputError, and NotFound if the owner is gone."""
    return _change(source, owner, lambda windows: [*windows, window])


def remove_window(source: Source, owner: Client | Pipeline, window: MaintenanceWindow) -> Client | Pipeline:
    """Remove a window, which is named by its content. Raises NotFound if it is not there (any more)."""

    def without(windows: Windows) -> Windows:
        if window not in windows:
            raise NotFound("this maintenance window is not there any more; see `chm maintenance list`")
        place = windows.index(window)
        return windows[:place] + windows[place + 1 :]

    return _change(source, owner, without)


def _change(source: Source, owner: Client | Pipeline, change: Callable[[Windows], Windows]) -> Client | Pipeline:
    is_client = isinstance(owner, Client)
    table = clients if is_client else pipelines
    with writing(source) as connection:
        connection.execute(sa.select(table.c.id).where(table.c.id == owner.id).with_for_update())
        if is_client:
            return (one := Clients(connection)).update(owner.id, {"maintenance": change(one.get(owner.id).maintenance)})
        other = Pipelines(connection)
        return other.update(owner.id, {"maintenance": change(other.get(owner.id).maintenance)})

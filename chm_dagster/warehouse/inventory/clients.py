"""Clients in the inventory: create, change, find and list them."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.clients import Client, ClientChanges, NewClient
from chm_dagster.domain.nouns import Input
from chm_dagster.errors import Conflict, InputError
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.inventory.references import Ref, insert_slugged, select_client, unknown_client
from chm_dagster.warehouse.ledger.calendars import with_calendar
from chm_dagster.warehouse.ledger.due_times import restart_schedules
from chm_dagster.warehouse.tables import clients, pipelines

_COLUMNS: tuple[sa.Column[Any], ...] = tuple(clients.c[name] for name in Client.model_fields)


class Clients:
    """Create, read, change and disable clients. Every method raises DatabaseUnavailable if the server fails."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, new: str | Mapping[str, Any] | Input, slug: str | None = None) -> Client:
        """A new client: its fields, or a name alone. A slug is made from the name unless given.

        Raises InputError, Conflict.
        """
        fields = new if isinstance(new, Mapping | Input) else {"name": new, "slug": slug}
        row = NewClient.read(fields).given()
        with writing(self._engine) as connection:
            _refuse_disabled(connection, row)
            return _get(connection, insert_slugged(connection, clients, with_calendar(row)))

    def get(self, ref: Ref) -> Client:
        """The client with this id or slug, active or disabled. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, ref)

    def lookalikes(self, client: Client) -> Sequence[Client]:
        """Other clients whose names differ from this one's by case only."""
        same = sa.func.lower(clients.c.name) == sa.func.lower(client.name)
        query = sa.select(*_COLUMNS).where(same, clients.c.id != client.id).order_by(clients.c.slug)
        with reading(self._engine) as connection:
            return [Client.from_row(row._mapping) for row in connection.execute(query)]

    def update(self, ref: Ref, changes: Mapping[str, Any] | Input) -> Client:
        """Change what is given. Raises NotFound, InputError, Conflict."""
        with writing(self._engine) as connection:
            current = _get(connection, ref)
            wanted = ClientChanges.read(changes).given()
            keep_slug(current.slug, wanted)
            news = current.news(wanted)
            if not news:
                return current
            connection.execute(sa.update(clients).where(clients.c.id == current.id).values(with_calendar(news)))
            if news.get("is_active") is True:
                restart_schedules(connection, pipelines.c.client_id == current.id)
            return _get(connection, current.id)

    def disable(self, ref: Ref) -> Client:
        """Disable the client and its pipelines: they do not count for health; their history stays. Raises NotFound."""
        return self.update(ref, {"is_active": False})

    def list(self, *, active: bool | None = True, limit: int = 100, cursor: str | None = None) -> paging.Page[Client]:
        """Clients by slug. `active` None: also disabled ones; False: only those. Raises InputError."""
        query = sa.select(*_COLUMNS).order_by(clients.c.slug).limit(paging.check_limit(limit) + 1)
        if active is not None:
            query = query.where(clients.c.is_active == active)
        if cursor is not None:
            query = query.where(clients.c.slug > paging.decode(cursor, [paging.slug])[0])
        with reading(self._engine) as connection:
            items = [Client.from_row(row._mapping) for row in connection.execute(query)]
        return paging.page(items, limit, lambda client: [client.slug])


def _refuse_disabled(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """Raises Conflict, naming the way back, if a disabled client has this name or slug."""
    for name in ("name", "slug"):
        query = sa.select(clients.c.slug).where(clients.c[name] == row.get(name), ~clients.c.is_active)
        slug = connection.scalar(query)
        if slug is not None:
            raise disabled(name, "client", slug)


def disabled(field: str, noun: str, key: str) -> Conflict:
    """The error for creating something that exists and is disabled."""
    way_back = f'`chm {noun} enable {key}`, or PATCH /api/v1/{noun}s/{key} with {{"is_active": true}}'
    return Conflict(field, f"{noun} {key} has it already and is disabled; enable it with {way_back}")


def keep_slug(current: str, changes: dict[str, Any]) -> None:
    """Take an unchanged slug out of the changes. Raises InputError for another one."""
    if changes.pop("slug", current) != current:
        raise InputError("slug", "cannot change: partitions, links and inventory files go by it; change the name")


def _get(connection: sa.Connection, ref: Ref) -> Client:
    row = connection.execute(select_client(ref, *_COLUMNS)).one_or_none()
    if row is None:
        raise unknown_client(ref)
    return Client.from_row(row._mapping)

"""The customers in the inventory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.fields import read_changes, read_new
from chm_dagster.domain.forms import CLIENT
from chm_dagster.domain.inventory import Client
from chm_dagster.errors import InputError
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.references import Ref, select_client, unknown_client
from chm_dagster.warehouse.slugs import insert_slugged
from chm_dagster.warehouse.tables import clients

_COLUMNS: tuple[sa.Column[Any], ...] = tuple(clients.c[field.name] for field in dataclasses.fields(Client))


class Clients:
    """Create, read, change and disable clients. All of it raises DatabaseUnavailable where the server is at fault."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, name: str, slug: str | None = None) -> Client:
        """A new client; its slug is made from the name unless given. Raises InputError, Conflict."""
        fields = read_new({"name": name, "slug": slug}, CLIENT)
        with writing(self._engine) as connection:
            return _get(connection, insert_slugged(connection, clients, fields))

    def get(self, ref: Ref) -> Client:
        """The client of this id or slug, also a disabled one. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, ref)

    def update(self, ref: Ref, changes: Mapping[str, Any]) -> Client:
        """Change `name` or `is_active`. Raises NotFound, InputError, Conflict."""
        with writing(self._engine) as connection:
            current = _get(connection, ref)
            wanted = read_changes(changes, CLIENT)
            keep_slug(current.slug, wanted)
            news = {name: value for name, value in wanted.items() if value != getattr(current, name)}
            if not news:
                return current
            connection.execute(sa.update(clients).where(clients.c.id == current.id).values(news))
            return _get(connection, current.id)

    def disable(self, ref: Ref) -> Client:
        """Leave the client and its pipelines out of what is true now; their history stays. Raises NotFound."""
        return self.update(ref, {"is_active": False})

    def list(self, *, active: bool | None = True, limit: int = 100, cursor: str | None = None) -> paging.Page[Client]:
        """Clients by slug. `active` None: also disabled ones; False: only those. Raises InputError."""
        query = sa.select(*_COLUMNS).order_by(clients.c.slug).limit(paging.check_limit(limit) + 1)
        if active is not None:
            query = query.where(clients.c.is_active == active)
        if cursor is not None:
            query = query.where(clients.c.slug > paging.decode(cursor, [paging.slug])[0])
        with reading(self._engine) as connection:
            items = [Client(*row) for row in connection.execute(query)]
        return paging.page(items, limit, lambda client: [client.slug])


def keep_slug(current: str, changes: dict[str, Any]) -> None:
    """Take an unchanged slug out of the changes. Raises InputError for another one."""
    if changes.pop("slug", current) != current:
        raise InputError("slug", "cannot change: partitions, links and inventory files go by it; change the name")


def _get(connection: sa.Connection, ref: Ref) -> Client:
    row = connection.execute(select_client(ref, *_COLUMNS)).one_or_none()
    if row is None:
        raise unknown_client(ref)
    return Client(*row)

"""Rows whose slug is made from their name: stable, unique, and had without a race."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.inventory import MAX_SLUG_CHARS, free_slug, slugify
from chm_dagster.errors import Conflict, InputError

_ROUNDS = 50


def insert_slugged(
    connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], scope: Mapping[str, Any] | None = None
) -> UUID:
    """Insert a row whose slug, unless given, is made from its name; `-2`, `-3` is appended where it is taken.

    `scope` holds the columns within which slugs are unique. Returns the new id. Raises InputError for a name that no
    slug can be made of; a constraint that is broken raises what the driver raises.
    """
    scope = scope or {}
    if row.get("slug") is not None:
        return _id(connection.execute(sa.insert(table).values(row).returning(table.c.id)))
    base = slugify(row["name"])[:MAX_SLUG_CHARS].strip("-")
    if not base:
        raise InputError("slug", "missing, and none can be made from this name; send one of a-z, 0-9 and dashes")
    arbiter = [*(table.c[name] for name in scope), table.c.slug]
    for _ in range(_ROUNDS):
        slug = free_slug(base, _taken(connection, table, base, scope))
        # Whoever takes this slug at the same moment is waited for; if they keep it, the next one is tried.
        statement = pg.insert(table).values({**row, "slug": slug}).on_conflict_do_nothing(index_elements=arbiter)
        found = connection.execute(statement.returning(table.c.id)).scalar_one_or_none()
        if found is not None:
            return _uuid(found)
    raise Conflict("slug", "too many others are taking slugs of this name right now; send one of your own")


def _taken(connection: sa.Connection, table: sa.Table, base: str, scope: Mapping[str, Any]) -> set[str]:
    # Shorter by what a number may need: the longest slugs are cut to make room for it.
    stem = base[: MAX_SLUG_CHARS - 6].rstrip("-")
    query = sa.select(table.c.slug).where(table.c.slug.startswith(stem, autoescape=True))
    for name, value in scope.items():
        query = query.where(table.c[name] == value)
    return set(connection.scalars(query))


def _id(result: sa.CursorResult[Any]) -> UUID:
    return _uuid(result.scalar_one())


def _uuid(value: Any) -> UUID:
    assert isinstance(value, UUID)  # noqa: S101 - the column's type
    return value

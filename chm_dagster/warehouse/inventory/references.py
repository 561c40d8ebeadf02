"""References to clients and pipelines: an id, or the slugs that people write. Slugs are made here too."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import free_slug, is_slug, slugify
from chm_dagster.domain.limits import MAX_SLUG_CHARS
from chm_dagster.domain.validation import shown
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.tables import clients, pipelines

Ref = UUID | str
_ROUNDS = 50


def select_client(ref: Ref, *columns: Any) -> sa.Select[Any]:
    """These columns of the client of this id or slug. A slug may look like an id; then the id comes first."""
    wanted, slug = as_id(ref), as_slug(ref)
    by_id = [clients.c.id == wanted] if wanted is not None else []
    by_slug = [clients.c.slug == slug] if slug is not None else []
    query = sa.select(*columns).where(sa.or_(sa.false(), *by_id, *by_slug)).limit(1)
    return query.order_by((clients.c.id == wanted).desc()) if by_id and by_slug else query


def select_pipeline(ref: Ref, *columns: Any) -> sa.Select[Any]:
    """These columns of the pipeline that a reference names, from `pipelines` joined to `clients`."""
    return sa.select(*columns).select_from(pipelines.join(clients)).where(is_pipeline(ref))


def is_pipeline(ref: Ref) -> sa.ColumnElement[bool]:
    """The condition on `pipelines` joined to `clients` for an id or `client-slug/pipeline-slug`."""
    wanted = as_id(ref)
    if wanted is not None:
        return pipelines.c.id == wanted
    client, _, pipeline = str(ref).partition("/")
    if not is_slug(client) or not is_slug(pipeline):
        return sa.false()
    return sa.and_(clients.c.slug == client, pipelines.c.slug == pipeline)


PIPELINE_KEY = clients.c.slug + "/" + pipelines.c.slug
"""The key of a pipeline, in a query that joins its client."""


def pipeline_condition(ref: Ref) -> tuple[str, dict[str, Any]]:
    """The same condition for SQL text over `pipelines AS p` and `clients AS c`, and its parameters."""
    wanted = as_id(ref)
    if wanted is not None:
        return "p.id = :id", {"id": wanted}
    client, _, pipeline = str(ref).partition("/")
    if not is_slug(client) or not is_slug(pipeline):
        return "false", {}
    return "c.slug = :client AND p.slug = :pipeline", {"client": client, "pipeline": pipeline}


def client_id(connection: sa.Connection, ref: Ref) -> UUID:
    """The id of the client that a reference names. Raises NotFound."""
    found: UUID | None = connection.scalar(select_client(ref, clients.c.id))
    if found is None:
        raise unknown_client(ref)
    return found


def pipeline_id(connection: sa.Connection, ref: Ref) -> UUID:
    """The id of the pipeline that a reference names. Raises NotFound."""
    found: UUID | None = connection.scalar(select_pipeline(ref, pipelines.c.id))
    if found is None:
        raise unknown_pipeline(ref)
    return found


def unknown_client(ref: Ref) -> NotFound:
    """The error for a reference that names no client."""
    return NotFound(f"no client '{shown(ref)}': name it by its slug or its id")


def unknown_pipeline(ref: Ref) -> NotFound:
    """The error for a reference that names no pipeline."""
    return NotFound(f"no pipeline '{shown(ref)}': name it as client-slug/pipeline-slug or by its id")


def as_id(ref: Ref) -> UUID | None:
    """The id that a reference spells; None if it is something else."""
    if isinstance(ref, UUID):
        return ref
    try:
        return UUID(ref) if len(ref) == 36 else None
    except ValueError:
        return None


def as_slug(ref: Ref) -> str | None:
    """The slug in a reference; None if it cannot be one, or contains a NUL, which the driver rejects."""
    return str(ref) if is_slug(str(ref)) else None


def insert_slugged(
    connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], scope: Mapping[str, Any] | None = None
) -> UUID:
    """Insert a row whose slug, unless given, is made from its name; `-2`, `-3` is appended where it is taken.

    `scope` holds the columns within which slugs are unique. Returns the new id. Raises InputError for a name that no
    slug can be made of; a constraint that is broken raises what the driver raises.
    """
    scope = scope or {}
    if row.get("slug") is not None:
        return _scalar_id(connection.execute(sa.insert(table).values(row).returning(table.c.id)))
    base = slugify(row["name"])[:MAX_SLUG_CHARS].strip("-")
    if not base:
        raise InputError("slug", "missing, and none can be made from this name; send one of a-z, 0-9 and dashes")
    arbiter = [*(table.c[name] for name in scope), table.c.slug]
    for _ in range(_ROUNDS):
        slug = free_slug(base, _taken(connection, table, base, scope))
        # If somebody takes this slug at the same time, the insert waits; if they keep it, the next one is tried.
        statement = pg.insert(table).values({**row, "slug": slug}).on_conflict_do_nothing(index_elements=arbiter)
        found = connection.execute(statement.returning(table.c.id)).scalar_one_or_none()
        if found is not None:
            return _uuid(found)
    raise Conflict("slug", "too many others are taking slugs of this name right now; send one of your own")


def _taken(connection: sa.Connection, table: sa.Table, base: str, scope: Mapping[str, Any]) -> set[str]:
    # Leave room for a number: the longest slugs are cut for it.
    stem = base[: MAX_SLUG_CHARS - 6].rstrip("-")
    query = sa.select(table.c.slug).where(table.c.slug.startswith(stem, autoescape=True))
    for name, value in scope.items():
        query = query.where(table.c[name] == value)
    return set(connection.scalars(query))


def _scalar_id(result: sa.CursorResult[Any]) -> UUID:
    return _uuid(result.scalar_one())


def _uuid(value: Any) -> UUID:
    assert isinstance(value, UUID)  # noqa: S101 - the column's type
    return value

"""Find what a reference names: an id, or the slugs that people write."""

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.fields import shown
from chm_dagster.domain.inventory import is_slug
from chm_dagster.errors import NotFound
from chm_dagster.warehouse.tables import clients, pipelines

Ref = UUID | str


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
    """The slug that a reference may be; None for what cannot be one, and for a NUL, on which the driver would choke."""
    return str(ref) if is_slug(str(ref)) else None

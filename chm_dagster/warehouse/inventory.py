"""Clients and pipelines in the database."""

import dataclasses
from collections.abc import Collection, Iterable
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.inventory import PUSHED, IngestedPipeline, PipelineType, Platform
from chm_dagster.warehouse.engine import database_errors
from chm_dagster.warehouse.tables import clients, pipelines


@dataclasses.dataclass(frozen=True, slots=True)
class NewPipeline:
    """A pipeline to put into the inventory, with its client's name."""

    client_name: str
    client_slug: str
    name: str
    slug: str
    platform: Platform
    pipeline_type: PipelineType
    external_id: str


def ingested_pipelines(engine: sa.Engine, keys: Collection[str] | None = None) -> list[IngestedPipeline]:
    """The pipelines that ingestion is about: active, of an active client, with an external id; ordered by key.

    Those that only events tell of are not among them.

    `keys` (`client-slug/pipeline-slug`) narrows them down; keys that are not among them are left out silently, so
    compare. Raises DatabaseUnavailable.
    """
    key = clients.c.slug + "/" + pipelines.c.slug
    query = (
        sa.select(
            pipelines.c.id,
            clients.c.slug,
            pipelines.c.slug,
            pipelines.c.platform,
            pipelines.c.connection,
            pipelines.c.external_id,
            pipelines.c.synced_through,
        )
        .join(clients, clients.c.id == pipelines.c.client_id)
        .where(clients.c.is_active, pipelines.c.is_active, pipelines.c.external_id.is_not(None))
        .where(sa.func.coalesce(pipelines.c.connection, "").not_like(PUSHED + "%"))
        .order_by(clients.c.slug, pipelines.c.slug)
    )
    if keys is not None:
        query = query.where(key == sa.any_(sa.cast(list(keys), pg.ARRAY(sa.Text))))
    with database_errors(), engine.connect() as connection:
        return [
            IngestedPipeline(row[0], row[1], row[2], Platform(row[3]), *row[4:]) for row in connection.execute(query)
        ]


def is_empty(engine: sa.Engine) -> bool:
    """Whether the inventory holds no client at all."""
    with database_errors(), engine.connect() as connection:
        return not connection.scalar(sa.select(sa.exists().select_from(clients)))


def add_pipelines(engine: sa.Engine, new: Iterable[NewPipeline]) -> int:
    """Add pipelines and, where they are missing, their clients; what exists by slug stays as it is. Returns how many
    pipelines were added.
    """
    wanted = list(new)
    if not wanted:
        return 0
    with database_errors(), engine.begin() as connection:
        ids = _client_ids(connection, {p.client_slug: p.client_name for p in wanted})
        rows = [
            {
                "client_id": ids[p.client_slug],
                "name": p.name,
                "slug": p.slug,
                "platform": str(p.platform),
                "pipeline_type": str(p.pipeline_type),
                "external_id": p.external_id,
            }
            for p in wanted
        ]
        statement = pg.insert(pipelines).on_conflict_do_nothing().returning(pipelines.c.id)
        return len(connection.execute(statement, rows).all())


def _client_ids(connection: sa.Connection, names: dict[str, str]) -> dict[str, UUID]:
    rows = [{"slug": slug, "name": name} for slug, name in sorted(names.items())]
    connection.execute(pg.insert(clients).on_conflict_do_nothing(), rows)
    found = connection.execute(sa.select(clients.c.slug, clients.c.id).where(clients.c.slug.in_(names)))
    return {row[0]: row[1] for row in found}

"""The pipelines in the inventory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.fields import line, read_changes, read_new, refuse, word
from chm_dagster.domain.forms import PIPELINE, pipeline_problems
from chm_dagster.domain.inventory import Environment, Pipeline, PipelineType, Platform
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.clients import keep_slug
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.references import Ref, client_id, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.slugs import insert_slugged
from chm_dagster.warehouse.tables import clients, pipelines

_OF_CLIENT = {"client_slug": clients.c.slug, "client_name": clients.c.name}
_COLUMNS: tuple[sa.ColumnElement[Any], ...] = tuple(
    _OF_CLIENT[field.name].label(field.name) if field.name in _OF_CLIENT else pipelines.c[field.name]
    for field in dataclasses.fields(Pipeline)
)


class Pipelines:
    """Create, read, change and disable pipelines. All of it raises DatabaseUnavailable where the server is at fault."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, client_ref: Ref, fields: Mapping[str, Any]) -> Pipeline:
        """A new pipeline of a client: `name`, `platform` and `pipeline_type` are required.

        Raises NotFound for the client, InputError, Conflict.
        """
        row = read_new(fields, PIPELINE)
        refuse(pipeline_problems(row))
        with writing(self._engine) as connection:
            scope = {"client_id": client_id(connection, client_ref)}
            return _get(connection, insert_slugged(connection, pipelines, {**row, **scope}, scope))

    def get(self, ref: Ref) -> Pipeline:
        """The pipeline of this id or `client-slug/pipeline-slug`, also a disabled one. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, ref)

    def update(self, ref: Ref, changes: Mapping[str, Any]) -> Pipeline:
        """Change what is given; None clears a field that may be empty. Raises NotFound, InputError, Conflict."""
        with writing(self._engine) as connection:
            current = _get(connection, ref)
            wanted = read_changes(changes, PIPELINE)
            keep_slug(current.slug, wanted)
            whole = {name: wanted.get(name, getattr(current, name)) for name in PIPELINE}
            refuse(pipeline_problems(whole))
            news = {name: value for name, value in wanted.items() if value != getattr(current, name)}
            if not news:
                return current
            connection.execute(sa.update(pipelines).where(pipelines.c.id == current.id).values(news))
            return _get(connection, current.id)

    def disable(self, ref: Ref) -> Pipeline:
        """Ingest it no longer and leave it out of what is true now; its history stays. Raises NotFound."""
        return self.update(ref, {"is_active": False})

    def list(
        self,
        *,
        client: Ref | None = None,
        platform: Platform | str | None = None,
        pipeline_type: PipelineType | str | None = None,
        environment: Environment | str | None = None,
        connection: str | None = None,
        active: bool | None = True,
        limit: int = 100,
        cursor: str | None = None,
    ) -> paging.Page[Pipeline]:
        """Pipelines by client slug and slug. A pipeline counts as active only if its client is, too.

        `active` None: also the others; False: only the others. Raises NotFound for the client, InputError.
        """
        query = (
            sa.select(*_COLUMNS)
            .select_from(pipelines.join(clients))
            .order_by(clients.c.slug, pipelines.c.slug)
            .limit(paging.check_limit(limit) + 1)
        )
        filters = {"platform": platform, "pipeline_type": pipeline_type, "environment": environment}
        query = query.where(*_conditions({**filters, "connection": connection}), *_activity(active))
        if cursor is not None:
            position = paging.decode(cursor, [paging.slug, paging.slug])
            query = query.where(sa.tuple_(clients.c.slug, pipelines.c.slug) > position)
        with reading(self._engine) as session:
            if client is not None:
                query = query.where(pipelines.c.client_id == client_id(session, client))
            items = [_pipeline(row) for row in session.execute(query)]
        return paging.page(items, limit, lambda pipeline: [pipeline.client_slug, pipeline.slug])


_FILTERS = {
    "platform": word(Platform),
    "pipeline_type": word(PipelineType),
    "environment": word(Environment),
    "connection": line(100),
}


def _conditions(filters: Mapping[str, object]) -> list[sa.ColumnElement[bool]]:
    return [
        pipelines.c[name] == str(_FILTERS[name](value, name)) for name, value in filters.items() if value is not None
    ]


def _activity(active: bool | None) -> list[sa.ColumnElement[bool]]:
    if active is None:
        return []
    both = sa.and_(pipelines.c.is_active, clients.c.is_active)
    return [both if active else sa.not_(both)]


def _get(connection: sa.Connection, ref: Ref) -> Pipeline:
    row = connection.execute(select_pipeline(ref, *_COLUMNS)).one_or_none()
    if row is None:
        raise unknown_pipeline(ref)
    return _pipeline(row)


def _pipeline(row: sa.Row[Any]) -> Pipeline:
    values = row._asdict()
    words = {
        "platform": Platform(values["platform"]),
        "pipeline_type": PipelineType(values["pipeline_type"]),
        "environment": Environment(values["environment"]),
    }
    return Pipeline(**{**values, **words})

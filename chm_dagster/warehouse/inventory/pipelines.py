"""The pipelines in the inventory, and their removal for good with all that belongs to them."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import ConnectionName
from chm_dagster.domain.nouns import Input
from chm_dagster.domain.pipelines import (
    MEANING,
    PUSHED,
    Environment,
    IngestedPipeline,
    NewPipelineOfClient,
    OldRuns,
    Pipeline,
    PipelineChanges,
    PipelineType,
    Platform,
)
from chm_dagster.domain.validation import read_value
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.engine import database_errors
from chm_dagster.warehouse.inventory.clients import disabled, keep_slug
from chm_dagster.warehouse.inventory.references import Ref, client_id, insert_slugged, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.ledger.calendars import with_calendar
from chm_dagster.warehouse.ledger.due_times import refresh_due
from chm_dagster.warehouse.ledger.syncs import start_anew
from chm_dagster.warehouse.tables import alert_rules, clients, pipelines, runs

_OF_CLIENT = {"client_slug": clients.c.slug, "client_name": clients.c.name}
_COLUMNS: tuple[sa.ColumnElement[Any], ...] = tuple(
    _OF_CLIENT[name].label(name) if name in _OF_CLIENT else pipelines.c[name] for name in Pipeline.model_fields
)

_EXPECTS = MEANING | {"schedule_cron", "schedule_timezone"}


class Pipelines:
    """Create, read, change and disable pipelines. Every method raises DatabaseUnavailable if the server fails."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, client_ref: Ref, fields: Mapping[str, Any] | Input) -> Pipeline:
        """A new pipeline of a client: `name`, `platform` and `pipeline_type` are required.

        Raises NotFound for the client, InputError, Conflict.
        """
        row = NewPipelineOfClient.read(fields).given()
        Pipeline.check(row)
        with writing(self._engine) as connection:
            scope = {"client_id": client_id(connection, client_ref)}
            _refuse_disabled(connection, {**row, **scope})
            created = insert_slugged(connection, pipelines, {**with_calendar(row), **scope}, scope)
            refresh_due(connection, [created])
            return _get(connection, created)

    def get(self, ref: Ref) -> Pipeline:
        """The pipeline with this id or `client-slug/pipeline-slug`, active or disabled. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, ref)

    def update(self, ref: Ref, changes: Mapping[str, Any] | Input, *, runs: OldRuns = OldRuns.KEEP) -> Pipeline:
        """Change what is given; None clears a field that may be empty.

        A change of the external id, the connection or the platform means another pipeline at the partner: its history
        is read from the beginning, and `runs` says what becomes of the runs known so far. To remove them also does so
        without such a change. Raises NotFound, InputError, Conflict, and Busy if runs are being written for too long.
        """
        with writing(self._engine) as connection:
            current = _get(connection, ref)
            wanted = PipelineChanges.read(changes).given()
            keep_slug(current.slug, wanted)
            Pipeline.check({**current.as_dict(), **wanted})
            news = current.news(wanted)
            remove = runs is OldRuns.REMOVE
            if remove or not MEANING.isdisjoint(news):
                start_anew(connection, current.id, remove_runs=remove)
            elif not news:
                return current
            restart = remove or _restarts_schedule(news)
            if restart:
                # Until it is worked out anew: without a schedule, nothing is due.
                news = {**news, "due_at": None, "schedule_changed_at": sa.func.now()}
            if news:
                connection.execute(sa.update(pipelines).where(pipelines.c.id == current.id).values(with_calendar(news)))
            if restart:
                refresh_due(connection, [current.id])
            return _get(connection, current.id)

    def disable(self, ref: Ref) -> Pipeline:
        """Disable it: it is not ingested and does not count for health; its history stays. Raises NotFound."""
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
            items = [Pipeline.from_row(row._mapping) for row in session.execute(query)]
        return paging.page(items, limit, lambda pipeline: [pipeline.client_slug, pipeline.slug])


def _restarts_schedule(news: Mapping[str, Any]) -> bool:
    """Whether a run is expected from now on only: slots before the schedule, or of another pipeline, do not count.

    Nor do those of the time in which the pipeline was disabled: it took no pings.
    """
    return not _EXPECTS.isdisjoint(news) or news.get("is_active") is True


def _refuse_disabled(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """Raises Conflict, naming the way back, if a disabled pipeline of the client has this name, slug or external id."""
    key = clients.c.slug + "/" + pipelines.c.slug
    theirs = sa.select(key).select_from(pipelines.join(clients)).where(pipelines.c.client_id == row["client_id"])
    for name in ("name", "slug", "external_id"):
        same = [pipelines.c[name] == row.get(name)]
        if name == "external_id":
            same += [pipelines.c[n].is_not_distinct_from(row.get(n)) for n in ("platform", "connection")]
        found = connection.scalar(theirs.where(~pipelines.c.is_active, *same))
        if found is not None:
            raise disabled(name, "pipeline", found)


_FILTERS: Mapping[str, Any] = {
    "platform": Platform,
    "pipeline_type": PipelineType,
    "environment": Environment,
    "connection": ConnectionName,
}


def _conditions(filters: Mapping[str, object]) -> list[sa.ColumnElement[bool]]:
    return [
        pipelines.c[name] == str(read_value(_FILTERS[name], value, name))
        for name, value in filters.items()
        if value is not None
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
    return Pipeline.from_row(row._mapping)


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
            clients.c.slug.label("client_slug"),
            pipelines.c.slug,
            pipelines.c.platform,
            pipelines.c.connection,
            pipelines.c.external_id,
            pipelines.c.synced_through,
            pipelines.c.sync_attempted_at,
            pipelines.c.sync_failing_since,
            pipelines.c.sync_error,
        )
        .join(clients, clients.c.id == pipelines.c.client_id)
        .where(clients.c.is_active, pipelines.c.is_active, pipelines.c.external_id.is_not(None))
        .where(sa.func.coalesce(pipelines.c.connection, "").not_like(PUSHED + "%"))
        .order_by(clients.c.slug, pipelines.c.slug)
    )
    if keys is not None:
        query = query.where(key == sa.any_(sa.cast(list(keys), pg.ARRAY(sa.Text))))
    with database_errors(), engine.connect() as connection:
        # By position, in the order of the fields: mappings of ten thousand rows would take half of the time.
        rows = map(tuple, connection.execute(query))
        return [
            IngestedPipeline(pipeline_id, client, slug, Platform(platform), *others)
            for pipeline_id, client, slug, platform, *others in rows
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


@dataclasses.dataclass(frozen=True, slots=True)
class Purge:
    """What a purge removes. Pipelines of the clients are among `pipelines`."""

    clients: Sequence[UUID]
    pipelines: Sequence[UUID]
    runs: int
    rules: int

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "clients": len(self.clients),
            "pipelines": len(self.pipelines),
            "runs": self.runs,
            "rules": self.rules,
        }


def plan(source: Source, client_ids: Collection[UUID] = (), pipeline_ids: Collection[UUID] = ()) -> Purge:
    """What removing these would remove now. Raises DatabaseUnavailable."""
    with reading(source) as connection:
        wanted = sa.or_(pipelines.c.client_id.in_(client_ids), pipelines.c.id.in_(pipeline_ids))
        ids = list(connection.scalars(sa.select(pipelines.c.id).where(wanted)))
        found = sa.select(sa.func.count()).select_from(runs).where(runs.c.pipeline_id.in_(ids))
        rules = sa.select(sa.func.count()).select_from(alert_rules).where(_rules_of(client_ids, ids))
        return Purge(list(client_ids), ids, connection.scalar(found) or 0, connection.scalar(rules) or 0)


def purge(source: Source, client_ids: Collection[UUID] = (), pipeline_ids: Collection[UUID] = ()) -> Purge:
    """Remove them in one transaction, and return what was removed.

    Raises Busy if runs are being written for too long, and DatabaseUnavailable; then nothing was removed.
    """
    with writing(source) as connection:
        locked = sa.select(clients.c.id).where(clients.c.id.in_(client_ids)).with_for_update()
        found = list(connection.scalars(locked))
        wanted = plan(connection, found, pipeline_ids)
        for pipeline_id in wanted.pipelines:
            start_anew(connection, pipeline_id, remove_runs=True)
        connection.execute(sa.delete(alert_rules).where(_rules_of(found, wanted.pipelines)))
        connection.execute(sa.delete(pipelines).where(pipelines.c.id.in_(wanted.pipelines)))
        connection.execute(sa.delete(clients).where(clients.c.id.in_(found)))
        return wanted


def _rules_of(client_ids: Collection[UUID], pipeline_ids: Collection[UUID]) -> sa.ColumnElement[bool]:
    return sa.or_(alert_rules.c.client_id.in_(client_ids), alert_rules.c.pipeline_id.in_(pipeline_ids))

"""When the next run of a pipeline is due: `pipelines.due_at`, which follows the schedule and the runs.

Whoever writes runs or schedules has the due times follow in the same transaction, so that "late" is a comparison of two
columns. Backfills keep no schedule. A schedule that was changed, or a pipeline that was enabled, starts anew: slots of
the time before are not due. Neither is a run of the future, which only a clock that is ahead can report.
"""

import zoneinfo
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.runs import Counts
from chm_dagster.domain.schedule import awaited, slots_of
from chm_dagster.warehouse.engine import Engine, database_errors
from chm_dagster.warehouse.ledger.calendars import refresh_calendars
from chm_dagster.warehouse.tables import pipelines

# The filter on ids is spelled out where there is one: null would stand for all, and be planned for all.
_SCHEDULED = """
SELECT
    p.id, p.schedule_cron, p.schedule_timezone, p.created_at, p.schedule_changed_at, p.due_at,
    ARRAY(
        SELECT effective_at FROM runs
        WHERE pipeline_id = p.id AND kind IS DISTINCT FROM 'backfill'
          AND effective_at <= statement_timestamp() + interval '2 minutes'
        ORDER BY effective_at DESC, finished_at DESC NULLS LAST, id DESC
        LIMIT 3
    ) AS latest
FROM pipelines AS p
WHERE p.schedule_cron IS NOT NULL
"""
_OF_THESE = "  AND p.id = ANY(%s::uuid[])"
_SET = """
UPDATE pipelines AS p SET due_at = w.due_at
FROM unnest(%s::uuid[], %s::timestamptz[]) AS w(id, due_at)
WHERE p.id = w.id
"""
_LOCK = "SELECT FROM pipelines WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE"


def with_news(counts: Mapping[UUID, Counts]) -> list[UUID]:
    """The pipelines of which a run was written."""
    return [pipeline_id for pipeline_id, n in counts.items() if n.inserted or n.updated]


def lock_pipelines(connection: sa.Connection, pipeline_ids: Collection[UUID]) -> None:
    """Lock these rows until the transaction ends. All who update many do it in this order, and never deadlock."""
    connection.exec_driver_sql(_LOCK, (list(pipeline_ids),))


def refresh_due(connection: sa.Connection, pipeline_ids: Collection[UUID] | None = None) -> int:
    """Work out when the next runs of these pipelines are due, in the caller's transaction; None: of all pipelines.

    Returns how many due times changed. Nothing is written for the others.
    """
    if pipeline_ids is not None and not pipeline_ids:
        return 0
    changed = [row.id for row, due_at in _due_times(connection, pipeline_ids) if due_at != row.due_at]
    if not changed:
        return 0
    lock_pipelines(connection, changed)
    # Once more, because another writer may have come first.
    wanted = [(row.id, due_at) for row, due_at in _due_times(connection, changed) if due_at != row.due_at]
    if wanted:
        connection.exec_driver_sql(_SET, tuple(map(list, zip(*wanted, strict=True))))
    return len(wanted)


def refresh_all(engine: Engine) -> int:
    """`refresh_due` of all pipelines and `refresh_calendars`, in a transaction. Raises DatabaseUnavailable."""
    with database_errors(), engine.begin() as connection:
        refresh_calendars(connection, datetime.now(UTC))
        return refresh_due(connection)


def restart_schedules(connection: sa.Connection, of: sa.ColumnElement[bool]) -> None:
    """Expect runs of these pipelines from now on only, in the caller's transaction."""
    query = sa.update(pipelines).where(of, pipelines.c.schedule_cron.is_not(None)).returning(pipelines.c.id)
    changed = connection.execute(query.values(schedule_changed_at=sa.func.now())).scalars().all()
    refresh_due(connection, changed)


def due_differences(engine: Engine) -> list[dict[str, Any]]:
    """Pipelines whose `due_at` is not what their schedule and runs say: `pipeline`, `due_at`, `expected`, `problem`.

    Also those whose schedule cannot be read, which only an edit in the database can cause: they are never late.
    Raises DatabaseUnavailable.
    """
    with database_errors(), engine.connect() as connection:
        found = {
            row.id: {"due_at": row.due_at, "expected": due_at, "problem": problem}
            for row, due_at in _due_times(connection, None)
            if (problem := _problem(row, due_at)) is not None
        }
        keys = connection.exec_driver_sql(
            "SELECT pipeline_id, client_slug || '/' || pipeline_slug FROM pipeline_details"
            " WHERE pipeline_id = ANY(%s::uuid[]) ORDER BY 2",
            (list(found),),
        )
        return [{"pipeline": key, **found[pipeline_id]} for pipeline_id, key in keys]


def _problem(row: sa.Row[Any], due_at: datetime | None) -> str | None:
    if due_at is None:
        return f"its schedule cannot be read: {row.schedule_cron} in {row.schedule_timezone or 'UTC'}"
    return None if due_at == row.due_at else "due_at is out of date"


def _due_times(
    connection: sa.Connection, pipeline_ids: Collection[UUID] | None
) -> Iterator[tuple[sa.Row[Any], datetime | None]]:
    if pipeline_ids is None:
        found = connection.exec_driver_sql(_SCHEDULED)
    else:
        found = connection.exec_driver_sql(_SCHEDULED + _OF_THESE, (list(pipeline_ids),))
    for row in found.all():
        yield row, _due(row)


def _due(row: sa.Row[Any]) -> datetime | None:
    """None if the schedule cannot be read, which must not stop whoever writes runs."""
    cron, zone, changed_at = row.schedule_cron, row.schedule_timezone, row.schedule_changed_at
    try:
        floor = changed_at or min([row.created_at, *row.latest])
        # An early run of a slot and a late one of the slot before differ by the runs before them.
        *_, due = awaited(slots_of(cron, zone), floor, sorted(run for run in row.latest if run >= floor))
        return due
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OverflowError):
        return None

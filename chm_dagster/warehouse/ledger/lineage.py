"""Writes OpenLineage events to the ledger, each in its own transaction: an accepted event is committed.

A run that is reported by both syncs and events is one row. The combined state of its events is stored in
`runs.lineage`, which no sync writes. The visible fields of the run follow the merge rule of all observations: the
newest event time of the state is both its version and its time of observation.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain import values
from chm_dagster.domain.lineage import LineageEvent, LineageState
from chm_dagster.domain.pipelines import PUSHED, Platform
from chm_dagster.domain.runs import Observation
from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.due_times import refresh_due
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.tables import clients, pipelines, runs

EventOutcome = Literal["inserted", "updated", "unchanged", "stale", "ignored"]
"""The effect of an event on a pipeline's runs; `ignored`: it names no run that CHM could identify."""

# Serializes the events of one run, even before the run has a row.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/lineage/' || :what, 0))")
SOURCE = "openlineage"
"""The value of `source` in the payload of a run that is reported by events."""
_CONTENT = (
    "status",
    "started_at",
    "finished_at",
    "duration_seconds",
    "rows_processed",
    "error_message",
    "error_fingerprint",
    "status_reason",
    "payload",
    "source_version",
    "observed_at",
)


def receive(engine: Engine, event: LineageEvent) -> dict[UUID, EventOutcome]:
    """Apply one event to the runs of all matching pipelines. Returns an empty dict if no pipeline matches.

    A pipeline matches if its external id is the job's name and its connection is the job's namespace (or
    `openlineage:` and the namespace, for a pipeline that is not synced); failing that, if it names no connection.
    Raises DatabaseUnavailable, in which case nothing was written.
    """
    with writing(engine) as connection:
        outcomes: dict[UUID, EventOutcome] = {}
        for pipeline_id, platform in _meant(connection, event):
            run_id = event.airflow_run_id if platform == Platform.AIRFLOW else event.airflow_run_id or event.run_id
            # A task that Airflow started elsewhere knows the Airflow run only by an id that cannot be matched.
            outcomes[pipeline_id] = "ignored" if run_id is None else _join(connection, pipeline_id, run_id, event)
        return outcomes


def _meant(connection: sa.Connection, event: LineageEvent) -> list[tuple[UUID, str]]:
    named = pipelines.c.connection.in_([event.namespace, PUSHED + event.namespace])
    query = (
        sa.select(pipelines.c.id, pipelines.c.platform, named.is_(True))
        .join(clients)
        .where(pipelines.c.external_id == event.job, pipelines.c.is_active, clients.c.is_active)
        .where(sa.or_(named, pipelines.c.connection.is_(None)))
        .order_by(pipelines.c.id)
    )
    found = connection.execute(query).all()
    by_name = any(row[2] for row in found)
    return [(row[0], row[1]) for row in found if bool(row[2]) is by_name]


def _join(connection: sa.Connection, pipeline_id: UUID, run_id: str, event: LineageEvent) -> EventOutcome:
    connection.execute(_LOCK, {"what": f"{pipeline_id}/{run_id}"})
    this = sa.and_(runs.c.pipeline_id == pipeline_id, runs.c.external_run_id == run_id)
    # The row lock keeps a sync from writing between this read and our write.
    row = connection.execute(sa.select(runs).where(this).with_for_update()).one_or_none()
    known = None if row is None or row.lineage is None else LineageState.from_json(row.lineage)
    said = LineageState.of(event)
    state = said if known is None else known.join(said)
    if state == known:
        return "unchanged"
    seen = observe(pipeline_id, run_id, state, event, None if row is None else row.started_at)
    if row is not None and row.payload.get("source") == SOURCE:
        content = {name: getattr(seen, name) for name in _CONTENT}
        outcome: EventOutcome = "updated"
    else:
        # The row comes from another source, or does not exist yet: the merge rule decides.
        tally = merge_runs(connection, [seen])[pipeline_id]
        outcome = "inserted" if tally.inserted else "updated" if tally.updated else "stale"
        content = {}
    connection.execute(sa.update(runs).where(this).values(**content, lineage=state.as_json(), updated_at=sa.func.now()))
    if content:
        refresh_due(connection, [pipeline_id])
    return outcome


def observe(
    pipeline_id: UUID, run_id: str, state: LineageState, event: LineageEvent, started_at: datetime | None
) -> Observation:
    """The run as reported by its events. `started_at` is used if they do not contain a start."""
    end = state.end
    start = state.first_sign or started_at
    return Observation(
        pipeline_id=pipeline_id,
        external_run_id=run_id,
        status=state.status,
        started_at=start,
        finished_at=None if end is None else end.at,
        duration_seconds=None if end is None else values.duration(start, end.at, None),
        rows_processed=None if end is None else end.rows,
        error_message=state.error,
        status_reason=None if end is None else end.reason,
        source_url=None,
        payload={"source": SOURCE, "namespace": event.namespace, "job": event.job, "run_id": state.run_id},
        attempt=0,
        progress=0,
        source_version=state.seen,
        observed_at=state.seen,
    )

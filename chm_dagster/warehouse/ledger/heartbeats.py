"""Heartbeats: runs that a job reports itself, with a signal at its start and one at its end; and the end of those that
never reported one.
"""

import dataclasses
import enum
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from chm_dagster.domain import values
from chm_dagster.domain.pipelines import PUSHED
from chm_dagster.domain.runs import (
    OWN_IDS,
    PING_ID,
    UNKNOWN_OUTCOME,
    MergeOutcome,
    Outcome,
    Run,
    RunStatus,
)
from chm_dagster.errors import Conflict
from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.engine import Engine, database_errors
from chm_dagster.warehouse.inventory.references import Ref, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.ledger.record import as_run, find, merge_recorded
from chm_dagster.warehouse.tables import clients, pipelines

LOST, LOST_IF_BOUNDED = timedelta(days=7), timedelta(days=1)
"""How long a run may be running before its end counts as lost: of a pipeline without and with `max_runtime_minutes`."""
SOURCE = "heartbeat"
"""The `source` in the payload of a run that began with a ping."""
_LOCK_HEARTBEATS = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/heartbeat/' || :owner, 0))")
# The inner query can be answered from the index ix_runs_latest alone; the outer one reads the few rows that still run.
# What somebody else reports ends by itself: runs of a partner, and those of OpenLineage's events.
_OLDEST_OPEN = sa.text(f"""
SELECT external_run_id FROM runs
WHERE id IN (
    SELECT id FROM runs
    WHERE pipeline_id = CAST(:owner AS uuid) AND status = 'running' AND effective_at > :earliest
)
AND (payload ->> 'source' = '{SOURCE}'
     OR (NOT CAST(:fed AS boolean) AND payload ->> 'source' IS DISTINCT FROM 'openlineage'))
ORDER BY effective_at < :overdue, effective_at, id
LIMIT 1
""")  # noqa: S608 - built from a constant
# No partner can be asked about these. The row keeps its version, so that a true end wins, however late it comes.
_CLOSE_LOST = sa.text(f"""
UPDATE runs AS r
SET status = 'canceled', status_reason = '{UNKNOWN_OUTCOME}', ingested_at = now(), updated_at = now()
FROM pipelines AS p
WHERE p.id = r.pipeline_id AND r.status = 'running'
  AND (p.external_id IS NULL OR p.connection LIKE '{PUSHED}%' OR r.external_run_id ~ '^({"|".join(OWN_IDS)})'
       OR r.payload ->> 'source' = '{SOURCE}')
  AND r.effective_at < now() - CASE WHEN p.max_runtime_minutes IS NULL THEN CAST(:lost AS interval)
      ELSE greatest(CAST(:bounded AS interval), 3 * p.max_runtime_minutes * interval '1 minute') END
""")  # noqa: S608 - built from constants


class Signal(enum.StrEnum):
    """What a job reports."""

    START = "start"
    SUCCESS = "success"
    FAIL = "fail"


_STATUS = {Signal.START: RunStatus.RUNNING, Signal.SUCCESS: RunStatus.SUCCESS, Signal.FAIL: RunStatus.FAILED}


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """The outcome of a ping: its run, and the run's resulting status."""

    pipeline_id: UUID
    pipeline: str
    run_id: str
    status: RunStatus
    outcome: MergeOutcome


def ping(
    engine: Engine,
    pipeline: Ref,
    signal: Signal,
    *,
    run_id: str | None = None,
    message: str | None = None,
    exit_status: int | None = None,
) -> Ping:
    """Record a ping in the ledger.

    `message` and `exit_status` say why a job failed; other pings ignore them. Raises NotFound for an unknown pipeline,
    Conflict for a disabled one, InputError for a run id that cannot be one, and DatabaseUnavailable.
    """
    named = None if run_id is None else values.run_id(run_id, "run_id")
    with writing(engine) as connection:
        owner = _enabled(connection, pipeline)
        connection.execute(_LOCK_HEARTBEATS, {"owner": str(owner.id)})
        now = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        about = named or _oldest_open(connection, owner, signal, now) or f"{PING_ID}{uuid4()}"
        row = find(connection, owner.id, about)
        known = None if row is None else as_run(row)
        if known is not None and signal is Signal.START and known.status.finished and not _runs_again(known, owner):
            return Ping(owner.id, owner.key, about, known.status, Outcome.STALE)
        given = _given(signal, known, now)
        if signal is Signal.FAIL and (reason := values.error_text(_reason(message, exit_status))):
            given["error_message"] = reason
        run, outcome = merge_recorded(connection, owner.id, about, given, fed=owner.fed)
        return Ping(owner.id, owner.key, about, run.status, outcome)


def _enabled(connection: sa.Connection, pipeline: Ref) -> sa.Row[Any]:
    """`id`, `key`, `max_runtime_minutes`, and `fed`: a partner reports its runs as well. Raises NotFound, Conflict."""
    found = connection.execute(
        select_pipeline(
            pipeline,
            pipelines.c.id,
            (clients.c.slug + "/" + pipelines.c.slug).label("key"),
            pipelines.c.max_runtime_minutes,
            pipelines.c.external_id.is_not(None).label("fed"),
            sa.and_(pipelines.c.is_active, clients.c.is_active).label("enabled"),
        )
    ).one_or_none()
    if found is None:
        raise unknown_pipeline(pipeline)
    if not found.enabled:
        raise Conflict("pipeline", "it is disabled, and takes no pings; enable it first")
    return found


def _oldest_open(connection: sa.Connection, owner: sa.Row[Any], signal: Signal, now: datetime) -> str | None:
    """The id of the run that a ping without one is about; None if that is a new run."""
    if signal is Signal.START:
        return None
    usual = None if owner.max_runtime_minutes is None else 3 * timedelta(minutes=owner.max_runtime_minutes)
    longest = LOST if usual is None else max(LOST_IF_BOUNDED, usual)
    which = {"owner": owner.id, "fed": owner.fed, "earliest": now - longest, "overdue": now - (usual or longest)}
    found: str | None = connection.scalar(_OLDEST_OPEN, which)
    return found


def _runs_again(known: Run, owner: sa.Row[Any]) -> bool:
    """Whether the start of a run that has ended is a new attempt. Where a partner counts attempts, nobody else does."""
    had_start = known.duration_seconds is not None or known.status_reason == UNKNOWN_OUTCOME
    return had_start and not owner.fed


def _given(signal: Signal, known: Run | None, now: datetime) -> dict[str, Any]:
    """The ping as a recording of its run. One that repeats what is known has no times."""
    given: dict[str, Any] = {"status": _STATUS[signal]}
    if known is None:
        given["payload"] = {"source": SOURCE}
    elif known.status.finished and signal is Signal.START:
        given |= {"payload": known.payload, "attempt": known.attempt + 1}
    if given["status"].finished and (known is None or known.status is not given["status"]):
        given["finished_at"] = now
    return given


def close_lost_runs(engine: Engine) -> int:
    """Close the runs whose end has not come for too long, of jobs that nobody can be asked about; returns how many.

    Raises DatabaseUnavailable.
    """
    with database_errors(), engine.begin() as connection:
        return connection.execute(_CLOSE_LOST, {"lost": LOST, "bounded": LOST_IF_BOUNDED}).rowcount


def _reason(message: str | None, exit_status: int | None) -> str:
    status = "" if exit_status is None else f"exit status {exit_status}"
    return "\n".join(part for part in (status, (message or "").strip()) if part)

"""Runs of jobs that no partner knows: the job itself says that it starts, and how it ended.

A ping is recorded as a run that somebody records by hand is, and so under the same merge rule: pings may come twice and
out of order. The pings of one pipeline are taken one after the other, and their times are the database's.

- With a run id, all pings of that id are one run. A start that comes after the end reopens nothing; of two ends that
  contradict each other the later one holds.
- Without one, a start begins a new run; an end closes the newest run that still goes, or is a run of its own if there
  is none. A repetition cannot be told from a second run then: a job that tries again should send a run id.
"""

import dataclasses
import enum
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from chm_dagster.domain import values
from chm_dagster.domain.runs import PING_ID, Run, RunStatus
from chm_dagster.errors import Conflict
from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.recording import Outcome, as_run, find, merge_recorded
from chm_dagster.warehouse.references import Ref, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.tables import clients, pipelines

MAX_OPEN = timedelta(days=7)
"""An end without a run id closes no run that started longer ago: the end of that one must have been lost."""
SOURCE = "heartbeat"
"""What `source` says in the payload of a run that began with a ping."""

_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/heartbeat/' || :owner, 0))")
# The inner query can be answered from the index ix_runs_latest alone; the outer one reads the few rows that still go.
_NEWEST_OPEN = sa.text(f"""
SELECT external_run_id FROM runs
WHERE id IN (
    SELECT id FROM runs
    WHERE pipeline_id = CAST(:owner AS uuid) AND status = 'running' AND started_at > :earliest
)
AND payload ->> 'source' = '{SOURCE}'
ORDER BY started_at DESC, id DESC
LIMIT 1
""")  # noqa: S608 - built from a constant


class Signal(enum.StrEnum):
    """What a job says of itself."""

    START = "start"
    SUCCESS = "success"
    FAIL = "fail"


_STATUS = {Signal.START: RunStatus.RUNNING, Signal.SUCCESS: RunStatus.SUCCESS, Signal.FAIL: RunStatus.FAILED}


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """What became of a ping: the run that it was about, and how that run stands now."""

    pipeline_id: UUID
    pipeline: str
    run_id: str
    status: RunStatus
    outcome: Outcome


def ping(
    engine: Engine,
    pipeline: Ref,
    signal: Signal,
    *,
    run_id: str | None = None,
    message: str | None = None,
    exit_status: int | None = None,
) -> Ping:
    """Take a ping into the ledger.

    `message` and `exit_status` say why a job failed; other pings ignore them. Raises NotFound for an unknown pipeline,
    Conflict for a disabled one, InputError for a run id that cannot be one, and DatabaseUnavailable.
    """
    named = None if run_id is None else values.run_id(run_id, "run_id")
    with writing(engine) as connection:
        owner = _enabled(connection, pipeline)
        connection.execute(_LOCK, {"owner": str(owner.id)})
        now = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        about = named or _newest_open(connection, owner.id, signal, now) or f"{PING_ID}{uuid4()}"
        row = find(connection, owner.id, about)
        known = None if row is None else as_run(row)
        if known is not None and known.status.finished and signal is Signal.START:
            return Ping(owner.id, owner.key, about, known.status, "stale")
        given = _given(signal, known, now)
        if signal is Signal.FAIL and (reason := values.error_text(_reason(message, exit_status))):
            given["error_message"] = reason
        run, outcome = merge_recorded(connection, owner.id, about, given, fed=owner.fed)
        return Ping(owner.id, owner.key, about, run.status, outcome)


def _enabled(connection: sa.Connection, pipeline: Ref) -> sa.Row[Any]:
    """`id`, `key`, and `fed`: whether a partner tells of it, too. Raises NotFound, Conflict."""
    found = connection.execute(
        select_pipeline(
            pipeline,
            pipelines.c.id,
            (clients.c.slug + "/" + pipelines.c.slug).label("key"),
            pipelines.c.external_id.is_not(None).label("fed"),
            sa.and_(pipelines.c.is_active, clients.c.is_active).label("enabled"),
        )
    ).one_or_none()
    if found is None:
        raise unknown_pipeline(pipeline)
    if not found.enabled:
        raise Conflict("pipeline", "it is disabled, and takes no pings; enable it first")
    return found


def _newest_open(connection: sa.Connection, owner: UUID, signal: Signal, now: datetime) -> str | None:
    """The id of the run that a ping without one is about; None if that is a new run."""
    if signal is Signal.START:
        return None
    found: str | None = connection.scalar(_NEWEST_OPEN, {"owner": owner, "earliest": now - MAX_OPEN})
    return found


def _given(signal: Signal, known: Run | None, now: datetime) -> dict[str, Any]:
    """What the ping says of its run. One that says again what is known says nothing of times."""
    given: dict[str, Any] = {"status": _STATUS[signal]}
    if known is None:
        given["payload"] = {"source": SOURCE}
    if given["status"].finished and (known is None or known.status is not given["status"]):
        given["finished_at"] = now
    return given


def _reason(message: str | None, exit_status: int | None) -> str:
    status = "" if exit_status is None else f"exit status {exit_status}"
    return "\n".join(part for part in (status, (message or "").strip()) if part)

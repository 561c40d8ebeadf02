"""Take a run that somebody records into the ledger, under the merge rule of all observations."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import sqlalchemy as sa

from chm_dagster.domain.fields import line
from chm_dagster.domain.manual import RESERVED, body_digest, key_digest, observe, read_run
from chm_dagster.domain.runs import Run, RunStatus
from chm_dagster.errors import Conflict
from chm_dagster.warehouse.references import Ref, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.runs import merge_runs
from chm_dagster.warehouse.tables import pipelines, runs

Outcome = Literal["inserted", "updated", "unchanged", "stale"]

MAX_KEY_CHARS = 255
_REMEMBERED = 20
"""Keys that a run remembers, the newest ones."""

# Recordings of one run, and those of one key, wait for each other.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/recording/' || :what, 0))")
_NOW = sa.select(sa.func.clock_timestamp())
_BY_KEY = sa.text(f"""
SELECT external_run_id FROM runs
WHERE payload ? '{RESERVED}' AND payload -> '{RESERVED}' ? :digest AND pipeline_id = :pipeline_id
LIMIT 1
""")  # noqa: S608 - built from a constant

COLUMNS = tuple(runs.c[field.name] for field in dataclasses.fields(Run))


def as_run(row: sa.Row[Any]) -> Run:
    """A run from a row of `COLUMNS`, without what CHM itself remembers in its payload."""
    values = row._asdict()
    payload = {name: value for name, value in values["payload"].items() if name != RESERVED}
    return Run(**{**values, "status": RunStatus(values["status"]), "payload": payload})


def record(
    connection: sa.Connection, pipeline_ref: Ref, fields: Mapping[str, Any], idempotency_key: str | None
) -> tuple[Run, Outcome]:
    """Record a run in the caller's transaction; see `Runs.record`."""
    given = read_run(fields, datetime.now(UTC))
    key = None if idempotency_key is None else line(MAX_KEY_CHARS)(idempotency_key, "idempotency_key")
    pipeline = connection.execute(select_pipeline(pipeline_ref, pipelines.c.id, pipelines.c.external_id)).one_or_none()
    if pipeline is None:
        raise unknown_pipeline(pipeline_ref)
    remembered: dict[str, str] = {}
    if key is not None:
        digest, body = key_digest(pipeline.id, key), body_digest(given)
        earlier = _recorded_with(connection, pipeline.id, digest, body)
        if earlier is not None:
            return earlier, "unchanged"
        remembered = {digest: body}
    run_id = given.get("external_run_id") or f"manual-{uuid5(pipeline.id, key) if key is not None else uuid4()}"
    return merge_recorded(connection, pipeline.id, run_id, given, remembered, fed=pipeline.external_id is not None)


def _recorded_with(connection: sa.Connection, pipeline_id: UUID, digest: str, body: str) -> Run | None:
    """The run that was recorded with this key. Raises Conflict if it was recorded with another body."""
    _lock(connection, f"{pipeline_id}/key/{digest}")
    run_id = connection.scalar(_BY_KEY, {"digest": digest, "pipeline_id": pipeline_id})
    row = None if run_id is None else find(connection, pipeline_id, run_id)
    if row is None:
        return None
    if row.payload[RESERVED][digest] != body:
        raise Conflict("idempotency_key", "was sent with another run before; send a new key for a new run")
    return as_run(row)


def merge_recorded(
    connection: sa.Connection,
    pipeline_id: UUID,
    run_id: str,
    given: Mapping[str, Any],
    remembered: Mapping[str, str],
    *,
    fed: bool,
) -> tuple[Run, Outcome]:
    """Bring a run up to what `given` (of `read_run`'s form) says of it, in the caller's transaction.

    `remembered` are idempotency keys to keep with it; `fed`: a partner tells of this pipeline's runs. Returns the run
    as it stands now. Raises InputError for an end before the start.
    """
    _lock(connection, f"{pipeline_id}/run/{run_id}")
    row = find(connection, pipeline_id, run_id)
    known = None if row is None else as_run(row)
    observation = observe(pipeline_id, run_id, given, known, connection.execute(_NOW).scalar_one(), fed=fed)
    keys = {**(row.payload.get(RESERVED, {}) if row is not None else {}), **remembered}
    if keys:
        newest = dict(list(keys.items())[-_REMEMBERED:])
        observation = dataclasses.replace(observation, payload={**observation.payload, RESERVED: newest})
    tally = dataclasses.asdict(merge_runs(connection, [observation])[pipeline_id])
    row = find(connection, pipeline_id, run_id)
    assert row is not None  # noqa: S101 - runs are never deleted
    return as_run(row), _outcome(tally)


def _outcome(tally: Mapping[str, int]) -> Outcome:
    if tally["inserted"]:
        return "inserted"
    if tally["updated"]:
        return "updated"
    return "unchanged" if tally["unchanged"] else "stale"


def find(connection: sa.Connection, pipeline_id: UUID, run_id: str) -> sa.Row[Any] | None:
    """The row of `COLUMNS` of a run, None if there is none."""
    query = sa.select(*COLUMNS).where(runs.c.pipeline_id == pipeline_id, runs.c.external_run_id == run_id)
    return connection.execute(query).one_or_none()


def _lock(connection: sa.Connection, what: str) -> None:
    connection.execute(_LOCK, {"what": what})

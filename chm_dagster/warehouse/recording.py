"""Take a run that somebody records into the ledger, under the merge rule of all observations."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import line
from chm_dagster.domain.manual import RESERVED, body_digest, is_late_start, key_digest, observe, read_run
from chm_dagster.domain.runs import MANUAL_ID, Run, RunStatus
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
BY_KEY = sa.text(f"""
SELECT external_run_id FROM runs
WHERE payload ? '{RESERVED}' AND payload -> '{RESERVED}' ? :digest AND pipeline_id = :pipeline_id
LIMIT 1
""")  # noqa: S608 - built from a constant

COLUMNS = tuple(runs.c[field.name] for field in dataclasses.fields(Run))
_STATUS, _PAYLOAD = (COLUMNS.index(runs.c[name]) for name in ("status", "payload"))


def as_run(row: sa.Row[Any]) -> Run:
    """A run from a row of `COLUMNS`, without what CHM itself remembers in its payload."""
    values = list(row)
    values[_STATUS] = RunStatus(values[_STATUS])
    if RESERVED in values[_PAYLOAD]:
        values[_PAYLOAD] = {name: value for name, value in values[_PAYLOAD].items() if name != RESERVED}
    return Run(*values)


def record(
    connection: sa.Connection, pipeline_ref: Ref, fields: Mapping[str, Any], idempotency_key: str | None
) -> tuple[Run, Outcome]:
    """Record a run in the caller's transaction; see `Runs.record`."""
    given = read_run(fields, datetime.now(UTC))
    key = None if idempotency_key is None else line(MAX_KEY_CHARS)(idempotency_key, "idempotency_key")
    pipeline = connection.execute(select_pipeline(pipeline_ref, pipelines.c.id, pipelines.c.external_id)).one_or_none()
    if pipeline is None:
        raise unknown_pipeline(pipeline_ref)
    fed = pipeline.external_id is not None
    if key is None:
        run_id = given.get("external_run_id") or f"{MANUAL_ID}{uuid4()}"
        return merge_recorded(connection, pipeline.id, run_id, given, fed=fed)
    digest, body = key_digest(pipeline.id, key), body_digest(given)
    earlier = _recorded_with(connection, pipeline.id, digest, body)
    if earlier is not None:
        return earlier, "unchanged"
    run_id = given.get("external_run_id") or f"{MANUAL_ID}{uuid5(pipeline.id, key)}"
    run, outcome = merge_recorded(connection, pipeline.id, run_id, given, fed=fed)
    _remember(connection, run, digest, body)
    return run, outcome


def _recorded_with(connection: sa.Connection, pipeline_id: UUID, digest: str, body: str) -> Run | None:
    """The run that was recorded with this key. Raises Conflict if it was recorded with another body."""
    _lock(connection, f"{pipeline_id}/key/{digest}")
    run_id = connection.scalar(BY_KEY, {"digest": digest, "pipeline_id": pipeline_id})
    row = None if run_id is None else find(connection, pipeline_id, run_id)
    if row is None:
        return None
    if _keys(row.payload).get(digest, (0, ""))[1] != body:
        raise Conflict("idempotency_key", "was sent with another run before; send a new key for a new run")
    return as_run(row)


def _remember(connection: sa.Connection, run: Run, digest: str, body: str) -> None:
    """Keep a key with its run, whatever the outcome was; it is no part of what is known of the run."""
    row = find(connection, run.pipeline_id, run.external_run_id)
    assert row is not None  # noqa: S101 - runs are never deleted
    keys = _keys(row.payload)
    number = 1 + max((number for number, _ in keys.values()), default=0)
    keys = {known: entry for known, entry in keys.items() if entry[0] > number - _REMEMBERED}
    addition = sa.cast({RESERVED: {**keys, digest: [number, body]}}, pg.JSONB)
    connection.execute(sa.update(runs).where(runs.c.id == run.id).values(payload=runs.c.payload.concat(addition)))


def _keys(payload: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """The keys that a run remembers: digest -> number, digest of the body. A partner's payload is not trusted."""
    kept = payload.get(RESERVED)
    entries = kept.items() if isinstance(kept, dict) else ()
    return {
        digest: (entry[0], entry[1])
        for digest, entry in entries
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int) and isinstance(entry[1], str)
    }


def merge_recorded(
    connection: sa.Connection, pipeline_id: UUID, run_id: str, given: Mapping[str, Any], *, fed: bool
) -> tuple[Run, Outcome]:
    """Bring a run up to what `given` (of `read_run`'s form) says of it, in the caller's transaction.

    `fed`: a partner tells of this pipeline's runs. Returns the run as it stands now. Raises InputError for an end
    before the start.
    """
    _lock(connection, f"{pipeline_id}/run/{run_id}")
    row = find(connection, pipeline_id, run_id)
    known = None if row is None else as_run(row)
    if known is not None and is_late_start(given, known):
        return known, "stale"
    observation = observe(pipeline_id, run_id, given, known, connection.execute(_NOW).scalar_one(), fed=fed)
    if row is not None and RESERVED in row.payload:
        payload = {**observation.payload, RESERVED: row.payload[RESERVED]}
        observation = msgspec.structs.replace(observation, payload=payload)
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

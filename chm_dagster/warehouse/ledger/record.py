"""Record runs that no partner reports, by hand or by import, under the merge rule of all observations.

A partner reports a whole run every time; people report it in parts, first that it started, then how it ended. What they
do not repeat stays as the ledger has it, as long as it is the same attempt of the same run.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import IdempotencyKey
from chm_dagster.domain.nouns import Input
from chm_dagster.domain.runs import (
    MANUAL_ID,
    RESERVED,
    UNKNOWN_OUTCOME,
    Counts,
    MergeOutcome,
    NewRun,
    Observation,
    Outcome,
    Run,
    RunStatus,
)
from chm_dagster.domain.validation import read_value
from chm_dagster.errors import Conflict, InputError
from chm_dagster.warehouse.inventory.references import Ref, select_pipeline, unknown_pipeline
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.tables import pipelines, runs


def read_run(fields: Mapping[str, object] | Input, now: datetime) -> dict[str, Any]:
    """The recorded fields, ready to be stored; None counts as not set. Raises InputError with all problems."""
    given = {name: value for name, value in NewRun.read(fields, now=now).given().items() if value is not None}
    Run.check(given)
    return given


def key_digest(pipeline_id: UUID, key: str) -> str:
    """How an idempotency key of a pipeline is stored: as a hash, since it may mean something to its sender."""
    return hashlib.sha256(f"{pipeline_id}\n{key}".encode()).hexdigest()[:32]


def body_digest(given: Mapping[str, Any]) -> str:
    """Equal for two recordings with the same fields."""
    return hashlib.sha256(orjson.dumps(dict(given), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def is_late_start(given: Mapping[str, Any], known: Run) -> bool:
    """Whether it reports a run as running that has ended according to the ledger."""
    running = not given["status"].finished
    return running and known.status.finished and given.get("attempt", known.attempt) <= known.attempt


_KEPT = ("rows_processed", "source_url", "payload", "queued_at", "kind")
"""The fields that a run keeps, whatever its status becomes."""


def observe(
    pipeline_id: UUID, run_id: str, given: Mapping[str, Any], known: Run | None, now: datetime, *, fed: bool
) -> Observation:
    """The observation that a recording makes, where `known` is the run as it stands.

    On a pipeline whose runs a partner reports (`fed`) it is never final and has no version, so that the partner's
    record of the same run wins. Of two recordings that contradict each other the later one wins. Raises InputError for
    an end before the start.
    """
    status: RunStatus = given["status"]
    attempt = given.get("attempt", known.attempt if known else 0)
    if known is not None and known.attempt != attempt:
        known = None
    started_at, finished_at, duration = _times(given, known, now)
    same = known if known is not None and known.status is status else None
    kept = {name: given.get(name, getattr(known, name, None)) for name in _KEPT}
    return Observation(
        pipeline_id=pipeline_id,
        external_run_id=run_id,
        status=status,
        started_at=started_at,
        finished_at=finished_at,
        duration_seconds=duration,
        rows_processed=kept["rows_processed"],
        error_message=given.get("error_message", same.error_message if same else None),
        status_reason=given.get("status_reason", same.status_reason if same else None),
        source_url=kept["source_url"],
        payload=kept["payload"] or {},
        attempt=attempt,
        progress=int(status.finished and not fed),
        source_version=known.source_version if known is not None and not fed else None,
        observed_at=now,
        queued_at=kept["queued_at"],
        kind=kept["kind"],
        will_retry=given.get("will_retry", same.will_retry if same else False),
    )


def _times(
    given: Mapping[str, Any], known: Run | None, now: datetime
) -> tuple[datetime, datetime | None, float | None]:
    """Start, finish and duration in seconds. A missing time means now."""
    started: datetime | None = given.get("started_at", known.started_at if known else None)
    if not given["status"].finished:
        return started or now, None, None
    # The start of a finished run without a duration only stands in for the true one, which nobody reported.
    true_start = "started_at" in given or (
        known is not None
        and (not known.status.finished or known.duration_seconds is not None or known.status_reason == UNKNOWN_OUTCOME)
    )
    claimed: float | None = given.get("duration_seconds")
    finished: datetime | None = given.get("finished_at", known.finished_at if known else None)
    if started is None or not true_start:
        finished = finished or now
        stand_in = finished if started is None else min(started, finished)
        return (finished - timedelta(seconds=claimed), finished, claimed) if claimed else (stand_in, finished, claimed)
    if finished is None:
        finished = max(now, started) if claimed is None else started + timedelta(seconds=claimed)
    if finished < started:
        raise InputError("finished_at", f"before the run started at {started.isoformat()}; check the two times")
    return started, finished, (finished - started).total_seconds()


_REMEMBERED = 20
"""How many of its newest keys a run remembers."""

# Recordings of one run, and those of one key, wait for each other.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('chm/recording/' || :what, 0))")
_NOW = sa.select(sa.func.clock_timestamp())
BY_KEY = sa.text(f"""
SELECT external_run_id FROM runs
WHERE payload ? '{RESERVED}' AND payload -> '{RESERVED}' ? :digest AND pipeline_id = :pipeline_id
LIMIT 1
""")  # noqa: S608 - built from a constant

COLUMNS = tuple(runs.c[name] for name in Run.model_fields)


def as_run(row: sa.Row[Any]) -> Run:
    """A run from a row of `COLUMNS`, without what CHM itself remembers in its payload."""
    payload = row.payload
    if RESERVED in payload:
        payload = {name: value for name, value in payload.items() if name != RESERVED}
    return Run.from_row({**row._mapping, "payload": payload})


def record(
    connection: sa.Connection, pipeline_ref: Ref, fields: Mapping[str, Any] | Input, idempotency_key: str | None
) -> tuple[Run, MergeOutcome]:
    """Record a run in the caller's transaction; see `Runs.record`."""
    given = read_run(fields, datetime.now(UTC))
    key = None if idempotency_key is None else read_value(IdempotencyKey, idempotency_key, "idempotency_key")
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
        return earlier, Outcome.UNCHANGED
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
    """Store a key with its run, whatever the outcome; it is not part of the run's content."""
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
) -> tuple[Run, MergeOutcome]:
    """Update a run from the fields in `given` (as returned by `read_run`), in the caller's transaction.

    `fed`: a partner reports this pipeline's runs. Returns the resulting run. Raises InputError for an end
    before the start.
    """
    _lock(connection, f"{pipeline_id}/run/{run_id}")
    row = find(connection, pipeline_id, run_id)
    known = None if row is None else as_run(row)
    if known is not None and is_late_start(given, known):
        return known, Outcome.STALE
    observation = observe(pipeline_id, run_id, given, known, connection.execute(_NOW).scalar_one(), fed=fed)
    if row is not None and RESERVED in row.payload:
        payload = {**observation.payload, RESERVED: row.payload[RESERVED]}
        observation = msgspec.structs.replace(observation, payload=payload)
    counts = merge_runs(connection, [observation])[pipeline_id]
    row = find(connection, pipeline_id, run_id)
    assert row is not None  # noqa: S101 - runs are never deleted
    return as_run(row), outcome_of(counts)


def outcome_of(counts: Counts) -> MergeOutcome:
    """What became of the one observation that was counted."""
    if counts.inserted:
        return Outcome.INSERTED
    if counts.updated:
        return Outcome.UPDATED
    return Outcome.UNCHANGED if counts.unchanged else Outcome.STALE


def find(connection: sa.Connection, pipeline_id: UUID, run_id: str) -> sa.Row[Any] | None:
    """The row of `COLUMNS` of a run, None if there is none."""
    query = sa.select(*COLUMNS).where(runs.c.pipeline_id == pipeline_id, runs.c.external_run_id == run_id)
    return connection.execute(query).one_or_none()


def _lock(connection: sa.Connection, what: str) -> None:
    connection.execute(_LOCK, {"what": what})

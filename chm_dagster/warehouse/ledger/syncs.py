"""Who reads a partner, how far each pipeline is known, what failed; and the transaction that writes a connection."""

import dataclasses
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.runs import Counts, Observation
from chm_dagster.domain.sync import MAX_SYNC_ERROR_CHARS, SyncErrorCode
from chm_dagster.errors import Busy, DatabaseUnavailable
from chm_dagster.warehouse.engine import Engine, database_errors, is_lock_timeout
from chm_dagster.warehouse.ledger.due_times import lock_pipelines, refresh_due, with_news
from chm_dagster.warehouse.ledger.merge import RunMerge
from chm_dagster.warehouse.tables import pipelines, runs

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 60.0
"""How often a process that reads partners shows the database that it is alive."""
# A process that has stopped without ending loses its session, and with it its claims, after this long.
_IDLE_LIMIT = "SET idle_session_timeout = '10min'"
_TAKE = sa.text("SELECT pg_try_advisory_lock(hashtextextended('chm/reading/' || :name, 0))")
_IS_FREE = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended('chm/reading/' || :name, 0))")
_OWNER = "owner:"
_GIVE_BACK = sa.text("SELECT pg_advisory_unlock(hashtextextended('chm/reading/' || :name, 0))")

# Held by every writer of runs, and alone by whoever changes what a pipeline means at its partner.
MEANING_LOCK = "hashtextextended('chm/meaning', 0)"
_PATIENCE = "SET LOCAL lock_timeout = '20s'"
_KNOWN = (
    "synced_through",
    "observed_through",
    "sync_attempted_at",
    "sync_failing_since",
    "sync_error",
    "sync_error_code",
    "known_through",
    "stale_at",
    "doubt",
    "doubt_since",
)


@dataclasses.dataclass(frozen=True, slots=True)
class CompletedSync:
    """A pipeline was read to the end: its runs are known through `synced_through` by the partner's clock.

    None: nothing shows that clock yet, and the next sync reads from the beginning again. `observed_through` is when the
    sync started, by our clock. `warning` is about clocks that disagree.

    What did not happen is known up to `known_through`; the sync says how the pipeline is until `stale_at`, unless there
    is a `doubt`: the reason why its records do not say that. It lasts until a sync reads without one; if
    `doubt_needs_run`, until it finds a new run besides, because the records in question are not read again.
    """

    pipeline_id: UUID
    synced_through: datetime | None
    observed_through: datetime
    warning: str | None = None
    known_through: datetime | None = None
    stale_at: datetime | None = None
    doubt: str | None = None
    doubt_needs_run: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class FailedSync:
    """A pipeline could not be read to the end in the sync that started at `attempted_at`."""

    pipeline: IngestedPipeline
    attempted_at: datetime
    error: str
    code: SyncErrorCode


_IS_NEWER = "w.observed_through >= coalesce(p.sync_attempted_at, '-infinity')"
_DOUBT_STAYS = "p.doubt_needs_run AND NOT w.has_news"
_COMPLETE = f"""
UPDATE pipelines AS p
SET synced_through = greatest(p.synced_through, w.synced_through),
    observed_through = greatest(p.observed_through, w.observed_through),
    sync_attempted_at = greatest(p.sync_attempted_at, w.observed_through),
    sync_failing_since = CASE WHEN {_IS_NEWER} THEN NULL ELSE p.sync_failing_since END,
    sync_error = CASE WHEN {_IS_NEWER} THEN w.warning ELSE p.sync_error END,
    sync_error_code = CASE WHEN {_IS_NEWER} THEN w.code ELSE p.sync_error_code END,
    known_through = w.known_through,
    stale_at = w.stale_at,
    doubt = CASE WHEN w.doubt IS NULL AND {_DOUBT_STAYS} THEN p.doubt ELSE w.doubt END,
    doubt_since = CASE
        WHEN w.doubt IS NOT NULL THEN coalesce(p.doubt_since, w.observed_through)
        WHEN {_DOUBT_STAYS} THEN p.doubt_since
    END,
    doubt_needs_run = CASE
        WHEN w.doubt IS NOT NULL THEN p.doubt_needs_run OR w.doubt_needs_run
        ELSE {_DOUBT_STAYS}
    END
FROM unnest(
    %s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[],
    %s::boolean[], %s::text[], %s::boolean[]
) AS w(
    id, synced_through, observed_through, warning, known_through, stale_at, doubt, doubt_needs_run, code, has_news
)
WHERE p.id = w.id
  AND (p.observed_through IS NULL OR p.observed_through < w.observed_through
       OR p.synced_through < w.synced_through OR (p.synced_through IS NULL AND w.synced_through IS NOT NULL))
"""  # noqa: S608 - built from a constant

_SAME_MEANING = """p.id = w.id AND p.external_id = w.external_id AND p.platform = w.platform
    AND p.connection IS NOT DISTINCT FROM w.connection"""

_FAIL = f"""
UPDATE pipelines AS p
SET sync_attempted_at = w.attempted_at,
    sync_failing_since = coalesce(p.sync_failing_since, w.attempted_at),
    -- One failure may be a hiccup. After the second, what was read before no longer says how the pipeline is.
    stale_at = least(p.stale_at, CASE WHEN p.sync_failing_since < w.attempted_at THEN w.attempted_at END),
    sync_error = w.error,
    sync_error_code = w.code
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[])
    AS w(id, external_id, platform, connection, attempted_at, error, code)
WHERE {_SAME_MEANING} AND (p.sync_attempted_at IS NULL OR p.sync_attempted_at <= w.attempted_at)
"""  # noqa: S608 - built from a constant

_REPOINTED = f"""
SELECT w.id FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) AS w(id, external_id, platform, connection)
WHERE NOT EXISTS (SELECT FROM pipelines AS p WHERE {_SAME_MEANING})
"""  # noqa: S608 - built from a constant

# Records up to the newest known version have been read, whatever the watermark says.
_HEAL = sa.text("""
UPDATE pipelines AS p
SET synced_through = CASE WHEN p.synced_through <= :now THEN p.synced_through ELSE (
        SELECT max(coalesce(r.source_version, r.finished_at, r.started_at)) FROM runs AS r
        WHERE r.pipeline_id = p.id AND coalesce(r.source_version, r.finished_at, r.started_at) <= :now
    ) - CAST(:overlap AS interval) END,
    observed_through = least(p.observed_through, :now), known_through = least(p.known_through, :now), stale_at = NULL
WHERE p.id = ANY(:ids) AND (p.synced_through > :now OR p.observed_through > :now)
RETURNING p.id, p.synced_through
""")


def complete_syncs(
    connection: sa.Connection, syncs: Iterable[CompletedSync], news: Collection[UUID] = frozenset()
) -> None:
    """Note how far pipelines are known, in the caller's transaction. A watermark never moves back here.

    `news` are the pipelines of which a run was written.
    """
    rows = sorted(syncs, key=lambda sync: sync.pipeline_id)
    if rows:
        lock_pipelines(connection, [row.pipeline_id for row in rows])
        facts = ("known_through", "stale_at", "doubt", "doubt_needs_run")
        columns = _columns(rows, "pipeline_id", "synced_through", "observed_through", "warning", *facts)
        codes = [None if row.warning is None else str(SyncErrorCode.CLOCK_SKEW) for row in rows]
        connection.exec_driver_sql(_COMPLETE, (*columns, codes, [row.pipeline_id in news for row in rows]))


def fail_syncs(engine: Engine, syncs: Iterable[FailedSync]) -> None:
    """Note which pipelines could not be read, in a transaction of its own. Raises DatabaseUnavailable.

    Nothing is noted about a pipeline that has been read since, or that means another one at its partner by now.
    """
    rows = sorted(syncs, key=lambda sync: sync.pipeline.id)
    if not rows:
        return
    errors = [row.error[:MAX_SYNC_ERROR_CHARS] or row.code for row in rows]
    facts = ([row.attempted_at for row in rows], errors, [str(row.code) for row in rows])
    with database_errors(), engine.begin() as connection:
        lock_pipelines(connection, [row.pipeline.id for row in rows])
        connection.exec_driver_sql(_FAIL, (*_meaning([row.pipeline for row in rows]), *facts))


def repointed(connection: sa.Connection, looked_up: Collection[IngestedPipeline]) -> frozenset[UUID]:
    """The pipelines whose external id, platform or connection has changed since they were looked up.

    Until the caller's transaction ends, nobody can change those of the others.
    """
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({MEANING_LOCK})")
    found = connection.exec_driver_sql(_REPOINTED, _meaning(list(looked_up)))
    return frozenset(row[0] for row in found)


def start_anew(connection: sa.Connection, pipeline_id: UUID, *, remove_runs: bool) -> None:
    """Read the pipeline's history from its beginning in the next sync, in the caller's transaction.

    To be called before what the pipeline means at its partner changes: from then on no writer can write what it has
    read of the old one. Raises Busy if writers are at work for too long.
    """
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(_PATIENCE)
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MEANING_LOCK})")
    except sa.exc.DBAPIError as error:
        if is_lock_timeout(error):
            raise Busy("runs are being written right now; try again in a minute") from None
        raise
    if remove_runs:
        connection.execute(sa.delete(runs).where(runs.c.pipeline_id == pipeline_id))
    nothing = {**dict.fromkeys(_KNOWN), "doubt_needs_run": False}
    connection.execute(sa.update(pipelines).where(pipelines.c.id == pipeline_id).values(nothing))


def heal_watermarks(
    engine: Engine, pipeline_ids: Collection[UUID], now: datetime, overlap: timedelta
) -> Mapping[UUID, datetime | None]:
    """Pull watermarks that lie in the future back to the newest run that was read, so that the gap is read again.

    Returns the new watermark of each pipeline that had such a one. Raises DatabaseUnavailable.
    """
    with database_errors(), engine.begin() as connection:
        found = connection.execute(_HEAL, {"ids": list(pipeline_ids), "now": now, "overlap": overlap})
        return {row[0]: row[1] for row in found}


def _meaning(looked_up: Sequence[IngestedPipeline]) -> tuple[list[Any], ...]:
    ids, external_ids, platforms, connections = _columns(looked_up, "id", "external_id", "platform", "connection")
    return ids, external_ids, [str(platform) for platform in platforms], connections


def _columns(rows: Sequence[Any], *names: str) -> tuple[list[Any], ...]:
    return tuple([getattr(row, name) for row in rows] for name in names)


class ReadingClaims:
    """Which connections this process is reading, so that no other process reads them at the same time.

    A courtesy to partners and their rate limits: what is written is right without it. All claims belong to one session
    and end with it; a lost session is opened again. Safe to use from several threads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: sa.Connection | None = None

    def take(self, connection_name: str) -> bool:
        """Claim a connection; False if another process has it. Raises DatabaseUnavailable."""
        with self._lock:
            try:
                return self._ask(_TAKE, connection_name)
            except DatabaseUnavailable:
                # The session may have ended long ago, without anybody noticing.
                return self._ask(_TAKE, connection_name)

    def give_back(self, connection_name: str) -> None:
        """Let others read the connection."""
        with self._lock, suppress(DatabaseUnavailable):
            if self._connection is not None:
                self._ask(_GIVE_BACK, connection_name)

    def keep_alive(self) -> None:
        """Show the database that this process is alive."""
        with self._lock:
            if self._connection is None:
                return
            try:
                self._ask(sa.text("SELECT true"), "")
            except DatabaseUnavailable as error:
                logger.warning("another process may read the same partners now: %s", error)

    def close(self) -> None:
        """End the session, and with it all claims."""
        with self._lock:
            self._drop()

    def _ask(self, question: sa.TextClause, connection_name: str) -> bool:
        try:
            with database_errors():
                if self._connection is None:
                    self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                    self._connection.exec_driver_sql(_IDLE_LIMIT)
                return bool(self._connection.scalar(question, {"name": connection_name} if connection_name else {}))
        except DatabaseUnavailable:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            # Not back to the pool: its locks would stay.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def is_ingesting(engine: Engine, owner: str) -> bool:
    """Whether the ingestion that gave this `owner` is alive. Raises DatabaseUnavailable."""
    with database_errors(), engine.begin() as connection:
        return not connection.scalar(_IS_FREE, {"name": _OWNER + owner})


@contextmanager
def reading_claims(engine: Engine, owner: str | None = None) -> Iterator[ReadingClaims]:
    """Claims that all end with the block. Until then `is_ingesting(owner)` holds. Raises DatabaseUnavailable."""
    claims = ReadingClaims(engine)
    try:
        if owner is not None:
            claims.take(_OWNER + owner)
        yield claims
    finally:
        claims.close()


_CLAIM = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended('chm/writing/' || :name, 0))")
# The server ends the transaction of a writer that hangs between two statements, or whose process is gone in the middle
# of one, and with it the claim.
_SETTINGS = (
    "SET LOCAL work_mem = '64MB'; SET LOCAL statement_timeout = '10min';"
    " SET LOCAL idle_in_transaction_session_timeout = '10min'; SET LOCAL client_connection_check_interval = '2s'"
)
STOPPED_AFTER = timedelta(minutes=2)
"""How long a COPY may last whose writer sends nothing, before another writer ends it. A batch takes a second."""
# No time limit of the server ends a COPY that waits for its client: a writer that was stopped, or whose machine sleeps,
# would keep its claim.
_END_STOPPED = sa.text("""
SELECT count(pg_terminate_backend(holder.pid, 5000))
FROM pg_locks AS held
JOIN pg_stat_activity AS holder ON holder.pid = held.pid
WHERE held.locktype = 'advisory' AND held.objsubid = 1 AND held.granted
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((CAST(held.classid AS int8) << 32) | CAST(held.objid AS int8)) = hashtextextended('chm/writing/' || :name, 0)
  AND holder.state = 'active' AND holder.wait_event = 'ClientRead'
  AND clock_timestamp() - holder.query_start > :stopped_after
""")


class LedgerWriter:
    """A transaction that writes runs."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._changed: set[UUID] = set()

    def repointed(self, pipelines: Collection[IngestedPipeline]) -> frozenset[UUID]:
        """Those that point to something else at the partner by now. The others cannot until the transaction ends."""
        return repointed(self._connection, pipelines)

    def merge(self, batches: Iterable[Sequence[Observation]], maybe_new: Sequence[UUID] = ()) -> dict[UUID, Counts]:
        """Merge all batches; returns the counts of each pipeline.

        `maybe_new` are pipelines that may have no runs yet: those that really have none are written faster.
        """
        with RunMerge(self._connection, maybe_new) as merge:
            for batch in batches:
                merge.add(batch)
        self._changed.update(with_news(merge.counts))
        return merge.counts

    def complete(self, syncs: Iterable[CompletedSync]) -> None:
        """Note how far these pipelines are known, and that they can be read; after their runs have been merged."""
        complete_syncs(self._connection, syncs, self._changed)

    def finish(self) -> None:
        """Have the due times follow the runs; last, because it updates some of the pipelines that `complete` does."""
        refresh_due(self._connection, self._changed)


@contextmanager
def ledger_writer(
    engine: Engine, claim: str | None = None, *, dry_run: bool = False, stopped_after: timedelta = STOPPED_AFTER
) -> Iterator[LedgerWriter]:
    """A transaction to write runs with, committed at its end; a dry run is rolled back.

    `claim` names the partner connection whose runs are written: there is one writer for each. One that has sent nothing
    for `stopped_after` in the middle of a batch is ended. Raises Busy at once if there is another one, and
    DatabaseUnavailable; then nothing was written.
    """
    with database_errors():
        connection = engine.connect()
    try:
        with database_errors(), connection.begin() as transaction:
            connection.exec_driver_sql(_SETTINGS)
            if claim is not None:
                _take(connection, claim, stopped_after)
            writer = LedgerWriter(connection)
            yield writer
            writer.finish()
            if dry_run:
                transaction.rollback()
    except BaseException:
        # Not back to the pool: nobody knows what state the session is in.
        connection.invalidate()
        raise
    finally:
        connection.close()


def _take(connection: sa.Connection, claim: str, stopped_after: timedelta) -> None:
    if connection.scalar(_CLAIM, {"name": claim}):
        return
    ended = connection.scalar(_END_STOPPED, {"name": claim, "stopped_after": stopped_after})
    if not ended or not connection.scalar(_CLAIM, {"name": claim}):
        raise Busy(f"connection {claim}: its runs are being written by another process")

"""The ledger: how observations become rows of `runs`, exactly once and in any order."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from chm_dagster.domain.runs import Observation
from chm_dagster.warehouse.staging import COLUMNS, KEY, encode

PART = 250
"""Observations that are made ready at a time: what was just made is still in the processor's cache."""
BATCH = 5_000
"""Observations per statement: past this, a larger batch loads no faster and only costs memory."""

_CREATE_STAGING = """
CREATE TEMP TABLE IF NOT EXISTS staged_runs (
    pipeline_id uuid NOT NULL,
    external_run_id text COLLATE "C" NOT NULL,
    status text NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    duration_seconds double precision,
    rows_processed bigint,
    error_message text,
    status_reason text,
    source_url text,
    payload jsonb NOT NULL,
    attempt integer NOT NULL,
    progress smallint NOT NULL,
    source_version timestamptz,
    observed_at timestamptz NOT NULL
) ON COMMIT DELETE ROWS
"""

_COPY = f"COPY pg_temp.staged_runs ({', '.join(COLUMNS)}) FROM STDIN"

# What a partner says of a run. observed_at is not among it: seeing the same thing again is not news.
_CONTENT = (
    "status",
    "started_at",
    "finished_at",
    "duration_seconds",
    "rows_processed",
    "error_message",
    "status_reason",
    "source_url",
    "attempt",
    "progress",
    "source_version",
    "payload",
)


def _content(alias: str) -> str:
    return f"({', '.join(f'{alias}.{column}' for column in _CONTENT)})"


def _version(alias: str) -> str:
    return f"({alias}.attempt, {alias}.progress, coalesce({alias}.source_version, '-infinity'))"


def _tie_break(alias: str) -> str:
    # Two different records of one run out of one request: either may be the truth, but it must always be the same one.
    return f'({alias}.status COLLATE "C", jsonb_hash_extended({alias}.payload, 0))'


# `judged` looks each staged row up before anything is written: ON CONFLICT would lock, and so log, every row that it
# meets, even one that its WHERE then refuses. Unchanged rows never get that far, so a replay writes nothing.
# A row that ties with the stored version is news only if it was also seen after the last complete sweep began: that
# sweep has seen the stored content again, without writing it (docs/adr/0003-order-of-knowledge.md).
_MERGE = f"""
WITH judged AS MATERIALIZED (
    SELECT
        s.ctid AS place,
        s.pipeline_id,
        CASE
            WHEN r.id IS NULL THEN 'new'
            WHEN {_content("r")} IS NOT DISTINCT FROM {_content("s")} THEN 'unchanged'
            WHEN {_version("s")} > {_version("r")} THEN 'newer'
            WHEN {_version("s")} < {_version("r")} THEN 'stale'
            WHEN s.observed_at < greatest(r.observed_at, p.observed_through) THEN 'stale'
            WHEN s.observed_at > r.observed_at THEN 'newer'
            WHEN {_tie_break("s")} >= {_tie_break("r")} THEN 'newer'
            ELSE 'stale'
        END AS verdict
    FROM pg_temp.staged_runs AS s
    LEFT JOIN pipelines AS p ON p.id = s.pipeline_id
    LEFT JOIN LATERAL (
        SELECT * FROM runs
        WHERE runs.pipeline_id = s.pipeline_id AND runs.external_run_id = s.external_run_id
        LIMIT 1
    ) AS r ON true
), written AS (
    INSERT INTO runs AS r ({", ".join(COLUMNS)})
    SELECT {", ".join(f"s.{column}" for column in COLUMNS)}
    FROM pg_temp.staged_runs AS s
    JOIN judged AS j ON j.place = s.ctid
    WHERE j.verdict IN ('new', 'newer')
    ORDER BY s.pipeline_id, s.external_run_id
    ON CONFLICT (pipeline_id, external_run_id) DO UPDATE SET
        {", ".join(f"{column} = excluded.{column}" for column in COLUMNS if column not in KEY)},
        ingested_at = now(),
        updated_at = now()
    WHERE ({_version("excluded")[1:-1]}, excluded.observed_at) >= ({_version("r")[1:-1]}, r.observed_at)
    RETURNING r.pipeline_id, r.xmax = 0 AS inserted
)
SELECT pipeline_id, verdict, count(*) FROM judged GROUP BY 1, 2
UNION ALL
SELECT pipeline_id, CASE WHEN inserted THEN 'inserted' ELSE 'updated' END, count(*) FROM written GROUP BY 1, 2;
TRUNCATE pg_temp.staged_runs
"""  # noqa: S608 - built from the constants above

_ADVANCE = """
UPDATE pipelines AS p
SET synced_through = greatest(p.synced_through, w.synced_through),
    observed_through = greatest(p.observed_through, w.observed_through)
FROM unnest(%s::uuid[], %s::timestamptz[], %s::timestamptz[]) AS w(id, synced_through, observed_through)
WHERE p.id = w.id
  AND (p.synced_through IS NULL OR p.observed_through IS NULL
       OR p.synced_through < w.synced_through OR p.observed_through < w.observed_through)
"""


@dataclasses.dataclass(slots=True)
class Tally:
    """What became of the observations of one pipeline. Every observation is counted exactly once."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    stale: int = 0

    def add(self, other: "Tally") -> None:
        """Count another batch's outcomes in."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.stale += other.stale


@dataclasses.dataclass(frozen=True, slots=True)
class Watermark:
    """How far a pipeline's runs are known: `synced_through` by the partner's clock, `observed_through` by ours."""

    pipeline_id: UUID
    synced_through: datetime
    observed_through: datetime


def merge_runs(connection: sa.Connection, observations: Sequence[Observation]) -> dict[UUID, Tally]:
    """Bring the ledger up to these observations, in the caller's transaction.

    An observation is written only if it is not older than the stored row and says something else. Returns the tally
    of each pipeline; the four counts of all of them add up to `len(observations)`.
    """
    with RunMerge(connection) as merge:
        merge.add(observations)
    return merge.tallies


def advance_watermarks(connection: sa.Connection, watermarks: Iterable[Watermark]) -> None:
    """Move the pipelines' watermarks forward, never back, in the caller's transaction."""
    rows = sorted(watermarks, key=lambda w: w.pipeline_id)
    if rows:
        columns = ([w.pipeline_id for w in rows], [w.synced_through for w in rows], [w.observed_through for w in rows])
        _cursor(connection).execute(_ADVANCE, columns)


_Key: TypeAlias = tuple[int, str]


class RunMerge:
    """Brings the ledger up to a stream of observations, in the caller's transaction; to be used as a context manager.

    `tallies` is complete at its end. One thread and one session keep both processes at work: rows flow into the staging
    table while the caller makes more of them, and while Postgres merges a full one, the next rows wait here.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self.tallies: dict[UUID, Tally] = {}
        self._cursor = _cursor(connection)
        self._keys: set[_Key] = set()
        self._waiting: list[bytes] = []
        self._copy: psycopg.Copy | None = None
        self._copying = ExitStack()
        self._merging = False

    def __enter__(self) -> "RunMerge":
        self._cursor.execute(_CREATE_STAGING)
        self._cursor.execute("TRUNCATE pg_temp.staged_runs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._merge()
            self._count()
            return
        # The session has to be free of both before anybody can roll back; what they say to that is of no interest.
        with suppress(psycopg.Error):
            self._copying.__exit__(kind, error, traceback)
        with suppress(psycopg.Error):
            self._count()

    def add(self, observations: Sequence[Observation]) -> None:
        """Take more observations. They may be written at any time until the end."""
        for first in range(0, len(observations), PART):
            for part in _rounds(observations[first : first + PART], self._tally):
                self._stage(part)

    def _stage(self, part: dict[_Key, Observation]) -> None:
        # No statement may meet a run twice, and none may grow without end.
        if len(self._keys) + len(part) > BATCH or not self._keys.isdisjoint(part):
            self._merge()
        self._keys |= part.keys()
        self._waiting.append(encode(part.values()))
        if not self._is_merging():
            self._flush()

    def _flush(self) -> None:
        """Hand over what waits, as soon as Postgres can take it."""
        self._count()
        if self._copy is None:
            self._copy = self._copying.enter_context(self._cursor.copy(_COPY))
        for block in self._waiting:
            self._copy.write(block)
        self._waiting.clear()

    def _merge(self) -> None:
        """Have Postgres merge what is staged, and do not wait for it."""
        if not self._keys:
            return
        self._flush()
        self._copy = None
        self._copying.close()
        self._keys.clear()
        pgconn = self._cursor.connection.pgconn
        pgconn.send_query(_MERGE.encode())
        self._cursor.connection.wait(generators.send(pgconn))
        self._merging = True

    def _is_merging(self) -> bool:
        pgconn = self._cursor.connection.pgconn
        pgconn.consume_input()
        return self._merging and bool(pgconn.is_busy())

    def _count(self) -> None:
        """Wait for the merge under way, if there is one, and count what became of its observations."""
        if not self._merging:
            return
        self._merging = False
        connection = self._cursor.connection
        results = connection.wait(generators.fetch_many(connection.pgconn))
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, connection.info.encoding)
        for pipeline_id, count in _counts(results[0]).items():
            inserted, updated = count.get("inserted", 0), count.get("updated", 0)
            # Judged as news, but not written: another writer got in between with something newer.
            outrun = count.get("new", 0) + count.get("newer", 0) - inserted - updated
            self._tally(pipeline_id).add(
                Tally(inserted, updated, count.get("unchanged", 0), count.get("stale", 0) + outrun)
            )

    def _tally(self, pipeline_id: UUID) -> Tally:
        return self.tallies.setdefault(pipeline_id, Tally())


def _cursor(connection: sa.Connection) -> psycopg.Cursor[Any]:
    # COPY and plain tuples: SQLAlchemy has nothing to add here. The first call opens its transaction as usual.
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - make_engine allows no other driver
    return driver.cursor()


def _rounds(part: Sequence[Observation], tally: Callable[[UUID], Tally]) -> Iterator[dict[_Key, Observation]]:
    """Split a part so that no statement meets a run twice, and count what is settled without asking the database.

    Nearly always one round. Further rounds hold different records of one run from one and the same request.
    """
    by_key = {_key(o): o for o in part}
    if len(by_key) == len(part):
        yield by_key
        return
    newest: dict[_Key, list[Observation]] = {}
    for o in part:
        rivals = newest.setdefault(_key(o), [])
        if not rivals or o.knowledge > rivals[0].knowledge:
            tally(o.pipeline_id).stale += len(rivals)
            rivals[:] = [o]
        elif o.knowledge < rivals[0].knowledge:
            tally(o.pipeline_id).stale += 1
        elif o in rivals:
            tally(o.pipeline_id).unchanged += 1
        else:
            rivals.append(o)
    for n in range(max(map(len, newest.values()))):
        yield {key: rivals[n] for key, rivals in newest.items() if len(rivals) > n}


def _key(observation: Observation) -> _Key:
    # A UUID is hashed by Python code, the number in it by C.
    return observation.pipeline_id.int, observation.external_run_id


def _counts(merged: PGresult) -> dict[UUID, dict[str, int]]:
    """How many of each pipeline's observations had each verdict, from the merge's rows of text."""
    counts: dict[UUID, dict[str, int]] = defaultdict(dict)
    for row in range(merged.ntuples):
        pipeline_id, verdict, count = ((merged.get_value(row, column) or b"").decode() for column in range(3))
        counts[UUID(pipeline_id)][verdict] = int(count)
    return counts

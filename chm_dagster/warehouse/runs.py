"""The ledger: how observations become rows of `runs`, exactly once and in any order."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa

from chm_dagster.domain.runs import Observation
from chm_dagster.warehouse.staging import COLUMNS, KEY, encode

BATCH = 10_000
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
SELECT pipeline_id, CASE WHEN inserted THEN 'inserted' ELSE 'updated' END, count(*) FROM written GROUP BY 1, 2
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
    tallies: dict[UUID, Tally] = defaultdict(Tally)
    cursor = _cursor(connection)
    cursor.execute(_CREATE_STAGING)
    for first in range(0, len(observations), BATCH):
        for round_ in _rounds(observations[first : first + BATCH], tallies):
            _merge_round(cursor, round_, tallies)
    return dict(tallies)


def advance_watermarks(connection: sa.Connection, watermarks: Iterable[Watermark]) -> None:
    """Move the pipelines' watermarks forward, never back, in the caller's transaction."""
    rows = sorted(watermarks, key=lambda w: w.pipeline_id)
    if rows:
        columns = ([w.pipeline_id for w in rows], [w.synced_through for w in rows], [w.observed_through for w in rows])
        _cursor(connection).execute(_ADVANCE, columns)


def _cursor(connection: sa.Connection) -> psycopg.Cursor[Any]:
    # COPY and plain tuples: SQLAlchemy has nothing to add here. The first call opens its transaction as usual.
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - make_engine allows no other driver
    return driver.cursor()


def _rounds(batch: Sequence[Observation], tallies: Mapping[UUID, Tally]) -> Iterable[list[Observation]]:
    """Split a batch so that no statement meets a run twice, and count what is settled without asking the database.

    Nearly always one round. Further rounds hold different records of one run from one and the same request.
    """
    if len({(o.pipeline_id, o.external_run_id) for o in batch}) == len(batch):
        yield list(batch)
        return
    newest: dict[tuple[UUID, str], list[Observation]] = {}
    for o in batch:
        key = (o.pipeline_id, o.external_run_id)
        rivals = newest.get(key)
        if rivals is None:
            newest[key] = [o]
        elif o.knowledge > rivals[0].knowledge:
            tallies[o.pipeline_id].stale += len(rivals)
            newest[key] = [o]
        elif o.knowledge < rivals[0].knowledge:
            tallies[o.pipeline_id].stale += 1
        elif o in rivals:
            tallies[o.pipeline_id].unchanged += 1
        else:
            rivals.append(o)
    depth = max((len(rivals) for rivals in newest.values()), default=0)
    for n in range(depth):
        yield [rivals[n] for rivals in newest.values() if len(rivals) > n]


def _merge_round(cursor: psycopg.Cursor[Any], observations: list[Observation], tallies: dict[UUID, Tally]) -> None:
    cursor.execute("TRUNCATE pg_temp.staged_runs")
    with cursor.copy(_COPY) as copy:
        copy.write(encode(observations))
    counts: dict[UUID, dict[str, int]] = defaultdict(dict)
    for pipeline_id, verdict, count in cursor.execute(_MERGE).fetchall():
        counts[pipeline_id][verdict] = count
    for pipeline_id, count in counts.items():
        inserted, updated = count.get("inserted", 0), count.get("updated", 0)
        # Judged as news, but not written: another writer got in between with something newer.
        outrun = count.get("new", 0) + count.get("newer", 0) - inserted - updated
        tallies[pipeline_id].add(Tally(inserted, updated, count.get("unchanged", 0), count.get("stale", 0) + outrun))

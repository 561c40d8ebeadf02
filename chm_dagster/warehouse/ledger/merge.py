"""The ledger's merge: how observations become rows of `runs`, exactly once and in any order."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
import sqlalchemy as sa

from chm_dagster.domain.runs import Counts, Observation
from chm_dagster.warehouse.ledger import staging
from chm_dagster.warehouse.ledger.due_times import refresh_due, with_news
from chm_dagster.warehouse.ledger.staging import COLUMNS, KEY, BackgroundStatement, buffered_copy, encode

PART = 100
"""Observations encoded at a time: a small batch stays in the processor's cache."""
REMEMBERED_KEYS = 100_000
"""Runs of new pipelines whose keys are kept, about 15 MB, so that none of them counts as new twice."""
BATCH = 5_000
"""Observations per statement: past this, a larger batch loads no faster and only costs memory."""

# The content of a run. observed_at is not part of it: observing the same content again is not news.
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
    "queued_at",
    "kind",
    "will_retry",
    "payload",
)


def _content_of(alias: str) -> str:
    return f"({', '.join(f'{alias}.{column}' for column in _CONTENT)})"


def _version(alias: str) -> str:
    return f"({alias}.attempt, {alias}.progress, coalesce({alias}.source_version, '-infinity'))"


def _tie_break(alias: str) -> str:
    # Two different records of one run from one request: either may be right, but the choice must always be the same.
    return f'({alias}.status COLLATE "C", jsonb_hash_extended({alias}.payload, 0))'


def _write(which: str) -> str:
    """Write the staged rows that `which` selects. A row that another writer wrote meanwhile must be older."""
    return f"""
    INSERT INTO runs AS r ({", ".join(COLUMNS)})
    SELECT {", ".join(f"s.{column}" for column in COLUMNS)}
    FROM pg_temp.staged_runs AS s
    {which}
    ORDER BY s.pipeline_id, s.external_run_id
    ON CONFLICT (pipeline_id, external_run_id) DO UPDATE SET
        {", ".join(f"{column} = excluded.{column}" for column in COLUMNS if column not in KEY)},
        ingested_at = now(),
        updated_at = now()
    WHERE ({_version("excluded")[1:-1]}, excluded.observed_at) >= ({_version("r")[1:-1]}, r.observed_at)
    RETURNING r.pipeline_id, r.xmax = 0 AS inserted"""  # noqa: S608 - built from the constants above


_WRITTEN = (
    "SELECT pipeline_id, CASE WHEN inserted THEN 'inserted' ELSE 'updated' END, count(*) FROM written GROUP BY 1, 2"
)

# `decided` looks each staged row up before anything is written: ON CONFLICT locks, and so logs, every row that it
# finds, even if its WHERE then rejects it. Unchanged rows never get that far, so a replay writes nothing.
# A row that ties with the stored version is news only if it was also observed after the last complete sync began: that
# sync has seen the stored content again, without writing it (docs/adr/0003-order-of-knowledge.md).
# The look-up is written so that only the unique index can answer it without a sort, and sorts are ruled out. Postgres
# plans by statistics, which cannot see the rows of a transaction that has not committed: after an autovacuum in the
# middle of a first load the table counts as empty and every index as equally good, and Postgres may search all runs of
# a pipeline for each row. Older servers rule a sort out by making it expensive; `jit` would then compile every plan.
_PLAN_BY_UNIQUE_INDEX = "SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; SET LOCAL jit = off"
_PLAN_AS_USUAL = "SET LOCAL enable_sort = DEFAULT; SET LOCAL enable_incremental_sort = DEFAULT; SET LOCAL jit = DEFAULT"
MERGE = f"""
{_PLAN_BY_UNIQUE_INDEX};
WITH decided AS MATERIALIZED (
    SELECT
        s.ctid AS place,
        s.pipeline_id,
        CASE
            WHEN r.id IS NULL THEN 'new'
            WHEN {_content_of("r")} IS NOT DISTINCT FROM {_content_of("s")} THEN 'unchanged'
            WHEN {_version("s")} > {_version("r")} THEN 'newer'
            WHEN {_version("s")} < {_version("r")} THEN 'stale'
            WHEN s.observed_at < greatest(r.observed_at, p.observed_through) THEN 'stale'
            WHEN s.observed_at > r.observed_at THEN 'newer'
            WHEN {_tie_break("s")} >= {_tie_break("r")} THEN 'newer'
            ELSE 'stale'
        END AS decision
    FROM pg_temp.staged_runs AS s
    LEFT JOIN pipelines AS p ON p.id = s.pipeline_id
    LEFT JOIN LATERAL (
        SELECT * FROM runs
        WHERE runs.pipeline_id = s.pipeline_id
          AND runs.external_run_id >= s.external_run_id AND runs.external_run_id <= s.external_run_id
        ORDER BY runs.external_run_id
        LIMIT 1
    ) AS r ON true
), written AS ({_write("JOIN decided AS j ON j.place = s.ctid WHERE j.decision IN ('new', 'newer')")})
SELECT pipeline_id, decision, count(*) FROM decided GROUP BY 1, 2
UNION ALL
SELECT * FROM ({_WRITTEN}) AS w;
{_PLAN_AS_USUAL};
TRUNCATE pg_temp.staged_runs
"""  # noqa: S608 - built from the constants above

# A pipeline without runs needs no decisions, which take a quarter of the time of a first load.
INSERT = f"""
WITH written AS ({_write("")})
SELECT pipeline_id, 'new', count(*) FROM pg_temp.staged_runs GROUP BY 1
UNION ALL
SELECT * FROM ({_WRITTEN}) AS w;
TRUNCATE pg_temp.staged_runs
"""  # noqa: S608 - built from the constants above

WITHOUT_RUNS = """
SELECT p.id FROM unnest(%s::uuid[]) AS p(id)
LEFT JOIN LATERAL (SELECT true AS found FROM runs WHERE runs.pipeline_id = p.id LIMIT 1) AS r ON true
WHERE r.found IS NULL
"""


def merge_runs(connection: sa.Connection, observations: Sequence[Observation]) -> dict[UUID, Counts]:
    """Merge these observations into the ledger, in the caller's transaction.

    An observation is written only if it is not older than the stored row and says something else. Returns the
    counts of each pipeline; together they add up to `len(observations)`. The due times of the pipelines follow.
    """
    with RunMerge(connection) as merge:
        merge.add(observations)
    refresh_due(connection, with_news(merge.counts))
    return merge.counts


_Key: TypeAlias = tuple[int, str]


class RunMerge:
    """Merges a stream of observations into the ledger, in the caller's transaction. Use it as a context manager.

    Due times are left to the caller, who may have to update more of the pipelines. `counts` is complete after the
    block. One thread and one session keep both processes busy: rows flow into the staging table while the caller makes
    more of them, and while Postgres merges a full one, the next rows wait here. Of the pipelines `maybe_new`, those
    that really have no runs yet are written without looking for each run first.
    """

    def __init__(self, connection: sa.Connection, maybe_new: Sequence[UUID] = ()) -> None:
        self.counts: dict[UUID, Counts] = {}
        self._cursor = _cursor(connection)
        self._statement = BackgroundStatement(self._cursor.connection)
        self._new = _NewPipelines(self._without_runs(maybe_new))
        self._keys: set[_Key] = set()
        self._inserting = False
        self._waiting: list[bytes] = []
        self._copy: psycopg.Copy | None = None
        self._copying = ExitStack()

    def __enter__(self) -> "RunMerge":
        self._cursor.execute(staging.CREATE)
        self._cursor.execute("TRUNCATE pg_temp.staged_runs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._merge()
            self._count()
            return
        # The session must be free of both before anybody can roll back; their own errors do not matter any more.
        with suppress(psycopg.Error):
            self._copying.__exit__(kind, error, traceback)
        with suppress(psycopg.Error):
            self._count()

    def add(self, observations: Sequence[Observation]) -> None:
        """Take more observations. They may be written at any time until the end of the block."""
        for first in range(0, len(observations), PART):
            for part in _rounds(observations[first : first + PART], self._counts_of):
                self._stage(part)

    def _stage(self, part: dict[_Key, Observation]) -> None:
        # No statement may meet a run twice, and none may grow without bound.
        if len(self._keys) + len(part) > BATCH or not self._keys.isdisjoint(part):
            self._merge()
        inserting = self._new.covers(part)
        if inserting is not self._inserting:
            self._merge()
            self._inserting = inserting
        self._keys |= part.keys()
        self._waiting.append(encode(part.values()))
        if not self._statement.is_running():
            self._flush()

    def _flush(self) -> None:
        """Send waiting observations as soon as Postgres can accept them."""
        self._count()
        if self._copy is None:
            self._copy = self._copying.enter_context(buffered_copy(self._cursor, staging.COPY))
        for block in self._waiting:
            self._copy.write(block)
        self._waiting.clear()

    def _merge(self) -> None:
        """Have Postgres merge what is staged, without waiting for it."""
        if not self._keys:
            return
        self._flush()
        self._copy = None
        self._copying.close()
        if self._inserting:
            self._new.note(self._keys)
        self._keys.clear()
        self._statement.start(INSERT if self._inserting else MERGE)

    def _count(self) -> None:
        """Wait for the merge that is running, if there is one, and count what became of its observations."""
        decisions: dict[UUID, dict[str, int]] = defaultdict(dict)
        for pipeline_id, decision, count in self._statement.fetch():
            decisions[UUID(pipeline_id)][decision] = int(count)
        for pipeline, n in decisions.items():
            inserted, updated = n.get("inserted", 0), n.get("updated", 0)
            # Decided to write, but not written: another writer wrote something newer in between.
            outrun = n.get("new", 0) + n.get("newer", 0) - inserted - updated
            self._counts_of(pipeline).add(Counts(inserted, updated, n.get("unchanged", 0), n.get("stale", 0) + outrun))

    def _counts_of(self, pipeline_id: UUID) -> Counts:
        return self.counts.setdefault(pipeline_id, Counts())

    def _without_runs(self, pipeline_ids: Sequence[UUID]) -> set[int]:
        rows = self._cursor.execute(WITHOUT_RUNS, [list(pipeline_ids)]).fetchall() if pipeline_ids else ()
        return {row[0].int for row in rows}


class _NewPipelines:
    """Pipelines whose only runs in the ledger are those that were inserted here, whose keys are remembered."""

    def __init__(self, pipelines: set[int]) -> None:
        self._pipelines = pipelines
        self._keys: set[_Key] = set()

    def covers(self, part: dict[_Key, Observation]) -> bool:
        """Whether none of these runs can be in the ledger. If one might be, its pipeline is no longer a new one."""
        if not self._pipelines:
            return False
        pipelines = {pipeline for pipeline, _ in part}
        if self._pipelines >= pipelines and self._keys.isdisjoint(part):
            return True
        self._pipelines -= pipelines
        return False

    def note(self, inserted: set[_Key]) -> None:
        """Remember what was inserted; above the limit, forget it together with its pipelines."""
        self._keys |= inserted
        if len(self._keys) > REMEMBERED_KEYS:
            self._pipelines -= {pipeline for pipeline, _ in self._keys}
            self._keys.clear()


def _cursor(connection: sa.Connection) -> psycopg.Cursor[Any]:
    # COPY and plain tuples, to which SQLAlchemy adds nothing. The first call begins its transaction as usual.
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - make_engine allows no other driver
    return driver.cursor()


def _rounds(part: Sequence[Observation], counts: Callable[[UUID], Counts]) -> Iterator[dict[_Key, Observation]]:
    """Split a part so that no statement meets a run twice, and count what needs no look at the database.

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
            counts(o.pipeline_id).stale += len(rivals)
            rivals[:] = [o]
        elif o.knowledge < rivals[0].knowledge:
            counts(o.pipeline_id).stale += 1
        elif o in rivals:
            counts(o.pipeline_id).unchanged += 1
        else:
            rivals.append(o)
    for n in range(max(map(len, newest.values()))):
        yield {key: rivals[n] for key, rivals in newest.items() if len(rivals) > n}


def _key(observation: Observation) -> _Key:
    # A UUID is hashed by Python code, the number in it by C.
    return observation.pipeline_id.int, observation.external_run_id

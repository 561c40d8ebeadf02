"""What back-testing an alert rule reads: pipelines and their runs of the last days."""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.alerts import Coverage, Expectations, RunFact
from chm_dagster.domain.rules import RuleType
from chm_dagster.warehouse.alerts import coverage_of, expectations_of, fact_of
from chm_dagster.warehouse.api_uptime import api_gaps
from chm_dagster.warehouse.engine import Engine, database_errors

_AT_ONCE = 500
"""How many pipelines are read with one query: the runs of no more are in memory."""

_WATCHED = sa.text("""
SELECT p.id, c.slug || '/' || p.slug AS key, p.created_at, p.schedule_cron, p.schedule_timezone, p.grace_minutes,
       p.max_runtime_minutes, p.schedule_changed_at, p.external_id, p.connection, p.observed_through, p.known_through,
       p.stale_at, p.doubt_since, p.sync_error_code, c.maintenance || p.maintenance AS maintenance
FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
WHERE p.is_active AND c.is_active
  AND (CAST(:client AS uuid) IS NULL OR p.client_id = :client)
  AND (CAST(:pipeline AS uuid) IS NULL OR p.id = :pipeline)
  AND (CAST(:pipeline AS uuid) IS NOT NULL OR NOT EXISTS (
      SELECT FROM alert_rules AS own
      WHERE own.pipeline_id = p.id AND own.rule_type = :rule_type AND own.is_enabled
        AND CAST(:client AS uuid) IS NOT NULL
  ))
ORDER BY p.id
""")

# From the last success before the time in question on, because a streak may have begun before it.
_RUNS = sa.text("""
SELECT p.n, r.external_run_id, r.status, r.effective_at, r.started_at, r.finished_at, r.kind, r.will_retry
FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS p(id, n)
CROSS JOIN LATERAL (
    SELECT coalesce((
        SELECT s.effective_at FROM runs AS s
        WHERE s.pipeline_id = p.id AND s.effective_at < :since AND s.status = 'success'
          AND s.kind IS DISTINCT FROM 'backfill'
        ORDER BY s.effective_at DESC, s.finished_at DESC NULLS LAST, s.id DESC LIMIT 1
    ), '-infinity') AS good
) AS before
CROSS JOIN LATERAL (
    SELECT r.* FROM runs AS r WHERE r.pipeline_id = p.id AND r.effective_at >= before.good
    UNION ALL
    SELECT r.* FROM runs AS r WHERE r.pipeline_id = p.id AND r.effective_at < before.good AND r.status = 'running'
) AS r
""")


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """A pipeline of a back-test. `runs` are those since the last success before the time in question.

    `maintenance` are its windows and those of its client.
    """

    key: str
    expectations: Expectations
    coverage: Coverage
    runs: Sequence[RunFact]
    maintenance: Sequence[Mapping[str, Any]] = ()


def watched(
    engine: Engine, *, client: UUID | None, pipeline: UUID | None, rule_type: RuleType, since: datetime, now: datetime
) -> Generator[Watched, None, None]:
    """The active pipelines that such a rule would watch, with their runs since this time; without scope, all.

    A pipeline with a rule of its own of that type is not among those of a client. Holds a connection until it is
    closed. Raises DatabaseUnavailable.
    """
    scope = {"client": client, "pipeline": pipeline, "rule_type": rule_type}
    with database_errors(), engine.connect() as connection:
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        rows = connection.execute(_WATCHED, scope).all()
        gaps = tuple(api_gaps(connection, now, since))
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            found: list[list[RunFact]] = [[] for _ in some]
            for number, *run in connection.execute(_RUNS, {"ids": [row.id for row in some], "since": since}).all():
                found[number - 1].append(fact_of(*run))
            for row, runs in zip(some, found, strict=True):
                yield Watched(row.key, expectations_of(row), coverage_of(row, now, gaps), runs, row.maintenance)

"""Questions whose right answer is "nothing": what the asset checks ask of the ledger."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.inventory import PUSHED
from chm_dagster.warehouse.engine import database_errors

LISTED = 50
"""How many offenders an answer lists at most."""

# The unique constraint forbids these. An index that an operating system's collation change or a bad restore has
# broken does not, and only a scan that does not trust the index would tell.
_DUPLICATES = """
SELECT c.slug || '/' || p.slug AS pipeline, d.external_run_id, d.copies
FROM (
    SELECT pipeline_id, external_run_id, count(*) AS copies
    FROM runs
    WHERE pipeline_id = ANY(CAST(:pipeline_ids AS uuid[]))
    GROUP BY pipeline_id, external_run_id
    HAVING count(*) > 1
) AS d
JOIN pipelines AS p ON p.id = d.pipeline_id
JOIN clients AS c ON c.id = p.client_id
ORDER BY 1, 2
LIMIT :listed
"""

# What no path of a run through its states can lead to.
_IMPOSSIBLE = """
SELECT c.slug || '/' || p.slug AS pipeline, r.external_run_id,
    CASE
        WHEN r.status = 'running' AND (r.finished_at IS NOT NULL OR r.progress = 1) THEN 'running, yet finished'
        WHEN r.progress = 1 AND r.status = 'running' THEN 'went back from finished to running'
        WHEN r.status IN ('success', 'running', 'skipped') AND r.error_message IS NOT NULL
            THEN r.status || ', yet it has an error'
        WHEN r.started_at > r.ingested_at + interval '1 day' THEN 'starts in the future'
        ELSE 'finished without a time'
    END AS problem
FROM runs AS r
JOIN pipelines AS p ON p.id = r.pipeline_id
JOIN clients AS c ON c.id = p.client_id
WHERE r.pipeline_id = ANY(CAST(:pipeline_ids AS uuid[]))
  AND (
      (r.status = 'running' AND (r.finished_at IS NOT NULL OR r.progress = 1))
      OR (r.status IN ('success', 'running', 'skipped') AND r.error_message IS NOT NULL)
      OR r.started_at > r.ingested_at + interval '1 day'
      OR (r.status <> 'running' AND r.started_at IS NULL AND r.finished_at IS NULL)
  )
ORDER BY 1, 2
LIMIT :listed
"""

_BEHIND = """
SELECT c.slug || '/' || p.slug AS pipeline, p.synced_through
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
WHERE p.is_active AND c.is_active AND p.external_id IS NOT NULL
  AND coalesce(p.connection, '') NOT LIKE :pushed
  AND (p.synced_through IS NULL OR p.synced_through < :limit_)
ORDER BY p.synced_through NULLS FIRST, 1
LIMIT :listed
"""


def duplicate_runs(engine: sa.Engine, pipeline_ids: list[str]) -> list[dict[str, Any]]:
    """Runs of these pipelines that stand in the ledger more than once: `pipeline`, `external_run_id`, `copies`."""
    return _offenders(engine, _DUPLICATES, pipeline_ids=pipeline_ids)


def impossible_runs(engine: sa.Engine, pipeline_ids: list[str]) -> list[dict[str, Any]]:
    """Runs of these pipelines in a state that cannot be: `pipeline`, `external_run_id`, `problem`."""
    return _offenders(engine, _IMPOSSIBLE, pipeline_ids=pipeline_ids)


def pipelines_behind(engine: sa.Engine, limit: datetime) -> list[dict[str, Any]]:
    """Ingested pipelines whose runs are not known up to `limit`: `pipeline`, `synced_through`."""
    return _offenders(engine, _BEHIND, limit_=limit, pushed=PUSHED + "%")


def _offenders(engine: sa.Engine, query: str, **parameters: Any) -> list[dict[str, Any]]:
    with database_errors(), engine.connect() as connection:
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        # An index-only plan would believe the very index that is in question.
        connection.execute(sa.text("SET LOCAL enable_indexonlyscan = off"))
        rows = connection.execute(sa.text(query), {"listed": LISTED, **parameters}).mappings()
        return [dict(row) for row in rows]

"""Since when a pipeline fails is looked up from its latest success on: before, every failure of the pipeline was read."""

from alembic import context, op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

FAILED = """
            SELECT min(r.effective_at) FROM {runs} AS r
            LEFT JOIN {good} AS good ON true
            WHERE r.pipeline_id = $1 AND r.status = 'failed'
              AND (good.id IS NULL OR (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
                  > (good.effective_at, coalesce(good.finished_at, '-infinity'), good.id))
"""
FIRST_FAILED = """
            SELECT first.effective_at
            FROM (SELECT) AS pipeline
            LEFT JOIN {good} AS good ON true
            CROSS JOIN LATERAL (
                SELECT r.effective_at FROM {runs} AS r
                WHERE r.pipeline_id = $1 AND r.status = 'failed'
                  AND r.effective_at >= coalesce(good.effective_at, '-infinity')
                  AND (good.id IS NULL OR (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
                      > (good.effective_at, coalesce(good.finished_at, '-infinity'), good.id))
                ORDER BY r.effective_at
                LIMIT 1
            ) AS first
"""
NOW = {"runs": "health_runs", "good": "latest_success($1)"}
THEN = {"runs": "health_runs_at($1, $3)", "good": "latest_success($1, $3)"}


def upgrade() -> None:
    _replace(FIRST_FAILED)


def downgrade() -> None:
    _replace(FAILED)


def _replace(failed: str) -> None:
    health, then = context.script.get_revision("0018").module, context.script.get_revision("0021").module
    for signature, query, names in (
        (context.script.get_revision("0010").module.HEALTH, health.QUERY, NOW),
        (then.HEALTH, then._health(), THEN),
    ):
        before = FAILED.format(**names)
        if query.count(before) != 1:
            raise RuntimeError("how long a pipeline has been failing is asked in another way")
        query = query.replace(before, failed.format(**names))
        op.execute(f"CREATE OR REPLACE FUNCTION {signature} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {query} $fn$")

"""Health costs less: since when a pipeline fails is looked up from its latest success on, where every failure of it was
read before, and what a pipeline has not (maintenance, a longest run time, reports of its own) is not looked for.
"""

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
NOW = {"runs": "health_runs", "good": "latest_success($1)", "running": "r.status = 'running'"}
THEN = {
    "runs": "health_runs_at($1, $3)",
    "good": "latest_success($1, $3)",
    "running": "r.kind IS DISTINCT FROM 'backfill' AND CASE",
}
# A condition of the join is looked at after the rows are made; one within the subquery keeps them from being made.
CONDITIONS = (
    (
        "    WHERE w.since <= ",
        "    WHERE (c.maintenance_calendar IS NOT NULL OR p.maintenance_calendar IS NOT NULL) AND w.since <= ",
    ),
    (
        "    WHERE r.pipeline_id = $1 AND {running}",
        "    WHERE p.max_runtime_minutes IS NOT NULL AND r.pipeline_id = $1 AND {running}",
    ),
    ("    WHERE gap.lost < ", "    WHERE NOT facts.pulled AND gap.lost < "),
)


def upgrade() -> None:
    for head, query, names in _functions():
        changed = _replaced(query, FAILED.format(**names), FIRST_FAILED.format(**names))
        for before, after in CONDITIONS:
            changed = _replaced(changed, before.format(**names), after.format(**names))
        _create(head, changed)


def downgrade() -> None:
    for head, query, _ in _functions():
        _create(head, query)


def _functions() -> tuple[tuple[str, str, dict[str, str]], ...]:
    now, then = context.script.get_revision("0018").module, context.script.get_revision("0021").module
    head = context.script.get_revision("0010").module.HEALTH
    return (head, now.QUERY, NOW), (then.HEALTH, then._health(), THEN)


def _replaced(query: str, before: str, after: str) -> str:
    if query.count(before) != 1:
        raise RuntimeError(f"the health of a pipeline is asked for in another way: {before}")
    return query.replace(before, after)


def _create(head: str, query: str) -> None:
    op.execute(f"CREATE OR REPLACE FUNCTION {head} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {query} $fn$")

"""How things were at a time, from what is known now: the building blocks of health take a time; null stands for now.

With a null, Postgres folds every condition on the time away and plans what it planned before (a test compares).
"""

import re

from alembic import context, op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# A run that finished after the time was running then: what its end brought was not there yet.
ENDED_LATER = "($3 IS NOT NULL AND r.finished_at > $3)"
OF_THE_END = {
    "status": "'running'",
    "will_retry": "false",
    **dict.fromkeys(
        ("finished_at", "duration_seconds", "rows_processed", "error_message", "status_reason", "error_fingerprint"),
        "NULL",
    ),
}
ORDER = "ORDER BY r.effective_at DESC, r.finished_at DESC NULLS LAST, r.id DESC"
SETTLED_BY = "({at} IS NULL OR (r.effective_at <= {at} AND coalesce(r.finished_at, r.effective_at) <= {at}))"

HEALTH = """
health_at(pipeline_id uuid, settled_status text, at timestamptz)
RETURNS TABLE (health text, health_since timestamptz, health_reason text, due_at timestamptz, read_at timestamptz)
"""
HEALTH_COMMENT = (
    "health_of(), at a time in the past, too; null: now. Of past lateness, only what still lasts is known; of past"
    " maintenance, only what the calendar still has"
)
# What differs from health_of(). Due times are kept for now only: that of the latest run says nothing about a time
# before that run. Whether a run was late then stays open, and the reason says so.
CHANGES = (
    (
        "FROM health_runs AS r\n            LEFT JOIN latest_success($1) AS good",
        "FROM health_runs_at($1, $3) AS r\n            LEFT JOIN latest_success($1, $3) AS good",
    ),
    (
        "coalesce(p.sync_failing_since, p.observed_through, p.created_at)",
        "coalesce(facts.failing_since, p.observed_through, facts.created_at)",
    ),
    ("coalesce(deaf.lost, p.created_at)", "coalesce(deaf.lost, facts.created_at)"),
    (
        "'no run has settled yet')\n        END\n    END AS health_reason,\n    p.due_at,",
        "'no run has settled yet')\n        END\n"
        "        WHEN 'healthy' THEN CASE WHEN later.ran THEN 'whether a run was late then is not known' END\n"
        "    END AS health_reason,\n    CASE WHEN NOT later.ran THEN p.due_at END AS due_at,",
    ),
    (
        "    SELECT\n        reads.pulled,\n        (reads.pulled AND p.sync_error_code",
        "    SELECT\n        reads.pulled,\n        reads.doubt,\n        reads.error_code,\n        reads.failing_since,\n"
        "        reads.created_at,\n        (reads.pulled AND reads.error_code",
    ),
    (
        "    FROM (\n        SELECT\n            p.external_id",
        "    FROM (\n        SELECT\n"
        "            CASE WHEN $3 IS NULL OR p.doubt_since <= $3 THEN p.doubt END AS doubt,\n"
        "            CASE WHEN $3 IS NULL OR p.sync_failing_since <= $3 THEN p.sync_error_code END AS error_code,\n"
        "            CASE WHEN $3 IS NULL OR p.sync_failing_since <= $3 THEN p.sync_failing_since END AS failing_since,\n"
        "            CASE WHEN $3 IS NULL OR p.created_at <= $3 THEN p.created_at END AS created_at,\n"
        "            p.external_id",
    ),
    (
        "LEFT JOIN LATERAL (\n    SELECT w.since",
        "CROSS JOIN LATERAL (\n"
        "    SELECT $3 IS NOT NULL AND p.schedule_cron IS NOT NULL AND EXISTS (\n"
        "        SELECT FROM runs AS r\n"
        "        WHERE r.pipeline_id = $1 AND r.kind IS DISTINCT FROM 'backfill' AND r.effective_at > $3\n"
        "    ) AS ran\n) AS later\n"
        "LEFT JOIN LATERAL (\n    SELECT w.since",
    ),
    (
        "WHERE r.pipeline_id = $1 AND r.status = 'running' AND r.kind IS DISTINCT FROM 'backfill'",
        "WHERE r.pipeline_id = $1 AND r.kind IS DISTINCT FROM 'backfill' AND CASE\n"
        "        WHEN $3 IS NULL THEN r.status = 'running'\n"
        "        ELSE r.effective_at <= $3 AND (r.status = 'running' OR r.finished_at > $3)\n    END",
    ),
    ("CASE p.sync_error_code\n", "CASE facts.error_code\n"),
    ("' since ' || to_char(p.sync_failing_since", "' since ' || to_char(facts.failing_since"),
    ("coalesce('; ' || p.doubt, '')", "coalesce('; ' || facts.doubt, '')"),
    ("WHEN p.doubt IS NOT NULL THEN p.doubt_since", "WHEN facts.doubt IS NOT NULL THEN p.doubt_since"),
    ("ELSE coalesce(p.doubt, words.deaf", "ELSE coalesce(facts.doubt, words.deaf"),
    ("facts.behind OR p.doubt IS NOT NULL", "facts.behind OR facts.doubt IS NOT NULL"),
)


def upgrade() -> None:
    for signature, (comment, query) in _functions().items():
        op.execute(f"CREATE FUNCTION {signature} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {query} $fn$")
        op.execute(f"COMMENT ON FUNCTION {_name(signature)} IS '{comment}'")


def downgrade() -> None:
    for signature in reversed(_functions()):
        op.execute(f"DROP FUNCTION {_name(signature)}")


def _functions() -> dict[str, tuple[str, str]]:
    settled = f"SELECT * FROM health_runs AS r WHERE r.pipeline_id = $1 AND {SETTLED_BY}"
    return {
        "latest_runs(pipeline_id uuid, count int, at timestamptz) RETURNS SETOF ledger_runs": (
            "The latest runs of a pipeline as they were at a time, from what is known now; null: now",
            f"SELECT {', '.join(map(_as_it_was, _run_columns()))} FROM ledger_runs AS r"
            " WHERE r.pipeline_id = $1 AND ($3 IS NULL OR r.effective_at <= $3)"
            f" {ORDER.replace('r.finished_at', f'CASE WHEN {ENDED_LATER} THEN NULL ELSE r.finished_at END')} LIMIT $2",
        ),
        "health_runs_at(pipeline_id uuid, at timestamptz) RETURNS SETOF health_runs": (
            "The runs of a pipeline that had settled by a time; backfills do not count; null: now",
            settled.format(at="$2"),
        ),
        "latest_health_runs(pipeline_id uuid, count int, at timestamptz) RETURNS SETOF health_runs": (
            "The latest runs of a pipeline that had settled by a time; backfills do not count; null: now",
            f"{settled.format(at='$3')} {ORDER} LIMIT $2",
        ),
        "latest_success(pipeline_id uuid, at timestamptz) RETURNS SETOF health_runs": (
            "The latest success of a pipeline by a time that is no backfill; null: now",
            f"{settled.format(at='$2')} AND r.status = 'success' {ORDER} LIMIT 1",
        ),
        HEALTH: (HEALTH_COMMENT, _health()),
    }


def _health() -> str:
    query = context.script.get_revision("0018").module.QUERY.replace("$3", "coalesce($3, now())")
    for before, after in CHANGES:
        if query.count(before) != 1:
            raise RuntimeError(f"health_of() has changed: {before}")
        query = query.replace(before, after)
    return query


def _run_columns() -> tuple[str, ...]:
    return (*context.script.get_revision("0016").module.RUN_COLUMNS, "error_fingerprint")


def _as_it_was(column: str) -> str:
    if column not in OF_THE_END:
        return f"r.{column}"
    return f"CASE WHEN {ENDED_LATER} THEN {OF_THE_END[column]} ELSE r.{column} END AS {column}"


def _name(signature: str) -> str:
    return re.sub(r" RETURNS .*|\sRETURNS TABLE.*", "", signature.strip(), flags=re.DOTALL)

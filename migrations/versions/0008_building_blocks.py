"""Views and functions that health questions are made of: active pipelines, settled runs, the latest runs.

The functions are single SELECTs that Postgres inlines, so a query that uses them is planned as if it had been spelled
out (a test looks at the plans). None may become STRICT, VOLATILE or SECURITY DEFINER, or get a SET clause: each of
these would stop the inlining.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ORDER = "ORDER BY r.effective_at DESC, r.finished_at DESC NULLS LAST, r.id DESC"

COUNTS = "counts_for_health(status text, kind text, will_retry boolean)"
COUNTS_COMMENT = "Whether a run says how its pipeline is: it has settled, and is no backfill"
COUNTS_QUERY = "SELECT $1 IN ('success', 'failed') AND NOT $3 AND $2 IS DISTINCT FROM 'backfill'"

VIEWS = {
    "pipeline_details": (
        "Pipelines with their clients; is_active only if both are",
        """
        SELECT
            c.id AS client_id,
            c.slug AS client_slug,
            c.name AS client_name,
            p.id AS pipeline_id,
            p.slug AS pipeline_slug,
            p.name AS pipeline_name,
            p.platform,
            p.environment,
            p.is_active AND c.is_active AS is_active,
            p.synced_through
        FROM pipelines AS p
        JOIN clients AS c ON c.id = p.client_id
        """,
    ),
    "settled_runs": (
        "Runs that are over as success or failed, and are not about to be retried",
        "SELECT * FROM runs WHERE status IN ('success', 'failed') AND NOT will_retry",
    ),
    "health_runs": (
        "Settled runs that say how a pipeline is: all but backfills",
        "SELECT * FROM runs WHERE counts_for_health(status, kind, will_retry)",
    ),
}

FUNCTIONS = {
    "pipelines_of(client_slug text, environment text) RETURNS SETOF pipeline_details": (
        "Pipelines of a client and an environment; null: of all",
        """
        SELECT * FROM pipeline_details AS d
        WHERE ($1 IS NULL OR d.client_slug = $1) AND ($2 IS NULL OR d.environment = $2)
        """,
    ),
    "active_pipelines(client_slug text, environment text) RETURNS SETOF pipeline_details": (
        "Active pipelines of a client and an environment; null: of all",
        """
        SELECT * FROM pipeline_details AS d
        WHERE d.is_active AND ($1 IS NULL OR d.client_slug = $1) AND ($2 IS NULL OR d.environment = $2)
        """,
    ),
    "latest_runs(pipeline_id uuid, count int) RETURNS SETOF runs": (
        "The latest runs of a pipeline, the latest first",
        f"SELECT * FROM runs AS r WHERE r.pipeline_id = $1 {ORDER} LIMIT $2",
    ),
    "latest_health_runs(pipeline_id uuid, count int) RETURNS SETOF health_runs": (
        "The latest settled runs of a pipeline without backfills, the latest first",
        f"SELECT * FROM health_runs AS r WHERE r.pipeline_id = $1 {ORDER} LIMIT $2",
    ),
    "latest_success(pipeline_id uuid) RETURNS SETOF health_runs": (
        "The latest success of a pipeline that is no backfill",
        f"SELECT * FROM health_runs AS r WHERE r.pipeline_id = $1 AND r.status = 'success' {ORDER} LIMIT 1",
    ),
    "settled_at(pipeline_id uuid, at timestamptz) RETURNS SETOF health_runs": (
        "The latest run of a pipeline that had settled by a time, from what is known now; backfills do not count",
        f"""
        SELECT * FROM health_runs AS r
        WHERE r.pipeline_id = $1 AND r.effective_at <= $2 AND coalesce(r.finished_at, r.effective_at) <= $2
        {ORDER} LIMIT 1
        """,
    ),
}


def upgrade() -> None:
    op.execute(
        f"CREATE FUNCTION {COUNTS} RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $fn$ {COUNTS_QUERY} $fn$"
    )
    op.execute(f"COMMENT ON FUNCTION {COUNTS} IS '{COUNTS_COMMENT}'")
    for name, (comment, query) in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
        op.execute(f"COMMENT ON VIEW {name} IS '{comment}'")
    for signature, (comment, query) in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {signature} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {query} $fn$")
        op.execute(f"COMMENT ON FUNCTION {_name(signature)} IS '{comment}'")


def downgrade() -> None:
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {_name(signature)}")
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.execute(f"DROP FUNCTION {COUNTS}")


def _name(signature: str) -> str:
    return signature.partition(" RETURNS ")[0]

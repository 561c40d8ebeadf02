"""Views for people's own questions, and building blocks that leave out what partners sent.

`run_details`, `pipeline_health`, `daily_rollup` and `open_alert_episodes` are made to be read in a BI tool. The building
blocks of 0008 return `ledger_runs` from here on: a role that may not read `payload` and `lineage` may use them.
"""

import json

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

ORDER = "ORDER BY r.effective_at DESC, r.finished_at DESC NULLS LAST, r.id DESC"

RUN_COLUMNS = (
    "id",
    "pipeline_id",
    "external_run_id",
    "status",
    "queued_at",
    "started_at",
    "finished_at",
    "effective_at",
    "duration_seconds",
    "rows_processed",
    "kind",
    "will_retry",
    "error_message",
    "status_reason",
    "source_url",
    "attempt",
    "progress",
    "source_version",
    "observed_at",
    "ingested_at",
    "created_at",
    "updated_at",
)

BLOCKS = {
    "ledger_runs": ("Runs without what partners sent", f"SELECT {', '.join(RUN_COLUMNS)} FROM runs"),
    "settled_runs": (
        "Runs that are over as success or failed, and are not about to be retried",
        "SELECT * FROM {runs} WHERE status IN ('success', 'failed') AND NOT will_retry",
    ),
    "health_runs": (
        "Settled runs that say how a pipeline is: all but backfills",
        "SELECT * FROM {runs} WHERE counts_for_health(status, kind, will_retry)",
    ),
}

FUNCTIONS = {
    "latest_runs(pipeline_id uuid, count int) RETURNS SETOF {runs}": (
        "The latest runs of a pipeline, the latest first",
        f"SELECT * FROM {{runs}} AS r WHERE r.pipeline_id = $1 {ORDER} LIMIT $2",
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

NAMES = """
            d.client_slug,
            d.client_name,
            d.pipeline_slug,
            d.pipeline_name,
            d.platform,
            d.environment"""

VIEWS = {
    "run_details": (
        "Runs with the names of their pipelines and clients, one row for each run",
        f"""
        SELECT
            r.id AS run_id,
            d.client_id,
            d.pipeline_id,{NAMES},
            d.is_active,
            r.external_run_id,
            r.status,
            r.status IN ('success', 'failed') AND NOT r.will_retry AS is_settled,
            r.kind,
            r.effective_at,
            r.queued_at,
            r.started_at,
            r.finished_at,
            r.duration_seconds,
            r.rows_processed,
            r.error_message,
            r.status_reason,
            r.source_url
        FROM ledger_runs AS r
        JOIN pipeline_details AS d ON d.pipeline_id = r.pipeline_id
        """,
    ),
    "pipeline_health": (
        "How each active pipeline is now, one row for each",
        f"""
        SELECT
            d.client_id,
            d.pipeline_id,{NAMES},
            h.health,
            h.health_since,
            h.health_reason,
            settled.status AS settled_status,
            settled.effective_at AS settled_run_at,
            h.due_at,
            h.read_at,
            d.synced_through
        FROM active_pipelines(NULL, NULL) AS d
        LEFT JOIN LATERAL latest_health_runs(d.pipeline_id, 1) AS settled ON true
        CROSS JOIN LATERAL health_of(d.pipeline_id, settled.status, now()) AS h
        """,
    ),
    "daily_rollup": (
        "Runs of each pipeline by the day in UTC to which they belong, one row for each day with runs",
        f"""
        SELECT
            n.day,
            d.client_id,
            d.pipeline_id,{NAMES},
            n.runs,
            n.success,
            n.failed,
            n.running,
            n.canceled,
            n.skipped,
            n.settled_runs,
            n.failures,
            CAST(n.failures AS float8) / nullif(n.settled_runs, 0) AS failure_rate,
            n.average_seconds,
            n.longest_seconds,
            n.rows_processed
        FROM (
            SELECT
                r.pipeline_id,
                CAST(r.effective_at AT TIME ZONE 'UTC' AS date) AS day,
                count(*) AS runs,
                count(*) FILTER (WHERE r.status = 'success') AS success,
                count(*) FILTER (WHERE r.status = 'failed') AS failed,
                count(*) FILTER (WHERE r.status = 'running') AS running,
                count(*) FILTER (WHERE r.status = 'canceled') AS canceled,
                count(*) FILTER (WHERE r.status = 'skipped') AS skipped,
                count(*) FILTER (WHERE r.status IN ('success', 'failed') AND NOT r.will_retry) AS settled_runs,
                count(*) FILTER (WHERE r.status = 'failed' AND NOT r.will_retry) AS failures,
                avg(r.duration_seconds) AS average_seconds,
                max(r.duration_seconds) AS longest_seconds,
                CAST(sum(r.rows_processed) AS int8) AS rows_processed
            FROM ledger_runs AS r
            GROUP BY 1, 2
        ) AS n
        JOIN pipeline_details AS d ON d.pipeline_id = n.pipeline_id
        """,
    ),
    "open_alert_episodes": (
        "What alert rules have found wrong and is not over, one row for each episode",
        f"""
        SELECT
            CAST(x.episode ->> 'id' AS uuid) AS episode_id,
            d.client_id,
            d.pipeline_id,{NAMES},
            r.id AS rule_id,
            r.rule_type,
            r.threshold,
            r.window_minutes,
            r.channel,
            r.destination,
            r.muted_until,
            CASE
                WHEN x.episode ->> 'acknowledged_at' IS NOT NULL THEN 'acknowledged'
                WHEN x.episode ->> 'announced_at' IS NOT NULL THEN 'announced'
                ELSE 'unannounced'
            END AS state,
            CAST(x.episode ->> 'since' AS timestamptz) AS since,
            CAST(x.episode ->> 'opened_at' AS timestamptz) AS opened_at,
            CAST(x.episode ->> 'announced_at' AS timestamptz) AS announced_at,
            CAST(x.episode ->> 'reminders' AS integer) AS reminders,
            CAST(x.episode ->> 'acknowledged_at' AS timestamptz) AS acknowledged_at,
            nullif(x.episode ->> 'acknowledged_by', '') AS acknowledged_by,
            CASE
                WHEN r.rule_type IN ('on_failure', 'consecutive_failures', 'failures_in_window')
                THEN CAST(x.episode -> 'evidence' ->> 'count' AS integer) ELSE 0
            END AS failures,
            x.episode -> 'evidence' ->> 'latest' AS external_run_id
        FROM alert_rules AS r
        CROSS JOIN LATERAL jsonb_array_elements(r.episodes) AS x(episode)
        JOIN pipeline_details AS d ON d.pipeline_id = CAST(x.episode ->> 'pipeline_id' AS uuid)
        WHERE r.episodes <> '[]'
        """,
    ),
}

# What a column means, in each view that has it; `view.column` wins.
COLUMNS = {
    "run_id": "CHM's id of the run",
    "id": "CHM's id of the run",
    "client_id": "CHM's id of the client",
    "pipeline_id": "CHM's id of the pipeline",
    "client_slug": "The client's readable key",
    "client_name": "The client's name",
    "pipeline_slug": "The pipeline's readable key, unique within the client",
    "pipeline_name": "The pipeline's name",
    "platform": "Where the pipeline runs",
    "environment": "dev, staging or prod",
    "is_active": "False if the pipeline or its client is disabled",
    "synced_through": "The pipeline's runs are known up to here",
    "external_run_id": "The run's id at the partner",
    "status": "running, success, failed, canceled or skipped",
    "is_settled": "True if it is a success, or failed and is not about to be retried",
    "kind": "Why it ran: scheduled, manual, backfill or retry; null if that is not known",
    "effective_at": "When it started, or else was queued, finished or first seen: the time that orders runs",
    "queued_at": "When it was queued or scheduled at the partner, if known",
    "started_at": "When it started; null while it waits",
    "finished_at": "When it finished; null while it runs",
    "duration_seconds": "How long it took, in seconds",
    "rows_processed": "Rows that it processed, where the partner says so",
    "daily_rollup.rows_processed": "Rows that the runs processed, where the partner says so",
    "will_retry": "True: failed, but the platform is about to try again",
    "error_message": "Why it failed, in the partner's words, with secrets masked",
    "status_reason": "The partner's own word where it says more than the status",
    "source_url": "Link to the run at the partner",
    "attempt": "The partner's try counter",
    "progress": "1: finished, on a platform where a finished run never reopens",
    "source_version": "Newest time at the partner that changes with every transition",
    "observed_at": "When the request that returned the run started, by CHM's clock",
    "ingested_at": "When CHM last wrote a report of the run",
    "created_at": "When CHM first saw the run",
    "updated_at": "When the row was last changed",
    "health": "failing, late, overrunning, unknown or healthy",
    "health_since": "Since when; null for healthy",
    "health_reason": "Why, in words; null for healthy",
    "settled_status": "success or failed, from the latest settled run that is no backfill",
    "settled_run_at": "Effective time of the latest settled run that is no backfill",
    "due_at": "When the next run after the latest one is due; null without a schedule",
    "read_at": "When the last complete sync started; null if it was never read, or reports its runs itself",
    "day": "The day in UTC of the runs' effective times",
    "runs": "All runs of the day; the next five add up to it",
    "success": "Runs that succeeded",
    "failed": "Runs that failed, including those about to be retried",
    "running": "Runs in progress",
    "canceled": "Runs that were canceled",
    "skipped": "Runs that were skipped",
    "settled_runs": "Runs that succeeded, or failed and are not about to be retried",
    "failures": "Settled runs that failed",
    "open_alert_episodes.failures": "Failed runs that count; 0 for what did not happen",
    "failure_rate": "failures / settled_runs, from 0 to 1; null if nothing settled",
    "average_seconds": "Average duration of the runs that have one, in seconds",
    "longest_seconds": "Longest duration, in seconds",
    "episode_id": "CHM's id of the episode",
    "rule_id": "CHM's id of the alert rule",
    "rule_type": "What is watched, such as on_failure",
    "threshold": "How many failures it takes; null for types without it",
    "window_minutes": "The length of the window in minutes; null for types without it",
    "channel": "slack, email or webhook",
    "destination": "Who is notified",
    "muted_until": "The rule sends nothing new before this time",
    "state": "acknowledged, announced, or unannounced while the rule is muted or a maintenance window is open",
    "since": "Since when, by the source's clock",
    "opened_at": "When CHM found it",
    "announced_at": "When it was announced; null if it was not",
    "reminders": "How many reminders there were",
    "acknowledged_at": "When somebody took care of it; null if nobody did",
    "acknowledged_by": "Who takes care of it; null if nobody said so",
    "open_alert_episodes.external_run_id": "The latest run that counts; null for what did not happen",
}

COMMENT_COLUMNS = """
DO $comments$
DECLARE
    named record;
BEGIN
    FOR named IN
        SELECT c.relname AS relation, a.attname AS attribute, t.meaning
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        JOIN jsonb_each_text($json$ {meanings} $json$) AS t(name, meaning)
            ON t.name = c.relname || '.' || a.attname OR t.name = a.attname
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v'
          AND c.relname IN ({views})
        ORDER BY length(t.name) - length(a.attname)
    LOOP
        EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', named.relation, named.attribute, named.meaning);
    END LOOP;
END $comments$
"""


def upgrade() -> None:
    _drop_blocks()
    _create_blocks("ledger_runs")
    for name, (comment, query) in VIEWS.items():
        _create_view(name, comment, query)
    _comment_columns([*VIEWS, *BLOCKS, "pipeline_details"])


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    _drop_blocks()
    op.execute("DROP VIEW ledger_runs")
    _create_blocks("runs")


def _drop_blocks() -> None:
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {_name(signature)}")
    for name in ("health_runs", "settled_runs"):
        op.execute(f"DROP VIEW {name}")


def _create_blocks(runs: str) -> None:
    for name, (comment, query) in BLOCKS.items():
        if name != "ledger_runs" or runs == "ledger_runs":
            _create_view(name, comment, query.format(runs=runs))
    for signature, (comment, query) in FUNCTIONS.items():
        declared = signature.format(runs=runs)
        body = query.format(runs=runs)
        op.execute(f"CREATE FUNCTION {declared} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {body} $fn$")
        op.execute(f"COMMENT ON FUNCTION {_name(signature)} IS '{comment}'")


def _create_view(name: str, comment: str, query: str) -> None:
    op.execute(f"CREATE VIEW {name} AS {query}")
    op.execute(f"COMMENT ON VIEW {name} IS '{comment}'")


def _comment_columns(views: list[str]) -> None:
    names = ", ".join(f"'{name}'" for name in views)
    statement = COMMENT_COLUMNS.replace("{views}", names).replace("{meanings}", json.dumps(COLUMNS))
    # Through the driver: in op.execute, SQLAlchemy would read the colons of the JSON as parameters.
    op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def _name(signature: str) -> str:
    return signature.partition(" RETURNS ")[0]

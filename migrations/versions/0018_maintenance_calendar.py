"""Maintenance windows in SQL: `maintenance_calendar` spells them out, and `health_of()` pauses pipelines in them.

SQL cannot read cron, so the calendar has the windows of the next two weeks; whoever writes windows keeps it right.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql as pg

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

COMMENT = "The windows of `maintenance` that are open or to come, as times: entries, complete up to through"
SHAPE = "jsonb_typeof(maintenance_calendar -> 'entries') = 'array'"
QUERY = """
SELECT
    state.health,
    CASE state.health
        WHEN 'paused' THEN CASE WHEN p.is_active AND c.is_active THEN planned.since END
        WHEN 'failing' THEN (
            SELECT min(r.effective_at) FROM health_runs AS r
            LEFT JOIN latest_success($1) AS good ON true
            WHERE r.pipeline_id = $1 AND r.status = 'failed'
              AND (good.id IS NULL OR (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
                  > (good.effective_at, coalesce(good.finished_at, '-infinity'), good.id))
        )
        WHEN 'late' THEN limits.late_at
        WHEN 'overrunning' THEN long.since
        WHEN 'unknown' THEN CASE
            WHEN facts.gone OR facts.behind THEN coalesce(p.sync_failing_since, p.observed_through, p.created_at)
            WHEN p.doubt IS NOT NULL THEN p.doubt_since
            ELSE coalesce(deaf.lost, p.created_at)
        END
    END AS health_since,
    CASE state.health
        WHEN 'paused' THEN CASE
            WHEN NOT (p.is_active AND c.is_active) THEN 'disabled'
            ELSE 'maintenance until ' || to_char(planned.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'
                || coalesce(': ' || planned.reason, '')
        END
        WHEN 'failing' THEN 'the latest settled run failed' || CASE
            WHEN facts.behind THEN '; ' || words.blind
            ELSE coalesce('; ' || p.doubt, '')
        END
        WHEN 'late' THEN
            'no run since it was due at ' || to_char(p.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'
        WHEN 'overrunning' THEN 'has been running for more than ' || p.max_runtime_minutes || ' min'
        WHEN 'unknown' THEN CASE
            WHEN facts.gone OR facts.behind THEN words.blind
            ELSE coalesce(p.doubt, words.deaf, 'no run has settled yet')
        END
    END AS health_reason,
    p.due_at,
    CASE WHEN facts.pulled THEN p.observed_through END AS read_at
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
CROSS JOIN LATERAL (
    SELECT
        reads.pulled,
        (reads.pulled AND p.sync_error_code = 'not_at_partner') IS TRUE AS gone,
        reads.pulled AND (p.observed_through IS NULL OR reads.stale_at < $3) AS behind,
        CASE WHEN NOT reads.pulled OR reads.known_through > $3 THEN $3 ELSE reads.known_through END AS known
    FROM (
        SELECT
            p.external_id IS NOT NULL AND coalesce(p.connection, '') NOT LIKE 'openlineage:%' AS pulled,
            coalesce(p.known_through, p.observed_through - interval '5 minutes') AS known_through,
            coalesce(p.stale_at, p.observed_through + interval '30 minutes') AS stale_at
    ) AS reads
) AS facts
LEFT JOIN LATERAL (
    SELECT w.since, w.until, w.reason
    FROM (
        SELECT
            CAST(e ->> 'start' AS timestamptz) AS since,
            CAST(e ->> 'end' AS timestamptz) AS until,
            e ->> 'reason' AS reason
        FROM jsonb_array_elements(
            coalesce(c.maintenance_calendar -> 'entries', '[]') || coalesce(p.maintenance_calendar -> 'entries', '[]')
        ) AS e
    ) AS w
    WHERE w.since <= $3 AND $3 < w.until
    ORDER BY w.until DESC
    LIMIT 1
) AS planned ON true
CROSS JOIN LATERAL (
    SELECT p.due_at + coalesce(p.grace_minutes, 15) * interval '1 minute' AS late_at
) AS limits
LEFT JOIN LATERAL (
    SELECT
        min(r.started_at) AS started_at, min(r.started_at) + p.max_runtime_minutes * interval '1 minute' AS since
    FROM runs AS r
    WHERE r.pipeline_id = $1 AND r.status = 'running' AND r.kind IS DISTINCT FROM 'backfill'
) AS long ON p.max_runtime_minutes IS NOT NULL
-- The first outage of the API in which a report that is missing now may have been lost: of a run that was due, or of
-- the end of one that takes too long. A time after `heard_through` counts as an outage once it is longer than the API
-- takes to say that it is up.
LEFT JOIN LATERAL (
    SELECT gap.lost, gap.heard
    FROM (
        SELECT CAST(x ->> 'lost' AS timestamptz) AS lost, CAST(x ->> 'heard' AS timestamptz) AS heard
        FROM jsonb_array_elements(c.api_gaps) AS x
        UNION ALL
        SELECT c.heard_through, $3 WHERE c.heard_through < $3 - interval '45 seconds'
    ) AS gap
    WHERE gap.lost < $3 AND (
        gap.heard > long.started_at AND long.since < $3
        OR gap.lost < limits.late_at AND gap.heard > p.due_at - interval '2 minutes' AND NOT EXISTS (
            SELECT FROM runs AS r
            WHERE r.pipeline_id = $1 AND r.kind IS DISTINCT FROM 'backfill'
              AND r.effective_at >= p.due_at - interval '2 minutes'
        )
    )
    ORDER BY gap.lost
    LIMIT 1
) AS deaf ON NOT facts.pulled
CROSS JOIN LATERAL (
    SELECT coalesce(
        CASE p.sync_error_code
            WHEN 'credentials_refused' THEN 'credentials refused'
            WHEN 'unreachable' THEN 'partner unreachable'
            WHEN 'rate_limited' THEN 'rate limited by the partner'
            WHEN 'not_at_partner' THEN 'not known to the partner'
            WHEN 'bad_response' THEN 'unexpected responses'
            WHEN 'configuration' THEN 'connection misconfigured'
            WHEN 'deadline' THEN 'not read within the deadline'
        END || ' since ' || to_char(p.sync_failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC',
        'not read since ' || to_char(p.observed_through AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC',
        'never read'
    ) AS blind, CASE
        WHEN deaf.heard < $3 THEN 'CHM''s API did not answer from '
            || to_char(deaf.lost AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' to '
            || to_char(deaf.heard AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'
        ELSE 'CHM''s API has not answered since ' || to_char(deaf.lost AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'
    END AS deaf
) AS words
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN NOT (p.is_active AND c.is_active) THEN 'paused'
        WHEN planned.since IS NOT NULL THEN 'paused'
        WHEN facts.gone THEN 'unknown'
        WHEN $2 = 'failed' THEN 'failing'
        WHEN facts.behind OR p.doubt IS NOT NULL OR deaf.lost IS NOT NULL THEN 'unknown'
        -- due_at follows the runs; that none is there is looked up all the same, because a false alarm is worse.
        WHEN limits.late_at < facts.known AND NOT EXISTS (
            SELECT FROM runs AS r
            WHERE r.pipeline_id = $1 AND r.kind IS DISTINCT FROM 'backfill'
              AND r.effective_at >= p.due_at - interval '2 minutes'
        ) THEN 'late'
        WHEN long.since < facts.known THEN 'overrunning'
        WHEN $2 IS NULL THEN 'unknown'
        ELSE 'healthy'
    END AS health
) AS state
WHERE p.id = $1
"""


def upgrade() -> None:
    for table in ("clients", "pipelines"):
        op.add_column(table, sa.Column("maintenance_calendar", pg.JSONB(), nullable=True, comment=COMMENT))
        op.create_check_constraint(op.f(f"ck_{table}_maintenance_calendar_has_entries"), table, SHAPE)
    _health_of(QUERY)


def downgrade() -> None:
    _health_of(context.script.get_revision("0017").module.QUERY)
    for table in ("pipelines", "clients"):
        op.drop_column(table, "maintenance_calendar")


def _health_of(query: str) -> None:
    head = context.script.get_revision("0010").module.HEALTH
    op.execute(f"CREATE OR REPLACE FUNCTION {head} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {query} $fn$")

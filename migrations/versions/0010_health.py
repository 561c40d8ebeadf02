"""When a run of a pipeline is due, and `health_of()`: how a pipeline is, since when, and why.

`health_of` is a single SELECT that Postgres inlines, like the functions of 0008.
"""

import zoneinfo
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op
from cronsim import CronSim, CronSimError

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COLUMNS = (
    ("due_at", "When the next run after the latest one is due by the schedule; null: nothing is expected"),
    (
        "schedule_changed_at",
        "From when on the schedule holds, if it was set or the pipeline enabled after its creation",
    ),
)
READABLE = "{0} >= '0001-01-02 00:00:00+00' AND {0} < '9999-12-31 00:00:00+00'"
CHECKS = {
    "due_at_readable": READABLE.format("due_at"),
    "schedule_changed_at_readable": READABLE.format("schedule_changed_at"),
    "due_at_has_schedule": "due_at IS NULL OR schedule_cron IS NOT NULL",
}

HEALTH = """
health_of(pipeline_id uuid, settled_status text, at timestamptz)
RETURNS TABLE (health text, health_since timestamptz, health_reason text, due_at timestamptz, read_at timestamptz)
"""
NAME = "health_of(uuid, text, timestamptz)"
COMMENT = (
    "How a pipeline is at a time (now), given its latest settled status: failing, late, overrunning, unknown, healthy"
    " or paused; since when, and why in words; when a run is due; when it was last read, null unless a partner is read"
)
# What did not happen is known only up to `known`: of a pipeline that is read from a partner five minutes before the
# last complete sync began, because partners show runs with a delay; of one that reports itself, up to now.
# `least()` ignores nulls, so it is not used: a pipeline that was never read is known up to null, never.
QUERY = """
SELECT
    state.health,
    CASE state.health
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
            ELSE p.created_at
        END
    END AS health_since,
    CASE state.health
        WHEN 'paused' THEN 'disabled'
        WHEN 'failing' THEN 'the latest settled run failed' || CASE WHEN facts.behind THEN '; ' || words.blind ELSE '' END
        WHEN 'late' THEN
            'no run since it was due at ' || to_char(p.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'
        WHEN 'overrunning' THEN 'has been running for more than ' || p.max_runtime_minutes || ' min'
        WHEN 'unknown' THEN CASE WHEN facts.gone OR facts.behind THEN words.blind ELSE 'no run has settled yet' END
    END AS health_reason,
    p.due_at,
    CASE WHEN facts.pulled THEN p.observed_through END AS read_at
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
CROSS JOIN LATERAL (
    SELECT
        reads.pulled,
        (reads.pulled AND p.sync_error_code = 'not_at_partner') IS TRUE AS gone,
        reads.pulled AND (p.observed_through IS NULL OR p.observed_through < $3 - interval '30 minutes') AS behind,
        CASE
            WHEN NOT reads.pulled OR p.observed_through - interval '5 minutes' > $3 THEN $3
            ELSE p.observed_through - interval '5 minutes'
        END AS known
    FROM (
        SELECT p.external_id IS NOT NULL AND coalesce(p.connection, '') NOT LIKE 'openlineage:%' AS pulled
    ) AS reads
) AS facts
CROSS JOIN LATERAL (
    SELECT p.due_at + coalesce(p.grace_minutes, 15) * interval '1 minute' AS late_at
) AS limits
LEFT JOIN LATERAL (
    SELECT min(r.started_at) + p.max_runtime_minutes * interval '1 minute' AS since
    FROM runs AS r
    WHERE r.pipeline_id = $1 AND r.status = 'running' AND r.kind IS DISTINCT FROM 'backfill'
) AS long ON p.max_runtime_minutes IS NOT NULL
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
    ) AS blind
) AS words
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN NOT (p.is_active AND c.is_active) THEN 'paused'
        WHEN facts.gone THEN 'unknown'
        WHEN $2 = 'failed' THEN 'failing'
        WHEN facts.behind THEN 'unknown'
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
    for name, comment in COLUMNS:
        op.add_column("pipelines", sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=True, comment=comment))
    for name, expression in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_pipelines_{name}"), "pipelines", expression)
    op.execute(f"CREATE FUNCTION {HEALTH} LANGUAGE sql STABLE PARALLEL SAFE AS $fn$ {QUERY} $fn$")
    op.execute(f"COMMENT ON FUNCTION {NAME} IS '{COMMENT}'")
    _fill_due_times(op.get_bind())


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {NAME}")
    for name, _ in reversed(COLUMNS):
        op.drop_column("pipelines", name)


# The logic of that time, spelled out: a migration must do the same in a later release, whatever the package does then.
SCHEDULED = """
SELECT p.id, p.schedule_cron, p.schedule_timezone, p.created_at, r.effective_at
FROM pipelines AS p
LEFT JOIN LATERAL (
    SELECT effective_at FROM runs
    WHERE pipeline_id = p.id AND kind IS DISTINCT FROM 'backfill' AND effective_at <= now() + interval '2 minutes'
    ORDER BY effective_at DESC, finished_at DESC NULLS LAST, id DESC
    LIMIT 1
) AS r ON true
WHERE p.schedule_cron IS NOT NULL
"""

ANEW = "UPDATE pipelines SET schedule_changed_at = now() WHERE due_at < now()"
RESTARTED = """
SELECT id, schedule_cron, schedule_timezone, schedule_changed_at FROM pipelines WHERE schedule_changed_at IS NOT NULL
"""


def _fill_due_times(bind: sa.Connection) -> None:
    due_times = [
        {"id": row.id, "due": due}
        for row in bind.execute(sa.text(SCHEDULED)).all()
        if (due := _due(row.schedule_cron, row.schedule_timezone, row.created_at, row.effective_at)) is not None
    ]
    if due_times:
        bind.execute(sa.text("UPDATE pipelines SET due_at = :due WHERE id = :id"), due_times)
    # When a schedule was set was not recorded. So slots of the time before the upgrade accuse nobody: these schedules
    # hold from now on.
    bind.execute(sa.text(ANEW))
    anew = [
        {"id": row.id, "due": _due(row.schedule_cron, row.schedule_timezone, row.schedule_changed_at, None)}
        for row in bind.execute(sa.text(RESTARTED)).all()
    ]
    if anew:
        bind.execute(sa.text("UPDATE pipelines SET due_at = :due WHERE id = :id"), anew)


def _due(cron: str, zone: str | None, created_at: datetime, run_at: datetime | None) -> datetime | None:
    after = created_at if run_at is None else run_at + timedelta(minutes=2)
    try:
        slot: datetime = next(CronSim(cron, after.astimezone(zoneinfo.ZoneInfo(zone) if zone else UTC)))
    except (CronSimError, StopIteration, OverflowError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        return None
    return slot.astimezone(UTC)

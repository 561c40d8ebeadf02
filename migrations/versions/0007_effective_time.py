"""Every run has an effective time and may have a kind; the same external id may be watched on two connections.

`effective_at` orders the runs of a pipeline, also those whose start is not known. It replaces `started_at` in the indexes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# One statement, because each rewrites the table: effective_at is stored.
COLUMNS = """
ALTER TABLE runs
    ADD COLUMN queued_at timestamptz,
    ADD COLUMN effective_at timestamptz NOT NULL
        GENERATED ALWAYS AS (coalesce(started_at, queued_at, finished_at, created_at)) STORED,
    ADD COLUMN kind text,
    ADD COLUMN will_retry boolean NOT NULL DEFAULT false
"""
COMMENTS = {
    "queued_at": "When the run was queued or scheduled at the partner, if known",
    "effective_at": "The time that orders runs: started_at, else queued_at, finished_at or created_at",
    "kind": "Why it ran: scheduled, manual, backfill or retry; null: not known",
    "will_retry": "True: failed, but the platform is about to try again",
}
CHECKS = {
    "queued_at_readable": "queued_at >= '0001-01-02 00:00:00+00' AND queued_at < '9999-12-31 00:00:00+00'",
    "kind_known": "kind IN ('scheduled', 'manual', 'backfill', 'retry')",
    "will_retry_is_failed": "NOT will_retry OR status = 'failed'",
    "error_message_fits_status": "error_message IS NULL OR status IN ('failed', 'canceled')",
}
RUNNING = "running_is_not_finished"
RUNNING_BEFORE = "status <> 'running' OR (finished_at IS NULL AND duration_seconds IS NULL)"
RUNNING_AFTER = "status <> 'running' OR (finished_at IS NULL AND duration_seconds IS NULL AND progress = 0)"
PIPELINE_KEY_BEFORE = "uq_pipelines_client_id_platform_external_id"
PIPELINE_KEY = "uq_pipelines_client_id_platform_connection_external_id"


def upgrade() -> None:
    _drop_indexes("ix_runs_latest", "ix_runs_started_at", "ix_runs_failed")
    op.execute(COLUMNS)
    for name, comment in COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN runs.{name} IS '{comment}'")
    # Rows that were reported by the check `status_progression`, and that can be written no longer.
    op.execute("UPDATE runs SET progress = 0 WHERE status = 'running' AND progress <> 0")
    op.execute(
        "UPDATE runs SET error_message = NULL"
        " WHERE status IN ('success', 'running', 'skipped') AND error_message IS NOT NULL"
    )
    _replace_check(RUNNING, RUNNING_AFTER)
    for name, expression in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_runs_{name}"), "runs", expression)
    op.execute(
        "CREATE INDEX ix_runs_latest ON runs (pipeline_id, effective_at DESC, finished_at DESC NULLS LAST, id DESC)"
        " INCLUDE (status, kind, will_retry)"
    )
    op.execute(
        "CREATE INDEX ix_runs_effective_at ON runs (effective_at DESC, id DESC)"
        " INCLUDE (pipeline_id, status, duration_seconds, will_retry)"
    )
    op.execute(
        "CREATE INDEX ix_runs_failed ON runs (effective_at DESC, id DESC)"
        " INCLUDE (pipeline_id) WHERE status = 'failed' AND NOT will_retry"
    )
    _drop_indexes(PIPELINE_KEY_BEFORE)
    op.create_index(
        PIPELINE_KEY,
        "pipelines",
        ["client_id", "platform", "connection", "external_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )


def downgrade() -> None:
    _drop_indexes(PIPELINE_KEY, "ix_runs_latest", "ix_runs_effective_at", "ix_runs_failed")
    op.create_index(
        PIPELINE_KEY_BEFORE,
        "pipelines",
        ["client_id", "platform", "external_id"],
        unique=True,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )
    for name in CHECKS:
        op.drop_constraint(op.f(f"ck_runs_{name}"), "runs")
    _replace_check(RUNNING, RUNNING_BEFORE)
    op.execute(
        "ALTER TABLE runs DROP COLUMN effective_at, DROP COLUMN queued_at, DROP COLUMN kind, DROP COLUMN will_retry"
    )
    op.execute(
        "CREATE INDEX ix_runs_latest ON runs"
        " (pipeline_id, started_at DESC NULLS LAST, finished_at DESC NULLS LAST, id DESC) INCLUDE (status)"
    )
    op.execute(
        "CREATE INDEX ix_runs_started_at ON runs (started_at DESC, id DESC)"
        " INCLUDE (pipeline_id, status, duration_seconds)"
    )
    op.execute(
        "CREATE INDEX ix_runs_failed ON runs (started_at DESC, id DESC) INCLUDE (pipeline_id) WHERE status = 'failed'"
    )


def _drop_indexes(*names: str) -> None:
    for name in names:
        op.execute(f"DROP INDEX {name}")


def _replace_check(name: str, expression: str) -> None:
    op.drop_constraint(op.f(f"ck_runs_{name}"), "runs")
    op.create_check_constraint(op.f(f"ck_runs_{name}"), "runs", expression)

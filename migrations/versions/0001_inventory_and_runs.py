"""Clients, pipelines, runs and alert rules."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# PostgreSQL 18 has uuidv7(); before it, the same layout is made here: 48 bits of milliseconds, version 7, variant 10,
# and random bits for the rest.
UUID7 = """
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE FUNCTION chm_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT uuidv7()';
    ELSE
        CREATE FUNCTION chm_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $fn$
            SELECT encode(
                set_bit(
                    set_bit(
                        overlay(
                            uuid_send(gen_random_uuid())
                            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                            FROM 1 FOR 6
                        ),
                        52, 1
                    ),
                    53, 1
                ),
                'hex'
            )::uuid
        $fn$;
    END IF;
END
$do$
"""
TOUCH = """
CREATE FUNCTION chm_touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$fn$
"""
# Columns that people change. A watermark that moves is not an edit of the pipeline, so it is not among them.
TOUCHED = {
    "clients": "name, slug, is_active",
    "pipelines": (
        "client_id, name, slug, platform, connection, external_id, pipeline_type, environment, description, is_active,"
        " schedule_cron, schedule_timezone, grace_minutes, max_runtime_minutes"
    ),
    "alert_rules": (
        "client_id, pipeline_id, rule_type, threshold, window_minutes, channel, destination, is_enabled, muted_until"
    ),
}


def upgrade() -> None:
    op.execute(UUID7)
    op.execute(TOUCH)
    op.create_table(
        "clients",
        sa.Column("id", sa.UUID(), server_default=sa.text("chm_uuid7()"), nullable=False, comment="UUID v7"),
        sa.Column("name", sa.Text(), nullable=False, comment="The customer's name, unique"),
        sa.Column(
            "slug",
            sa.Text(),
            nullable=False,
            comment="Readable key, unique, made from the name once and kept when the name changes",
        ),
        sa.Column(
            "is_active",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: disabled; nothing is ingested, history stays",
        ),
        sa.Column(
            "created_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When CHM made the row",
        ),
        sa.Column(
            "updated_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed",
        ),
        sa.CheckConstraint(
            "name = btrim(name, E' \\t\\n\\r') AND length(name) BETWEEN 1 AND 200", name=op.f("ck_clients_name_trimmed")
        ),
        sa.CheckConstraint(
            "slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 100", name=op.f("ck_clients_slug_form")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
        sa.UniqueConstraint("name", name=op.f("uq_clients_name")),
        sa.UniqueConstraint("slug", name=op.f("uq_clients_slug")),
        comment="Customers whose pipelines are watched",
    )
    op.create_table(
        "pipelines",
        sa.Column("id", sa.UUID(), server_default=sa.text("chm_uuid7()"), nullable=False, comment="UUID v7"),
        sa.Column("client_id", sa.UUID(), nullable=False, comment="The customer that the pipeline belongs to"),
        sa.Column("name", sa.Text(), nullable=False, comment="Name, unique within the client"),
        sa.Column(
            "slug",
            sa.Text(),
            nullable=False,
            comment="Readable key, unique within the client, kept when the name changes",
        ),
        sa.Column("platform", sa.Text(), nullable=False, comment="Where it runs"),
        sa.Column(
            "connection",
            sa.Text(),
            nullable=True,
            comment="Which partner instance tells of it; null: the platform's default",
        ),
        sa.Column("external_id", sa.Text(), nullable=True, comment="Its id at the partner; null: not ingested"),
        sa.Column("pipeline_type", sa.Text(), nullable=False, comment="What it is for"),
        sa.Column("environment", sa.Text(), server_default="prod", nullable=False, comment="dev, staging or prod"),
        sa.Column("description", sa.Text(), nullable=True, comment="Free text for people"),
        sa.Column(
            "is_active",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: disabled; nothing is ingested, history stays",
        ),
        sa.Column("schedule_cron", sa.Text(), nullable=True, comment="When it is expected to run, five fields"),
        sa.Column("schedule_timezone", sa.Text(), nullable=True, comment="IANA zone of schedule_cron; null: UTC"),
        sa.Column("grace_minutes", sa.Integer(), nullable=True, comment="How late a run may be, in minutes"),
        sa.Column("max_runtime_minutes", sa.Integer(), nullable=True, comment="How long a run may take, in minutes"),
        sa.Column(
            "synced_through",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="Watermark: runs are known up to here, in the partner's time",
        ),
        sa.Column(
            "observed_through",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the sweep that set synced_through started, by our clock",
        ),
        sa.Column(
            "created_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When CHM made the row",
        ),
        sa.Column(
            "updated_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed",
        ),
        sa.CheckConstraint(
            "array_length(regexp_split_to_array(schedule_cron, ' +'), 1) = 5",
            name=op.f("ck_pipelines_schedule_cron_fields"),
        ),
        sa.CheckConstraint(
            "connection = btrim(connection, E' \\t\\n\\r') AND length(connection) BETWEEN 1 AND 100",
            name=op.f("ck_pipelines_connection_trimmed"),
        ),
        sa.CheckConstraint("environment IN ('dev', 'staging', 'prod')", name=op.f("ck_pipelines_environment_known")),
        sa.CheckConstraint(
            "name = btrim(name, E' \\t\\n\\r') AND length(name) BETWEEN 1 AND 200",
            name=op.f("ck_pipelines_name_trimmed"),
        ),
        sa.CheckConstraint(
            "observed_through >= '0001-01-02 00:00:00+00' AND observed_through < '9999-12-31 00:00:00+00'",
            name=op.f("ck_pipelines_observed_through_readable"),
        ),
        sa.CheckConstraint(
            "pipeline_type IN ('ingestion', 'transform', 'quality', 'export', 'healthcheck')",
            name=op.f("ck_pipelines_pipeline_type_known"),
        ),
        sa.CheckConstraint(
            "platform IN ('airflow', 'dbt', 'cron', 'vendor_api', 'custom', 'prefect', 'dagster', 'airbyte', 'fivetran', 'databricks', 'github_actions')",
            name=op.f("ck_pipelines_platform_known"),
        ),
        sa.CheckConstraint(
            "slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 100", name=op.f("ck_pipelines_slug_form")
        ),
        sa.CheckConstraint(
            "synced_through >= '0001-01-02 00:00:00+00' AND synced_through < '9999-12-31 00:00:00+00'",
            name=op.f("ck_pipelines_synced_through_readable"),
        ),
        sa.CheckConstraint("grace_minutes >= 0", name=op.f("ck_pipelines_grace_minutes_not_negative")),
        sa.CheckConstraint("length(description) <= 4000", name=op.f("ck_pipelines_description_length")),
        sa.CheckConstraint("length(external_id) BETWEEN 1 AND 512", name=op.f("ck_pipelines_external_id_length")),
        sa.CheckConstraint("max_runtime_minutes > 0", name=op.f("ck_pipelines_max_runtime_minutes_positive")),
        sa.CheckConstraint(
            "schedule_timezone IS NULL OR schedule_cron IS NOT NULL",
            name=op.f("ck_pipelines_schedule_timezone_needs_cron"),
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_pipelines_client_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipelines")),
        sa.UniqueConstraint("client_id", "name", name=op.f("uq_pipelines_client_id_name")),
        sa.UniqueConstraint("client_id", "slug", name=op.f("uq_pipelines_client_id_slug")),
        comment="Clients' recurring jobs, on whatever platform they run",
    )
    op.create_index(
        "uq_pipelines_client_id_platform_external_id",
        "pipelines",
        ["client_id", "platform", "external_id"],
        unique=True,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )
    op.create_table(
        "alert_rules",
        sa.Column("id", sa.UUID(), server_default=sa.text("chm_uuid7()"), nullable=False, comment="UUID v7"),
        sa.Column("client_id", sa.UUID(), nullable=True, comment="All of this client's pipelines"),
        sa.Column("pipeline_id", sa.UUID(), nullable=True, comment="This pipeline only; wins over client_id"),
        sa.Column("rule_type", sa.Text(), nullable=False, comment="What is watched"),
        sa.Column("threshold", sa.Integer(), nullable=True, comment="How many failures it takes"),
        sa.Column("window_minutes", sa.Integer(), nullable=True, comment="Over how long, in minutes"),
        sa.Column("channel", sa.Text(), nullable=False, comment="slack, email or webhook"),
        sa.Column(
            "destination", sa.Text(), nullable=False, comment="Channel, address or name of the endpoint; never a secret"
        ),
        sa.Column(
            "is_enabled",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: the rule is kept but not evaluated",
        ),
        sa.Column("muted_until", sa.TIMESTAMP(timezone=True), nullable=True, comment="No notification before this"),
        sa.Column(
            "created_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When CHM made the row",
        ),
        sa.Column(
            "updated_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed",
        ),
        sa.CheckConstraint(
            "CASE rule_type WHEN 'on_failure' THEN threshold IS NULL AND window_minutes IS NULL WHEN 'failures_in_window' THEN threshold IS NOT NULL AND window_minutes IS NOT NULL WHEN 'consecutive_failures' THEN threshold IS NOT NULL AND window_minutes IS NULL WHEN 'no_success_in_window' THEN threshold IS NULL AND window_minutes IS NOT NULL ELSE threshold IS NULL END",
            name=op.f("ck_alert_rules_parameters_fit_type"),
        ),
        sa.CheckConstraint("channel IN ('slack', 'email', 'webhook')", name=op.f("ck_alert_rules_channel_known")),
        sa.CheckConstraint(
            "destination = btrim(destination, E' \\t\\n\\r') AND length(destination) BETWEEN 1 AND 500",
            name=op.f("ck_alert_rules_destination_trimmed"),
        ),
        sa.CheckConstraint(
            "muted_until >= '0001-01-02 00:00:00+00' AND muted_until < '9999-12-31 00:00:00+00'",
            name=op.f("ck_alert_rules_muted_until_readable"),
        ),
        sa.CheckConstraint(
            "rule_type IN ('on_failure', 'failures_in_window', 'consecutive_failures', 'no_success_in_window', 'running_too_long', 'missed_run')",
            name=op.f("ck_alert_rules_rule_type_known"),
        ),
        sa.CheckConstraint("client_id IS NOT NULL OR pipeline_id IS NOT NULL", name=op.f("ck_alert_rules_has_scope")),
        sa.CheckConstraint("threshold > 0", name=op.f("ck_alert_rules_threshold_positive")),
        sa.CheckConstraint("window_minutes > 0", name=op.f("ck_alert_rules_window_minutes_positive")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_alert_rules_client_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipelines.id"], name=op.f("fk_alert_rules_pipeline_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rules")),
        comment="When to tell whom that something is wrong",
    )
    op.create_index(op.f("ix_alert_rules_pipeline_id"), "alert_rules", ["pipeline_id"], unique=False)
    op.create_index(
        "uq_alert_rules_scope",
        "alert_rules",
        ["client_id", "pipeline_id", "rule_type", "channel", "destination"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("is_enabled"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.UUID(), server_default=sa.text("chm_uuid7()"), nullable=False, comment="UUID v7"),
        sa.Column("pipeline_id", sa.UUID(), nullable=False, comment="The pipeline that ran"),
        sa.Column(
            "external_run_id",
            sa.Text(collation="C"),
            nullable=False,
            comment="The run's id at the partner, byte for byte",
        ),
        sa.Column("status", sa.Text(), nullable=False, comment="running, success, failed, canceled or skipped"),
        sa.Column(
            "started_at",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the run started; null while it waits",
        ),
        sa.Column(
            "finished_at",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the run finished; null while it runs",
        ),
        sa.Column(
            "duration_seconds",
            sa.Double(),
            nullable=True,
            comment="finished_at - started_at, or the partner's own figure; seconds",
        ),
        sa.Column(
            "rows_processed",
            sa.BigInteger(),
            nullable=True,
            comment="Rows that the run processed, where the partner says so",
        ),
        sa.Column(
            "error_message", sa.Text(), nullable=True, comment="Why it failed, as the partner puts it, secrets masked"
        ),
        sa.Column(
            "status_reason", sa.Text(), nullable=True, comment="The partner's own word where it says more than status"
        ),
        sa.Column("source_url", sa.Text(), nullable=True, comment="Link to the run at the partner"),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="The partner's record, secrets masked",
        ),
        sa.Column(
            "ingested_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When CHM last wrote what a partner said",
        ),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False, comment="The partner's try counter"),
        sa.Column(
            "progress",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="1: finished, on a platform where a finished run never reopens",
        ),
        sa.Column(
            "source_version",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="Newest time at the partner that changes with every transition",
        ),
        sa.Column(
            "observed_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the request that told us started, by our clock",
        ),
        sa.Column(
            "created_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When CHM made the row",
        ),
        sa.Column(
            "updated_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed",
        ),
        sa.CheckConstraint(
            "duration_seconds >= 0 AND duration_seconds < 'infinity'",
            name=op.f("ck_runs_duration_seconds_not_negative"),
        ),
        sa.CheckConstraint(
            "finished_at >= '0001-01-02 00:00:00+00' AND finished_at < '9999-12-31 00:00:00+00'",
            name=op.f("ck_runs_finished_at_readable"),
        ),
        sa.CheckConstraint(
            "observed_at >= '0001-01-02 00:00:00+00' AND observed_at < '9999-12-31 00:00:00+00'",
            name=op.f("ck_runs_observed_at_readable"),
        ),
        sa.CheckConstraint(
            "source_version >= '0001-01-02 00:00:00+00' AND source_version < '9999-12-31 00:00:00+00'",
            name=op.f("ck_runs_source_version_readable"),
        ),
        sa.CheckConstraint(
            "started_at >= '0001-01-02 00:00:00+00' AND started_at < '9999-12-31 00:00:00+00'",
            name=op.f("ck_runs_started_at_readable"),
        ),
        sa.CheckConstraint(
            "status <> 'running' OR (finished_at IS NULL AND duration_seconds IS NULL)",
            name=op.f("ck_runs_running_is_not_finished"),
        ),
        sa.CheckConstraint(
            "status IN ('running', 'success', 'failed', 'canceled', 'skipped')", name=op.f("ck_runs_status_known")
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_runs_attempt_not_negative")),
        sa.CheckConstraint("length(external_run_id) BETWEEN 1 AND 512", name=op.f("ck_runs_external_run_id_length")),
        sa.CheckConstraint("length(source_url) <= 2000", name=op.f("ck_runs_source_url_length")),
        sa.CheckConstraint("length(status_reason) <= 200", name=op.f("ck_runs_status_reason_length")),
        sa.CheckConstraint("octet_length(error_message) <= 8000", name=op.f("ck_runs_error_message_length")),
        sa.CheckConstraint("progress IN (0, 1)", name=op.f("ck_runs_progress_known")),
        sa.CheckConstraint("rows_processed >= 0", name=op.f("ck_runs_rows_processed_not_negative")),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipelines.id"], name=op.f("fk_runs_pipeline_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("pipeline_id", "external_run_id", name=op.f("uq_runs_pipeline_id_external_run_id")),
        comment="Executions of pipelines, one row each however often a partner tells of them",
    )
    op.create_index(
        "ix_runs_failed",
        "runs",
        [sa.literal_column("started_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        postgresql_include=["pipeline_id"],
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.create_index(
        "ix_runs_latest",
        "runs",
        [
            "pipeline_id",
            sa.literal_column("started_at DESC NULLS LAST"),
            sa.literal_column("finished_at DESC NULLS LAST"),
            sa.literal_column("id DESC"),
        ],
        unique=False,
        postgresql_include=["status"],
    )
    op.create_index(
        "ix_runs_started_at",
        "runs",
        [sa.literal_column("started_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        postgresql_include=["pipeline_id", "status", "duration_seconds"],
    )
    for table, columns in TOUCHED.items():
        op.execute(
            f"CREATE TRIGGER tr_{table}_updated_at BEFORE UPDATE OF {columns} ON {table} FOR EACH ROW"
            " WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION chm_touch_updated_at()"
        )


def downgrade() -> None:
    op.drop_index(
        "ix_runs_started_at", table_name="runs", postgresql_include=["pipeline_id", "status", "duration_seconds"]
    )
    op.drop_index("ix_runs_latest", table_name="runs", postgresql_include=["status"])
    op.drop_index(
        "ix_runs_failed",
        table_name="runs",
        postgresql_include=["pipeline_id"],
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.drop_table("runs")
    op.drop_index(
        "uq_alert_rules_scope",
        table_name="alert_rules",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("is_enabled"),
    )
    op.drop_index(op.f("ix_alert_rules_pipeline_id"), table_name="alert_rules")
    op.drop_table("alert_rules")
    op.drop_index(
        "uq_pipelines_client_id_platform_external_id",
        table_name="pipelines",
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )
    op.drop_table("pipelines")
    op.drop_table("clients")
    op.execute("DROP FUNCTION chm_touch_updated_at()")
    op.execute("DROP FUNCTION chm_uuid7()")

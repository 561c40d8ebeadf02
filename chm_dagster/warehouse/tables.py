"""The four tables in SQLAlchemy Core. Migrations create them; a test keeps the two equal."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import SLUG_PATTERN
from chm_dagster.domain.limits import MAX_ADDRESS_CHARS, MAX_ERROR_BYTES, MAX_OWNER_CHARS, MAX_RUN_ID_CHARS, MAX_TAGS
from chm_dagster.domain.periods import ReportPeriod
from chm_dagster.domain.pipelines import Environment, PipelineType, Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.sync import MAX_DOUBT_CHARS, MAX_SYNC_ERROR_CHARS, SyncErrorCode

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def one_of(column: str, values: Iterable[str | StrEnum]) -> str:
    """The CHECK expression that holds a text column to a set of words."""
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def trimmed(column: str, longest: int = 200) -> str:
    """The CHECK expression of a name: no blanks around it, not empty, not endless."""
    return f"{column} = btrim({column}, E' \\t\\n\\r') AND length({column}) BETWEEN 1 AND {longest}"


def readable_time(column: str) -> str:
    """The CHECK expression that keeps infinity, BC and year 10000 out: drivers cannot read them back."""
    return f"{column} >= '0001-01-02 00:00:00+00' AND {column} < '9999-12-31 00:00:00+00'"


def _check(expression: str, name: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(expression, name=name)


def _id() -> sa.Column[Any]:
    return sa.Column(
        "id", pg.UUID(as_uuid=True), primary_key=True, server_default=sa.text("chm_uuid7()"), comment="UUID v7"
    )


def _stamps() -> tuple[sa.Column[Any], sa.Column[Any]]:
    stamp = sa.TIMESTAMP(timezone=True)
    return (
        sa.Column("created_at", stamp, nullable=False, server_default=sa.func.now(), comment="When CHM made the row"),
        sa.Column(
            "updated_at", stamp, nullable=False, server_default=sa.func.now(), comment="When the row last changed"
        ),
    )


def _time(name: str, comment: str, *, nullable: bool = True, default: Any = None) -> sa.Column[Any]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable, server_default=default, comment=comment)


def _text(name: str, comment: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=nullable, server_default=default, comment=comment)


def _flag(name: str, comment: str, *, initial: bool = True) -> sa.Column[Any]:
    return sa.Column(
        name, sa.Boolean, nullable=False, server_default=sa.true() if initial else sa.false(), comment=comment
    )


def _json(name: str, empty: str, comment: str) -> sa.Column[Any]:
    return sa.Column(name, pg.JSONB, nullable=False, server_default=sa.text(f"'{empty}'::jsonb"), comment=comment)


def _calendar() -> sa.Column[Any]:
    said = "The windows of `maintenance` that are open or to come, as times: entries, complete up to through"
    return sa.Column("maintenance_calendar", pg.JSONB(none_as_null=True), comment=said)


clients = sa.Table(
    "clients",
    metadata,
    _id(),
    _text("name", "The customer's name, unique"),
    _text("slug", "Readable key, unique, made from the name once and kept when the name changes"),
    _flag("is_active", "False: disabled; nothing is ingested, history stays"),
    *_stamps(),
    _text("timezone", "IANA zone in which the weeks of its reports begin; null: UTC", nullable=True),
    _text("report_email", "Who receives its reports; null: nobody", nullable=True),
    _text("report_period", "Of which periods it gets reports: week, month or both", default="week"),
    _json("maintenance", "[]", "Maintenance windows of all its pipelines, one-off and recurring"),
    _json("reports", "{}", "The last issues of the client's reports by period: revision, figures, and what was sent"),
    _time("heard_through", "Up to when CHM's API was up to hear jobs that report themselves"),
    _json("api_gaps", "[]", "Times (lost, heard) before that in which it was not; the last 90 days"),
    _calendar(),
    sa.UniqueConstraint("name"),
    sa.UniqueConstraint("slug"),
    _check(trimmed("name"), "name_trimmed"),
    _check(f"slug ~ '{SLUG_PATTERN}' AND length(slug) <= 100", "slug_form"),
    _check(trimmed("timezone", 100), "timezone_trimmed"),
    _check(trimmed("report_email", MAX_ADDRESS_CHARS), "report_email_trimmed"),
    _check(one_of("report_period", ReportPeriod), "report_period_known"),
    _check("jsonb_typeof(maintenance) = 'array'", "maintenance_is_a_list"),
    _check("jsonb_typeof(reports) = 'object'", "reports_by_period"),
    _check(readable_time("heard_through"), "heard_through_readable"),
    _check("jsonb_typeof(api_gaps) = 'array'", "api_gaps_are_a_list"),
    _check("jsonb_typeof(maintenance_calendar -> 'entries') = 'array'", "maintenance_calendar_has_entries"),
    comment="Customers whose pipelines are monitored",
)

pipelines = sa.Table(
    "pipelines",
    metadata,
    _id(),
    sa.Column(
        "client_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("clients.id", ondelete="RESTRICT"),
        nullable=False,
        comment="The customer that the pipeline belongs to",
    ),
    _text("name", "Name, unique within the client"),
    _text("slug", "Readable key, unique within the client, kept when the name changes"),
    _text("platform", "Where it runs"),
    _text("connection", "The connection that reports its runs; null: the platform's default", nullable=True),
    _text("external_id", "Its id at the partner; null: not ingested", nullable=True),
    _text("pipeline_type", "What it is for"),
    _text("environment", "dev, staging or prod", default="prod"),
    _text("description", "Free text for people", nullable=True),
    _flag("is_active", "False: disabled; nothing is ingested, history stays"),
    _text("schedule_cron", "When it is expected to run, five fields", nullable=True),
    _text("schedule_timezone", "IANA zone of schedule_cron; null: UTC", nullable=True),
    sa.Column("grace_minutes", sa.Integer, comment="How late a run may be, in minutes"),
    sa.Column("max_runtime_minutes", sa.Integer, comment="How long a run may take, in minutes"),
    _time("synced_through", "Watermark: runs are known up to here, in the partner's time"),
    _time("observed_through", "When the last complete sync of the pipeline started, by CHM's clock"),
    _time("sync_attempted_at", "When CHM last tried to read the pipeline, by CHM's clock"),
    _time("sync_failing_since", "First failed attempt since the last success; null: readable"),
    _text("sync_error", "Why it cannot be read, or a warning about its clock; secrets masked", nullable=True),
    _text("sync_error_code", "The kind of sync_error", nullable=True),
    *_stamps(),
    _time("due_at", "When the next run after the latest one is due by the schedule; null: nothing is expected"),
    _time(
        "schedule_changed_at",
        "From when on the schedule holds, if it was set or the pipeline enabled after its creation",
    ),
    _text("owner", "Who looks after it: a person or a team", nullable=True),
    sa.Column(
        "tags",
        pg.ARRAY(sa.Text),
        nullable=False,
        server_default=sa.text("'{}'::text[]"),
        comment="Words to group by, each once",
    ),
    _json("maintenance", "[]", "Its maintenance windows, one-off and recurring, beside those of its client"),
    _time("known_through", "By CHM's clock: what did not happen is known up to here"),
    _time("stale_at", "Until when the last complete sync says how the pipeline is"),
    _text("doubt", "Why what was read does not say how it is; null: it does", nullable=True),
    _time("doubt_since", "When the first sync that left this doubt started, by CHM's clock"),
    _flag("doubt_needs_run", "True: only a new run ends the doubt; what caused it is not read again", initial=False),
    _calendar(),
    sa.UniqueConstraint("client_id", "name"),
    sa.UniqueConstraint("client_id", "slug"),
    _check(trimmed("name"), "name_trimmed"),
    _check(f"slug ~ '{SLUG_PATTERN}' AND length(slug) <= 100", "slug_form"),
    _check(one_of("platform", Platform), "platform_known"),
    _check(one_of("pipeline_type", PipelineType), "pipeline_type_known"),
    _check(one_of("environment", Environment), "environment_known"),
    _check(trimmed("connection", 100), "connection_trimmed"),
    _check("length(external_id) BETWEEN 1 AND 512", "external_id_length"),
    _check("length(description) <= 4000", "description_length"),
    _check("array_length(regexp_split_to_array(schedule_cron, ' +'), 1) = 5", "schedule_cron_fields"),
    _check("schedule_timezone IS NULL OR schedule_cron IS NOT NULL", "schedule_timezone_needs_cron"),
    _check("grace_minutes >= 0", "grace_minutes_not_negative"),
    _check("max_runtime_minutes > 0", "max_runtime_minutes_positive"),
    *(_check(readable_time(name), f"{name}_readable") for name in ("synced_through", "observed_through")),
    *(_check(readable_time(name), f"{name}_readable") for name in ("sync_attempted_at", "sync_failing_since")),
    _check(f"length(sync_error) BETWEEN 1 AND {MAX_SYNC_ERROR_CHARS}", "sync_error_length"),
    _check(one_of("sync_error_code", SyncErrorCode), "sync_error_code_known"),
    _check("(sync_error IS NULL) = (sync_error_code IS NULL)", "sync_error_has_code"),
    _check("sync_failing_since IS NULL OR sync_error IS NOT NULL", "sync_failing_has_error"),
    _check(readable_time("due_at"), "due_at_readable"),
    _check(readable_time("schedule_changed_at"), "schedule_changed_at_readable"),
    _check("due_at IS NULL OR schedule_cron IS NOT NULL", "due_at_has_schedule"),
    _check(trimmed("owner", MAX_OWNER_CHARS), "owner_trimmed"),
    _check(f"cardinality(tags) <= {MAX_TAGS} AND array_position(tags, NULL) IS NULL", "tags_within_limits"),
    _check("jsonb_typeof(maintenance) = 'array'", "maintenance_is_a_list"),
    _check(readable_time("known_through"), "known_through_readable"),
    _check(readable_time("stale_at"), "stale_at_readable"),
    _check(readable_time("doubt_since"), "doubt_since_readable"),
    _check(f"length(doubt) BETWEEN 1 AND {MAX_DOUBT_CHARS}", "doubt_length"),
    _check("(doubt IS NULL) = (doubt_since IS NULL)", "doubt_has_since"),
    _check("jsonb_typeof(maintenance_calendar -> 'entries') = 'array'", "maintenance_calendar_has_entries"),
    sa.Index(
        "uq_pipelines_client_id_platform_connection_external_id",
        "client_id",
        "platform",
        "connection",
        "external_id",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    ),
    sa.Index(None, "external_id", postgresql_where=sa.text("external_id IS NOT NULL")),
    comment="Clients' recurring jobs on any platform",
)

runs = sa.Table(
    "runs",
    metadata,
    _id(),
    sa.Column(
        "pipeline_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("pipelines.id", ondelete="RESTRICT"),
        nullable=False,
        comment="The pipeline that ran",
    ),
    sa.Column(
        "external_run_id",
        sa.Text(collation="C"),
        nullable=False,
        comment="The run's id at the partner, byte for byte",
    ),
    _text("status", "running, success, failed, canceled or skipped"),
    _time("started_at", "When the run started; null while it waits"),
    _time("finished_at", "When the run finished; null while it runs"),
    sa.Column("duration_seconds", sa.Double, comment="finished_at - started_at, or the partner's own figure; seconds"),
    sa.Column("rows_processed", sa.BigInteger, comment="Rows that the run processed, where the partner says so"),
    _text("error_message", "Why it failed, in the partner's words, with secrets masked", nullable=True),
    _text("status_reason", "The partner's own word where it says more than status", nullable=True),
    _text("source_url", "Link to the run at the partner", nullable=True),
    _json("payload", "{}", "The partner's record, secrets masked"),
    sa.Column("lineage", pg.JSONB, comment="Combined state of the run's OpenLineage events; null if there are none"),
    _time("ingested_at", "When CHM last wrote a report of the run", nullable=False, default=sa.func.now()),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0", comment="The partner's try counter"),
    sa.Column(
        "progress",
        sa.SmallInteger,
        nullable=False,
        server_default="0",
        comment="1: finished, on a platform where a finished run never reopens",
    ),
    _time("source_version", "Newest time at the partner that changes with every transition"),
    _time(
        "observed_at",
        "When the request that returned the run started, by CHM's clock",
        nullable=False,
        default=sa.func.now(),
    ),
    *_stamps(),
    _time("queued_at", "When the run was queued or scheduled at the partner, if known"),
    sa.Column(
        "effective_at",
        sa.TIMESTAMP(timezone=True),
        sa.Computed("coalesce(started_at, queued_at, finished_at, created_at)", persisted=True),
        nullable=False,
        comment="The time that orders runs: started_at, else queued_at, finished_at or created_at",
    ),
    _text("kind", "Why it ran: scheduled, manual, backfill or retry; null: not known", nullable=True),
    _flag("will_retry", "True: failed, but the platform is about to try again", initial=False),
    _text("error_fingerprint", "What a failure has in common with others of the same error", nullable=True),
    sa.UniqueConstraint("pipeline_id", "external_run_id"),
    _check(f"length(external_run_id) BETWEEN 1 AND {MAX_RUN_ID_CHARS}", "external_run_id_length"),
    _check(one_of("status", RunStatus), "status_known"),
    _check("duration_seconds >= 0 AND duration_seconds < 'infinity'", "duration_seconds_not_negative"),
    _check("rows_processed >= 0", "rows_processed_not_negative"),
    _check(f"octet_length(error_message) <= {MAX_ERROR_BYTES}", "error_message_length"),
    _check("length(status_reason) <= 200", "status_reason_length"),
    _check("length(source_url) <= 2000", "source_url_length"),
    _check("attempt >= 0", "attempt_not_negative"),
    _check("progress IN (0, 1)", "progress_known"),
    _check(
        "status <> 'running' OR (finished_at IS NULL AND duration_seconds IS NULL AND progress = 0)",
        "running_is_not_finished",
    ),
    _check("error_message IS NULL OR status IN ('failed', 'canceled')", "error_message_fits_status"),
    _check(
        "error_fingerprint IS NULL OR (status = 'failed' AND length(error_fingerprint) <= 1000)",
        "error_fingerprint_fits_status",
    ),
    _check(one_of("kind", RunKind), "kind_known"),
    _check("NOT will_retry OR status = 'failed'", "will_retry_is_failed"),
    *(_check(readable_time(name), f"{name}_readable") for name in ("queued_at", "started_at", "finished_at")),
    *(_check(readable_time(name), f"{name}_readable") for name in ("source_version", "observed_at")),
    # Contains only runs that were recorded with an idempotency key: none that a partner reports.
    sa.Index(
        "ix_runs_idempotency_keys",
        sa.literal_column("(payload -> 'chm_idempotency')"),
        postgresql_using="gin",
        postgresql_where=sa.text("payload ? 'chm_idempotency'"),
    ),
    comment="Executions of pipelines, one row each, however often they are reported",
)

# The latest run of a pipeline is the first entry of its part of this index.
sa.Index(
    "ix_runs_latest",
    runs.c.pipeline_id,
    runs.c.effective_at.desc(),
    runs.c.finished_at.desc().nulls_last(),
    runs.c.id.desc(),
    postgresql_include=["status", "kind", "will_retry"],
)
sa.Index(
    "ix_runs_effective_at",
    runs.c.effective_at.desc(),
    runs.c.id.desc(),
    postgresql_include=["pipeline_id", "status", "duration_seconds", "will_retry"],
)
sa.Index(
    "ix_runs_failed",
    runs.c.effective_at.desc(),
    runs.c.id.desc(),
    postgresql_include=["pipeline_id"],
    postgresql_where=sa.text("status = 'failed' AND NOT will_retry"),
)

# Every sync asks what became of these.
sa.Index("ix_runs_running", runs.c.pipeline_id, postgresql_where=sa.text("status = 'running'"))

alert_rules = sa.Table(
    "alert_rules",
    metadata,
    _id(),
    sa.Column(
        "client_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("clients.id", ondelete="RESTRICT"),
        comment="All of this client's pipelines",
    ),
    sa.Column(
        "pipeline_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("pipelines.id", ondelete="RESTRICT"),
        comment="This pipeline only; wins over client_id",
    ),
    _text("rule_type", "What is watched"),
    sa.Column("threshold", sa.Integer, comment="How many failures it takes"),
    sa.Column("window_minutes", sa.Integer, comment="Length of the window, in minutes"),
    _text("channel", "slack, email, webhook, apprise or inbox"),
    _text("destination", "Channel, address or name of the endpoint; never a secret"),
    _flag("is_enabled", "False: the rule is kept but not evaluated"),
    _time("muted_until", "No notification before this"),
    *_stamps(),
    _json("episodes", "[]", "Open episodes: what the rule has found wrong and is not over"),
    _json("outbox", "[]", "Messages that no receiver has accepted yet, with their keys and attempts"),
    _json("history", "[]", "Episodes that are over, the latest first: the last 200, for 90 days"),
    _time("deleted_at", "Since when the rule is deleted; it goes as soon as its receivers have been notified"),
    _check("client_id IS NOT NULL OR pipeline_id IS NOT NULL", "has_scope"),
    _check(one_of("rule_type", RuleType), "rule_type_known"),
    _check(one_of("channel", Channel), "channel_known"),
    _check(trimmed("destination", 500), "destination_trimmed"),
    _check("threshold > 0", "threshold_positive"),
    _check("window_minutes > 0", "window_minutes_positive"),
    _check(
        "CASE rule_type"
        " WHEN 'on_failure' THEN threshold IS NULL AND window_minutes IS NULL"
        " WHEN 'failures_in_window' THEN threshold IS NOT NULL AND window_minutes IS NOT NULL"
        " WHEN 'consecutive_failures' THEN threshold IS NOT NULL AND window_minutes IS NULL"
        " WHEN 'no_success_in_window' THEN threshold IS NULL AND window_minutes IS NOT NULL"
        " ELSE threshold IS NULL END",
        "parameters_fit_type",
    ),
    _check(readable_time("muted_until"), "muted_until_readable"),
    _check("jsonb_typeof(episodes) = 'array'", "episodes_are_a_list"),
    _check("jsonb_typeof(outbox) = 'array'", "outbox_are_a_list"),
    _check("jsonb_typeof(history) = 'array'", "history_are_a_list"),
    sa.Index(
        "uq_alert_rules_scope",
        "client_id",
        "pipeline_id",
        "rule_type",
        "channel",
        "destination",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("is_enabled"),
    ),
    sa.Index(None, "pipeline_id"),
    sa.Index("ix_alert_rules_outbox", "id", postgresql_where=sa.text("outbox <> '[]'")),
    comment="Who is notified about what",
)

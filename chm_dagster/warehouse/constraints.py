"""Transactions that turn violated constraints into messages for the person who sent the values, and the invariants that
checks query.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy as sa

from chm_dagster.domain.periods import ReportPeriod
from chm_dagster.domain.pipelines import PUSHED, Environment, PipelineType, Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.sync import FRESH_FOR, SyncErrorCode
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.engine import Engine, database_errors


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """The error for a violated constraint; `field` is empty if the error names none."""

    kind: type[Conflict | InputError | NotFound]
    field: str
    issue: str

    def error(self) -> Conflict | InputError | NotFound:
        """An instance to raise."""
        return NotFound(self.issue) if self.kind is NotFound else self.kind(self.field, self.issue)


def _refused(field: str, issue: str) -> Broken:
    return Broken(InputError, field, issue)


def _taken(field: str, issue: str) -> Broken:
    return Broken(Conflict, field, issue)


def _gone(issue: str) -> Broken:
    return Broken(NotFound, "", issue)


_TRIMMED = "must not be empty, too long or have blanks around it"
_SLUG = "must be 1-100 of a-z, 0-9 and single dashes"
_UNREADABLE = "out of range; send a time between the years 1 and 9999"
_ID = "is taken; leave it out, the database makes one"
_NEGATIVE = "must not be negative"
_POSITIVE = "must be greater than 0"

BROKEN: Mapping[str, Broken] = {
    "pk_clients": _taken("id", _ID),
    "uq_clients_name": _taken("name", "another client has this name; choose another one"),
    "ck_clients_heard_through_readable": _refused("heard_through", _UNREADABLE),
    "ck_clients_api_gaps_are_a_list": _refused("api_gaps", "must be a list"),
    "uq_clients_slug": _taken("slug", "another client has this slug; choose another one"),
    "ck_clients_name_trimmed": _refused("name", _TRIMMED),
    "ck_clients_slug_form": _refused("slug", _SLUG),
    "ck_clients_timezone_trimmed": _refused("timezone", _TRIMMED),
    "ck_clients_report_email_trimmed": _refused("report_email", _TRIMMED),
    "ck_clients_report_period_known": _refused("report_period", f"not one of {', '.join(ReportPeriod)}"),
    "ck_clients_maintenance_is_a_list": _refused("maintenance", "must be a list"),
    "ck_clients_reports_by_period": _refused("reports", "must be an object whose keys are periods"),
    "ck_clients_maintenance_calendar_has_entries": _refused("maintenance_calendar", "must have a list of entries"),
    "pk_pipelines": _taken("id", _ID),
    "fk_pipelines_client_id": _gone("the client does not exist"),
    "uq_pipelines_client_id_name": _taken("name", "another pipeline of this client has this name; choose another one"),
    "uq_pipelines_client_id_slug": _taken("slug", "another pipeline of this client has this slug; choose another one"),
    "uq_pipelines_client_id_platform_connection_external_id": _taken(
        "external_id", "another pipeline of this client has this id on this connection; each may be watched once"
    ),
    "ck_pipelines_name_trimmed": _refused("name", _TRIMMED),
    "ck_pipelines_slug_form": _refused("slug", _SLUG),
    "ck_pipelines_platform_known": _refused("platform", f"not one of {', '.join(Platform)}"),
    "ck_pipelines_pipeline_type_known": _refused("pipeline_type", f"not one of {', '.join(PipelineType)}"),
    "ck_pipelines_environment_known": _refused("environment", f"not one of {', '.join(Environment)}"),
    "ck_pipelines_connection_trimmed": _refused("connection", _TRIMMED),
    "ck_pipelines_external_id_length": _refused("external_id", "must be 1-512 characters long"),
    "ck_pipelines_description_length": _refused("description", "longer than 4000 characters; send a shorter text"),
    "ck_pipelines_schedule_cron_fields": _refused("schedule_cron", "must have five fields, such as 0 6 * * 1-5"),
    "ck_pipelines_schedule_timezone_needs_cron": _refused(
        "schedule_timezone", "has no meaning without a schedule_cron; set one, or clear this too"
    ),
    "ck_pipelines_grace_minutes_not_negative": _refused("grace_minutes", _NEGATIVE),
    "ck_pipelines_max_runtime_minutes_positive": _refused("max_runtime_minutes", _POSITIVE),
    "ck_pipelines_synced_through_readable": _refused("synced_through", _UNREADABLE),
    "ck_pipelines_observed_through_readable": _refused("observed_through", _UNREADABLE),
    "ck_pipelines_sync_attempted_at_readable": _refused("sync_attempted_at", _UNREADABLE),
    "ck_pipelines_sync_failing_since_readable": _refused("sync_failing_since", _UNREADABLE),
    "ck_pipelines_sync_error_length": _refused("sync_error", "must be 1-1000 characters long"),
    "ck_pipelines_sync_error_code_known": _refused("sync_error_code", f"not one of {', '.join(SyncErrorCode)}"),
    "ck_pipelines_sync_error_has_code": _refused("sync_error_code", "must be set if, and only if, sync_error is"),
    "ck_pipelines_sync_failing_has_error": _refused("sync_failing_since", "needs a sync_error that says why"),
    "ck_pipelines_due_at_readable": _refused("due_at", _UNREADABLE),
    "ck_pipelines_schedule_changed_at_readable": _refused("schedule_changed_at", _UNREADABLE),
    "ck_pipelines_due_at_has_schedule": _refused("due_at", "has no meaning without a schedule_cron; clear it as well"),
    "ck_pipelines_owner_trimmed": _refused("owner", _TRIMMED),
    "ck_pipelines_tags_within_limits": _refused("tags", "must be at most 20, none of them null"),
    "ck_pipelines_maintenance_is_a_list": _refused("maintenance", "must be a list"),
    "ck_pipelines_known_through_readable": _refused("known_through", _UNREADABLE),
    "ck_pipelines_stale_at_readable": _refused("stale_at", _UNREADABLE),
    "ck_pipelines_doubt_since_readable": _refused("doubt_since", _UNREADABLE),
    "ck_pipelines_doubt_length": _refused("doubt", "must be 1-500 characters long"),
    "ck_pipelines_doubt_has_since": _refused("doubt_since", "must be set if, and only if, doubt is"),
    "ck_pipelines_maintenance_calendar_has_entries": _refused("maintenance_calendar", "must have a list of entries"),
    "pk_runs": _taken("id", _ID),
    "fk_runs_pipeline_id": _gone("the pipeline does not exist"),
    "uq_runs_pipeline_id_external_run_id": _taken("external_run_id", "the pipeline has a run of this id already"),
    "ck_runs_external_run_id_length": _refused("external_run_id", "must be 1-512 characters long"),
    "ck_runs_status_known": _refused("status", f"not one of {', '.join(RunStatus)}"),
    "ck_runs_duration_seconds_not_negative": _refused("duration_seconds", "must be a number that is not negative"),
    "ck_runs_rows_processed_not_negative": _refused("rows_processed", _NEGATIVE),
    "ck_runs_error_message_length": _refused("error_message", "longer than 8000 bytes; send a shorter text"),
    "ck_runs_status_reason_length": _refused("status_reason", "longer than 200 characters; send a shorter text"),
    "ck_runs_source_url_length": _refused("source_url", "longer than 2000 characters; send a shorter link"),
    "ck_runs_attempt_not_negative": _refused("attempt", _NEGATIVE),
    "ck_runs_progress_known": _refused("progress", "must be 0 or 1"),
    "ck_runs_running_is_not_finished": _refused("finished_at", "a run that is still running has not finished"),
    "ck_runs_error_message_fits_status": _refused(
        "error_message", "only a failed or canceled run has one; send it as status_reason"
    ),
    "ck_runs_error_fingerprint_fits_status": _refused(
        "error_fingerprint", "only a failed run has one, of at most 1000 characters"
    ),
    "ck_runs_kind_known": _refused("kind", f"not one of {', '.join(RunKind)}"),
    "ck_runs_will_retry_is_failed": _refused("will_retry", "only a failed run is about to be retried; leave it out"),
    "ck_runs_queued_at_readable": _refused("queued_at", _UNREADABLE),
    "ck_runs_started_at_readable": _refused("started_at", _UNREADABLE),
    "ck_runs_finished_at_readable": _refused("finished_at", _UNREADABLE),
    "ck_runs_source_version_readable": _refused("source_version", _UNREADABLE),
    "ck_runs_observed_at_readable": _refused("observed_at", _UNREADABLE),
    "pk_alert_rules": _taken("id", _ID),
    "fk_alert_rules_client_id": _gone("the client does not exist"),
    "fk_alert_rules_pipeline_id": _gone("the pipeline does not exist"),
    "uq_alert_rules_scope": _taken(
        "destination",
        "an enabled rule of this scope, type and channel already notifies this destination; change that one",
    ),
    "ck_alert_rules_has_scope": _refused("client_id", "missing, as is pipeline_id; a rule needs one of them"),
    "ck_alert_rules_rule_type_known": _refused("rule_type", f"not one of {', '.join(RuleType)}"),
    "ck_alert_rules_channel_known": _refused("channel", f"not one of {', '.join(Channel)}"),
    "ck_alert_rules_destination_trimmed": _refused("destination", _TRIMMED),
    "ck_alert_rules_threshold_positive": _refused("threshold", _POSITIVE),
    "ck_alert_rules_window_minutes_positive": _refused("window_minutes", _POSITIVE),
    "ck_alert_rules_parameters_fit_type": _refused(
        "rule_type", "threshold and window_minutes do not fit this type of rule"
    ),
    "ck_alert_rules_muted_until_readable": _refused("muted_until", _UNREADABLE),
    "ck_alert_rules_episodes_are_a_list": _refused("episodes", "must be a list"),
    "ck_alert_rules_outbox_are_a_list": _refused("outbox", "must be a list"),
    "ck_alert_rules_history_are_a_list": _refused("history", "must be a list"),
}
"""Every constraint and unique index of the four tables, by name. A test holds it complete."""


Source = Engine | sa.Connection
"""Where to read and write: an engine, or a connection whose transaction is managed by its owner."""


@contextmanager
def reading(source: Source) -> Iterator[sa.Connection]:
    """A connection to read with. Raises DatabaseUnavailable."""
    with (
        database_errors(),
        nullcontext(source) if isinstance(source, sa.Connection) else source.connect() as connection,
    ):
        yield connection


@contextmanager
def writing(source: Source) -> Iterator[sa.Connection]:
    """A transaction that commits at its end. A violated constraint becomes Conflict, InputError or NotFound.

    Raises DatabaseUnavailable; then nothing was written.
    """
    own = nullcontext(source) if isinstance(source, sa.Connection) else source.begin()
    with database_errors(), explained(), own as connection:
        yield connection


@contextmanager
def explained() -> Iterator[None]:
    """Turn a violated constraint into its error in `BROKEN`."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        # The text of Postgres quotes the row, which must not be passed on.
        raise meaning.error() from None


def _meaning(error: sa.exc.IntegrityError) -> Broken | None:
    cause = error.orig
    if isinstance(cause, psycopg.errors.NotNullViolation):
        return _refused(cause.diag.column_name or "value", "missing; it is required")
    return BROKEN.get(cause.diag.constraint_name or "") if isinstance(cause, psycopg.Error) else None


LISTED = 50
"""How many rows are listed at most."""

# The unique constraint forbids these. An index that was broken by a collation change of the operating system, or by a
# bad restore, does not, and only a scan that does not use the index finds them.
_DUPLICATES = """
SELECT p.client_slug || '/' || p.pipeline_slug AS pipeline, d.external_run_id, d.copies
FROM (
    SELECT pipeline_id, external_run_id, count(*) AS copies
    FROM runs
    WHERE pipeline_id = ANY(CAST(:pipeline_ids AS uuid[]))
    GROUP BY pipeline_id, external_run_id
    HAVING count(*) > 1
) AS d
JOIN pipeline_details AS p ON p.pipeline_id = d.pipeline_id
ORDER BY 1, 2
LIMIT :listed
"""

# Constraints forbid the first two. A restore without them, or an edit after dropping them, would show here. No
# constraint can hold the third, which depends on when CHM looks.
_IMPOSSIBLE = """
SELECT d.client_slug || '/' || d.pipeline_slug AS pipeline, r.external_run_id,
    CASE
        WHEN r.status = 'running' AND (r.finished_at IS NOT NULL OR r.progress = 1) THEN 'running, yet finished'
        WHEN r.error_message IS NOT NULL AND r.status NOT IN ('failed', 'canceled')
            THEN r.status || ', yet it has an error'
        ELSE 'starts in the future'
    END AS problem
FROM runs AS r
JOIN pipeline_details AS d ON d.pipeline_id = r.pipeline_id
WHERE r.pipeline_id = ANY(CAST(:pipeline_ids AS uuid[]))
  AND (
      (r.status = 'running' AND (r.finished_at IS NOT NULL OR r.progress = 1))
      OR (r.error_message IS NOT NULL AND r.status NOT IN ('failed', 'canceled'))
      OR r.started_at > r.ingested_at + interval '24 hours'
  )
ORDER BY 1, 2
LIMIT :listed
"""

_BEHIND = """
SELECT c.slug || '/' || p.slug AS pipeline, p.observed_through, p.synced_through
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
WHERE p.is_active AND c.is_active AND p.external_id IS NOT NULL
  AND coalesce(p.connection, '') NOT LIKE :pushed
  AND (p.observed_through IS NULL OR coalesce(p.stale_at, p.observed_through + :fresh_for) < :now
       OR p.synced_through > :now)
ORDER BY p.observed_through NULLS FIRST, 1
LIMIT :listed
"""


def duplicate_runs(engine: sa.Engine, pipeline_ids: list[str]) -> list[dict[str, Any]]:
    """Runs of these pipelines that are in the ledger more than once: `pipeline`, `external_run_id`, `copies`."""
    return _offenders(engine, _DUPLICATES, pipeline_ids=pipeline_ids)


def impossible_runs(engine: sa.Engine, pipeline_ids: list[str]) -> list[dict[str, Any]]:
    """Runs of these pipelines in an impossible state: `pipeline`, `external_run_id`, `problem`."""
    return _offenders(engine, _IMPOSSIBLE, pipeline_ids=pipeline_ids)


def pipelines_behind(engine: sa.Engine, now: datetime) -> list[dict[str, Any]]:
    """Ingested pipelines whose last complete sync is too old at `now`, or whose watermark lies after it.

    Of each: `pipeline`, `observed_through`, `synced_through`.
    """
    return _offenders(engine, _BEHIND, fresh_for=FRESH_FOR, now=now, pushed=PUSHED + "%")


def _offenders(engine: sa.Engine, query: str, **parameters: Any) -> list[dict[str, Any]]:
    with database_errors(), engine.connect() as connection:
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        # An index-only plan would trust the index that is being checked.
        connection.execute(sa.text("SET LOCAL enable_indexonlyscan = off"))
        rows = connection.execute(sa.text(query), {"listed": LISTED, **parameters}).mappings()
        return [dict(row) for row in rows]

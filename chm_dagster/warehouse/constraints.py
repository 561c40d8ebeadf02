"""What each constraint of the database means to whoever sent the values that broke it."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import psycopg
import sqlalchemy as sa

from chm_dagster.domain.inventory import Environment, PipelineType, Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.engine import Engine, database_errors


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """The error that a broken constraint becomes; `field` is empty where the error names none."""

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
    "uq_clients_slug": _taken("slug", "another client has this slug; choose another one"),
    "ck_clients_name_trimmed": _refused("name", _TRIMMED),
    "ck_clients_slug_form": _refused("slug", _SLUG),
    "pk_pipelines": _taken("id", _ID),
    "fk_pipelines_client_id": _gone("the client does not exist"),
    "uq_pipelines_client_id_name": _taken("name", "another pipeline of this client has this name; choose another one"),
    "uq_pipelines_client_id_slug": _taken("slug", "another pipeline of this client has this slug; choose another one"),
    "uq_pipelines_client_id_platform_external_id": _taken(
        "external_id", "another pipeline of this client has this id on this platform; each may be watched once"
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
    "ck_runs_started_at_readable": _refused("started_at", _UNREADABLE),
    "ck_runs_finished_at_readable": _refused("finished_at", _UNREADABLE),
    "ck_runs_source_version_readable": _refused("source_version", _UNREADABLE),
    "ck_runs_observed_at_readable": _refused("observed_at", _UNREADABLE),
    "pk_alert_rules": _taken("id", _ID),
    "fk_alert_rules_client_id": _gone("the client does not exist"),
    "fk_alert_rules_pipeline_id": _gone("the pipeline does not exist"),
    "uq_alert_rules_scope": _taken(
        "destination", "an enabled rule of this scope, type and channel tells this destination already; change that one"
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
}
"""Every constraint and unique index of the four tables, by name. A test holds it complete."""


Source = Engine | sa.Connection
"""Where to read and write: an engine, or a connection whose transaction is in its owner's hands."""


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
    """A transaction that commits at its end. A broken constraint becomes Conflict, InputError or NotFound.

    Raises DatabaseUnavailable; then nothing was written.
    """
    own = nullcontext(source) if isinstance(source, sa.Connection) else source.begin()
    with database_errors(), explained(), own as connection:
        yield connection


@contextmanager
def explained() -> Iterator[None]:
    """Turn a broken constraint into the error that `BROKEN` has for it."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        # Postgres' own text quotes the row, which is nobody's business here.
        raise meaning.error() from None


def _meaning(error: sa.exc.IntegrityError) -> Broken | None:
    cause = error.orig
    if isinstance(cause, psycopg.errors.NotNullViolation):
        return _refused(cause.diag.column_name or "value", "missing; it is required")
    return BROKEN.get(cause.diag.constraint_name or "") if isinstance(cause, psycopg.Error) else None

"""Alert rules: when to tell whom that something is wrong."""

import dataclasses
import enum
from datetime import datetime
from uuid import UUID


class RuleType(enum.StrEnum):
    """What a rule watches."""

    ON_FAILURE = "on_failure"
    FAILURES_IN_WINDOW = "failures_in_window"
    CONSECUTIVE_FAILURES = "consecutive_failures"
    NO_SUCCESS_IN_WINDOW = "no_success_in_window"
    RUNNING_TOO_LONG = "running_too_long"
    MISSED_RUN = "missed_run"


class Channel(enum.StrEnum):
    """By which way a rule tells."""

    SLACK = "slack"
    EMAIL = "email"
    WEBHOOK = "webhook"


@dataclasses.dataclass(frozen=True, slots=True)
class AlertRule:
    """A rule over all pipelines of a client, or over one pipeline: where both are set, the pipeline alone counts."""

    id: UUID
    client_id: UUID | None
    pipeline_id: UUID | None
    rule_type: RuleType
    threshold: int | None
    window_minutes: int | None
    channel: Channel
    destination: str
    is_enabled: bool
    muted_until: datetime | None
    created_at: datetime
    updated_at: datetime

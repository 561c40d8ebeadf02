"""What may be said of clients, pipelines and alert rules, and what of it goes together."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from chm_dagster.domain import schedule
from chm_dagster.domain.fields import Field, Form, Problem, flag, line, moment, paragraphs, whole_number, word
from chm_dagster.domain.inventory import MAX_NAME_CHARS, MAX_SLUG_CHARS, Environment, PipelineType, Platform, is_slug
from chm_dagster.domain.redaction import redact
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import InputError

MAX_EXTERNAL_ID_CHARS = 512
MAX_DESCRIPTION_CHARS = 4_000
MAX_DESTINATION_CHARS = 500
MAX_MINUTES = 5_256_000
"""Ten years. More is a wrong unit."""


def slug(value: object, field: str) -> str:
    """A slug as it stands; nothing is made of it."""
    text: str = line(MAX_SLUG_CHARS)(value, field)
    if not is_slug(text):
        raise InputError(field, "not a slug; send a-z, 0-9 and single dashes between them, such as cafe-nord")
    return text


def external_id(value: object, field: str) -> str:
    """A pipeline's id at the partner, byte for byte; an integer becomes its decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        value = str(value)
    if not isinstance(value, str):
        raise InputError(field, "not a text; send the id as the partner spells it")
    if not value.strip():
        raise InputError(field, "empty; send the id as the partner spells it")
    if len(value) > MAX_EXTERNAL_ID_CHARS:
        raise InputError(field, f"longer than {MAX_EXTERNAL_ID_CHARS} characters; send a shorter one")
    if clean_text(value) != value:
        raise InputError(field, "holds a NUL or half a surrogate pair; send plain text")
    return value


def destination(value: object, field: str) -> str:
    """Whom a rule tells: a channel, an address, or the name of an endpoint. Secrets are refused, not stored."""
    text: str = line(MAX_DESTINATION_CHARS)(value, field)
    if redact(text) != text:
        raise InputError(field, "holds a secret; send a channel, an address or the name of an endpoint instead")
    return text


def reference(value: object, field: str) -> UUID | str:
    """An id or slugs, to be looked up."""
    return value if isinstance(value, UUID) else str(line(300)(value, field))


CLIENT: Form = {
    "name": Field(line(MAX_NAME_CHARS), required=True),
    "slug": Field(slug),
    "is_active": Field(flag),
}
PIPELINE: Form = {
    "name": Field(line(MAX_NAME_CHARS), required=True),
    "slug": Field(slug),
    "platform": Field(word(Platform), required=True),
    "connection": Field(line(100), nullable=True),
    "external_id": Field(external_id, nullable=True),
    "pipeline_type": Field(word(PipelineType), required=True),
    "environment": Field(word(Environment)),
    "description": Field(paragraphs(MAX_DESCRIPTION_CHARS), nullable=True),
    "is_active": Field(flag),
    "schedule_cron": Field(schedule.cron, nullable=True),
    "schedule_timezone": Field(schedule.time_zone, nullable=True),
    "grace_minutes": Field(whole_number(0, MAX_MINUTES), nullable=True),
    "max_runtime_minutes": Field(whole_number(1, MAX_MINUTES), nullable=True),
}
RULE: Form = {
    "client_id": Field(reference, nullable=True),
    "pipeline_id": Field(reference, nullable=True),
    "rule_type": Field(word(RuleType), required=True),
    "threshold": Field(whole_number(1), nullable=True),
    "window_minutes": Field(whole_number(1, MAX_MINUTES), nullable=True),
    "channel": Field(word(Channel), required=True),
    "destination": Field(destination, required=True),
    "is_enabled": Field(flag),
    "muted_until": Field(moment(), nullable=True),
}

# Whether a type of rule needs the parameter (True), must not have it (False), or may have it (None).
_PARAMETERS: Mapping[RuleType, Mapping[str, bool | None]] = {
    RuleType.ON_FAILURE: {"threshold": False, "window_minutes": False},
    RuleType.FAILURES_IN_WINDOW: {"threshold": True, "window_minutes": True},
    RuleType.CONSECUTIVE_FAILURES: {"threshold": True, "window_minutes": False},
    RuleType.NO_SUCCESS_IN_WINDOW: {"threshold": False, "window_minutes": True},
    RuleType.RUNNING_TOO_LONG: {"threshold": False, "window_minutes": None},
    RuleType.MISSED_RUN: {"threshold": False, "window_minutes": None},
}


def pipeline_problems(pipeline: Mapping[str, Any]) -> list[Problem]:
    """What does not go together in a whole pipeline."""
    if pipeline.get("schedule_timezone") is not None and pipeline.get("schedule_cron") is None:
        return [("schedule_timezone", "has no meaning without a schedule_cron; set one, or clear this too")]
    return []


def rule_problems(rule: Mapping[str, Any]) -> list[Problem]:
    """What does not go together in a whole rule."""
    problems: list[Problem] = []
    if rule.get("client_id") is None and rule.get("pipeline_id") is None:
        problems.append(("client_id", "missing, as is pipeline_id; a rule needs one of them"))
    kind = RuleType(rule["rule_type"])
    for name, needed in _PARAMETERS[kind].items():
        given = rule.get(name) is not None
        if needed and not given:
            problems.append((name, f"missing; a rule of type {kind} needs it"))
        elif needed is False and given:
            problems.append((name, f"has no meaning for a rule of type {kind}; leave it out"))
    if rule["channel"] == Channel.EMAIL and "@" not in rule["destination"]:
        problems.append(("destination", "not an email address; send one such as ops@example.com"))
    return problems

"""Alert rules: who is notified about what, and which parameters each type takes."""

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field

from chm_dagster.domain.fields import NO_ADDRESS, Count, Flag, FutureTime, Line, PositiveMinutes, Reference, is_address
from chm_dagster.domain.limits import MAX_DESTINATION_CHARS
from chm_dagster.domain.nouns import Accepts, Changes, New, Noun, ReadOnly, changes_to, creation_of
from chm_dagster.domain.redaction import redact
from chm_dagster.domain.validation import Problem, refusal


class RuleType(enum.StrEnum):
    """What a rule watches."""

    ON_FAILURE = "on_failure"
    FAILURES_IN_WINDOW = "failures_in_window"
    CONSECUTIVE_FAILURES = "consecutive_failures"
    NO_SUCCESS_IN_WINDOW = "no_success_in_window"
    RUNNING_TOO_LONG = "running_too_long"
    MISSED_RUN = "missed_run"


COUNT_FAILURES = frozenset({RuleType.ON_FAILURE, RuleType.CONSECUTIVE_FAILURES, RuleType.FAILURES_IN_WINDOW})
"""The rules that fire because runs failed. The others fire because something did not happen."""


class Channel(enum.StrEnum):
    """How a rule notifies."""

    SLACK = "slack"
    EMAIL = "email"
    WEBHOOK = "webhook"
    APPRISE = "apprise"
    INBOX = "inbox"


# Whether a type of rule needs the parameter (True), must not have it (False), or may have it (None).
_PARAMETERS: Mapping[RuleType, Mapping[str, bool | None]] = {
    RuleType.ON_FAILURE: {"threshold": False, "window_minutes": False},
    RuleType.FAILURES_IN_WINDOW: {"threshold": True, "window_minutes": True},
    RuleType.CONSECUTIVE_FAILURES: {"threshold": True, "window_minutes": False},
    RuleType.NO_SUCCESS_IN_WINDOW: {"threshold": False, "window_minutes": True},
    RuleType.RUNNING_TOO_LONG: {"threshold": False, "window_minutes": None},
    RuleType.MISSED_RUN: {"threshold": False, "window_minutes": None},
}


def parameters_of(kind: RuleType) -> tuple[str, ...]:
    """The parameters that a rule of this type may have."""
    return tuple(name for name, needed in _PARAMETERS[kind].items() if needed is not False)


def _without_secret(text: str) -> str:
    if redact(text) != text:
        raise refusal("holds a secret; send a channel, an address or the name of an endpoint instead")
    return text


Destination = Annotated[Line, Field(max_length=MAX_DESTINATION_CHARS), AfterValidator(_without_secret)]


def parameter_problems(kind: RuleType, whole: Mapping[str, Any]) -> Iterable[Problem]:
    """What is wrong with the parameters of a rule of this type."""
    for name, needed in _PARAMETERS[kind].items():
        given = whole.get(name) is not None
        if needed and not given:
            yield name, f"is required for a rule of type {kind}"
        elif needed is False and given:
            yield name, f"has no meaning for a rule of type {kind}; leave it out"


class AlertRule(Noun):
    """Who is notified when something is wrong with a client's pipelines, or with one of them."""

    id: ReadOnly[UUID]
    client_id: Annotated[UUID | None, Accepts(Reference | None)] = Field(
        None, description="All pipelines of this client: its id or slug."
    )
    pipeline_id: Annotated[UUID | None, Accepts(Reference | None)] = Field(
        None, description="This pipeline only: its id or `client/pipeline`. Wins over `client_id`."
    )
    rule_type: RuleType = Field(description="What is watched.")
    threshold: Count | None = Field(None, description="How many failures it takes.")
    window_minutes: PositiveMinutes | None = Field(None, description="The length of the window in minutes.")
    channel: Channel = Field(description="How the rule notifies.")
    destination: Destination = Field(
        description="Who is notified: a channel, an address or the name of an endpoint; never a secret.",
        examples=["#data-alerts"],
    )
    is_enabled: Flag = Field(True, description="False: the rule is kept, but not evaluated.")
    muted_until: Annotated[datetime | None, Accepts(FutureTime | None)] = Field(
        None, description="No notification before this time. A span such as 4h counts from now."
    )
    created_at: ReadOnly[datetime]
    updated_at: ReadOnly[datetime]

    @classmethod
    def conflicts(cls, whole: Mapping[str, Any]) -> Iterable[Problem]:
        """Scope, parameters and destination must fit the type and the channel."""
        if whole.get("client_id") is None and whole.get("pipeline_id") is None:
            yield "client_id", "is required, unless there is a pipeline_id: a rule needs one of the two"
        yield from parameter_problems(RuleType(whole["rule_type"]), whole)
        if whole["channel"] == Channel.EMAIL and not is_address(whole["destination"]):
            yield "destination", NO_ADDRESS


@creation_of(AlertRule)
class NewAlertRule(New):
    """A rule to create. It needs a client or a pipeline, and the parameters of its type."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "client_id": "acme",
                    "rule_type": "consecutive_failures",
                    "threshold": 3,
                    "channel": "slack",
                    "destination": "#data-alerts",
                }
            ]
        }
    )


@changes_to(AlertRule)
class AlertRuleChanges(Changes):
    """The fields of a rule to change. Null clears a field; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"muted_until": "2026-03-02T08:00:00Z"}]})

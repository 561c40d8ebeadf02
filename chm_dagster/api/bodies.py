"""What the API takes in bodies, as the contract describes it.

It is only described here. The warehouse reads it, field by field, so that every door of CHM says the same of the same
mistake, and all mistakes at once.
"""

from typing import Annotated, Any

from fastapi import Body
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema

from chm_dagster.domain.forms import (
    MAX_DESCRIPTION_CHARS,
    MAX_DESTINATION_CHARS,
    MAX_EXTERNAL_ID_CHARS,
    MAX_MINUTES,
)
from chm_dagster.domain.inventory import (
    MAX_NAME_CHARS,
    MAX_SLUG_CHARS,
    SLUG_PATTERN,
    Environment,
    PipelineType,
    Platform,
)
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import BIGINT_MAX, INT_MAX, MAX_RUN_ID_CHARS, MAX_URL_CHARS, RunStatus

MODEL = "x-model"
"""Under this name the contract's writer finds which model a body is of."""
_CONTROL = r"\u0000-\u001f\u007f-\u009f"
# One line with something to see on it.
_LINE = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
_NOT_BLANK = r"\S"
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=_LINE, examples=["Acme"])]
Slug = Annotated[str, Field(max_length=MAX_SLUG_CHARS, pattern=SLUG_PATTERN, examples=["acme"])]
Minutes = Annotated[int, Field(ge=0, le=MAX_MINUTES)]
PositiveMinutes = Annotated[int, Field(ge=1, le=MAX_MINUTES)]


class In(BaseModel):
    """An object that is taken as it was sent."""

    model_config = ConfigDict(extra="forbid")


class NewClient(In):
    """A client to be made. Without a slug one is made from the name."""

    name: Name
    slug: Slug | None = None


class ClientChanges(In):
    """What of a client is to change; what is left out stays as it is. The slug never changes."""

    name: Name | SkipJsonSchema[None] = None
    is_active: bool | SkipJsonSchema[None] = None


class _Expectations(In):
    connection: Annotated[str, Field(min_length=1, max_length=100, pattern=_LINE)] | None = None
    external_id: (
        Annotated[str, Field(min_length=1, max_length=MAX_EXTERNAL_ID_CHARS, pattern=_NOT_BLANK)]
        | Annotated[int, Field(gt=-(2**64), lt=2**64)]
        | None
    ) = Field(None, description="Its id at the partner; a number becomes its digits. Null: not ingested.")
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    schedule_cron: str | None = Field(
        None, description="When a run is expected: five fields.", examples=["0 6 * * 1-5"]
    )
    schedule_timezone: str | None = Field(
        None, description="IANA zone of `schedule_cron`; null: UTC.", examples=["Europe/Berlin"]
    )
    grace_minutes: Minutes | None = Field(None, description="How late a run may be.")
    max_runtime_minutes: PositiveMinutes | None = Field(None, description="How long a run may take.")


class NewPipelineOfClient(_Expectations):
    """A pipeline to be made for the client that the path names."""

    name: Name
    slug: Slug | None = None
    platform: Platform
    pipeline_type: PipelineType
    environment: Environment | None = Field(None, description="`prod` unless said otherwise.")
    is_active: bool | None = None


class NewPipeline(NewPipelineOfClient):
    """A pipeline to be made."""

    client_id: str = Field(description="Its client's id or slug.", examples=["acme"])


class PipelineChanges(_Expectations):
    """What of a pipeline is to change; null clears a field, what is left out stays as it is. The slug never changes."""

    name: Name | SkipJsonSchema[None] = None
    platform: Platform | SkipJsonSchema[None] = None
    pipeline_type: PipelineType | SkipJsonSchema[None] = None
    environment: Environment | SkipJsonSchema[None] = None
    is_active: bool | SkipJsonSchema[None] = None


class NewRun(In):
    """A run recorded by hand."""

    external_run_id: Annotated[str, Field(min_length=1, max_length=MAX_RUN_ID_CHARS)] | int | None = Field(
        None, description="What makes it the same run when it is told again; made if left out."
    )
    status: RunStatus
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    duration_seconds: Annotated[float, Field(ge=0)] | None = None
    rows_processed: Annotated[int, Field(ge=0, le=BIGINT_MAX)] | None = None
    error_message: str | None = None
    status_reason: str | None = None
    source_url: Annotated[str, Field(max_length=MAX_URL_CHARS)] | None = None
    payload: dict[str, Any] | None = None
    attempt: Annotated[int, Field(ge=0, le=INT_MAX)] | None = Field(
        None, description="Which try of the run this is; a later one starts it over."
    )


class _RuleParameters(In):
    client_id: str | None = Field(None, description="All pipelines of this client: its id or slug.")
    pipeline_id: str | None = Field(None, description="This pipeline only: its id or `client/pipeline`.")
    threshold: Annotated[int, Field(ge=1, le=INT_MAX)] | None = None
    window_minutes: PositiveMinutes | None = None
    muted_until: AwareDatetime | None = None


class NewAlertRule(_RuleParameters):
    """A rule to be made. It needs a client or a pipeline, and the parameters of its type."""

    rule_type: RuleType
    channel: Channel
    destination: str = Field(
        min_length=1,
        max_length=MAX_DESTINATION_CHARS,
        pattern=_LINE,
        description="A channel, an address or the name of an endpoint; never a secret.",
        examples=["#data-alerts"],
    )
    is_enabled: bool | None = None


class AlertRuleChanges(_RuleParameters):
    """What of a rule is to change; null clears a field, what is left out stays as it is."""

    rule_type: RuleType | SkipJsonSchema[None] = None
    channel: Channel | SkipJsonSchema[None] = None
    destination: Annotated[str, Field(min_length=1, max_length=MAX_DESTINATION_CHARS)] | SkipJsonSchema[None] = None
    is_enabled: bool | SkipJsonSchema[None] = None


class _Described:
    """Lets an object through as it was sent, and has the contract say that it is of this model."""

    def __init__(self, model: type[In]) -> None:
        self._model = model

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(self._model.__pydantic_core_schema__), MODEL: self._model.__name__}


SentClient = Annotated[dict[str, Any], Body(examples=[{"name": "Acme"}]), _Described(NewClient)]
SentClientChanges = Annotated[dict[str, Any], Body(examples=[{"name": "Acme Ltd"}]), _Described(ClientChanges)]
_PIPELINE = {"name": "Orders", "platform": "airflow", "pipeline_type": "ingestion", "external_id": "orders_daily"}
SentPipelineOfClient = Annotated[dict[str, Any], Body(examples=[_PIPELINE]), _Described(NewPipelineOfClient)]
SentPipeline = Annotated[dict[str, Any], Body(examples=[{"client_id": "acme", **_PIPELINE}]), _Described(NewPipeline)]
SentPipelineChanges = Annotated[
    dict[str, Any],
    Body(examples=[{"schedule_cron": "0 6 * * 1-5", "schedule_timezone": "Europe/Berlin", "grace_minutes": 30}]),
    _Described(PipelineChanges),
]
_RUN = {"external_run_id": "2026-03-01", "status": "success", "started_at": "2026-03-01T06:00:00Z"}
SentRun = Annotated[
    dict[str, Any], Body(examples=[{**_RUN, "finished_at": "2026-03-01T06:10:00Z"}]), _Described(NewRun)
]
_RULE = {"client_id": "acme", "rule_type": "consecutive_failures", "threshold": 3}
SentAlertRule = Annotated[
    dict[str, Any],
    Body(examples=[{**_RULE, "channel": "slack", "destination": "#data-alerts"}]),
    _Described(NewAlertRule),
]
SentAlertRuleChanges = Annotated[
    dict[str, Any], Body(examples=[{"muted_until": "2026-03-02T08:00:00Z"}]), _Described(AlertRuleChanges)
]

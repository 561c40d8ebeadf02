"""What the API sends, as the contract describes it."""

from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from chm_dagster.domain.inventory import Environment, PipelineType, Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import RunStatus
from chm_dagster.warehouse.recording import Outcome

T = TypeVar("T")


class Out(BaseModel):
    """Something that is sent; made from the attributes of what the warehouse returns."""

    model_config = ConfigDict(from_attributes=True)


class Page(Out, Generic[T]):
    """A part of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next part; null at the end of the list.")


class Client(Out):
    """A customer."""

    id: UUID
    slug: str = Field(examples=["acme"])
    name: str = Field(examples=["Acme"])
    is_active: bool
    created_at: datetime
    updated_at: datetime


class Pipeline(Out):
    """A client's recurring job."""

    id: UUID
    client_id: UUID
    client_slug: str = Field(examples=["acme"])
    client_name: str = Field(examples=["Acme"])
    slug: str = Field(examples=["orders"])
    name: str = Field(examples=["Orders"])
    key: str = Field(description="`client-slug/pipeline-slug`", examples=["acme/orders"])
    platform: Platform
    connection: str | None = Field(description="Which partner instance tells of it; null: the platform's default.")
    external_id: str | None = Field(description="Its id at the partner; null: not ingested.")
    pipeline_type: PipelineType
    environment: Environment
    description: str | None
    is_active: bool
    schedule_cron: str | None
    schedule_timezone: str | None = Field(description="IANA zone of `schedule_cron`; null: UTC.")
    grace_minutes: int | None
    max_runtime_minutes: int | None
    synced_through: datetime | None = Field(description="Runs are known up to here, in the partner's time.")
    created_at: datetime
    updated_at: datetime


class RunWithoutPayload(Out):
    """One execution of a pipeline."""

    id: UUID
    pipeline_id: UUID
    external_run_id: str = Field(examples=["2026-03-01"])
    status: RunStatus
    started_at: datetime | None = Field(description="Null while it waits.")
    finished_at: datetime | None = Field(description="Null while it runs.")
    duration_seconds: float | None
    rows_processed: int | None
    error_message: str | None
    status_reason: str | None = Field(description="The partner's own word where it says more than `status`.")
    source_url: str | None = Field(description="A link to the run at the partner.")
    attempt: int
    source_version: datetime | None
    observed_at: datetime
    ingested_at: datetime
    created_at: datetime
    updated_at: datetime


class Run(RunWithoutPayload):
    """One execution of a pipeline, with what the partner said of it."""

    payload: dict[str, Any] = Field(description="The partner's record, secrets masked.")


class RecordedRun(Run):
    """A run as it stands after somebody told of it, and what became of that."""

    outcome: Outcome = Field(
        description="`unchanged`: the ledger knew all of it; `stale`: it knows better, and the run stands as it did."
    )


class PipelineAtAGlance(Out):
    """How a pipeline stands."""

    pipeline_id: UUID
    pipeline_slug: str = Field(examples=["orders"])
    pipeline_name: str = Field(examples=["Orders"])
    platform: Platform
    latest_status: RunStatus | None = Field(description="Null if it never ran.")
    latest_run_at: datetime | None = Field(description="When that run started, or finished if its start is not known.")


class StatusCounts(Out):
    """How many runs are in each status."""

    running: int
    success: int
    failed: int
    canceled: int
    skipped: int


class ClientSummary(Out):
    """A client at a glance."""

    client_id: UUID
    client_slug: str = Field(examples=["acme"])
    since: datetime
    until: datetime
    status_counts: StatusCounts = Field(description="Runs that started in the window, also of disabled pipelines.")
    latest_by_pipeline: list[PipelineAtAGlance] = Field(description="The active pipelines, by slug.")


class AlertRule(Out):
    """When to tell whom that something is wrong."""

    id: UUID
    client_id: UUID | None
    pipeline_id: UUID | None = Field(description="This pipeline only; wins over `client_id`.")
    rule_type: RuleType
    threshold: int | None
    window_minutes: int | None
    channel: Channel
    destination: str
    is_enabled: bool
    muted_until: datetime | None
    created_at: datetime
    updated_at: datetime


class Ping(Out):
    """What became of a ping."""

    pipeline_id: UUID
    pipeline: str = Field(examples=["acme/nightly-backup"])
    run_id: str = Field(description="The run that it was about.", examples=["2026-03-01"])
    status: RunStatus = Field(description="How that run stands now.")
    outcome: Outcome = Field(description="`unchanged`: a repetition; `stale`: the run had ended already.")

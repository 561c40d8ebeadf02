"""Pipelines: clients' recurring jobs on any platform."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue, computed_field

from chm_dagster.domain.fields import (
    ConnectionName,
    ExternalId,
    Flag,
    Line,
    Minutes,
    Name,
    OwnerName,
    Paragraphs,
    PositiveMinutes,
    Slug,
    Tags,
)
from chm_dagster.domain.maintenance import Maintenance
from chm_dagster.domain.nouns import Changes, New, Noun, Once, ReadOnly, changes_to, creation_of
from chm_dagster.domain.schedule import Cron, TimeZone
from chm_dagster.domain.sync import SyncErrorCode
from chm_dagster.domain.validation import Problem

PUSHED = "openlineage:"
"""A pipeline whose `connection` starts with this is known from OpenLineage events alone; the rest: their namespace."""


class Platform(enum.StrEnum):
    """Where a pipeline runs."""

    AIRFLOW = "airflow"
    DBT = "dbt"
    CRON = "cron"
    VENDOR_API = "vendor_api"
    CUSTOM = "custom"
    PREFECT = "prefect"
    DAGSTER = "dagster"
    AIRBYTE = "airbyte"
    FIVETRAN = "fivetran"
    DATABRICKS = "databricks"
    GITHUB_ACTIONS = "github_actions"


class PipelineType(enum.StrEnum):
    """What a pipeline is for."""

    INGESTION = "ingestion"
    TRANSFORM = "transform"
    QUALITY = "quality"
    EXPORT = "export"
    HEALTHCHECK = "healthcheck"


class Health(enum.StrEnum):
    """How a pipeline is, the worst first.

    `late` and `overrunning` are about what did not happen: they are claimed only if the pipeline was read recently
    enough to know, else it is `unknown`. Disabled pipelines, and those in maintenance, are `paused`.
    """

    FAILING = "failing"
    LATE = "late"
    OVERRUNNING = "overrunning"
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    PAUSED = "paused"


class Environment(enum.StrEnum):
    """Which of a client's environments a pipeline belongs to."""

    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


@dataclasses.dataclass(frozen=True, slots=True)
class IngestedPipeline:
    """A pipeline as ingestion sees it: active, of an active client, with an id at its partner.

    `synced_through` is the watermark in the partner's time; None: read from the beginning. `sync_failing_since` is the
    first failed attempt to read it since the last success, `sync_error` the message of the last one, or a warning about
    the partner's clock if it could be read.
    """

    id: UUID
    client_slug: str
    slug: str
    platform: Platform
    connection: str | None
    external_id: str
    synced_through: datetime | None
    sync_attempted_at: datetime | None = None
    sync_failing_since: datetime | None = None
    sync_error: str | None = None

    @property
    def key(self) -> str:
        """The Dagster partition key, `client-slug/pipeline-slug`."""
        return f"{self.client_slug}/{self.slug}"

    @property
    def unreadable(self) -> str | None:
        """Why it cannot be read; None if it can."""
        return None if self.sync_failing_since is None else self.sync_error

    @property
    def clock_warning(self) -> str | None:
        """How the partner's clock differs from ours, if the pipeline could be read."""
        return self.sync_error if self.sync_failing_since is None else None


MEANING = frozenset({"external_id", "connection", "platform"})
"""The fields that say which pipeline it is at its partner."""


class OldRuns(enum.StrEnum):
    """What happens to a pipeline's runs when it changes to another pipeline at the partner."""

    KEEP = "keep"
    REMOVE = "remove"


class Pipeline(Noun):
    """A client's recurring job, with what is expected of it."""

    id: ReadOnly[UUID]
    client_id: ReadOnly[UUID]
    client_slug: ReadOnly[str] = Field(examples=["acme"])
    client_name: ReadOnly[str] = Field(examples=["Acme"])
    slug: Once[Slug] = Field(
        description="The readable key, unique within the client. It never changes; by default, CHM makes it from the"
        " name.",
        examples=["orders"],
    )
    name: Name = Field(description="The pipeline's name, unique within the client.", examples=["Orders"])
    platform: Platform = Field(description="Where it runs.")
    connection: ConnectionName | None = Field(
        None, description="The partner connection that reads its runs; null: the platform's default."
    )
    external_id: ExternalId | None = Field(
        None, description="Its id at the partner; a number becomes its digits. Null: its runs are not ingested."
    )
    pipeline_type: PipelineType = Field(description="What it is for.")
    environment: Environment = Field(
        Environment.PROD, description="The client's environment that it belongs to; `prod` by default."
    )
    description: Paragraphs | None = Field(None, description="A text for people.")
    is_active: Flag = Field(True, description="False: disabled. Nothing is ingested; the history stays.")
    schedule_cron: Cron | None = Field(
        None, description="When a run is expected, as a cron expression of five fields.", examples=["0 6 * * 1-5"]
    )
    schedule_timezone: TimeZone | None = Field(
        None, description="The IANA time zone of `schedule_cron`; null: UTC.", examples=["Europe/Berlin"]
    )
    grace_minutes: Minutes | None = Field(
        None,
        description="How many minutes late a run may be; null: 15. Where a run is known only once it has finished, add"
        " how long it takes.",
    )
    max_runtime_minutes: PositiveMinutes | None = Field(None, description="How many minutes a run may take.")
    owner: OwnerName | None = Field(
        None, description="Who looks after it: a person or a team.", examples=["data platform team"]
    )
    tags: Tags = Field(
        default_factory=list, description="Words to group by, each once; null: none.", examples=[["finance"]]
    )
    maintenance: Maintenance = Field(
        default_factory=list, description="Its maintenance windows, beside those of its client; null: none."
    )
    synced_through: ReadOnly[datetime | None] = Field(
        None,
        description="The watermark, in the partner's time: where the next sync starts. It stays behind the newest"
        " known change, so that of a quiet pipeline is old; how fresh the knowledge is says `observed_through`.",
    )
    observed_through: ReadOnly[datetime | None] = Field(
        None, description="When the last complete sync of its runs started; null: it was never read to the end."
    )
    sync_failing_since: ReadOnly[datetime | None] = Field(
        None, description="The first failed attempt to read its runs since the last success; null: they can be read."
    )
    sync_error: ReadOnly[str | None] = Field(
        None, description="Why its runs cannot be read, or a warning about clocks that disagree."
    )
    sync_error_code: ReadOnly[SyncErrorCode | None] = Field(None, description="The kind of `sync_error`.")
    due_at: ReadOnly[datetime | None] = Field(
        None,
        description="When the next run after the latest one is due by the schedule; null: nothing is expected. Without"
        " a run it is late once `grace_minutes` have passed, too.",
    )
    created_at: ReadOnly[datetime]
    updated_at: ReadOnly[datetime]

    @computed_field(description="`client-slug/pipeline-slug`", examples=["acme/orders"])  # type: ignore[prop-decorator]
    @property
    def key(self) -> str:
        """`client-slug/pipeline-slug`, the readable key."""
        return f"{self.client_slug}/{self.slug}"

    @classmethod
    def conflicts(cls, whole: Mapping[str, Any]) -> Iterable[Problem]:
        """A time zone needs a schedule."""
        if whole.get("schedule_timezone") is not None and whole.get("schedule_cron") is None:
            yield "schedule_timezone", "has no meaning without schedule_cron; set that as well, or clear this"


_EXAMPLE: dict[str, JsonValue] = {
    "name": "Orders",
    "platform": "airflow",
    "pipeline_type": "ingestion",
    "external_id": "orders_daily",
}


@creation_of(Pipeline)
class NewPipelineOfClient(New):
    """A pipeline to create for the client that the path names."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


class NewPipeline(NewPipelineOfClient):
    """A pipeline to create."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"client_id": "acme", **_EXAMPLE}]})

    client_id: Line = Field(description="Its client's id or slug.", examples=["acme"])


@changes_to(Pipeline)
class PipelineChanges(Changes):
    """The fields of a pipeline to change. Null clears a field; what is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"schedule_cron": "0 6 * * 1-5", "schedule_timezone": "Europe/Berlin", "grace_minutes": 30}]
        }
    )

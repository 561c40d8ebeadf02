"""Clients and pipelines: the inventory."""

import dataclasses
import enum
import re
import unicodedata
from collections.abc import Container
from datetime import datetime
from uuid import UUID

SLUG_PATTERN = "^[a-z0-9]+(-[a-z0-9]+)*$"
MAX_SLUG_CHARS = 100
MAX_NAME_CHARS = 200

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


class Environment(enum.StrEnum):
    """Which of a client's environments a pipeline belongs to."""

    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


@dataclasses.dataclass(frozen=True, slots=True)
class IngestedPipeline:
    """A pipeline as ingestion sees it: active, of an active client, and known to a partner.

    `synced_through` is the watermark in the partner's time; None means that nothing was ever read.
    """

    id: UUID
    client_slug: str
    slug: str
    platform: Platform
    connection: str | None
    external_id: str
    synced_through: datetime | None

    @property
    def key(self) -> str:
        """The Dagster partition key, `client-slug/pipeline-slug`."""
        return f"{self.client_slug}/{self.slug}"


@dataclasses.dataclass(frozen=True, slots=True)
class Client:
    """A customer. `slug` is the readable key: it stays when the name changes."""

    id: UUID
    slug: str
    name: str
    is_active: bool
    created_at: datetime
    updated_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Pipeline:
    """A client's recurring job, with what is expected of it.

    `connection` None: the platform's default; `external_id` None: not ingested; `schedule_timezone` None: UTC.
    """

    id: UUID
    client_id: UUID
    client_slug: str
    client_name: str
    slug: str
    name: str
    platform: Platform
    connection: str | None
    external_id: str | None
    pipeline_type: PipelineType
    environment: Environment
    description: str | None
    is_active: bool
    schedule_cron: str | None
    schedule_timezone: str | None
    grace_minutes: int | None
    max_runtime_minutes: int | None
    synced_through: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def key(self) -> str:
        """`client-slug/pipeline-slug`, the readable key."""
        return f"{self.client_slug}/{self.slug}"


def slugify(name: str) -> str:
    """`[a-z0-9-]+` made of a name: `Café Nord GmbH` -> `cafe-nord-gmbh`. Empty if nothing of the name survives."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def is_slug(text: str) -> bool:
    """Whether the text could be a slug."""
    return len(text) <= MAX_SLUG_CHARS and re.fullmatch(SLUG_PATTERN, text) is not None


def free_slug(base: str, taken: Container[str]) -> str:
    """`base`, or the first of `base-2`, `base-3`, ... that is not taken; cut to the longest that a slug may be."""
    slug = base[:MAX_SLUG_CHARS].rstrip("-")
    number = 1
    while slug in taken:
        number += 1
        suffix = f"-{number}"
        slug = base[: MAX_SLUG_CHARS - len(suffix)].rstrip("-") + suffix
    return slug

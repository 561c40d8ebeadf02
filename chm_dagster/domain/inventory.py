"""Clients and pipelines: the inventory."""

import dataclasses
import enum
import re
import unicodedata
from datetime import datetime
from uuid import UUID


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


def slugify(name: str) -> str:
    """`[a-z0-9-]+` made of a name: `Café Nord GmbH` -> `cafe-nord-gmbh`. Empty if nothing of the name survives."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")

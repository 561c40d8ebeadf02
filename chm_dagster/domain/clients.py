"""Clients: the customers whose pipelines CHM monitors."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from chm_dagster.domain.fields import EmailAddress, Flag, Name, Slug
from chm_dagster.domain.maintenance import Maintenance
from chm_dagster.domain.nouns import Changes, New, Noun, Once, ReadOnly, changes_to, creation_of
from chm_dagster.domain.periods import ReportPeriod
from chm_dagster.domain.schedule import TimeZone


class Client(Noun):
    """A customer."""

    id: ReadOnly[UUID]
    slug: Once[Slug] = Field(
        description="The readable key. It never changes; by default, CHM makes it from the name.",
        examples=["acme"],
    )
    name: Name = Field(description="The customer's name.", examples=["Acme"])
    is_active: Flag = Field(True, description="False: disabled. Nothing is ingested; the history stays.")
    timezone: TimeZone | None = Field(
        None,
        description="The IANA time zone in which the weeks and months of its reports begin; null: UTC.",
        examples=["Europe/Berlin"],
    )
    report_email: EmailAddress | None = Field(
        None, description="Who receives its reports: an email address.", examples=["data@acme.example"]
    )
    report_period: ReportPeriod = Field(
        ReportPeriod.WEEK, description="Of which periods it gets reports: of each week, each month, or both."
    )
    maintenance: Maintenance = Field(
        default_factory=list, description="Maintenance windows of all its pipelines; null: none."
    )
    created_at: ReadOnly[datetime]
    updated_at: ReadOnly[datetime]

    @property
    def lookalike_warning(self) -> str:
        """The warning for creating another client whose name differs in case only."""
        return f"client {self.slug} has the same name in another case"


@creation_of(Client)
class NewClient(New):
    """A client to create."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Acme"}]})


@changes_to(Client)
class ClientChanges(Changes):
    """The fields of a client to change. What is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Acme Ltd"}]})

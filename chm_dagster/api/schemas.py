"""What routes take beside bodies (references in paths, filters in queries, the warehouse), and the response models that
are not nouns of the domain.

A query parameter that is not known is refused: a misspelt filter would filter nothing.
"""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from fastapi import Depends, Path, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.convertors import Convertor, register_url_convertor

from chm_dagster.domain.fields import SLUG_PATTERN, PastTime
from chm_dagster.domain.pipelines import Environment, OldRuns, PipelineType, Platform
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import MergeOutcome, Run, RunKind, RunStatus
from chm_dagster.domain.schedule import TimeZone
from chm_dagster.domain.validation import ExplainedModel, refusal
from chm_dagster.warehouse.paging import MAX_LIMIT
from chm_dagster.warehouse.scope import TIMEZONE
from chm_dagster.warehouse.warehouse import Warehouse

T = TypeVar("T")


class Out(BaseModel):
    """A response, made from the attributes of what the warehouse returns."""

    model_config = ConfigDict(from_attributes=True)


class Page(Out, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="Send it as `cursor` to get the next page; null ends the list.")


class RecordedRun(Run):
    """A run after it was recorded, and what that changed."""

    outcome: MergeOutcome = Field(
        description="`unchanged`: everything was known already; `stale`: newer knowledge stays as it was."
    )


class PipelineAtAGlance(Out):
    """A pipeline and its latest run."""

    pipeline_id: UUID
    pipeline_slug: str = Field(examples=["orders"])
    pipeline_name: str = Field(examples=["Orders"])
    platform: Platform
    latest_status: RunStatus | None = Field(description="Null if it never ran.")
    latest_run_at: datetime | None = Field(description="The effective time of that run.")


class StatusCounts(Out):
    """How many runs are in each status."""

    running: int
    success: int
    failed: int
    canceled: int
    skipped: int


class ClientSummary(Out):
    """Runs of a client in a window of time, and its pipelines now."""

    client_id: UUID
    client_slug: str = Field(examples=["acme"])
    since: datetime
    until: datetime
    status_counts: StatusCounts = Field(description="Runs that started in the window, also of disabled pipelines.")
    latest_by_pipeline: list[PipelineAtAGlance] = Field(description="The active pipelines, by slug.")


class Ping(Out):
    """The run that a ping was about, and what the ping changed."""

    pipeline_id: UUID
    pipeline: str = Field(examples=["acme/nightly-backup"])
    run_id: str = Field(description="The id of the run.", examples=["2026-03-01"])
    status: RunStatus = Field(description="The status of the run now.")
    outcome: MergeOutcome = Field(description="`unchanged`: a repetition; `stale`: the run had already ended.")


async def _warehouse(request: Request) -> Warehouse:
    # async, so that it needs no thread
    warehouse: Warehouse = request.app.state.warehouse
    return warehouse


Ledger = Annotated[Warehouse, Depends(_warehouse)]
"""The warehouse that the app was created with."""


# --- paths -----------------------------------------------------------------------------------------------------------

_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_SLUG = SLUG_PATTERN.strip("^$")


class _PipelineReference(Convertor[str]):
    """Two segments, `client/pipeline`, unless the first one is a UUID.

    So `/pipelines/acme/orders/runs/latest` reads in one way only, also for a pipeline that is called `runs`. A slash
    that arrives as `%2F` is the same slash.
    """

    regex = f"(?:{_UUID}|(?!{_UUID}/)[^/]+/[^/]+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("pipeline", _PipelineReference())

# The patterns only describe: what does not match does not exist, 404.
ClientReference = Annotated[
    str,
    Path(
        description="A client's id, or its slug.",
        examples=["acme"],
        json_schema_extra={"pattern": f"^({_UUID}|{_SLUG})$"},
    ),
]
"""The client that a path names."""
PipelineReference = Annotated[
    str,
    Path(
        description="A pipeline's id, or `client-slug/pipeline-slug`. The slash may be sent as it is or as `%2F`.",
        examples=["acme/orders"],
        json_schema_extra={"pattern": f"^({_UUID}|{_SLUG}/{_SLUG})$"},
    ),
]
"""The pipeline that a path names. Its place in the path is written `{pipeline_id:pipeline}`."""


# --- queries ---------------------------------------------------------------------------------------------------------


def _digits(value: object) -> object:
    # Python accepts more spellings of an integer than people use: " 5", "1_0", "5.0".
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise refusal("must be a whole number")
    return value


def _plus_sign(value: object) -> object:
    # A plus sign that was not encoded arrives as a blank.
    return value[:-6] + "+" + value[-5:] if isinstance(value, str) and value[-6:-5] == " " else value


Time = Annotated[PastTime, BeforeValidator(_plus_sign)]
"""A time: ISO 8601 with an offset, or a span before now."""
Integer = Annotated[int, BeforeValidator(_digits)]
"""A whole number in plain digits."""
_ALIASES = {"client": "client_id", "pipeline": "pipeline_id", "active": "is_active", "enabled": "is_enabled"}
"""Shorter names that filters may have as well."""


class Parameters(ExplainedModel):
    """Parameters of a query."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _with_aliases(cls, given: Any) -> Any:
        known = {alias: name for alias, name in _ALIASES.items() if name in cls.model_fields}
        # A name that is given twice, by its alias and in full, stays unknown under the alias.
        return {
            known[name] if name in known and known[name] not in given else name: value for name, value in given.items()
        }


class OldRunsQuery(Parameters):
    """What becomes of the runs of a pipeline that is changed."""

    runs: OldRuns = Field(
        OldRuns.KEEP,
        description="`remove` permanently deletes the existing runs and reads the history again. `keep` leaves them"
        " beside those of the new `external_id`, `connection` or `platform`.",
    )


class ListQuery(Parameters):
    """Which part of a list."""

    limit: Integer = Field(100, ge=1, le=MAX_LIMIT)
    cursor: str | SkipJsonSchema[None] = Field(None, description="The `next_cursor` of the page before.")

    @property
    def page(self) -> dict[str, Any]:
        """Limit and cursor, as every list of the warehouse takes them."""
        return {"limit": self.limit, "cursor": self.cursor}


class ActiveQuery(ListQuery):
    """Active ones, disabled ones, or all."""

    is_active: Literal["true", "false", "all"] = Field("true", description="`false`: only disabled ones.")

    @property
    def active(self) -> bool | None:
        """As the warehouse takes it: None for all."""
        return {"true": True, "false": False, "all": None}[self.is_active]


class PipelineQuery(ActiveQuery):
    """Filters of pipelines. All that are given must hold."""

    platform: Platform | SkipJsonSchema[None] = None
    pipeline_type: PipelineType | SkipJsonSchema[None] = None
    environment: Environment | SkipJsonSchema[None] = None
    connection: str | SkipJsonSchema[None] = None

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        given = self.model_dump(include={"platform", "pipeline_type", "environment", "connection"})
        return {**given, "active": self.active, **self.page}


class AnyPipelineQuery(PipelineQuery):
    """Filters of pipelines, of one client or of all."""

    client_id: str | SkipJsonSchema[None] = Field(None, description="A client's id or slug.", examples=["acme"])


class WindowQuery(Parameters):
    """A window of time, over the effective time of runs."""

    timezone: TimeZone | SkipJsonSchema[None] = TIMEZONE

    since: Time | SkipJsonSchema[None] = Field(
        None, description="From this time on: ISO 8601 with an offset, or a span before now such as 24h or 7d."
    )
    until: Time | SkipJsonSchema[None] = Field(None, description="Before this time.")


class RunQuery(ListQuery, WindowQuery):
    """Filters of runs. All that are given must hold."""

    status: RunStatus | SkipJsonSchema[None] = None
    kind: RunKind | SkipJsonSchema[None] = None
    order: Literal["asc", "desc"] = Field("desc", description="By effective time; `desc`: the latest first.")

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        window: dict[str, datetime | None] = {"since": self.since, "until": self.until}
        return {"status": self.status, "kind": self.kind, "order": self.order, **window, **self.page}


class RuleQuery(ListQuery):
    """Filters of alert rules. All that are given must hold."""

    client_id: str | SkipJsonSchema[None] = Field(None, description="A client's id or slug.")
    pipeline_id: str | SkipJsonSchema[None] = Field(None, description="A pipeline's id or `client/pipeline`.")
    rule_type: RuleType | SkipJsonSchema[None] = None
    is_enabled: bool | SkipJsonSchema[None] = None

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        scope = {"client": self.client_id, "pipeline": self.pipeline_id}
        return {"rule_type": self.rule_type, "enabled": self.is_enabled, **scope, **self.page}

"""What the API takes in query strings. A parameter that is not known is refused: a misspelt filter filters nothing."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.domain.inventory import Environment, PipelineType, Platform
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import RunStatus
from chm_dagster.domain.values import iso_time
from chm_dagster.errors import InputError
from chm_dagster.warehouse.paging import MAX_LIMIT


def _digits(value: object) -> object:
    # Python reads more as an integer than people mean by one: " 5", "1_0", "5.0".
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError("not a whole number")
    return value


def _moment(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        # A plus sign that nobody encoded arrives as a blank.
        return iso_time(value[:-6] + "+" + value[-5:] if value[-6:-5] == " " else value, "time")
    except InputError as refused:
        raise ValueError(refused.issue) from None


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A time, as ISO 8601 with an offset."""


Integer = Annotated[int, BeforeValidator(_digits)]
"""A whole number, spelled as people spell it."""


class In(BaseModel):
    """Parameters of a query."""

    model_config = ConfigDict(extra="forbid")


class ListQuery(In):
    """Which part of a list."""

    limit: Integer = Field(100, ge=1, le=MAX_LIMIT)
    cursor: str | SkipJsonSchema[None] = Field(None, description="The `next_cursor` of the part before.")

    @property
    def part(self) -> dict[str, Any]:
        """Limit and cursor, as every list of the warehouse takes them."""
        return {"limit": self.limit, "cursor": self.cursor}


class ActiveQuery(ListQuery):
    """Active ones, disabled ones, or all."""

    active: Literal["true", "false", "all"] = Field("true", description="`false`: only disabled ones.")

    @property
    def wanted_active(self) -> bool | None:
        """As the warehouse takes it: None for all."""
        return {"true": True, "false": False, "all": None}[self.active]


class PipelineQuery(ActiveQuery):
    """Filters of pipelines, all of which must hold."""

    platform: Platform | SkipJsonSchema[None] = None
    pipeline_type: PipelineType | SkipJsonSchema[None] = None
    environment: Environment | SkipJsonSchema[None] = None
    connection: str | SkipJsonSchema[None] = None

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        given = self.model_dump(include={"platform", "pipeline_type", "environment", "connection"})
        return {**given, "active": self.wanted_active, **self.part}


class AnyPipelineQuery(PipelineQuery):
    """Filters of pipelines, of one client or of all."""

    client: str | SkipJsonSchema[None] = Field(None, description="A client's id or slug.", examples=["acme"])


class WindowQuery(In):
    """A window of time, over when runs started."""

    since: Moment | SkipJsonSchema[None] = Field(None, description="From this time on.")
    until: Moment | SkipJsonSchema[None] = Field(None, description="Before this time.")


class RunQuery(ListQuery, WindowQuery):
    """Filters of runs, all of which must hold."""

    status: RunStatus | SkipJsonSchema[None] = None
    order: Literal["asc", "desc"] = Field("desc", description="By when they started; `desc`: the latest first.")

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        window = {"since": self.since, "until": self.until}
        return {"status": self.status, "order": self.order, **window, **self.part}


class RuleQuery(ListQuery):
    """Filters of alert rules, all of which must hold."""

    client: str | SkipJsonSchema[None] = Field(None, description="A client's id or slug.")
    pipeline: str | SkipJsonSchema[None] = Field(None, description="A pipeline's id or `client/pipeline`.")
    rule_type: RuleType | SkipJsonSchema[None] = None
    enabled: bool | SkipJsonSchema[None] = None

    @property
    def filters(self) -> dict[str, Any]:
        """As the warehouse takes them."""
        scope = {"client": self.client, "pipeline": self.pipeline}
        return {"rule_type": self.rule_type, "enabled": self.enabled, **scope, **self.part}

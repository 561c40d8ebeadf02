"""What a question is about, as programs send it: the parameters of a named query, with clients and pipelines by id or
slug. The API and the MCP server both take exactly these.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.domain.schedule import TimeZone
from chm_dagster.errors import InputError
from chm_dagster.warehouse.named_queries import Parameter, Query, queries
from chm_dagster.warehouse.warehouse import Warehouse

ABSENT: Any = SkipJsonSchema[None]  # type: ignore[misc]
"""Beside a type: the parameter may be left out."""
TIMEZONE: Any = Field(
    None,
    description="An IANA time zone, by default UTC: where `yesterday` begins, and the zone of times without an offset.",
    examples=["Europe/Berlin"],
)
"""A parameter that stands before those it is needed for."""
_LIMITS: dict[str, Any] = {
    "threshold": {"ge": 0, "le": 1},
    "groups": {"ge": 1, "le": 1_000},
    "runs": {"ge": 1, "le": 200},
}
_REFERENCES = {
    "client_slug": ("client_id", "Only this client: its id or slug."),
    "pipeline_slug": ("pipeline_id", "Only this pipeline: its id or `client/pipeline`."),
}


def parameter_fields(query: Query, types: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Pydantic model of a query's parameters. `types` has the Python type for each type of Postgres."""
    fields = dict(_field(parameter, types) for parameter in query.parameters)
    if any(parameter.type == "timestamptz" for parameter in query.parameters):
        return {"timezone": (TimeZone | ABSENT, TIMEZONE), **fields}
    return fields


def _field(parameter: Parameter, types: Mapping[str, Any]) -> tuple[str, Any]:
    name, meaning = _REFERENCES.get(parameter.name, (parameter.name, parameter.meaning))
    kind: Any = Literal[parameter.choices] if parameter.choices else types[parameter.type]
    if name == "timezone":
        kind = TimeZone
    default = "" if parameter.default == "null" else f"Default: {parameter.default}."
    return name, (
        kind | ABSENT,
        Field(None, description=f"{meaning} {default}".strip() or None, **_LIMITS.get(parameter.name, {})),
    )


def arguments(warehouse: Warehouse, name: str, sent: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the named query from what was sent by the names of `parameter_fields`.

    Raises InputError for a window that is none and a time to come, NotFound for a client or pipeline that is unknown.
    """
    given, now = dict(sent), datetime.now(UTC)
    check_at(given.get("at"), now)
    _check_window(given.get("since"), given.get("until") or given.get("at"), now)
    if "timezone" not in {parameter.name for parameter in queries()[name].parameters}:
        given.pop("timezone", None)
    client, pipeline = given.pop("client_id", None), given.pop("pipeline_id", None)
    if client is not None:
        given["client_slug"] = warehouse.clients.get(client).slug
    if pipeline is not None:
        found = warehouse.pipelines.get(pipeline)
        if given.setdefault("client_slug", found.client_slug) != found.client_slug:
            raise InputError("pipeline_id", "is a pipeline of another client; leave client_id out")
        given["pipeline_slug"] = found.slug
    return given


def check_at(at: datetime | None, now: datetime, field: str = "at") -> None:
    """Raises InputError unless a question about this time can be answered: nobody knows what is to come."""
    if at is not None and at > now:
        raise InputError(field, "must not be in the future")


def _check_window(since: datetime | None, until: datetime | None, now: datetime) -> None:
    if since is not None and since > now:
        raise InputError("since", "must not be in the future")
    if since is not None and until is not None and since >= until:
        raise InputError("since", "must be before until, or at")

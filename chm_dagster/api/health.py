"""The routes of health. Each is a named query of the SQL contract, and adds nothing to it.

Parameters and columns come from the description of the query: a column that is added there shows here.
"""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, create_model
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import TIMEZONE, Integer, Ledger, Out, Page, Parameters, Time
from chm_dagster.domain.schedule import TimeZone
from chm_dagster.errors import InputError
from chm_dagster.warehouse.named_queries import Column, Parameter, queries
from chm_dagster.warehouse.warehouse import Warehouse

router = APIRouter(prefix="/api/v1/health", tags=["health"])


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A named query, and what the API's description calls it."""

    query: str
    summary: str


QUESTIONS = {
    "attention": Question("needs_attention", "What needs attention"),
    "connections": Question("connections", "How reading each connection goes"),
    "failing": Question("failing_now", "What is failing now"),
    "changed": Question("changed_since", "What changed since a time"),
    "latest": Question("latest_status_by_pipeline", "The latest run of every pipeline"),
    "clients": Question("latest_status_by_client", "The state of every client"),
    "flaky": Question("flaky_pipelines", "Which pipelines flip between success and failure"),
    "failures": Question("failures_over_time", "Failures over time"),
    "platforms": Question("failure_rate_by_platform", "Failure rate by platform"),
    "durations": Question("duration_distribution", "How long runs take"),
}
"""By the last part of the path."""
_LIMITS: dict[str, Any] = {"threshold": {"ge": 0, "le": 1}}

_TAKEN = {"text": str, "timestamptz": Time, "float8": Annotated[float, Field(allow_inf_nan=False)], "int4": Integer}
_GIVEN = {
    "uuid": UUID,
    "text": str | None,
    "timestamptz": datetime | None,
    "float8": float | None,
    "int8": int,
    "int4": int,
    "bool": bool,
}
_NEVER_NULL = {"client_slug", "client_name", "pipeline_slug", "pipeline_name", "platform", "environment", "label"}
_MAY_BE_NULL = {"threshold", "window_minutes"}
_ABSENT: Any = SkipJsonSchema[None]  # type: ignore[misc]
# The API refers to clients and pipelines by id or slug.
_REFERENCES = {
    "client_slug": ("client_id", "Only this client: its id or slug."),
    "pipeline_slug": ("pipeline_id", "Only this pipeline: its id or `client/pipeline`."),
}


def add_question(router: APIRouter, path: str, name: str, question: Question) -> None:
    """A route that answers a named query. `name` is that of the route."""
    query = queries()[question.query]
    model = "".join(word.capitalize() for word in query.name.split("_"))
    given: Any = create_model(model, __base__=Out, **dict(map(_column, query.columns)))
    parameters = dict(map(_parameter, query.parameters))
    if any(parameter.type == "timestamptz" for parameter in query.parameters):
        parameters = {"timezone": (TimeZone | _ABSENT, TIMEZONE), **parameters}
    taken = create_model(f"{model}Query", __base__=Parameters, **parameters)
    router.add_api_route(
        path,
        _endpoint(query.name, taken),
        name=name,
        summary=question.summary,
        response_model=Page[given],
        responses=documented(400, 404),
        description=f"{query.answers}\n\nThe list is complete: `next_cursor` is null.",
    )


def _column(column: Column) -> tuple[str, Any]:
    kind: Any = str if column.name in _NEVER_NULL else _GIVEN[column.type]
    kind = kind | None if column.name in _MAY_BE_NULL else kind
    return column.name, (kind, Field(description=column.meaning or None))


def _parameter(parameter: Parameter) -> tuple[str, Any]:
    name, meaning = _REFERENCES.get(parameter.name, (parameter.name, parameter.meaning))
    kind: Any = Literal[parameter.choices] if parameter.choices else _TAKEN[parameter.type]
    if name == "timezone":
        kind = TimeZone
    default = "" if parameter.default == "null" else f"Default: {parameter.default}."
    return name, (
        kind | _ABSENT,
        Field(None, description=f"{meaning} {default}".strip() or None, **_LIMITS.get(parameter.name, {})),
    )


def _endpoint(name: str, taken: Any) -> Callable[..., dict[str, Any]]:
    def endpoint(query: Annotated[taken, Query()], ledger: Ledger) -> dict[str, Any]:
        given = query.model_dump()
        _check_window(given.get("since"), given.get("until"), datetime.now(UTC))
        if "timezone" not in {parameter.name for parameter in queries()[name].parameters}:
            given.pop("timezone", None)
        return {"items": ledger.ask(name, **_resolve(ledger, given)), "next_cursor": None}

    return endpoint


def _check_window(since: datetime | None, until: datetime | None, now: datetime) -> None:
    if since is not None and since > now:
        raise InputError("since", "must not be in the future")
    if since is not None and until is not None and since >= until:
        raise InputError("since", "must be before until")


def _resolve(ledger: Warehouse, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the query. Raises NotFound for a client or pipeline that does not exist."""
    client, pipeline = given.pop("client_id", None), given.pop("pipeline_id", None)
    if client is not None:
        given["client_slug"] = ledger.clients.get(client).slug
    if pipeline is not None:
        found = ledger.pipelines.get(pipeline)
        if given.setdefault("client_slug", found.client_slug) != found.client_slug:
            raise InputError("pipeline_id", "is a pipeline of another client; leave client_id out")
        given["pipeline_slug"] = found.slug
    return given


for _path, _question in QUESTIONS.items():
    add_question(router, f"/{_path}", f"health_{_path}", _question)

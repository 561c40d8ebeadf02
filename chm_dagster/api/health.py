"""The routes of the questions about health. Each is a named query of the SQL contract, and adds nothing to it.

What a route takes and gives is read from the query's own description: whoever adds a column there adds it here.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, create_model
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.api.answers import Out, Page
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import In, Integer, Moment
from chm_dagster.errors import InputError
from chm_dagster.warehouse.contract import Column, Parameter, queries
from chm_dagster.warehouse.contract import Query as NamedQuery
from chm_dagster.warehouse.warehouse import Warehouse

router = APIRouter(prefix="/api/v1/health", tags=["health"])

QUESTIONS = {
    "failing": "failing_now",
    "changed": "changed_since",
    "latest": "latest_status_by_pipeline",
    "clients": "latest_status_by_client",
    "flaky": "flaky_pipelines",
    "failures": "failures_over_time",
    "platforms": "failure_rate_by_platform",
    "durations": "duration_distribution",
}
"""Last part of the path: name of the query."""

_TAKEN = {"text": str, "timestamptz": Moment, "float8": Annotated[float, Field(allow_inf_nan=False)], "int4": Integer}
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
_ABSENT: Any = SkipJsonSchema[None]  # type: ignore[misc]
# Clients and pipelines are named here as everywhere in the API: by id or slug.
_REFERENCES = {
    "client_slug": ("client", "Only this client: its id or slug."),
    "pipeline_slug": ("pipeline", "Only this pipeline: its id or `client/pipeline`."),
}


def _add_route(path: str, query: NamedQuery) -> None:
    name = "".join(word.capitalize() for word in query.name.split("_"))
    given: Any = create_model(name, __base__=Out, **dict(map(_column, query.columns)))
    taken = create_model(f"{name}Query", __base__=In, **dict(map(_parameter, query.parameters)))
    router.add_api_route(
        f"/{path}",
        _endpoint(query.name, taken),
        name=f"health_{path}",
        response_model=Page[given],
        responses=documented(400, 404),
        description=f"{query.answers}\n\nThe whole answer comes at once: `next_cursor` is null.",
    )


def _column(column: Column) -> tuple[str, Any]:
    kind = str if column.name in _NEVER_NULL else _GIVEN[column.type]
    return column.name, (kind, Field(description=column.meaning or None))


def _parameter(parameter: Parameter) -> tuple[str, Any]:
    name, meaning = _REFERENCES.get(parameter.name, (parameter.name, parameter.meaning))
    kind: Any = Literal[parameter.choices] if parameter.choices else _TAKEN[parameter.type]
    usual = "" if parameter.default == "null" else f"Without it: {parameter.default}."
    return name, (
        kind | _ABSENT,
        Field(None, description=f"{meaning} {usual}".strip() or None),
    )


def _endpoint(name: str, taken: Any) -> Callable[..., dict[str, Any]]:
    def endpoint(query: Annotated[taken, Query()], ledger: Ledger) -> dict[str, Any]:
        given = query.model_dump()
        if given.get("since") and given.get("until") and given["since"] >= given["until"]:
            raise InputError("since", "not before until; send an earlier time")
        return {"items": ledger.ask(name, **_resolve(ledger, given)), "next_cursor": None}

    return endpoint


def _resolve(ledger: Warehouse, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the query has them. Raises NotFound for a client or pipeline that does not exist."""
    client, pipeline = given.pop("client", None), given.pop("pipeline", None)
    if client is not None:
        given["client_slug"] = ledger.clients.get(client).slug
    if pipeline is not None:
        found = ledger.pipelines.get(pipeline)
        if given.setdefault("client_slug", found.client_slug) != found.client_slug:
            raise InputError("pipeline", "is a pipeline of another client; leave client out")
        given["pipeline_slug"] = found.slug
    return given


for _path, _name in QUESTIONS.items():
    _add_route(_path, queries()[_name])

"""The routes of health. Each is a named query of the SQL contract, and adds nothing to it.

Parameters and columns come from the description of the query: a column that is added there shows here.
"""

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, create_model

from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import Integer, Ledger, Out, Page, Parameters, Time
from chm_dagster.warehouse.named_queries import Column, queries
from chm_dagster.warehouse.scope import arguments, parameter_fields

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
    "errors": Question("error_groups", "Which errors made runs fail"),
    "failed_runs": Question("failed_runs", "Which runs failed"),
    "platforms": Question("failure_rate_by_platform", "Failure rate by platform"),
    "durations": Question("duration_distribution", "How long runs take"),
}
"""By the last part of the path."""
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


def add_question(router: APIRouter, path: str, name: str, question: Question) -> None:
    """A route that answers a named query. `name` is that of the route."""
    query = queries()[question.query]
    model = "".join(word.capitalize() for word in query.name.split("_"))
    given: Any = create_model(model, __base__=Out, **dict(map(_column, query.columns)))
    taken = create_model(f"{model}Query", __base__=Parameters, **parameter_fields(query, _TAKEN))
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


def _endpoint(name: str, taken: Any) -> Callable[..., dict[str, Any]]:
    def endpoint(query: Annotated[taken, Query()], ledger: Ledger) -> dict[str, Any]:
        given = arguments(ledger, name, query.model_dump())
        return {"items": ledger.ask(name, **given), "next_cursor": None}

    return endpoint


for _path, _question in QUESTIONS.items():
    add_question(router, f"/{_path}", f"health_{_path}", _question)

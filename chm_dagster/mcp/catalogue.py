"""What can be called: every named query of the SQL contract, and clients, pipelines, runs and reports.

Names, parameters and columns of the questions come from the contract. A query that is added there can be called here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, Strict, create_model

from chm_dagster.domain.fields import PastTime
from chm_dagster.domain.nouns import Input
from chm_dagster.domain.pipelines import Environment, Platform
from chm_dagster.domain.runs import Run, RunKind, RunStatus
from chm_dagster.domain.schedule import TimeZone
from chm_dagster.errors import NotFound
from chm_dagster.mcp.bounds import MAX_CHARS, fitted
from chm_dagster.reporting import FORMATS, build
from chm_dagster.warehouse.named_queries import Column, Query, queries
from chm_dagster.warehouse.scope import ABSENT, TIMEZONE, arguments, parameter_fields
from chm_dagster.warehouse.warehouse import Warehouse

DEFAULT_ROWS = 50
MAX_ROWS = 200
MAX_ERROR_CHARS = 10_000
"""The length of the texts of a single run."""

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Integer = Annotated[int, Strict()]
_TYPES = {"text": str, "timestamptz": PastTime, "float8": _Number, "int4": _Integer}
_JSON_TYPES = {"int8": "integer", "int4": "integer", "float8": "number", "bool": "boolean"}


class _Rows(Input):
    limit: Annotated[int, Strict()] = Field(DEFAULT_ROWS, ge=1, le=MAX_ROWS, description="At most this many rows.")


class _Excerpt(_Rows):
    offset: Annotated[int, Strict()] = Field(0, ge=0, le=1_000_000, description="How many rows to leave out first.")


class _List(_Rows):
    cursor: str | ABSENT = Field(None, description="The `next_cursor` of the answer before.")


class ClientsInput(_List):
    """Which clients."""

    is_active: bool | ABSENT = Field(None, description="False: only disabled ones. Left out: all.")


class PipelinesInput(ClientsInput):
    """Which pipelines."""

    client_id: str | ABSENT = Field(None, description="Only this client: its id or slug.")
    platform: Platform | ABSENT = None
    environment: Environment | ABSENT = None


class RunsInput(_List):
    """Which runs."""

    pipeline_id: str = Field(description="The pipeline: its id or `client/pipeline`.")
    timezone: TimeZone | ABSENT = TIMEZONE
    status: RunStatus | ABSENT = None
    kind: RunKind | ABSENT = None
    since: PastTime | ABSENT = Field(None, description="From this time on: ISO 8601, or a span before now such as 24h.")
    until: PastTime | ABSENT = Field(None, description="Before this time.")
    order: Literal["asc", "desc"] = Field("desc", description="By effective time; `desc`: the latest first.")


class RunInput(Input):
    """Which run."""

    pipeline_id: str = Field(description="The pipeline: its id or `client/pipeline`.")
    external_run_id: str | ABSENT = Field(None, description="The run's id at the partner. Left out: the latest run.")


class ReportInput(Input):
    """Which report."""

    client_id: str = Field(description="The client: its id or slug.")
    week: str | ABSENT = Field(None, description="An ISO week such as 2026-W47. Left out: the last one that is over.")
    month: str | ABSENT = Field(None, description="A month such as 2026-10, instead of a week.")


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """One thing that can be called: its description, its arguments and its answer as JSON Schema."""

    name: str
    description: str
    takes: type[Input]
    gives: dict[str, Any]
    answer: Callable[[Warehouse, Any], dict[str, Any]]

    def call(self, warehouse: Warehouse, sent: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to these arguments. Raises InputError, NotFound, DatabaseUnavailable."""
        return self.answer(warehouse, self.takes.read(sent))


def _question(query: Query) -> Tool:
    fields = parameter_fields(query, _TYPES)
    takes: type[Input] = create_model(query.name, __base__=_Excerpt, __doc__="Filters.", **fields)

    def answer(warehouse: Warehouse, sent: Any) -> dict[str, Any]:
        given = arguments(warehouse, query.name, sent.model_dump(exclude={"limit", "offset"}))
        return fitted(lambda limit: _excerpt(warehouse, query.name, given, limit, sent.offset), sent.limit)

    return Tool(query.name, query.answers, takes, _rows_of(query.columns), answer)


def _excerpt(warehouse: Warehouse, name: str, given: Mapping[str, Any], limit: int, offset: int) -> dict[str, Any]:
    found = warehouse.excerpt(name, first=limit, skip=offset, **given)
    total = found.total
    if offset and not found.rows:
        # Beyond the end, no row says how many there are.
        total = warehouse.excerpt(name, first=1, **given).total
    return {"rows": found.rows, "total": total, "left_out": total - len(found.rows)}


def _clients(warehouse: Warehouse, sent: ClientsInput) -> dict[str, Any]:
    def page(limit: int) -> dict[str, Any]:
        found = warehouse.clients.list(active=sent.is_active, limit=limit, cursor=sent.cursor)
        return {"rows": [one.as_dict() for one in found.items], "next_cursor": found.next_cursor}

    return fitted(page, sent.limit)


def _pipelines(warehouse: Warehouse, sent: PipelinesInput) -> dict[str, Any]:
    given = sent.model_dump(include={"platform", "environment", "cursor"})
    given |= {"client": sent.client_id, "active": sent.is_active}

    def page(limit: int) -> dict[str, Any]:
        found = warehouse.pipelines.list(**given, limit=limit)
        rows = [{"key": one.key, **one.as_dict()} for one in found.items]
        return {"rows": rows, "next_cursor": found.next_cursor}

    return fitted(page, sent.limit)


def _runs(warehouse: Warehouse, sent: RunsInput) -> dict[str, Any]:
    given = sent.model_dump(exclude={"limit", "pipeline_id", "timezone"})

    def page(limit: int) -> dict[str, Any]:
        found = warehouse.runs.list(sent.pipeline_id, **given, limit=limit)
        return {"rows": [_run_fields(run) for run in found.items], "next_cursor": found.next_cursor}

    return fitted(page, sent.limit)


def _run(warehouse: Warehouse, sent: RunInput) -> dict[str, Any]:
    if sent.external_run_id is None:
        run = warehouse.runs.latest(sent.pipeline_id)
        if run is None:
            raise NotFound(f"pipeline '{sent.pipeline_id}' never ran")
    else:
        run = warehouse.runs.get(sent.pipeline_id, sent.external_run_id)
    return fitted(lambda _: {"run": _run_fields(run)}, 1, max_chars=MAX_ERROR_CHARS)


def _run_fields(run: Run) -> dict[str, Any]:
    # What the partner sent as it is may be large, and holds personal data.
    return {name: value for name, value in run.as_dict().items() if name != "payload"}


def _report(warehouse: Warehouse, sent: ReportInput) -> dict[str, Any]:
    built = build(warehouse.engine, sent.client_id, sent.week, sent.month, datetime.now(UTC))
    write, _ = FORMATS["json"]
    whole = orjson.loads(write(built.report))
    return fitted(lambda _: {"report": whole}, MAX_ROWS)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_COUNT = {"type": "integer", "minimum": 0}
_CUT = {
    "cut_texts": {**_COUNT, "description": "How many texts were cut."},
    "cut_items": {**_COUNT, "description": "How many items of lists inside of it were left out."},
}


def _rows_of(columns: tuple[Column, ...]) -> dict[str, Any]:
    row = _object({column.name: _column(column) for column in columns})
    left = {**_COUNT, "description": "How many of the rows in all are not in this answer."}
    return _object({"rows": {"type": "array", "items": row}, "total": _COUNT, "left_out": left, **_CUT})


def _column(column: Column) -> dict[str, Any]:
    described = {"description": column.meaning} if column.meaning else {}
    many = column.type.startswith("_") or column.type.endswith("[]")
    return {"type": ["array" if many else _JSON_TYPES.get(column.type, "string"), "null"], **described}


_NEXT = {"type": ["string", "null"], "description": "Send it as `cursor` for the rows after these; null ends the list."}
_LIST = _object({"rows": {"type": "array", "items": {"type": "object"}}, "next_cursor": _NEXT, **_CUT})

_NOUNS = (
    Tool("list_clients", "The clients, by slug.", ClientsInput, _LIST, _clients),
    Tool("list_pipelines", "Pipelines with their settings, by client and slug.", PipelinesInput, _LIST, _pipelines),
    Tool("list_runs", f"Runs of a pipeline. Texts over {MAX_CHARS} characters are cut.", RunsInput, _LIST, _runs),
    Tool(
        "get_run",
        "One run of a pipeline, with its whole error message.",
        RunInput,
        _object({"run": {"type": "object"}, **_CUT}),
        _run,
    ),
    Tool(
        "client_report",
        "The report that a client is owed on a week or a month, in the client's time zone. Nothing is issued or sent.",
        ReportInput,
        _object({"report": {"type": "object"}, **_CUT}),
        _report,
    ),
)
TOOLS: dict[str, Tool] = {one.name: one for one in (*map(_question, queries().values()), *_NOUNS)}
"""By name."""

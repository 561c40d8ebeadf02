"""The routes of runs and of heartbeats, which record runs of their own."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.api import schemas
from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import ClientReference, Ledger, Parameters, PipelineReference, RunQuery, WindowQuery
from chm_dagster.domain.limits import MAX_ERROR_BYTES, MAX_KEY_CHARS, MAX_RUN_ID_CHARS
from chm_dagster.domain.runs import NewRun, Run, RunWithoutPayload
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse.ledger.heartbeats import Ping, Signal, ping
from chm_dagster.warehouse.ledger.runs import ClientSummary
from chm_dagster.warehouse.paging import Page
from chm_dagster.warehouse.warehouse import Warehouse

runs = APIRouter(prefix="/api/v1", tags=["runs"])

_KEY = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=MAX_KEY_CHARS,
        description="The same key returns the run that it recorded; with another body it is a conflict.",
    ),
]


@runs.get(
    "/pipelines/{pipeline_id:pipeline}/runs",
    response_model=schemas.Page[RunWithoutPayload],
    responses=documented(400, 404),
)
def list_runs(pipeline_id: PipelineReference, query: Annotated[RunQuery, Query()], ledger: Ledger) -> Page[Run]:
    """A pipeline's runs, the latest first. A window is about their effective time."""
    return ledger.runs.list(pipeline_id, **query.filters)


@runs.post(
    "/pipelines/{pipeline_id:pipeline}/runs",
    status_code=201,
    # 405: `/pipelines/orders/runs` lacks the client, and so names a pipeline `runs`, to which nothing can be posted.
    responses=documented(400, 404, 405, 409),
)
def record_run(pipeline_id: PipelineReference, sent: NewRun, ledger: Ledger, key: _KEY = None) -> schemas.RecordedRun:
    """Record a run by hand. Sent again under its `external_run_id`, it is updated."""
    run, outcome = ledger.runs.record(pipeline_id, sent, idempotency_key=key)
    return schemas.RecordedRun.model_construct(**run.as_dict(), outcome=outcome)


@runs.get("/pipelines/{pipeline_id:pipeline}/runs/latest", response_model=Run, responses=documented(404))
def latest_run(pipeline_id: PipelineReference, ledger: Ledger) -> Run:
    """The latest run of a pipeline; 404 if it never ran."""
    run = ledger.runs.latest(pipeline_id)
    if run is None:
        raise NotFound(f"pipeline '{pipeline_id}' never ran")
    return run


@runs.get("/clients/{client_id}/runs/summary", response_model=schemas.ClientSummary, responses=documented(400, 404))
def summarize_runs(client_id: ClientReference, query: Annotated[WindowQuery, Query()], ledger: Ledger) -> ClientSummary:
    """A client's runs by status in a window, by default the last 30 days, and the latest run of each pipeline."""
    return ledger.runs.summary(client_id, query.since, query.until)


heartbeats = APIRouter(prefix="/ping", tags=["heartbeats"])

MAX_MESSAGE_BYTES = MAX_ERROR_BYTES - 100
"""Of a longer body the end is kept, where the error is. The rest is room for the exit status."""
_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "disk full"}}


class PingQuery(Parameters):
    """Which run a ping is about."""

    rid: str | SkipJsonSchema[None] = Field(
        None,
        max_length=MAX_RUN_ID_CHARS,
        description="The run's id, such as its date. With an id, a ping can be repeated safely.",
    )
    run_id: str | SkipJsonSchema[None] = Field(None, max_length=MAX_RUN_ID_CHARS, description="The same as `rid`.")

    @property
    def named(self) -> str | None:
        """The run's id, by whichever of the two names. Raises InputError if they differ."""
        if self.rid is not None and self.run_id is not None and self.rid != self.run_id:
            raise InputError("run_id", "is not rid; send one of the two")
        return self.rid if self.rid is not None else self.run_id


class FailQuery(PingQuery):
    """Which run a ping is about, and how it ended."""

    exit_status: int | SkipJsonSchema[None] = Field(None, ge=-255, le=255, description="The job's exit status.")


_Run = Annotated[PingQuery, Query()]
_FailedRun = Annotated[FailQuery, Query()]


async def _message(request: Request) -> str:
    """The body as text, whatever its declared type; the end of it if it is long."""
    body = await request.body()
    text = body[-MAX_MESSAGE_BYTES:].decode(errors="replace")
    return text if len(body) <= MAX_MESSAGE_BYTES else f"... {text}"


_Message = Annotated[str, Depends(_message)]
_Code = Annotated[int, Path(ge=0, le=255, description="The job's exit status: 0 is a success.", examples=[0])]
_PING: Any = {"response_model": schemas.Ping, "responses": documented(400, 404, 409)}
_REASON = {"description": "Why, such as the end of the job's log.", "content": _TEXT}
_WHY: Any = {"openapi_extra": {"requestBody": _REASON}}
_START, _SUCCESS, _FAIL = (f"/{{pipeline_id:pipeline}}/{word}" for word in ("start", "success", "fail"))
_ALONE, _EXIT = "/{pipeline_id:pipeline}", "/{pipeline_id:pipeline}/{exit_status:int}"


@heartbeats.head(_START, include_in_schema=False)
@heartbeats.get(_START, summary="Report a start", **_PING, operation_id="ping_start_by_get")
@heartbeats.post(_START, summary="Report a start", **_PING)
def ping_start(pipeline_id: PipelineReference, run: _Run, ledger: Ledger) -> Ping:
    """The job starts. A repetition changes nothing. After the end of a run that had started, it is a new attempt."""
    return ping(ledger.engine, pipeline_id, Signal.START, run_id=run.named)


@heartbeats.head(_ALONE, include_in_schema=False)
@heartbeats.get(_ALONE, summary="Report a success", **_PING, operation_id="ping_by_get")
@heartbeats.post(_ALONE, summary="Report a success", **_PING, operation_id="ping")
@heartbeats.head(_SUCCESS, include_in_schema=False)
@heartbeats.get(_SUCCESS, summary="Report a success", **_PING, operation_id="ping_success_by_get")
@heartbeats.post(_SUCCESS, summary="Report a success", **_PING)
def ping_success(pipeline_id: PipelineReference, run: _Run, ledger: Ledger) -> Ping:
    """The job succeeded. Ends the run with this id, else the oldest running one, else records a run without a start.

    `/ping/{pipeline_id}` alone is the same.
    """
    return ping(ledger.engine, pipeline_id, Signal.SUCCESS, run_id=run.named)


@heartbeats.head(_FAIL, include_in_schema=False)
@heartbeats.get(_FAIL, summary="Report a failure", **_PING)
def ping_fail_by_get(pipeline_id: PipelineReference, run: _FailedRun, ledger: Ledger) -> Ping:
    """The job has failed; success says which run it is. POST takes the reason."""
    return ping(ledger.engine, pipeline_id, Signal.FAIL, run_id=run.named, exit_status=run.exit_status)


@heartbeats.post(_FAIL, summary="Report a failure", **_PING, **_WHY)
def ping_fail(pipeline_id: PipelineReference, run: _FailedRun, message: _Message, ledger: Ledger) -> Ping:
    """The job has failed; success says which run it is. The body may say why; of a long one the end is kept."""
    return ping(ledger.engine, pipeline_id, Signal.FAIL, run_id=run.named, message=message, exit_status=run.exit_status)


@heartbeats.head(_EXIT, include_in_schema=False)
@heartbeats.get(_EXIT, summary="Report an exit status", **_PING)
def ping_exit_by_get(pipeline_id: PipelineReference, exit_status: _Code, run: _Run, ledger: Ledger) -> Ping:
    """The job has ended with this exit status: 0 is a success, anything else a failure."""
    return _exited(ledger, pipeline_id, exit_status, run, None)


@heartbeats.post(_EXIT, summary="Report an exit status", **_PING, **_WHY)
def ping_exit(pipeline_id: PipelineReference, exit_status: _Code, run: _Run, message: _Message, ledger: Ledger) -> Ping:
    """The job has ended with this exit status: 0 is a success, anything else a failure, of which the body says why."""
    return _exited(ledger, pipeline_id, exit_status, run, message)


def _exited(ledger: Warehouse, pipeline_id: str, exit_status: int, run: PingQuery, message: str | None) -> Ping:
    if exit_status == 0:
        return ping(ledger.engine, pipeline_id, Signal.SUCCESS, run_id=run.named)
    return ping(ledger.engine, pipeline_id, Signal.FAIL, run_id=run.named, message=message, exit_status=exit_status)

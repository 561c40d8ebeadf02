"""The routes of heartbeats: jobs that tell of themselves, with no more than `curl`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.api import answers
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.paths import PipelineReference
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import In
from chm_dagster.domain.runs import MAX_ERROR_BYTES, MAX_RUN_ID_CHARS
from chm_dagster.errors import InputError
from chm_dagster.warehouse.heartbeats import Ping, Signal, ping

router = APIRouter(prefix="/ping", tags=["heartbeats"])

MAX_MESSAGE_BYTES = MAX_ERROR_BYTES - 100
"""Of a longer body the end is kept: that is where the error stands. The rest is room for the exit status."""
_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "disk full"}}


class PingQuery(In):
    """Which run a ping is about."""

    rid: str | SkipJsonSchema[None] = Field(
        None,
        max_length=MAX_RUN_ID_CHARS,
        description="The run's id, such as its date. With it a ping may be repeated; without it that is another ping.",
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
    """The body as text, whatever the caller says that it is; the end of it if it is long."""
    body = await request.body()
    text = body[-MAX_MESSAGE_BYTES:].decode(errors="replace")
    return text if len(body) <= MAX_MESSAGE_BYTES else f"... {text}"


_Message = Annotated[str, Depends(_message)]
_ANSWERS = documented(400, 404, 409)


@router.get(
    "/{pipeline_id:pipeline}/start", response_model=answers.Ping, responses=_ANSWERS, operation_id="ping_start_by_get"
)
@router.post("/{pipeline_id:pipeline}/start", response_model=answers.Ping, responses=_ANSWERS)
def ping_start(pipeline_id: PipelineReference, run: _Run, ledger: Ledger) -> Ping:
    """The job starts. Said again of the same run, or after its end, it changes nothing."""
    return ping(ledger.engine, pipeline_id, Signal.START, run_id=run.named)


@router.get(
    "/{pipeline_id:pipeline}/success",
    response_model=answers.Ping,
    responses=_ANSWERS,
    operation_id="ping_success_by_get",
)
@router.post("/{pipeline_id:pipeline}/success", response_model=answers.Ping, responses=_ANSWERS)
def ping_success(pipeline_id: PipelineReference, run: _Run, ledger: Ledger) -> Ping:
    """The job is done: the run of this id, else the newest one that still goes, else one of which no start was told."""
    return ping(ledger.engine, pipeline_id, Signal.SUCCESS, run_id=run.named)


@router.get("/{pipeline_id:pipeline}/fail", response_model=answers.Ping, responses=_ANSWERS)
def ping_fail_by_get(pipeline_id: PipelineReference, run: _FailedRun, ledger: Ledger) -> Ping:
    """The job has failed; which run, see success. POST can say why."""
    return ping(ledger.engine, pipeline_id, Signal.FAIL, run_id=run.named, exit_status=run.exit_status)


@router.post(
    "/{pipeline_id:pipeline}/fail",
    response_model=answers.Ping,
    responses=_ANSWERS,
    openapi_extra={"requestBody": {"description": "Why, such as the end of the job's log.", "content": _TEXT}},
)
def ping_fail(pipeline_id: PipelineReference, run: _FailedRun, message: _Message, ledger: Ledger) -> Ping:
    """The job has failed; which run, see success. The body may say why; of a long one the end is kept."""
    return ping(ledger.engine, pipeline_id, Signal.FAIL, run_id=run.named, message=message, exit_status=run.exit_status)

"""The routes of runs."""

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Header, Query

from chm_dagster.api import answers
from chm_dagster.api.bodies import SentRun
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.paths import ClientReference, PipelineReference
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import RunQuery, WindowQuery
from chm_dagster.domain.runs import Run
from chm_dagster.errors import NotFound
from chm_dagster.warehouse.paging import Page
from chm_dagster.warehouse.recording import MAX_KEY_CHARS
from chm_dagster.warehouse.summary import ClientSummary

router = APIRouter(prefix="/api/v1", tags=["runs"])

_KEY = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=MAX_KEY_CHARS,
        description="The same key finds the same run again, however often it is sent; another body is a conflict.",
    ),
]


@router.get(
    "/pipelines/{pipeline_id:pipeline}/runs",
    response_model=answers.Page[answers.RunWithoutPayload],
    responses=documented(400, 404),
)
def list_runs(pipeline_id: PipelineReference, query: Annotated[RunQuery, Query()], ledger: Ledger) -> Page[Run]:
    """A pipeline's runs, the latest first. A window leaves out runs whose start is not known."""
    return ledger.runs.list(pipeline_id, **query.filters)


@router.post(
    "/pipelines/{pipeline_id:pipeline}/runs",
    status_code=201,
    # 405: `/pipelines/orders/runs` lacks the client, and so names a pipeline `runs`, to which nothing can be posted.
    responses=documented(400, 404, 405, 409),
)
def record_run(pipeline_id: PipelineReference, sent: SentRun, ledger: Ledger, key: _KEY = None) -> answers.RecordedRun:
    """Record a run by hand. Told again under its `external_run_id`, it takes on what is new."""
    run, outcome = ledger.runs.record(pipeline_id, sent, idempotency_key=key)
    return answers.RecordedRun(**dataclasses.asdict(run), outcome=outcome)


@router.get("/pipelines/{pipeline_id:pipeline}/runs/latest", response_model=answers.Run, responses=documented(404))
def latest_run(pipeline_id: PipelineReference, ledger: Ledger) -> Run:
    """The latest run of a pipeline; 404 also if it never ran."""
    run = ledger.runs.latest(pipeline_id)
    if run is None:
        raise NotFound(f"pipeline '{pipeline_id}' never ran")
    return run


@router.get("/clients/{client_id}/runs/summary", response_model=answers.ClientSummary, responses=documented(400, 404))
def summarize_runs(client_id: ClientReference, query: Annotated[WindowQuery, Query()], ledger: Ledger) -> ClientSummary:
    """How a client's runs ended in a window, by default the last 30 days, and how its pipelines stand now."""
    return ledger.runs.summary(client_id, query.since, query.until)

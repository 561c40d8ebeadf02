"""The routes of pipelines."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from chm_dagster.api import answers
from chm_dagster.api.bodies import SentPipeline, SentPipelineChanges, SentPipelineOfClient
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.paths import ClientReference, PipelineReference
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import AnyPipelineQuery, PipelineQuery
from chm_dagster.domain.forms import reference
from chm_dagster.domain.inventory import Pipeline
from chm_dagster.errors import InputError
from chm_dagster.warehouse.paging import Page

router = APIRouter(prefix="/api/v1", tags=["pipelines"])


@router.get("/pipelines", response_model=answers.Page[answers.Pipeline], responses=documented(400, 404))
def list_pipelines(query: Annotated[AnyPipelineQuery, Query()], ledger: Ledger) -> Page[Pipeline]:
    """Pipelines by client and slug. Those that are disabled, or whose client is, only if asked for."""
    return ledger.pipelines.list(client=query.client, **query.filters)


@router.post("/pipelines", status_code=201, response_model=answers.Pipeline, responses=documented(400, 404, 409))
def create_pipeline(sent: SentPipeline, ledger: Ledger) -> Pipeline:
    """Make a pipeline; its slug is made from its name unless one is sent."""
    fields = dict(sent)
    client = fields.pop("client_id", None)
    if client is None:
        raise InputError("client_id", "missing; send the id or the slug of its client")
    return ledger.pipelines.create(reference(client, "client_id"), fields)


@router.get(
    "/clients/{client_id}/pipelines", response_model=answers.Page[answers.Pipeline], responses=documented(400, 404)
)
def list_pipelines_of_client(
    client_id: ClientReference, query: Annotated[PipelineQuery, Query()], ledger: Ledger
) -> Page[Pipeline]:
    """A client's pipelines by slug; the disabled ones only if asked for."""
    return ledger.pipelines.list(client=client_id, **query.filters)


@router.post(
    "/clients/{client_id}/pipelines",
    status_code=201,
    response_model=answers.Pipeline,
    responses=documented(400, 404, 409),
)
def create_pipeline_of_client(client_id: ClientReference, sent: SentPipelineOfClient, ledger: Ledger) -> Pipeline:
    """Make a pipeline of this client; its slug is made from its name unless one is sent."""
    return ledger.pipelines.create(client_id, sent)


@router.get("/pipelines/{pipeline_id:pipeline}", response_model=answers.Pipeline, responses=documented(404))
def get_pipeline(pipeline_id: PipelineReference, ledger: Ledger) -> Pipeline:
    """A pipeline, also a disabled one."""
    return ledger.pipelines.get(pipeline_id)


@router.patch("/pipelines/{pipeline_id:pipeline}", response_model=answers.Pipeline, responses=documented(400, 404, 409))
def update_pipeline(pipeline_id: PipelineReference, sent: SentPipelineChanges, ledger: Ledger) -> Pipeline:
    """Change what is sent, and leave the rest."""
    return ledger.pipelines.update(pipeline_id, sent)


@router.delete("/pipelines/{pipeline_id:pipeline}", status_code=204, response_class=Response, responses=documented(404))
def disable_pipeline(pipeline_id: PipelineReference, ledger: Ledger) -> None:
    """Disable a pipeline: it is ingested no longer, its history stays. PATCH brings it back."""
    ledger.pipelines.disable(pipeline_id)

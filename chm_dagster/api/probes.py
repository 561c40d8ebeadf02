"""For machines that watch the server: does it live, can it serve, and how is it doing."""

import functools
from typing import Literal

import anyio
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import Response

from chm_dagster.api.problems import documented, problem, unguarded
from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse import revision

router = APIRouter(tags=["operations"])

READY_SECONDS = 5.0
# Of their own, so that probes do not queue up behind the requests that they are to tell of.
_threads = functools.cache(lambda: anyio.CapacityLimiter(2))


class Alive(BaseModel):
    """The process serves."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Requests can be served."""

    status: Literal["ready"] = "ready"
    revision: str = Field(description="The database's migration level, which is this release's.", examples=["0001"])


@router.get("/healthz", responses=unguarded())
async def liveness() -> Alive:
    """Whether the process serves at all; the database is not asked."""
    return Alive()


@router.get("/readyz", response_model=Ready, responses=unguarded())
async def readiness(request: Request) -> Ready | Response:
    """Whether the database answers and is at the migration level of this release; 503 says what is in the way."""
    engine = request.app.state.warehouse.engine
    try:
        with anyio.fail_after(READY_SECONDS):
            found = await anyio.to_thread.run_sync(revision.found, engine, abandon_on_cancel=True, limiter=_threads())
    except (DatabaseUnavailable, TimeoutError):
        return problem(503, "the database does not answer")
    if found != revision.newest():
        level = "was never migrated" if found is None else f"is at revision {found}"
        return problem(503, f"the database {level}, this release needs {revision.newest()}: run `chm migrate`")
    return Ready(revision=found)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented()},
)
def metrics(request: Request) -> Response:
    """Metrics for Prometheus: requests by route, and how many pipelines of which client are failing now."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)

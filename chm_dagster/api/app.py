"""The application: routers over a warehouse, and the middleware around them.

A new noun is a router whose prefix is its whole path, and a line in `ROUTERS`. Authentication, limits,
error responses, metrics and the OpenAPI description then cover it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from chm_dagster.api import alerts, errors, health, lineage, openapi, operations, pages, reports
from chm_dagster.api.admission import Authentication, HeadRequests, Limits
from chm_dagster.api.inventory import LONGEST_BACK_TEST, alert_rules, back_tests, clients, pipelines
from chm_dagster.api.mcp import Mcp, route
from chm_dagster.api.operations import Observer, registry_for
from chm_dagster.api.runs import heartbeats, runs
from chm_dagster.board.answers import Answers
from chm_dagster.errors import ChmError
from chm_dagster.ingestion.lineage import UnmatchedEvents
from chm_dagster.sessions import Sessions
from chm_dagster.warehouse.api_uptime import MARK_SECONDS, mark_api_up
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse

logger = logging.getLogger(__name__)

ROUTERS = (
    clients,
    pipelines,
    runs,
    alert_rules,
    back_tests,
    alerts.router,
    reports.router,
    health.router,
    heartbeats,
    lineage.router,
    operations.router,
    pages.router,
)
POOL_SIZE = 10
"""The pool size of the warehouse's engine. SQLAlchemy adds ten connections if needed."""
_THREADS = POOL_SIZE + 6
# Fewer threads than connections: requests wait for a thread, in turn, but never for a connection.
PROBE_SECONDS = 2
"""How long health and metrics endpoints may read the database."""


def create_app(
    warehouse: Warehouse, *, token: str | None = None, unmatched_events: UnmatchedEvents | None = None
) -> FastAPI:
    """The app over this warehouse. Without a token it serves only requests from its own machine.

    `unmatched_events` stores OpenLineage events that match no pipeline of the inventory.
    """
    app = bare_app()
    app.state.warehouse = warehouse
    app.state.probes = warehouse.with_timeout(PROBE_SECONDS)
    app.state.answers = Answers(warehouse)
    app.state.longest_back_test = LONGEST_BACK_TEST
    app.state.sessions = sessions = None if token is None else Sessions(token, pages.COOKIE)
    app.state.unmatched_events = unmatched_events
    app.state.registry, requests = registry_for(app.state.probes)
    # The one added last is the outermost.
    app.add_middleware(HeadRequests)
    app.add_middleware(Limits)
    app.add_middleware(Authentication, token=token, sessions=sessions)
    app.add_middleware(Observer, metrics=requests)
    return app


def bare_app() -> FastAPI:
    """Routes, error responses and OpenAPI description without a warehouse: what the contract is written from."""
    app = FastAPI(
        title="CHM API",
        version=version("chm-dagster"),
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        generate_unique_id_function=openapi.operation_id,
    )
    app.router.routes.extend(_routes())
    app.mount("/board", pages.FILES)
    app.state.mcp = Mcp()
    app.router.routes.append(route(app.state.mcp))
    openapi.install(app)
    errors.install(app)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """The endpoints. They know no app, so that all apps of a process share them: building their models takes long."""
    together = APIRouter(generate_unique_id_function=openapi.operation_id)
    for router in ROUTERS:
        together.include_router(router)
    return tuple(together.routes)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    engine = app.state.warehouse.engine
    tasks = asyncio.create_task(_keep_marking(engine)), asyncio.create_task(app.state.mcp.run(app.state.warehouse))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _mark(engine)


async def _keep_marking(engine: Engine) -> None:
    """Note that the API is up, again and again. It takes a thread like a request: where none is free, it is not up."""
    while True:
        await _mark(engine)
        await asyncio.sleep(MARK_SECONDS)


async def _mark(engine: Engine) -> None:
    try:
        await anyio.to_thread.run_sync(mark_api_up, engine)
    except ChmError as error:
        logger.warning("could not note that the API is up: %s", error)

"""The application: routers on a warehouse, and around them what every request passes through.

A new noun is a module with a `router` whose prefix is its whole path, and a line in `ROUTERS`. Guard, error answers,
metrics and contract hold for it at once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI

from chm_dagster.api import (
    alert_rules,
    clients,
    contract,
    docs,
    health,
    lineage,
    methods,
    pings,
    pipelines,
    probes,
    problems,
    runs,
)
from chm_dagster.api.guarding import Guard
from chm_dagster.api.metrics import registry_for
from chm_dagster.api.observing import Observer
from chm_dagster.ingestion.lineage import Shelf
from chm_dagster.warehouse.warehouse import Warehouse

ROUTERS = (
    clients.router,
    pipelines.router,
    runs.router,
    alert_rules.router,
    health.router,
    pings.router,
    lineage.router,
    probes.router,
)
POOL_SIZE = 10
"""What `make_engine` should be given for the warehouse; SQLAlchemy adds ten more at need."""
_THREADS = POOL_SIZE + 6
# Fewer threads than connections: a request may wait for a thread, which is its turn, but never for a connection.


def create_app(warehouse: Warehouse, *, token: str | None = None, shelf: Shelf | None = None) -> FastAPI:
    """The app on this warehouse. Without a token it serves only what comes from its own machine.

    The shelf keeps OpenLineage events of jobs that the inventory lacks.
    """
    app = bare_app()
    app.state.warehouse = warehouse
    app.state.shelf = shelf
    app.state.registry, requests = registry_for(warehouse)
    # The one added last is the outermost.
    app.add_middleware(Guard, token=token)
    app.add_middleware(Observer, metrics=requests)
    return app


def bare_app() -> FastAPI:
    """Routes, error answers and contract, without a warehouse: what the contract is written from."""
    app = FastAPI(
        title="CHM API",
        version=version("chm-dagster"),
        description=contract.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        generate_unique_id_function=contract.operation_id,
    )
    for router in ROUTERS:
        app.include_router(router)
    docs.install(app)
    problems.install(app)
    methods.install(app)
    contract.install(app)
    return app


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    yield

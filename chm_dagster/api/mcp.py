"""`/mcp`: the Model Context Protocol over HTTP, under the same rules of admission as everything else.

The protocol's library is loaded at the first request: few installations need it, and it takes a while.
"""

import asyncio
import importlib.util
from typing import Any

import anyio.to_thread
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chm_dagster.api.errors import problem
from chm_dagster.warehouse.warehouse import Warehouse

NOT_INSTALLED = "this server lacks the library mcp; install chm-dagster[mcp]"


class Mcp:
    """The ASGI application. `run` serves for as long as the API does."""

    def __init__(self) -> None:
        self._wanted: asyncio.Event | None = None
        self._sessions: asyncio.Future[Any] | None = None

    async def run(self, warehouse: Warehouse) -> None:
        """Wait for the first request; then serve until cancelled."""
        self._wanted = asyncio.Event()
        self._sessions = asyncio.get_running_loop().create_future()
        await self._wanted.wait()
        sessions = await anyio.to_thread.run_sync(_load, warehouse)
        async with sessions.run():
            self._sessions.set_result(sessions)
            await asyncio.Event().wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        refusal = self._refusal()
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        assert self._wanted is not None and self._sessions is not None  # noqa: S101 - for the type checker
        self._wanted.set()
        sessions = await asyncio.shield(self._sessions)
        await sessions.handle_request(scope, receive, send)

    def _refusal(self) -> Response | None:
        if importlib.util.find_spec("mcp") is None:
            return problem(503, NOT_INSTALLED)
        return problem(503, "CHM is starting or stopping") if self._sessions is None else None


def _load(warehouse: Warehouse) -> Any:
    from chm_dagster.mcp.server import http_sessions

    return http_sessions(warehouse)


def route(app: Mcp) -> Route:
    """The route. There are no streams of events, which GET would open, and no sessions, which DELETE would end."""
    return Route("/mcp", endpoint=app, methods=["POST"], name="mcp")

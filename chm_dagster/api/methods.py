"""The answer to a method that a path does not take, with all that it takes."""

import re
from collections.abc import Iterable

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.responses import Response

from chm_dagster.api.problems import problem


def install(app: FastAPI) -> None:
    """Starlette's own Allow names the methods of the first route of the path alone; GET and POST may be two routes."""
    routes = [(context.path_regex, context.methods) for context in iter_route_contexts(app.routes) if context.methods]

    async def refuse(request: Request, _: Exception) -> Response:
        return problem(405, headers={"Allow": ", ".join(allowed(routes, request.scope["path"]))})

    app.add_exception_handler(405, refuse)


def allowed(routes: Iterable[tuple[re.Pattern[str], set[str]]], path: str) -> list[str]:
    """The methods that these routes take for a path."""
    return sorted({method for pattern, methods in routes if pattern.match(path) for method in methods})

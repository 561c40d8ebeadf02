"""Error responses: one table from errors to statuses, one shape for all of them."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chm_dagster.domain.validation import issue
from chm_dagster.errors import Busy, ChmError, Conflict, DatabaseUnavailable, InputError, NotFound

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""What Retry-After says when the database does not answer, or somebody else is at work."""

# Status: its code, and the message where the error itself has none.
CODES: dict[int, tuple[str, str]] = {
    400: ("validation_error", "the request was refused: see details"),
    401: ("unauthorized", "send the header Authorization: Bearer <token>, with the token of this server"),
    403: ("forbidden", "without CHM_API_TOKEN this server accepts requests from its own machine only"),
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not support this method; the header Allow lists those that it does"),
    409: ("conflict", "this name is already taken"),
    408: ("timeout", "the request did not arrive in time"),
    413: ("payload_too_large", "the body is too large"),
    500: ("internal_error", "an internal error; the log has details under the request's id"),
    503: ("unavailable", "the database does not answer; nothing was written; try again shortly"),
}
STATUSES: dict[type[ChmError], int] = {
    InputError: 400,
    NotFound: 404,
    Conflict: 409,
    Busy: 503,
    DatabaseUnavailable: 503,
}
"""A class that is not in this table, nor derived from one, is a fault of CHM's: 500."""


class Detail(BaseModel):
    """One problem."""

    field: str = Field(description="The field or parameter; `body` for the whole body.", examples=["name"])
    issue: str = Field(description="What is wrong, and what would be accepted.", examples=["is required"])


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs. It follows from the status.", examples=["validation_error"])
    message: str = Field(description="A sentence for people.", examples=["name: is required"])
    details: list[Detail] = Field(description="The problems, one by one; empty if no field is wrong.")


class ErrorAnswer(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: Problem


def problem(
    status: int,
    message: str | None = None,
    details: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response for a status. Without a message it has that of the table."""
    code, usual = CODES.get(status, ("error", "the request was refused"))
    error = {
        "code": code,
        "message": message or usual,
        "details": [{"field": field, "issue": issue} for field, issue in details],
    }
    sent = dict(headers or {})
    if status == 503:
        sent.setdefault("Retry-After", str(RETRY_SECONDS))
    return Response(orjson.dumps({"error": error}, default=str), status, headers=sent, media_type="application/json")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route behind the token: these errors, and those that every such route may return."""
    return unguarded(*statuses, 401, 403, 408, 413)


def unguarded(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a public route."""
    wanted = sorted({*statuses, 500, 503})
    return {status: {"model": ErrorAnswer, "description": CODES[status][1]} for status in wanted}


def install(app: FastAPI) -> None:
    """Let the app return every error in this shape."""
    app.add_exception_handler(ChmError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _answer_wrong_methods(app)


def _answer_wrong_methods(app: FastAPI) -> None:
    """Starlette's own Allow names the methods of the first matching route only; GET and POST may be two routes."""
    routes = [(context.path_regex, context.methods) for context in iter_route_contexts(app.routes) if context.methods]

    async def refuse(request: Request, _: Exception) -> Response:
        return problem(405, headers={"Allow": ", ".join(allowed_methods(routes, request.scope["path"]))})

    app.add_exception_handler(405, refuse)


def allowed_methods(routes: Iterable[tuple[re.Pattern[str], set[str]]], path: str) -> list[str]:
    """The methods that these routes take for a path. HEAD is answered wherever GET is."""
    methods = {method for pattern, methods in routes if pattern.match(path) for method in methods}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _own(_: Request, error: Exception) -> Response:
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    if status == 500:
        raise error
    if isinstance(error, DatabaseUnavailable):
        # Its text names servers and users: that belongs into the log.
        log.warning("%s", error)
        return problem(status)
    return problem(status, str(error), _details(error))


def _details(error: Exception) -> tuple[tuple[str, str], ...]:
    several = getattr(error, "details", ())
    if several:
        return tuple(several)
    return ((error.field, error.issue),) if isinstance(error, InputError | Conflict) else ()


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    if error.status_code == 400:
        details = [("body", "cannot be read; send JSON in UTF-8, not too deeply nested")]
        return problem(400, _message(details), details)
    return problem(error.status_code, None, (), error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    details: dict[str, str] = {}
    for found in error.errors():
        # An optional parameter is a union to Pydantic, which reports a problem for each member.
        details.setdefault(_field(found), _issue(found))
    return problem(400, _message(list(details.items())), details.items())


def _message(details: list[tuple[str, str]]) -> str:
    field, issue = details[0]
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{field}: {issue}{more}"


def _field(found: Mapping[str, Any]) -> str:
    # ("query", "limit") -> limit; ("body",), and ("body", 17), a place in broken JSON -> body.
    place = found["loc"]
    return place[1][:100] if len(place) > 1 and isinstance(place[1], str) else str(place[0])


def _issue(found: Mapping[str, Any]) -> str:
    """What Pydantic found, in CHM's words."""
    kind, whole_body = found["type"], tuple(found["loc"]) == ("body",)
    if kind == "missing" and whole_body:
        return "missing; send a JSON object as application/json"
    if kind == "json_invalid":
        return f"not JSON: {found['ctx']['error']} at character {found['loc'][1]}"
    if whole_body:
        return "not a JSON object; send one as application/json, and say so in Content-Type"
    return issue(found)

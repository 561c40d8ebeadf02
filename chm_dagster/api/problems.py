"""Every answer that is not the wanted one: one table from errors to statuses, one shape for all of them."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chm_dagster.errors import Busy, ChmError, Conflict, DatabaseUnavailable, InputError, NotFound

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""What Retry-After says when the database does not answer."""

# Status: its code, and what its message says where the error itself has nothing better to say.
CODES: dict[int, tuple[str, str]] = {
    400: ("validation_error", "the request was refused: see details"),
    401: ("unauthorized", "send the header Authorization: Bearer <token>, with the token of this server"),
    403: ("forbidden", "without CHM_API_TOKEN this server serves only what is sent from its own machine"),
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not take this method: see the header Allow"),
    409: ("conflict", "something else holds this name already"),
    413: ("payload_too_large", "the body is too large"),
    500: ("internal_error", "something went wrong here; the request's id finds it in the log"),
    503: ("unavailable", "the database does not answer; nothing was written; try again shortly"),
}
STATUSES: dict[type[ChmError], int] = {
    InputError: 400,
    NotFound: 404,
    Conflict: 409,
    Busy: 503,
    DatabaseUnavailable: 503,
}
"""The table. A class that is not in it, nor derived from one, is a fault of ours: 500."""


class Detail(BaseModel):
    """One thing that was wrong."""

    field: str = Field(description="Which field or parameter; `body` for the whole body.", examples=["name"])
    issue: str = Field(description="What is wrong, and what would be accepted.", examples=["missing; it is required"])


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs; it belongs to the status.", examples=["validation_error"])
    message: str = Field(description="A sentence for people.", examples=["name: missing; it is required"])
    details: list[Detail] = Field(description="What was wrong, one by one; empty where no field is to blame.")


class ErrorAnswer(BaseModel):
    """The body of every answer from 400 on."""

    error: Problem


def problem(
    status: int,
    message: str | None = None,
    details: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer for a status. Without a message it says what the table says."""
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
    """What OpenAPI says of the errors of a guarded route, for its `responses`: these, and those that any may answer."""
    return unguarded(*statuses, 401, 403, 413)


def unguarded(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for a route that everybody may call."""
    wanted = sorted({*statuses, 500, 503})
    return {status: {"model": ErrorAnswer, "description": CODES[status][1]} for status in wanted}


def install(app: FastAPI) -> None:
    """Let the app answer every error in the one shape."""
    app.add_exception_handler(ChmError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _own(_: Request, error: Exception) -> Response:
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    if status == 500:
        raise error
    if isinstance(error, DatabaseUnavailable):
        # Its text names servers and users, which is for the log.
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
        # A parameter that may be left out is a union to Pydantic, which tells what is wrong with each member of it.
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
    """What Pydantic found, said in our words. Never the value itself: it may be a secret."""
    kind, whole_body = found["type"], tuple(found["loc"]) == ("body",)
    if kind == "missing":
        return "missing; send a JSON object as application/json" if whole_body else "missing; it is required"
    if kind == "extra_forbidden":
        return "unknown; see /docs for what is accepted here"
    if kind == "json_invalid":
        return f"not JSON: {found['ctx']['error']} at character {found['loc'][1]}"
    if whole_body:
        return "not a JSON object; send one as application/json, and say so in Content-Type"
    text = str(found["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]

"""The routes of the board: pages for people, made in `chm_dagster.board`, and signing in where a token is set.

Nothing here changes what CHM knows. Pages are for GET; the two forms begin and end a session.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from chm_dagster.api.errors import RETRY_SECONDS
from chm_dagster.board import pages
from chm_dagster.board.answers import Reading
from chm_dagster.board.filters import Filters
from chm_dagster.board.html import STATIC, render
from chm_dagster.board.rule_test import FIELDS, rule_test
from chm_dagster.errors import Busy, DatabaseUnavailable, InputError, NotFound
from chm_dagster.presentation.columns import freshness
from chm_dagster.reporting import FORMATS, build
from chm_dagster.sessions import Sessions, local_path, read_form

router = APIRouter(include_in_schema=False)

COOKIE = "chm_board"
FOLDERS = frozenset({"", "wall", "pipelines", "clients", "changes", "errors", "flaky", "rules", "partners", "reports"})
"""The first segments of the pages' paths."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With no-referrer, browsers would not say where a form comes from, either.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}

_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none';"
    " frame-ancestors 'none'"
)
"""A report is one file with its own style, and has neither scripts nor forms."""


def is_page(path: str) -> bool:
    """Whether a path is one of the board's pages, which a browser may open with a session."""
    return path.startswith("/") and path.split("/")[1] in FOLDERS


def is_visit(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser opens an address as a page of its own: a link elsewhere may do so, but reads nothing of it."""
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and "origin" not in headers
    )


def login_path(path: str, query: str) -> str:
    """Where to sign in, to come back to this page afterwards."""
    return Filters().link("/login", next=path + (f"?{query}" if query else ""))


_Facts = Callable[[Reading, Filters], dict[str, Any]]


def _page(request: Request, name: str, title: str, facts: _Facts, own: frozenset[str] = frozenset()) -> Response:
    """A page, or one that says why there is none. `own` are the parameters of its address that are no filters."""
    now = datetime.now(UTC)
    base = {
        "page": name,
        "now": now,
        "filters": Filters(),
        "has_login": request.app.state.sessions is not None,
    }
    try:
        filters = Filters.read({k: v for k, v in request.query_params.items() if k not in own})
        reading = Reading(request.app.state.answers, now)
        found = facts(reading, filters)
        synced = freshness(reading.rows("connections", client_slug=None, environment=None), reading.as_of)
    except (NotFound, InputError, Busy, DatabaseUnavailable) as error:
        return _refusal(error, base)
    about_then = filters.at is not None and name in pages.TIMED
    subject = {name: value for name, value in request.query_params.items() if name in own}
    base |= {
        "now": filters.at if about_then else now,
        "about_then": about_then,
        "back_to_now": filters.link(request.url.path, **{**filters.own, **subject, "at": None}),
    }
    whole = {**base, "title": title, "filters": filters, "freshness": synced, "as_of": reading.as_of, **found}
    return HTMLResponse(render(f"{name}.html", **whole), 400 if found.get("problem") else 200, headers=_HEADERS)


def _refusal(error: Exception, base: Mapping[str, Any]) -> Response:
    if isinstance(error, DatabaseUnavailable):
        # Its text names servers and users: that belongs into the log.
        status, title, text = 503, "The database does not answer", "Nothing is known at the moment. Try again shortly."
    elif isinstance(error, Busy):
        status, title, text = 503, "One at a time", str(error)
    else:
        status, title = (404, "Not found") if isinstance(error, NotFound) else (400, "This address is not valid")
        text = str(error)
    page = render("refusal.html", title=title, text=text, freshness=None, as_of=None, **base)
    headers = {**_HEADERS, "Retry-After": str(RETRY_SECONDS)} if status == 503 else _HEADERS
    return HTMLResponse(page, status, headers=headers)


_LISTS: Mapping[str, tuple[str, _Facts]] = {
    "/": ("Overview", pages.overview),
    "/wall": ("Wall", pages.wall),
    "/pipelines": ("Pipelines", pages.pipelines),
    "/changes": ("Changes", pages.changes),
    "/errors": ("Errors", pages.errors),
    "/errors/runs": ("Failed runs", pages.failed_runs),
    "/flaky": ("Flaky pipelines", pages.flaky),
    "/reports": ("Reports", pages.reports),
    "/rules": ("Rules", pages.rules),
    "/partners": ("Partners", pages.partners),
}
"""The pages whose address names nothing: their titles and what they show. Each has a template of the same name."""


def _list(title: str, facts: _Facts) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        return _page(request, facts.__name__, title, facts)

    return page


for _path, (_title, _facts) in _LISTS.items():
    router.add_api_route(_path, _list(_title, _facts), name=_facts.__name__)


@router.get("/clients/{client}")
def client(request: Request, client: str) -> Response:
    """A client."""
    return _page(request, "client", client, lambda reading, filters: pages.client(reading, filters, client))


@router.get("/clients/{client}/{pipeline}")
def pipeline(request: Request, client: str, pipeline: str) -> Response:
    """A pipeline."""
    title = f"{client}/{pipeline}"
    return _page(
        request, "pipeline", title, lambda reading, filters: pages.pipeline(reading, filters, client, pipeline)
    )


@router.get("/clients/{client}/{pipeline}/run")
def run(request: Request, client: str, pipeline: str, id: str = "") -> Response:
    """A run."""
    return _page(
        request,
        "run",
        "Run",
        lambda reading, filters: pages.run(reading, filters, client, pipeline, id),
        own=frozenset({"id"}),
    )


@router.get("/rules/{rule}/test")
def test(request: Request, rule: str) -> Response:
    """A back-test of a rule."""
    sent = {name: value for name, value in request.query_params.items() if name in FIELDS}
    return _page(
        request,
        "rule_test",
        "Back-test",
        lambda reading, filters: rule_test(reading, filters, rule, sent),
        own=FIELDS,
    )


@router.get("/reports/{client}/{period}")
def report(request: Request, client: str, period: str) -> Response:
    """A report as it would be issued now."""
    now = datetime.now(UTC)
    base = {"page": "report", "now": now, "filters": Filters()}
    week, month = (period, None) if "W" in period else (None, period)
    try:
        built = build(request.app.state.answers.warehouse.engine, client, week, month, now)
    except (NotFound, InputError, DatabaseUnavailable) as error:
        return _refusal(error, {**base, "has_login": request.app.state.sessions is not None})
    write, media_type = FORMATS["html"]
    headers = {**_HEADERS, "Content-Security-Policy": _REPORT_POLICY}
    return Response(write(built.report), media_type=media_type, headers=headers)


# --- sessions --------------------------------------------------------------------------------------------------------


def _is_own_form(headers: Headers) -> bool:
    """Whether a form was posted by a page of this server; every browser says so."""
    origin = headers.get("origin")
    same = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return same and headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _login_page(target: str, problem: str, status: int) -> Response:
    page = render("login.html", page="login", title="Sign in", target=target, problem=problem)
    return HTMLResponse(page, status, headers=_HEADERS)


@router.get("/login")
async def login_form(request: Request) -> Response:
    """The form that asks for the token."""
    return _login_page(local_path(request.query_params.get("next")), "", 200)


@router.post("/login")
async def login(request: Request) -> Response:
    """Begin a session for whoever knows the token."""
    sessions: Sessions | None = request.app.state.sessions
    form = await read_form(request)
    target = local_path(form.get("next"))
    if not _is_own_form(request.headers):
        return _login_page(target, "That form was sent by a page of another site.", 403)
    if sessions is None:
        return RedirectResponse(target, 303)
    if not sessions.is_token(form.get("token", "")):
        return _login_page(target, "That is not the token.", 401)
    response = RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})
    sessions.begin(response, request)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the session."""
    sessions: Sessions | None = request.app.state.sessions
    if not _is_own_form(request.headers):
        return _login_page("/", "That form was sent by a page of another site.", 403)
    response = RedirectResponse("/login" if sessions else "/", 303)
    if sessions is not None:
        sessions.end(response)
    return response


class _Files(StaticFiles):
    """The script and the style. Their addresses change with them, so browsers may keep them."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """A file of the board."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


FILES = _Files(directory=STATIC)

"""`python -m chm_dagster.ui -w WORKSPACE`: Dagster's UI behind a guard.

Dagster's own web server serves whoever reaches it. It even runs GraphQL mutations sent as a GET request or as plain
text, which any web page can do from the browser of somebody who works on this machine. How the guard prevents that:
docs/adr/0014-guard-before-the-ui.md.
"""

import argparse
import html
import ipaddress
import logging
import sys
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chm_dagster.errors import ChmError
from chm_dagster.installation import configured
from chm_dagster.serving import OTHER_USER, base_url, bind, is_by_other_user, serve
from chm_dagster.sessions import Sessions, local_path, read_form
from chm_dagster.settings import PUBLIC_HOSTS, Settings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE = "chm_dagster_ui"

# As Dagster's own command sets them.
_STATEMENT_MILLISECONDS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW = 15_000, 3_600, 20

_LOGIN_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width"><style>body{{font:16px system-ui;margin:15vh auto;max-width:22rem}}
input,button{{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;margin:.25rem 0}}</style>
<h1>Dagster</h1><form method="post" action="/login"><input type="hidden" name="next" value="{next}">
<label>API token <input type="password" name="token" autocomplete="current-password" autofocus required></label>
<button>Sign in</button></form><p role="alert">{problem}</p></html>"""


class Guard:
    """ASGI middleware. It refuses other sites' requests, and whoever lacks the token where one is set.

    `hosts` are the names under which the server may be addressed, besides this machine's own. With `published`, any IP
    address will do too: a page that points a name of its own to this server cannot fake one.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None = None, hosts: frozenset[str] = frozenset(), published: bool = False
    ) -> None:
        self._app = app
        self._sessions = None if token is None else Sessions(token, COOKIE)
        self._hosts = hosts
        self._published = published

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = Request({**scope, "type": "http", "method": scope.get("method", "WEBSOCKET")}, receive)
        response = await self._own_response(request)
        if response is None:
            await self._app(_without_query(scope) if _is_graphql(scope) else scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await response(scope, receive, _unframed(send))

    async def _own_response(self, request: Request) -> Response | None:
        """The guard's response; None if the request may pass."""
        refusal = self._refuse_site(request) or _refuse_query(request)
        if refusal is not None:
            return refusal
        if request.url.path == "/healthz":
            return PlainTextResponse("ok")
        if self._sessions is None:
            return PlainTextResponse(f"refused: {OTHER_USER}", 403) if is_by_other_user(request.scope) else None
        if request.url.path == "/login":
            return await _login(request, self._sessions)
        if _signed_in(request, self._sessions):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)
        return PlainTextResponse("sign in at /login, or send the API token as a bearer token", 401)

    def _refuse_site(self, request: Request) -> Response | None:
        host = request.headers.get("host", "").lower()
        if not self._is_ours(_host_name(f"//{host}")):
            return PlainTextResponse(f"unknown host; add its name to {PUBLIC_HOSTS} if this server is published", 403)
        if request.method in SAFE_METHODS and not _is_graphql(request.scope):
            return None
        origin = request.headers.get("origin")
        same = origin is None or origin.partition("://")[2].lower() == host or _host_name(origin) in self._hosts
        # A browser says none for what its user typed or opened, which is no page's doing.
        if not same or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return PlainTextResponse("refused: sent by a page of another site", 403)
        return None

    def _is_ours(self, name: str | None) -> bool:
        return name is not None and (
            name in LOOPBACK_NAMES or name in self._hosts or (self._published and _is_ip_address(name))
        )


def _signed_in(request: Request, sessions: Sessions) -> bool:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    token = bearer.encode("latin-1").decode("utf-8", "replace")
    return (scheme.lower() == "bearer" and sessions.is_token(token)) or sessions.is_open(request.cookies)


async def _login(request: Request, sessions: Sessions) -> Response:
    if request.method != "POST":
        return _login_page(local_path(request.query_params.get("next")), "", 200)
    form = await read_form(request)
    target = local_path(form.get("next"))
    if not sessions.is_token(form.get("token", "")):
        return _login_page(target, "That is not the token.", 401)
    response = RedirectResponse(target, 303)
    sessions.begin(response, request)
    return response


def _refuse_query(request: Request) -> Response | None:
    """On /graphql, nothing is run but what was posted as JSON: a page of another site cannot send that unasked."""
    if not _is_graphql(request.scope) or request.method != "POST":
        return None
    kinds = [kind.partition(";")[0].strip().lower() for kind in request.headers.getlist("content-type")]
    return None if kinds == ["application/json"] else PlainTextResponse("send queries as application/json", 415)


def _is_graphql(scope: Scope) -> bool:
    return bool(scope["path"].rstrip("/") == "/graphql")


def _without_query(scope: Scope) -> Scope:
    # Dagster runs a query that stands in the address.
    return {**scope, "query_string": b""}


def _unframed(send: Send) -> Send:
    """A `send` whose responses no other site can show in a frame of its own, to have its buttons clicked."""

    async def unframed(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
        await send(message)

    return unframed


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _login_page(target: str, problem: str, status: int) -> HTMLResponse:
    page = _LOGIN_PAGE.format(next=html.escape(target), problem=html.escape(problem))
    return HTMLResponse(page, status, headers={"Cache-Control": "no-store"})


def guarded(app: ASGIApp, settings: Settings) -> Guard:
    """Dagster's app behind the guard that the settings ask for."""
    published = settings.ui_host not in LOOPBACK_NAMES
    return Guard(app, token=settings.api_token, hosts=settings.public_hosts or frozenset(), published=published)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. Returns 2, after a line on stderr for each problem, if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m chm_dagster.ui", description="Dagster's UI, guarded.")
    parser.add_argument("-w", "--workspace", required=True, help="the workspace file")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        installation = configured()
        settings = installation.settings
        with bind(settings.ui_host, settings.ui_port) as listener, dg.DagsterInstance.get() as instance:
            instance.optimize_for_webserver(_STATEMENT_MILLISECONDS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW)
            target = WorkspaceFileTarget([options.workspace])
            with WorkspaceProcessContext(instance, target, version=dg.__version__) as context:
                app = create_app_from_workspace_process_context(context)
                print(f"chm: Dagster UI on {base_url(listener)}", flush=True)  # noqa: T201 - for a person
                serve(guarded(app, settings), listener, stack=installation.stack)
    except ChmError as error:
        for line in str(error).splitlines():
            print(f"chm: {line}", file=sys.stderr)  # noqa: T201 - a command-line program's own error
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

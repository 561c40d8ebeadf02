"""A fake of Metabase: this is not Metabase. It keeps what it gets, over a real socket, and holds every request against
`metabase_api.yaml`. How the real one stores and returns things is known from its documentation only."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from jsonschema import Draft202012Validator

API: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "metabase_api.yaml").read_text(encoding="utf-8"))
VERSION = "v0.0.0 (a fake, not Metabase)"
REDACTED = "**MetabasePass**"
OPEN = {("GET", "/api/session/properties"), ("POST", "/api/session"), ("POST", "/api/setup")}
Object = dict[str, Any]


def route_of(path: str) -> str | None:
    """The route of the document that a path belongs to."""
    return next((r for r in API["paths"] if re.fullmatch(re.sub(r"\{\w+\}", r"\\d+", r), path)), None)


def violations(method: str, target: str, body: Any) -> list[str]:
    """What the document has against a request."""
    parts = urlsplit(target)
    route = route_of(parts.path)
    operation = API["paths"][route].get(method.lower()) if route else None
    if operation is None:
        return [f"{method} {parts.path} is not in the document"]
    said = []
    known = {p["name"]: p["schema"] for p in operation.get("parameters", ()) if p["in"] == "query"}
    for name, values in parse_qs(parts.query).items():
        said += [f"query {name}: {e.message}" for e in _errors(known.get(name, {"not": {}}), values)]
    wanted = operation.get("requestBody")
    if (wanted is None) != (body is None):
        return [*said, f"{method} {parts.path} and its body do not go together"]
    if wanted is not None:
        said += [f"{e.json_path}: {e.message}" for e in _errors(wanted["content"]["application/json"]["schema"], body)]
    return said


def _errors(schema: Object, value: Any) -> Iterator[Any]:
    yield from Draft202012Validator({**schema, "components": API["components"]}).iter_errors(value)


class FakeMetabase:
    """Keeps what it gets. `forget` are fields of objects that it drops, as another version might.

    With `stages`, statements are returned in the newer of Metabase's two forms.
    """

    def __init__(self, *, stages: bool = True, forget: tuple[str, ...] = (), missing: str = "nothing") -> None:
        self.stages, self.forget, self.missing = stages, forget, missing
        self.setup_token: str | None = "setup-token-of-a-fake"
        self.users: dict[str, str] = {}
        self.keys: set[str] = set()
        self.sessions: set[str] = set()
        self.store: dict[str, dict[int, Object]] = {k: {} for k in ("database", "collection", "card", "dashboard")}
        self.requests: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self._last = 0

    def number(self) -> int:
        self._last += 1
        return self._last

    def answer(self, method: str, target: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        path = urlsplit(target).path
        self.requests.append((method, route_of(path) or path))
        if found := violations(method, target, body):
            self.refused += found
            return 400, {"errors": found}
        if path.startswith(f"/api/{self.missing}"):
            return 404, "API endpoint does not exist."
        if (method, path) not in OPEN and not (
            headers.get("x-metabase-session") in self.sessions or headers.get("x-api-key") in self.keys
        ):
            return 401, "Unauthenticated"
        if path == "/api/session/properties":
            return 200, self._properties()
        if path in ("/api/session", "/api/setup"):
            return self._sign_in(path, body)
        _, _, kind, *rest = path.split("/")
        return self._objects(method, kind, rest, body)

    def _properties(self) -> Object:
        token = {} if self.setup_token is None else {"setup-token": self.setup_token}
        return {"version": {"tag": VERSION}, "has-user-setup": bool(self.users), **token}

    def _sign_in(self, path: str, body: Object) -> tuple[int, Any]:
        if path == "/api/setup":
            if body["token"] != self.setup_token:
                return 403, {"errors": {"token": "Token does not match the setup token."}}
            self.setup_token = None
            self.users[body["user"]["email"]] = body["user"]["password"]
        elif self.users.get(body["username"]) != body["password"]:
            return 401, {"errors": {"password": f"did not match stored password: {body['password']}"}}
        session = f"session-{self.number()}"
        self.sessions.add(session)
        return 200, {"id": session}

    def _objects(self, method: str, kind: str, rest: list[str], body: Any) -> tuple[int, Any]:
        kept = self.store[kind]
        if method == "POST":
            own = self.number()
            kept[own] = {"id": own, "entity_id": f"{own:0>21}", "archived": False, "location": "/", "dashcards": []}
            self._keep(kept[own], body)
            return 200, self._shown(kept[own])
        if not rest:
            rows = [self._shown(row) for row in kept.values()]
            return 200, {"data": rows, "total": len(rows)} if kind == "database" else rows
        if rest[1:] == ["items"]:
            rows = [
                {"model": model, **{k: row[k] for k in ("id", "name", "entity_id")}}
                for model in ("card", "dashboard")
                for row in self.store[model].values()
                if row["collection_id"] == int(rest[0])
            ]
            return 200, {"data": rows, "total": len(rows), "models": ["card", "dashboard"]}
        if int(rest[0]) not in kept:
            return 404, "Not found."
        if method == "PUT":
            self._keep(kept[int(rest[0])], body)
        return 200, self._shown(kept[int(rest[0])])

    def _keep(self, row: Object, body: Object) -> None:
        row.update({name: value for name, value in body.items() if name not in self.forget})
        for card in row["dashcards"]:
            if card["id"] < 0:
                card["id"] = self.number()

    def _shown(self, row: Object) -> Object:
        shown: Object = json.loads(json.dumps(row))
        if "password" in shown.get("details", {}):
            shown["details"]["password"] = REDACTED
        query = shown.get("dataset_query")
        if query and self.stages:
            native = query["native"]
            stage = {
                "lib/type": "mbql.stage/native",
                "native": native["query"],
                "template-tags": native["template-tags"],
            }
            shown["dataset_query"] = {"lib/type": "mbql/query", "database": query["database"], "stages": [stage]}
        return shown


@contextmanager
def serving(answer: Callable[[str, str, dict[str, str], Any], tuple[int, Any]]) -> Iterator[str]:
    """A server on this machine; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: a second one would wait for the client

        def _any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, value = answer(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            text = json.dumps(value).encode() if not isinstance(value, bytes) else value
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if not isinstance(value, bytes) else "text/html")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            # A client that has read a refusal may close the connection at once.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

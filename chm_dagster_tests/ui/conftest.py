"""Dagster's real web server over a real instance, once bare and once behind the guard."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dagster as dg
import httpx
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.types import ASGIApp

from chm_dagster.serving import serve_in_thread
from chm_dagster.ui import Guard

TOKEN = "a-long-random-text-0123456789"
LOCATION = """
import dagster as dg

@dg.op
def hello() -> None: ...

@dg.job
def greet() -> None:
    hello()

defs = dg.Definitions(jobs=[greet])
"""
QUERY = '{ instance { concurrencyLimit(concurrencyKey: "k") { slotCount } } }'


def mutation(slots: int) -> str:
    """A mutation that needs no code location, and whose effect can be read back."""
    return f'mutation {{ setConcurrencyLimit(concurrencyKey: "k", limit: {slots}) }}'


@dataclasses.dataclass
class Server:
    """A running server, and what its instance was made to do."""

    url: str
    token: str | None = None

    def ask(self, query: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        response = httpx.post(
            f"{self.url}/graphql", json={"query": query}, headers=headers, timeout=60, trust_env=False
        )
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def slots(self) -> int:
        return int(self.ask(QUERY)["instance"]["concurrencyLimit"]["slotCount"])


Serve = Callable[..., Server]


@pytest.fixture(scope="package")
def dagster_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    folder = tmp_path_factory.mktemp("ui")
    (folder / "home").mkdir()
    (folder / "location.py").write_text(LOCATION)
    workspace = folder / "workspace.yaml"
    workspace.write_text(json.dumps({"load_from": [{"python_file": str(folder / "location.py")}]}))
    with ExitStack() as stack:
        quiet = {"nux": {"enabled": False}, "telemetry": {"enabled": False}}
        instance = stack.enter_context(dg.DagsterInstance.local_temp(str(folder / "home"), overrides=quiet))
        context = WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace)]))
        yield create_app_from_workspace_process_context(stack.enter_context(context))


@contextmanager
def served(app: ASGIApp, token: str | None = None) -> Iterator[Server]:
    with serve_in_thread(app) as url:
        server = Server(url, token)
        server.ask(mutation(1))
        yield server


@pytest.fixture(scope="package")
def bare(dagster_app: ASGIApp) -> Iterator[Server]:
    """Dagster's own server, as `dagster-webserver` runs it."""
    with served(dagster_app) as server:
        yield server


@pytest.fixture(scope="package")
def guarded(dagster_app: ASGIApp) -> Iterator[Server]:
    """The same behind the guard, for this machine alone."""
    with served(Guard(dagster_app)) as server:
        yield server


@pytest.fixture(scope="package")
def published(dagster_app: ASGIApp) -> Iterator[Server]:
    """The same as it is published: with a token, and under a name."""
    with served(Guard(dagster_app, token=TOKEN, hosts=frozenset({"chm.example.com"}), published=True), TOKEN) as server:
        yield server

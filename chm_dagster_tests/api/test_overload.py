"""Callers that hold connections open, send nothing, or read nothing, cannot take the API away from others."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.api import admission
from chm_dagster.api.app import create_app
from chm_dagster.serving import BoundedProtocol, serve_in_thread
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import refused
from chm_dagster_tests.api.conftest import TOKEN, caller

pytestmark = pytest.mark.alone

HEAD = "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ENDLESS = 120
"""Seconds within which a server under load closes what it is to close. A test waits for so long only if it fails."""


class FewConnections(BoundedProtocol):
    most = 20


class Impatient(BoundedProtocol):
    head_seconds = 0.5
    idle_seconds = 0.5


@contextlib.contextmanager
def connections(url: str, count: int, *lines: str) -> Iterator[list[socket.socket]]:
    """Connections on which the beginning of a request was sent."""
    address = urlsplit(url)
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=ENDLESS)
            opened.append(stack.enter_context(connection))
            connection.sendall("".join(lines).encode())
        yield opened


def ends(connection: socket.socket) -> bool:
    """Whether the server closes a connection, whatever it says before."""
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_connections_beyond_the_limit_take_the_place_of_those_that_wait(warehouse: Warehouse) -> None:
    app = create_app(warehouse, token=TOKEN)
    with (
        serve_in_thread(app, http=FewConnections) as url,
        connections(url, 60, HEAD.format("GET", "/healthz")) as unfinished,
    ):
        with caller(url, TOKEN) as api:
            assert api.get("/healthz").status_code == 200
            assert api.get("/api/v1/clients").status_code == 200
        assert all(ends(connection) for connection in unfinished[:30])


def test_a_request_in_progress_is_not_among_those_that_make_room(warehouse: Warehouse) -> None:
    app = create_app(warehouse, token=TOKEN)
    body = (HEAD.format("POST", "/api/v1/clients"), f"Authorization: Bearer {TOKEN}\r\nContent-Length: 2\r\n\r\n")
    with (
        serve_in_thread(app, http=FewConnections) as url,
        connections(url, 1, *body) as (in_progress,),
        connections(url, 60, HEAD.format("GET", "/healthz")),
    ):
        in_progress.sendall(b"{}")
        assert in_progress.recv(4096).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "begin",
    [
        (),
        ("GET /heal",),
        (HEAD.format("GET", "/healthz"),),
        (HEAD.format("GET", "/healthz"), "\r\n"),
        (HEAD.format("POST", "/healthz"), "Content-Length: 100\r\n\r\nx"),
        (HEAD.format("POST", "/api/v1/clients"), "Content-Length: 100\r\n\r\nx"),
    ],
    ids=["nothing", "half a line", "half a head", "a whole request", "half a body", "half a body without a token"],
)
def test_a_connection_without_a_request_is_closed(warehouse: Warehouse, begin: tuple[str, ...]) -> None:
    with (
        serve_in_thread(create_app(warehouse, token=TOKEN), http=Impatient) as url,
        connections(url, 1, *begin) as (connection,),
    ):
        assert ends(connection)


def test_health_is_answered_whatever_bodies_others_do_not_send(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_IN_FLIGHT", 3)
    monkeypatch.setattr(admission, "MAX_PUBLIC_IN_FLIGHT", 2)
    body = "Content-Length: 100\r\n\r\n"
    with serve_in_thread(create_app(warehouse, token=TOKEN)) as url, contextlib.ExitStack() as stack:
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/api/v1/clients"):
            stack.enter_context(connections(url, 10, HEAD.format("POST", path), body))
        with caller(url, TOKEN) as api:
            assert api.get("/healthz").status_code == 200
            assert api.get("/readyz").status_code == 200
            assert api.get("/metrics").status_code == 200
            assert api.get("/api/v1/clients").status_code == 200
            # The pages have a small share, which is used up.
            refused(api.get("/docs"), 503)


def test_a_body_that_does_not_arrive_is_not_waited_for(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BODY_SECONDS", 0.2)
    begin = HEAD.format("POST", "/api/v1/clients"), f"Authorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    with (
        serve_in_thread(create_app(warehouse, token=TOKEN)) as url,
        connections(url, 1, *begin) as (connection,),
    ):
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert ends(connection)


def test_a_caller_that_does_not_read_is_disconnected(warehouse: Warehouse) -> None:
    lost = threading.Event()

    class Observed(BoundedProtocol):
        stalled_seconds = 0.5

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    # Many responses, so that the buffers of both sides fill up.
    requests = [HEAD.format("GET", "/docs/parts/swagger-ui-bundle.js") + "\r\n"] * 20
    with serve_in_thread(create_app(warehouse, token=TOKEN), http=Observed) as url, connections(url, 1, *requests):
        assert lost.wait(ENDLESS)


def test_the_server_is_not_ready_while_its_tables_cannot_be_read(api: httpx.Client, engine: Engine) -> None:
    assert api.get("/readyz").status_code == 200
    with engine.begin() as holder:
        holder.execute(sa.text("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE"))
        refused(api.get("/readyz"), 503)
        assert api.get("/healthz").status_code == 200
    assert api.get("/readyz").status_code == 200


def test_metrics_say_what_they_could_not_read(api: httpx.Client, engine: Engine) -> None:
    with engine.begin() as holder:
        holder.execute(sa.text("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE"))
        answer = api.get("/metrics")
    assert answer.status_code == 200
    assert 'chm_metrics_unavailable{part="health"} 1.0' in answer.text
    assert "chm_database_up 1.0" in answer.text
    assert "chm_http_requests_total" in answer.text

"""Without a token the servers are for the user who started them, and not for everybody on the machine."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from chm_dagster.api.app import create_app
from chm_dagster.serving import _in_table, _is_other_user, _own_users, serve_in_thread
from chm_dagster.ui import Guard
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.another_user import UID, ask, needs_root
from chm_dagster_tests.api.conftest import TOKEN

pytestmark = needs_root
BODY = '{"name": "Theirs"}'
CREATE = (
    "POST /api/v1/clients HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\nConnection: close\r\n"
)


@pytest.fixture
def url(warehouse: Warehouse) -> Iterator[str]:
    """The API without a token."""
    with serve_in_thread(create_app(warehouse)) as url:
        yield url


def clients(warehouse: Warehouse) -> list[str]:
    return [client.name for client in warehouse.clients.list().items]


def test_another_user_of_this_machine_reads_and_changes_nothing(url: str, warehouse: Warehouse) -> None:
    refused = ask(url, f"{CREATE}\r\n{BODY}")
    assert refused.startswith("HTTP/1.1 403 ")
    assert "another user of this machine; set CHM_API_TOKEN" in refused
    assert ask(url, "GET /api/v1/clients HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
        "HTTP/1.1 403 "
    )
    assert clients(warehouse) == []
    assert ask(url, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith("HTTP/1.1 200 ")


def test_the_same_request_of_the_server_s_own_user_is_served(url: str, warehouse: Warehouse) -> None:
    assert ask(url, f"{CREATE}\r\n{BODY}", uid=os.geteuid()).startswith("HTTP/1.1 201 ")
    assert clients(warehouse) == ["Theirs"]


def test_who_became_root_by_sudo_is_no_other_user(tmp_path: Path) -> None:
    login = tmp_path / "loginuid"
    assert _own_users(login) == {"0"}
    login.write_text(str(UID))
    assert _own_users(login) == {"0", str(UID)}


def test_with_the_token_another_user_is_served(warehouse: Warehouse) -> None:
    with serve_in_thread(create_app(warehouse, token=TOKEN)) as url:
        assert ask(url, f"{CREATE}\r\n{BODY}").startswith("HTTP/1.1 401 ")
        assert ask(url, f"{CREATE}Authorization: Bearer {TOKEN}\r\n\r\n{BODY}").startswith("HTTP/1.1 201 ")


def test_the_guard_of_the_ui_refuses_another_user_too() -> None:
    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse("the UI")

    app = Starlette(routes=[Route("/graphql", page, methods=["GET", "POST"])])
    get = "GET /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    handshake = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with serve_in_thread(Guard(app)) as url:
        assert httpx.get(f"{url}/graphql", trust_env=False).text == "the UI"
        assert "another user of this machine" in ask(url, f"{get}\r\n")
        upgrade = get.replace("Connection: close", "Connection: Upgrade")
        assert ask(url, f"{upgrade}{handshake}\r\n", then="head -n 1 <&3").startswith("HTTP/1.1 403 ")
    with serve_in_thread(Guard(app, token=TOKEN)) as url:
        assert ask(url, f"{get}Authorization: Bearer {TOKEN}\r\n\r\n").endswith("the UI")


def test_a_request_whose_sender_has_gone_does_not_pass_for_root_s() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask(f"http://127.0.0.1:{server.getsockname()[1]}", "GET / HTTP/1.1\r\n\r\n", then="true")
        with server.accept()[0] as accepted:
            assert accepted.recv(3) == b"GET"
            assert _is_other_user(accepted.getpeername(), accepted.getsockname())


def test_the_address_that_a_connection_comes_from_makes_no_difference() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = server.getsockname()
        with socket.create_connection(own, source_address=("127.0.0.2", 0)) as client:
            assert not _is_other_user(client.getsockname(), own)
        assert _is_other_user(("127.0.0.2", 1), own), "nobody holds that end"
        assert not _is_other_user(("192.0.2.1", 1), ("192.0.2.2", 1)), "a server that needs a token"


def test_a_connection_over_ipv6_is_known_as_well() -> None:
    assert _in_table(("127.0.0.1", 8000)) in ("0100007F:1F40", "7F000001:1F40")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        with socket.create_connection(server.getsockname()[:2]) as client:
            assert not _is_other_user(client.getsockname(), server.getsockname())
        assert _is_other_user(("::1", 1), server.getsockname()), "nobody holds that end"

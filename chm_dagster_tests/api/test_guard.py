"""Who may call the API, and what a rejection looks like."""

import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from chm_dagster.api import admission
from chm_dagster.api.admission import MAX_BODY_BYTES, PUBLIC
from chm_dagster.api.app import bare_app, create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import refused
from chm_dagster_tests.api.conftest import TOKEN, caller

OPERATIONS = [(method.upper(), path) for path, methods in bare_app().openapi()["paths"].items() for method in methods]
GUARDED = [(method, path) for method, path in OPERATIONS if path not in PUBLIC]


@pytest.fixture(scope="module")
def nowhere() -> Warehouse:
    """Requests are rejected without querying the database, so that none is needed here."""
    return Warehouse(make_engine("postgresql://nobody@127.0.0.1:1/nothing"))


@pytest.fixture(scope="module")
def stranger(nowhere: Warehouse) -> Iterator[httpx.Client]:
    """An API client without the token."""
    with serve_in_thread(create_app(nowhere, token=TOKEN)) as url, caller(url) as client:
        yield client


@pytest.fixture(scope="module")
def tokenless(nowhere: Warehouse) -> Iterator[httpx.Client]:
    """An API client of a server without a token."""
    with serve_in_thread(create_app(nowhere)) as url, caller(url) as client:
        yield client


def filled(path: str) -> str:
    """A path of the contract with its parameters filled in."""
    rule = "01890a5d-ac96-774b-bcce-b302099a8057"
    own = {"rule_id": rule, "episode_id": rule, "message_id": rule}
    return path.format(client_id="acme", pipeline_id="acme/orders", exit_status=3, **own)


def test_only_the_probes_are_public_in_the_contract() -> None:
    assert {path for _, path in OPERATIONS} & PUBLIC == {"/healthz", "/readyz"}
    assert len(GUARDED) > 30


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": b"Bearer t\xf6ken"},
        {"Cookie": f"token={TOKEN}"},
    ],
    ids=str,
)
def test_every_operation_requires_the_token(stranger: httpx.Client, headers: dict[str, Any]) -> None:
    for method, path in GUARDED:
        answer = stranger.request(method, filled(path), headers=headers)
        refused(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    # Without a token, nobody learns which paths exist or has a body read.
    refused(stranger.get("/nowhere", headers=headers), 401)
    refused(stranger.post("/api/v1/clients", headers=headers, content=b"x" * (MAX_BODY_BYTES + 1)), 401)


def test_a_token_in_the_query_string_is_not_accepted(stranger: httpx.Client) -> None:
    refused(stranger.get("/api/v1/clients", params={"token": TOKEN}), 401)


def test_the_token_opens_every_operation(api: httpx.Client) -> None:
    for method, path in OPERATIONS:
        answer = api.request(method, filled(path))
        assert answer.status_code in (200, 400, 404), (method, path, answer.text)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_auth_scheme_is_case_insensitive(stranger: httpx.Client, scheme: str) -> None:
    answer = stranger.get("/api/v1/clients", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 503  # passed on to a database that does not exist


def test_probes_and_documentation_need_no_token(stranger: httpx.Client) -> None:
    for path in ("/healthz", "/docs", "/openapi.json", "/docs/parts/swagger-ui.css"):
        assert stranger.get(path).status_code == 200, path
    assert "database" in stranger.get("/readyz").json()["error"]["message"]
    refused(stranger.get("/"), 401)


def test_public_paths_do_not_open_the_others(stranger: httpx.Client) -> None:
    refused(stranger.get("/docs/parts/../../api/v1/clients"), 401)
    for path in ("/docs/parts/%2e%2e/__init__.py", "/docs/%2e%2e/api/v1/clients", "/docs//api/v1/clients"):
        refused(stranger.get(path), 404)


# --- without a token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost"},
        {"Host": "LOCALHOST:1"},
        {"Host": "[::1]:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Host": "127.0.0.1:8000", "Origin": "HTTP://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_without_a_token_programs_and_pages_on_this_machine_are_allowed(
    tokenless: httpx.Client, headers: dict[str, str]
) -> None:
    # 503: passed on to a database that does not exist.
    assert tokenless.get("/api/v1/clients", headers=headers).status_code == 503


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "localhost@evil.example"},
        {"Host": "192.168.1.5:8000"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Host": "localhost:8000", "Origin": "http://127.0.0.1:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000.evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://[evil"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_without_a_token_a_page_from_elsewhere_is_rejected(tokenless: httpx.Client, headers: dict[str, str]) -> None:
    """A name that points to 127.0.0.1, a form that posts there, an image whose address is a ping."""
    for method, path in GUARDED:
        refused(tokenless.request(method, filled(path), headers=headers), 403)
    assert tokenless.get("/healthz", headers=headers).status_code == 200


# --- size and number -----------------------------------------------------------------------------------------------


@pytest.fixture
def raw(api: httpx.Client) -> Iterator[socket.socket]:
    """A raw connection that can send anything."""
    address = urlsplit(str(api.base_url))
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as connection:
        yield connection


def test_a_body_over_the_limit_is_rejected_and_one_at_the_limit_is_read(api: httpx.Client) -> None:
    for method, path in (("POST", "/api/v1/clients"), ("POST", "/ping/acme/orders/fail"), ("GET", "/api/v1/clients")):
        too_large = api.request(method, path, content=b" " * (MAX_BODY_BYTES + 1))
        refused(too_large, 413)
    at_limit = b'{"name": "Acme"}'.ljust(MAX_BODY_BYTES)
    answer = api.post("/api/v1/clients", content=at_limit, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(api: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50 * MAX_BODY_BYTES:
            sent += 65_536
            yield b"x" * 65_536

    # The server may close the connection while we are still sending.
    with contextlib.suppress(httpx.WriteError):
        refused(api.post("/api/v1/clients", content=endless()), 413)
    assert sent < 20 * MAX_BODY_BYTES


def test_a_body_announced_as_too_large_is_rejected_without_reading_it(raw: socket.socket) -> None:
    raw.sendall(
        b"POST /api/v1/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
        b"Content-Length: 1048577\r\n\r\n"
    )
    assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_disconnects_in_the_middle_of_a_body_does_no_harm(api: httpx.Client, raw: socket.socket) -> None:
    raw.sendall(
        b"POST /api/v1/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
        b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"name": "Acme"'
    )
    raw.close()
    assert api.get("/api/v1/clients").json()["items"] == []


def test_requests_beyond_the_limit_get_a_retry_after(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_IN_FLIGHT", 3)
    go, arrived = threading.Event(), threading.Semaphore(0)
    app = create_app(warehouse, token=TOKEN)

    @app.get("/slow")
    def slow() -> str:
        arrived.release()
        go.wait(20)
        return "done"

    with serve_in_thread(app) as url, caller(url, TOKEN) as api, concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(api.get, "/slow") for _ in range(3)]
        for _ in waiting:
            assert arrived.acquire(timeout=20)
        beyond = api.get("/slow")
        go.set()
        assert [w.result().status_code for w in waiting] == [200, 200, 200]
        refused(beyond, 503)
        assert beyond.headers["retry-after"] == "1"
        assert api.get("/slow").status_code == 200

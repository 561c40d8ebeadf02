"""The API as its users see it: served on a socket, with a real database."""

import contextlib
from collections.abc import Iterator

import httpx
import pytest

from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture(scope="session")
def shared_url(shared_engine: Engine) -> Iterator[str]:
    # Without its life cycle, in which it would note in everybody's tests that it is up.
    with serve_in_thread(create_app(Warehouse(shared_engine), token=TOKEN), lifespan="off") as url:
        yield url


@pytest.fixture(scope="session")
def shared_open_url(shared_engine: Engine) -> Iterator[str]:
    with serve_in_thread(create_app(Warehouse(shared_engine)), lifespan="off") as url:
        yield url


@pytest.fixture
def api(request: pytest.FixtureRequest, warehouse: Warehouse, alone: bool) -> Iterator[httpx.Client]:
    """An API client with the token."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(serve_in_thread(create_app(warehouse, token=TOKEN))) if alone else None
        yield stack.enter_context(caller(own or request.getfixturevalue("shared_url"), TOKEN))


@pytest.fixture
def open_api(request: pytest.FixtureRequest, warehouse: Warehouse, alone: bool) -> Iterator[httpx.Client]:
    """An API client of a server without a token."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(serve_in_thread(create_app(warehouse))) if alone else None
        yield stack.enter_context(caller(own or request.getfixturevalue("shared_open_url")))


def caller(url: str, token: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, verify=PLAIN_HTTP, timeout=30)

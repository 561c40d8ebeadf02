"""The API as its users see it: served on a socket, with a real database."""

import contextlib
from collections.abc import Iterator

import httpx
import pytest

from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP, emptied

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> bool:
    """True if the test is marked to have a database and servers of its own; others share them, which is faster."""
    return request.node.get_closest_marker("alone") is not None


@pytest.fixture
def database_url(request: pytest.FixtureRequest, alone: bool) -> str:
    """A migrated database; `engine` empties it."""
    url: str = request.getfixturevalue("own_database_url" if alone else "shared_database_url")
    return url


@pytest.fixture
def engine(request: pytest.FixtureRequest, database_url: str, alone: bool) -> Iterator[Engine]:
    """An engine on a migrated, empty database."""
    if not alone:
        yield emptied(request.getfixturevalue("shared_engine"))
        return
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture(scope="session")
def shared_url(shared_engine: Engine) -> Iterator[str]:
    with serve_in_thread(create_app(Warehouse(shared_engine), token=TOKEN)) as url:
        yield url


@pytest.fixture(scope="session")
def shared_open_url(shared_engine: Engine) -> Iterator[str]:
    with serve_in_thread(create_app(Warehouse(shared_engine))) as url:
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

"""The API as its users see it: served on a socket, with a real database."""

from collections.abc import Iterator

import httpx
import pytest

from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def api(warehouse: Warehouse) -> Iterator[httpx.Client]:
    """An API client with the token."""
    with serve_in_thread(create_app(warehouse, token=TOKEN)) as url, caller(url, TOKEN) as client:
        yield client


@pytest.fixture
def open_api(warehouse: Warehouse) -> Iterator[httpx.Client]:
    """An API client of a server without a token."""
    with serve_in_thread(create_app(warehouse)) as url, caller(url) as client:
        yield client


def caller(url: str, token: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30)

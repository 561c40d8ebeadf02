"""One database for all tests of this folder, emptied before each: there are hundreds of them, and each is short."""

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse.engine import make_engine


@pytest.fixture(scope="session")
def shared_database_url(postgres: EmbeddedPostgres) -> str:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE test_contracts TEMPLATE template_chm")
    return postgres.url("test_contracts")


@pytest.fixture
def database_url(shared_database_url: str, engine: sa.Engine) -> str:
    """A migrated, empty database."""
    return shared_database_url


@pytest.fixture
def engine(shared_engine: sa.Engine) -> sa.Engine:
    """An engine on a migrated, empty database."""
    with shared_engine.begin() as connection:
        for table in ("alert_rules", "runs", "pipelines", "clients"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    return shared_engine


@pytest.fixture(scope="session")
def shared_engine(shared_database_url: str) -> Iterator[sa.Engine]:
    engine = make_engine(shared_database_url)
    yield engine
    engine.dispose()

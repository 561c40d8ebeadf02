"""One database and one landing zone per test file, because its tests follow one server over time."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse.engine import make_engine

# Their asserts should be as detailed as those in the tests.
for _module in ("airflow_server", "dagster_server", "ledger", "prefect_server", "server"):
    pytest.register_assert_rewrite(f"chm_dagster_tests.real_partners.{_module}")


@pytest.fixture(scope="module")
def ledger_engine(postgres: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """An engine on a migrated, empty database that lasts for the whole file."""
    name = f"real_{request.path.stem}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template_chm")
    engine = make_engine(postgres.url(name))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def landings(tmp_path_factory: pytest.TempPathFactory) -> LandingZone:
    return LandingZone(tmp_path_factory.mktemp("landing"))


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")

"""One database for all tests of this folder, emptied before each, because there are hundreds of short tests."""

import pytest
import sqlalchemy as sa

from chm_dagster_tests.conftest import emptied


@pytest.fixture
def database_url(shared_database_url: str, engine: sa.Engine) -> str:
    """A migrated, empty database."""
    return shared_database_url


@pytest.fixture
def engine(shared_engine: sa.Engine) -> sa.Engine:
    """An engine on a migrated, empty database."""
    return emptied(shared_engine)

import pytest
import sqlalchemy as sa

from chm_dagster_tests.alerting.situations import World


@pytest.fixture
def world(engine: sa.Engine) -> World:
    return World(engine)

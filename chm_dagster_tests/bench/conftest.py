"""What the benchmark's parts measure, in small."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from bench import alerts
from bench.large_ledger import make
from bench.queries import QUICK
from chm_dagster.warehouse.engine import make_engine


@pytest.fixture
def small_ledger(empty_database_url: str) -> Iterator[sa.Engine]:
    """A few clients and pipelines with their runs and alert rules."""
    engine = make_engine(empty_database_url)
    make(engine, QUICK)
    alerts.add_rules(engine)
    yield engine
    engine.dispose()

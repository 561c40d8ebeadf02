"""What dashboards read: a ledger, as the role that they have."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.warehouse.roles import BI, apply_roles
from chm_dagster_tests.contracts.histories import watch


@pytest.fixture
def reader(engine: sa.Engine, database_url: str) -> Iterator["psycopg.Connection[dict[str, Any]]"]:
    """A session as the BI role on a ledger with two clients."""
    watch(engine, "SFSFSFSFSFSF", "orders")
    watch(engine, "SSSSF", "stock", "Bolt")
    watch(engine, [], "idle")
    apply_roles(engine, {BI: "reader"})
    url = f"postgresql://{BI}:reader@{database_url.split('@', 1)[1]}"
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row, options="-c timezone=UTC") as connection:
        yield connection

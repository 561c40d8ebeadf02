"""The server keeps the table of runs in a state that allows fast queries."""

import pytest
import sqlalchemy as sa

from chm_dagster.warehouse import schema
from chm_dagster_tests.factories import rows

OPTIONS = "SELECT coalesce(reloptions, '{}') AS options FROM pg_class WHERE oid = 'runs'::regclass"


@pytest.mark.alone
def test_runs_are_vacuumed_and_analyzed_after_one_in_a_hundred_has_changed(engine: sa.Engine) -> None:
    (row,) = rows(engine, OPTIONS)
    assert set(row["options"]) == {
        "autovacuum_vacuum_scale_factor=0.01",
        "autovacuum_vacuum_insert_scale_factor=0.01",
        "autovacuum_analyze_scale_factor=0.01",
    }
    schema.downgrade(engine, "0004")
    assert rows(engine, OPTIONS)[0]["options"] == []

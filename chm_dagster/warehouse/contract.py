"""The named queries of `contracts/dashboard-queries.sql`, which dashboards run too."""

import functools
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from chm_dagster.errors import ConfigError
from chm_dagster.warehouse.engine import database_errors

CONTRACT = Path(__file__).resolve().parents[2] / "contracts" / "dashboard-queries.sql"
_NAME = re.compile(r"^-- name: (\S+)[ \t]*$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """Split a contract into its blocks, by name. Raises ConfigError for a name that stands twice."""
    queries: dict[str, str] = {}
    parts = _NAME.split(text)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in queries:
            raise ConfigError(f"the query {name} stands twice in the SQL contract")
        queries[name] = body.strip().removesuffix(";")
    return queries


@functools.cache
def queries() -> dict[str, str]:
    """All named queries of this release."""
    return parse(CONTRACT.read_text(encoding="utf-8"))


def ask(engine: sa.Engine, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run a named query, read-only. Returns a dict of its columns for each row. Raises DatabaseUnavailable."""
    with database_errors(), engine.connect() as connection:
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        return [dict(row) for row in connection.execute(sa.text(queries()[name]), parameters).mappings()]

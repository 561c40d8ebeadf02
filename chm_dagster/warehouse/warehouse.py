"""CHM's database as one object: everything that people and programs store in it or read from it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.inventory.clients import Clients
from chm_dagster.warehouse.inventory.pipelines import Pipelines
from chm_dagster.warehouse.inventory.rules import Rules
from chm_dagster.warehouse.ledger.runs import Runs
from chm_dagster.warehouse.named_queries import Excerpt, ask, excerpt


@dataclasses.dataclass(frozen=True, slots=True)
class Inventory:
    """Clients, pipelines and rules within one transaction."""

    clients: Clients
    pipelines: Pipelines
    rules: Rules


class Warehouse:
    """Clients, pipelines, runs and rules over one engine. It connects when it is first used."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clients = Clients(engine)
        self.pipelines = Pipelines(engine)
        self.runs = Runs(engine)
        self.rules = Rules(engine)

    def ask(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a named query of `contracts/dashboard-queries.sql`. Raises DatabaseUnavailable."""
        return ask(self.engine, name, **parameters)

    def excerpt(self, name: str, **parameters: Any) -> Excerpt:
        """Some rows of a named query, and how many there are in all. Raises InputError, DatabaseUnavailable."""
        return excerpt(self.engine, name, **parameters)

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Inventory]:
        """Changes to the inventory in this block are committed together at its end, or not at all after an error.

        A dry run is rolled back at its end. Raises DatabaseUnavailable.
        """
        with writing(self.engine) as connection:
            yield Inventory(Clients(connection), Pipelines(connection), Rules(connection))
            if dry_run:
                connection.rollback()

    def with_timeout(self, seconds: int) -> "Warehouse":
        """The same database over separate connections, on which no statement takes longer than this."""
        url = self.engine.url.render_as_string(hide_password=False)
        return Warehouse(make_engine(url, pool_size=2, statement_seconds=seconds))

    def close(self) -> None:
        """Close the connections that nobody is using."""
        self.engine.dispose()

"""CHM's database as one object: everything that people and programs keep in it or ask of it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chm_dagster.warehouse.clients import Clients
from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.contract import ask
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger import Runs
from chm_dagster.warehouse.pipelines import Pipelines
from chm_dagster.warehouse.rules import Rules


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

    @contextmanager
    def transaction(self, *, rehearsal: bool = False) -> Iterator[Inventory]:
        """All that is done with the inventory in here is written at the end, or, after an error, none of it.

        A rehearsal is rolled back at its end: it tells what would happen. Raises DatabaseUnavailable.
        """
        with writing(self.engine) as connection:
            yield Inventory(Clients(connection), Pipelines(connection), Rules(connection))
            if rehearsal:
                connection.rollback()

    def close(self) -> None:
        """Close the connections that nobody is using."""
        self.engine.dispose()

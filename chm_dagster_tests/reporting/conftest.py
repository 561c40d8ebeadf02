"""A client whose pipelines ran in week 47 of 2026."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from chm_dagster.domain.alerts import RunFact
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.unit.test_reports import ADDED, F, at, run

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
"""Monday, 09:00 in Berlin."""


class Office(World):
    """The database of an agency with one client, Acme, in Berlin."""

    def add(self, name: str, runs: Sequence[RunFact] = (), **fields: Any) -> UUID:
        """A pipeline that was read until now."""
        pipeline = self.pipeline(f"acme/{name}", **fields)
        self.set("pipelines", pipeline, created_at=ADDED, observed_through=datetime(2026, 11, 25, tzinfo=UTC))
        self.runs(pipeline, list(runs))
        return pipeline

    def acme(self, **fields: Any) -> None:
        """Change the client."""
        with self.engine.begin() as connection:
            for name, value in fields.items():
                connection.execute(sa.text(f"UPDATE clients SET {name} = :value WHERE slug = 'acme'"), {"value": value})

    def fill(self, seed: int = 1) -> None:
        """Three pipelines: one that fails for a night, one that misses a run, one that was not read to the end."""
        good = [run(at(day, hour), run=f"{day}-{hour}") for day in range(2, 24) for hour in (3, 15)]
        bad = [one if one.run not in ("17-3", "17-15") else run(one.effective_at, F, run=one.run) for one in good]
        some = [one for one in good if one.run != "19-3"]
        for name, runs in (("orders", bad), ("invoices", some), ("feed", good)):
            random.Random(seed).shuffle(runs)
            self.add(name, runs, schedule_cron="0 3,15 * * *", schedule_timezone="UTC", grace_minutes=30)
        self.set("pipelines", self.warehouse.pipelines.get("acme/feed").id, observed_through=at(20, 9))
        self.acme(timezone="Europe/Berlin", created_at=ADDED)


@pytest.fixture
def office(engine: sa.Engine) -> Office:
    return Office(engine)


@pytest.fixture
def acme(office: Office) -> Office:
    office.fill()
    return office

"""CHM against a real Airflow 3.0: its API shares one sort setting between concurrent requests, so pages may overlap or miss."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Platform
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster_tests.real_partners.airflow_server import BUSY, BUSY_RUNS, SMALL_FLEET, Airflow, airflow
from chm_dagster_tests.real_partners.ledger import (
    BEFORE_ALL,
    Ledger,
    assert_nothing_to_write,
    slug_of,
    sync_and_compare,
)
from chm_dagster_tests.real_partners.partners import CONNECTION, partner_of

pytestmark = [pytest.mark.slow, pytest.mark.partners]

LONG = (BUSY, *SMALL_FLEET[:2])
"""DAGs with several pages of history; few enough to be read one by one instead of account-wide."""


@pytest.fixture(scope="module")
def server() -> Iterator[Airflow]:
    with airflow("airflow-3.0", SMALL_FLEET, LONG) as server:
        for dag_id in ("succeeds", "fails"):
            server.trigger(dag_id, "first")
        for dag_id in ("succeeds", "fails"):
            server.until(dag_id, "first", "success", "failed")
        yield server


@pytest.fixture(scope="module")
def ledger(server: Airflow, ledger_engine: sa.Engine, landings: LandingZone, config_folder: Path) -> Ledger:
    viewer = {"username": "viewer", "password": server.passwords["viewer"]}
    partners = partner_of(config_folder, "airflow", server.base_url, viewer)
    ledger = Ledger(ledger_engine, landings, partners, CONNECTION)
    ledger.follow(Platform.AIRFLOW, ["succeeds", "fails", BUSY, *SMALL_FLEET])
    return ledger


def test_the_ledger_equals_the_servers_list(server: Airflow, ledger: Ledger) -> None:
    report = sync_and_compare(server, ledger)
    assert report.counts.inserted == len(LONG) * BUSY_RUNS + len(SMALL_FLEET) - 2 + 2
    assert_nothing_to_write(ledger)
    assert ledger.row("fails").error_message == "task boom: ValueError: the orders table is locked"


@pytest.mark.parametrize("attempt", range(6))
def test_pages_read_side_by_side_miss_no_run(attempt: int, ledger: Ledger) -> None:
    report = ledger.sync([f"acme/{slug_of(dag_id)}" for dag_id in LONG], since=BEFORE_ALL)
    counts = {name: getattr(report.counts, name) for name in ("inserted", "updated", "unchanged")}
    assert counts == {"inserted": 0, "updated": 0, "unchanged": len(LONG) * BUSY_RUNS}


def test_a_cleared_run_is_running_until_it_ends_again(server: Airflow, ledger: Ledger) -> None:
    server.pause("fails", paused=True)
    server.clear("fails", "first")
    server.until("fails", "first", "queued")
    sync_and_compare(server, ledger)
    assert ledger.row("fails").status == "running"
    server.pause("fails", paused=False)
    server.until("fails", "first", "failed")
    sync_and_compare(server, ledger)
    assert ledger.row("fails").status == "failed"

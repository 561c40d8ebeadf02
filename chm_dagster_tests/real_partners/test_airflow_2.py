"""CHM against a real Airflow 2.11, through its stable REST API with basic authentication."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Platform
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster_tests.real_partners.airflow_server import BUSY, BUSY_RUNS, SMALL_FLEET, Airflow, airflow_2
from chm_dagster_tests.real_partners.ledger import (
    Ledger,
    assert_nothing_to_write,
    assert_read_page_by_page,
    check,
    discover,
    sync_and_compare,
)
from chm_dagster_tests.real_partners.partners import CONNECTION, partner_of

pytestmark = [pytest.mark.slow, pytest.mark.partners]

LIFECYCLE = ("succeeds", "fails", "runs_long")


@pytest.fixture(scope="module")
def server() -> Iterator[Airflow]:
    with airflow_2() as server:
        # Its executor runs one task at a time, so the long one comes last.
        for dag_id in LIFECYCLE:
            server.trigger(dag_id, "first")
            server.until(dag_id, "first", *(["running"] if dag_id == "runs_long" else ["success", "failed"]))
        yield server


@pytest.fixture(scope="module")
def ledger(server: Airflow, ledger_engine: sa.Engine, landings: LandingZone, config_folder: Path) -> Ledger:
    admin = {"username": "admin", "password": server.passwords["admin"]}
    partners = partner_of(config_folder, "airflow", server.base_url, admin, api="airflow_2")
    ledger = Ledger(ledger_engine, landings, partners, CONNECTION)
    ledger.follow(Platform.AIRFLOW, [*LIFECYCLE, BUSY, *SMALL_FLEET])
    return ledger


def test_check_reports_the_version(ledger: Ledger) -> None:
    probe = check(ledger.partners[CONNECTION])
    assert probe.ok
    assert "2.11.2" in probe.detail


def test_the_ledger_equals_the_servers_list(server: Airflow, ledger: Ledger) -> None:
    report = sync_and_compare(server, ledger)
    assert report.counts.inserted == BUSY_RUNS + len(SMALL_FLEET) + len(LIFECYCLE)
    assert_nothing_to_write(ledger)
    assert_read_page_by_page(server, ledger, BUSY)


def test_discovery_lists_every_dag(ledger: Ledger) -> None:
    assert discover(ledger.partners[CONNECTION]) == {*LIFECYCLE, BUSY, *SMALL_FLEET}


def test_a_run_that_was_stopped_and_one_that_was_deleted_are_known(server: Airflow, ledger: Ledger) -> None:
    server.mark("runs_long", "first", "failed")
    server.trigger(BUSY, "waits")
    sync_and_compare(server, ledger)
    server.delete(BUSY, "waits")
    sync_and_compare(server, ledger)
    assert ledger.row("runs_long").status == "failed"
    assert ledger.row(BUSY, "waits").status == "canceled"


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

"""CHM against a real Dagster webserver: the ledger equals its own list of runs, before and after every transition."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Platform
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster_tests.real_partners.dagster_server import BUSY, BUSY_RUNS, LIFECYCLE, Dagster, dagster, external_id
from chm_dagster_tests.real_partners.ledger import (
    BEFORE_ALL,
    Ledger,
    assert_nothing_to_write,
    assert_read_page_by_page,
    check,
    discover,
    sync_and_compare,
)
from chm_dagster_tests.real_partners.partners import CONNECTION, partner_of

pytestmark = [pytest.mark.slow, pytest.mark.partners]


@pytest.fixture(scope="module")
def server() -> Iterator[Dagster]:
    """A running webserver in which every lifecycle job has run once; `runs_long` is still running."""
    with dagster() as server:
        with ThreadPoolExecutor() as pool:
            first = dict(zip(LIFECYCLE, pool.map(server.trigger, LIFECYCLE), strict=True))
        for job, run_id in first.items():
            server.until(run_id, *(["STARTED"] if job == "runs_long" else ["SUCCESS", "FAILURE"]))
        yield server


@pytest.fixture(scope="module")
def ledger(server: Dagster, ledger_engine: sa.Engine, landings: LandingZone, config_folder: Path) -> Ledger:
    """Every job of the server, not yet synced."""
    ledger = Ledger(ledger_engine, landings, partner_of(config_folder, "dagster", server.base_url), CONNECTION)
    ledger.follow(Platform.DAGSTER, map(external_id, [*LIFECYCLE, BUSY]))
    return ledger


def test_check_distinguishes_wrong_addresses(server: Dagster, config_folder: Path) -> None:
    def probe(base_url: str) -> tuple[bool, str]:
        answer = check(partner_of(config_folder, "dagster", base_url)[CONNECTION])
        return answer.ok, answer.detail

    ok, who = probe(server.base_url)
    assert ok
    assert "1.13.27" in who
    refusals = {
        "or not at this address": probe(f"{server.base_url}/nowhere"),
        "cannot connect to 127.0.0.1:9 (connection refused)": probe("http://127.0.0.1:9"),
    }
    for word, (ok, detail) in refusals.items():
        assert not ok
        assert [other for other in refusals if other in detail] == [word]


def test_discovery_lists_every_job(server: Dagster, config_folder: Path) -> None:
    listed = discover(partner_of(config_folder, "dagster", server.base_url)[CONNECTION])
    assert listed == {f"jobs.py/{job}" for job in (*LIFECYCLE, BUSY)}


def test_the_first_sync_finds_every_run_of_every_job(server: Dagster, ledger: Ledger) -> None:
    report = sync_and_compare(server, ledger)
    assert report.counts.inserted == BUSY_RUNS + len(LIFECYCLE)
    assert_nothing_to_write(ledger)
    assert_read_page_by_page(server, ledger, BUSY)


def test_failures_say_why(ledger: Ledger) -> None:
    assert "the orders table is locked" in ledger.row("jobs.py/fails").error_message
    assert ledger.row("jobs.py/succeeds").error_message is None


def test_rows_are_counted_where_configured(server: Dagster, ledger: Ledger, config_folder: Path) -> None:
    assert ledger.row("jobs.py/succeeds").rows_processed is None
    partners = partner_of(config_folder, "dagster", server.base_url, count_rows=True)
    counting = Ledger(ledger.engine, ledger.landings, partners, CONNECTION)
    assert counting.sync(["acme/jobs-py-succeeds"], since=BEFORE_ALL).counts.updated == 1
    assert ledger.row("jobs.py/succeeds").rows_processed == 1234


# Each way in which runs can appear, change and disappear, and the state they end up in.


def be_executed_again(server: Dagster) -> None:
    server.until(server.reexecute(server.newest("recovers")), "SUCCESS")


def be_terminated(server: Dagster) -> None:
    run_id = server.newest("runs_long")
    server.terminate(run_id)
    server.until(run_id, "CANCELED")


def be_running_beside_its_canceled_forerunner(server: Dagster) -> None:
    server.until(server.reexecute(server.newest("runs_long")), "STARTED")


def be_deleted(server: Dagster) -> None:
    server.delete(server.newest(BUSY))


def be_deleted_while_running(server: Dagster) -> None:
    run_id = server.newest("runs_long")
    server.terminate(run_id)
    server.until(run_id, "CANCELED")
    server.delete(run_id)


@pytest.mark.parametrize(
    "happening",
    [
        be_executed_again,
        be_terminated,
        be_running_beside_its_canceled_forerunner,
        be_deleted,
        be_deleted_while_running,
    ],
)
def test_a_run_may(happening: Callable[[Dagster], None], server: Dagster, ledger: Ledger) -> None:
    sync_and_compare(server, ledger)
    ledger.catch_up()
    happening(server)
    sync_and_compare(server, ledger)
    assert_nothing_to_write(ledger)

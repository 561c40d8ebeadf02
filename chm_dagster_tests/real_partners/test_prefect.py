"""CHM against a real Prefect: the ledger equals the server's own list of runs, before and after every transition."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Platform
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster_tests.real_partners.ledger import (
    Ledger,
    assert_nothing_to_write,
    assert_read_page_by_page,
    check,
    discover,
    sync_and_compare,
)
from chm_dagster_tests.real_partners.partners import CONNECTION, partner_of
from chm_dagster_tests.real_partners.prefect_server import LIFECYCLE, Prefect, hourly_from, prefect

pytestmark = [pytest.mark.slow, pytest.mark.partners]

BUSY_RUNS = 260  # two pages


@pytest.fixture(scope="module")
def server() -> Iterator[Prefect]:
    """A running Prefect in which every lifecycle flow has run once; `runs-long` is still running."""
    with prefect() as server:
        first = {name: server.trigger(name) for name in LIFECYCLE}
        server.deploy("busy")
        server.deploy("hourly", **hourly_from(datetime.now(UTC) + timedelta(minutes=30)))
        for number in range(BUSY_RUNS):
            server.set_state(server.trigger("busy", "RUNNING"), ("COMPLETED", "FAILED")[number % 4 == 3])
        server.trigger_without_deployment()
        for name, run_id in first.items():
            server.until(run_id, *(["RUNNING"] if name == "runs-long" else ["COMPLETED", "FAILED", "CRASHED"]))
        yield server


@pytest.fixture(scope="module")
def ledger(server: Prefect, ledger_engine: sa.Engine, landings: LandingZone, config_folder: Path) -> Ledger:
    """Every deployment of the server, not yet synced."""
    partners = partner_of(config_folder, "prefect", server.base_url, {"username": "chm", "password": server.password})
    ledger = Ledger(ledger_engine, landings, partners, CONNECTION)
    ledger.follow(Platform.PREFECT, server.deployments.values())
    return ledger


def test_check_distinguishes_password_and_address(server: Prefect, config_folder: Path) -> None:
    def probe(password: str, base_url: str) -> tuple[bool, str]:
        partners = partner_of(config_folder, "prefect", base_url, {"username": "chm", "password": password})
        answer = check(partners[CONNECTION])
        assert password not in answer.detail
        return answer.ok, answer.detail

    ok, who = probe(server.password, server.base_url)
    assert ok
    assert "3.9.1" in who
    refusals = {
        "credentials refused (401); check REAL_PASSWORD": probe("wrong-password", server.base_url),
        "is base_url right?": probe(server.password, f"{server.base_url}/nowhere"),
        "cannot connect to 127.0.0.1:9 (connection refused)": probe(server.password, "http://127.0.0.1:9/api"),
    }
    for word, (ok, detail) in refusals.items():
        assert not ok
        assert [other for other in refusals if other in detail] == [word]


def test_discovery_lists_every_deployment(server: Prefect, ledger: Ledger) -> None:
    assert discover(ledger.partners[CONNECTION]) == set(server.deployments.values())


def test_the_first_sync_finds_every_run_of_every_deployment(server: Prefect, ledger: Ledger) -> None:
    report = sync_and_compare(server, ledger)
    assert report.counts.inserted == BUSY_RUNS + len(LIFECYCLE)
    assert_nothing_to_write(ledger)
    assert_read_page_by_page(server, ledger, server.deployments["busy"])


def test_failures_say_why(server: Prefect, ledger: Ledger) -> None:
    def error(flow: str) -> str:
        return str(ledger.row(server.deployments[flow]).error_message)

    assert "the orders table is locked" in error("fails")
    assert "exceeded timeout" in error("times-out")
    assert "SIGKILL" in error("crashes")
    assert error("stumbles") == "None"


# Each way in which a known run can change, and the state it ends up in.


def run_again(server: Prefect) -> None:
    run_id = server.first("recovers")
    server.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    server.until(run_id, "COMPLETED")


def fail_again(server: Prefect) -> None:
    run_id = server.first("fails")
    server.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    server.until(run_id, "FAILED")


def await_a_retry(server: Prefect) -> None:
    run_id = server.trigger("busy", "RUNNING")
    server.set_state(run_id, "FAILED")
    server.set_state(run_id, "SCHEDULED", "AwaitingRetry", at=datetime.now(UTC) + timedelta(hours=1))
    # A sync reads planned runs up to the full second; this one was planned in the same second it was created.
    time.sleep(1)


def be_cancelled_while_running(server: Prefect) -> None:
    run_id = server.first("runs-long")
    server.set_state(run_id, "CANCELLING")
    server.until(run_id, "CANCELLED")


def be_in_the_middle_of_a_cancellation(server: Prefect) -> None:
    server.set_state(server.trigger("busy", "RUNNING"), "CANCELLING")


def be_paused(server: Prefect) -> None:
    server.set_state(server.trigger("busy", "RUNNING"), "PAUSED")


def be_late(server: Prefect) -> None:
    server.until(server.trigger("busy"), "SCHEDULED/Late")


def crash_before_it_starts(server: Prefect) -> None:
    run_id = server.trigger("busy", "PENDING")
    server.set_state(run_id, "CRASHED", message="no infrastructure")


def start_ahead_of_its_schedule(server: Prefect) -> None:
    run_id = server.scheduled("hourly")
    server.set_state(run_id, "RUNNING", force=True)
    server.set_state(run_id, "COMPLETED")


def be_called_off_before_its_time(server: Prefect) -> None:
    server.set_state(server.scheduled("hourly"), "CANCELLED")


def be_deleted(server: Prefect) -> None:
    server.delete(server.first("succeeds"))


def start_for_good(server: Prefect) -> None:
    server.trigger("hourly", "RUNNING")


def be_deleted_while_running(server: Prefect) -> None:
    server.delete(server.running("hourly"))


@pytest.mark.parametrize(
    "happening",
    [
        run_again,
        fail_again,
        await_a_retry,
        be_cancelled_while_running,
        be_in_the_middle_of_a_cancellation,
        be_paused,
        be_late,
        crash_before_it_starts,
        start_ahead_of_its_schedule,
        be_called_off_before_its_time,
        be_deleted,
        start_for_good,
        be_deleted_while_running,
    ],
)
def test_a_run_may(happening: Callable[[Prefect], None], server: Prefect, ledger: Ledger) -> None:
    sync_and_compare(server, ledger)
    ledger.catch_up()
    happening(server)
    sync_and_compare(server, ledger)
    assert_nothing_to_write(ledger)

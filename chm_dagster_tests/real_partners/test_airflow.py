"""CHM against a real Airflow: the ledger equals the server's own list of runs, before and after every transition."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Platform
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster_tests.real_partners.airflow_server import BUSY, BUSY_RUNS, FLEET, LIFECYCLE, Airflow, airflow
from chm_dagster_tests.real_partners.ledger import (
    BEFORE_ALL,
    Ledger,
    assert_nothing_to_write,
    assert_read_page_by_page,
    check,
    discover,
    slug_of,
    sync_and_compare,
)
from chm_dagster_tests.real_partners.partners import CONNECTION, partner_of
from chm_dagster_tests.real_partners.proxy import Proxy, counting_proxy

pytestmark = [pytest.mark.slow, pytest.mark.partners]


@pytest.fixture(scope="module")
def server() -> Iterator[Airflow]:
    """A running Airflow in which every lifecycle DAG has run once; `runs_long` is still running."""
    with airflow() as server:
        for dag_id in LIFECYCLE:
            server.trigger(dag_id, "first")
        for dag_id in LIFECYCLE:
            server.until(dag_id, "first", *(["running"] if dag_id == "runs_long" else ["success", "failed"]))
        yield server


@pytest.fixture(scope="module")
def proxy(server: Airflow) -> Iterator[Proxy]:
    with counting_proxy(server.base_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def ledger(
    server: Airflow, proxy: Proxy, ledger_engine: sa.Engine, landings: LandingZone, config_folder: Path
) -> Ledger:
    """Every DAG of the server, not yet synced."""
    viewer = {"username": "viewer", "password": server.passwords["viewer"]}
    partners = partner_of(config_folder, "airflow", proxy.base_url, viewer, rows_xcom="rows_processed")
    ledger = Ledger(ledger_engine, landings, partners, CONNECTION)
    ledger.follow(Platform.AIRFLOW, [*LIFECYCLE, BUSY, *FLEET])
    return ledger


def probe(server: Airflow, folder: Path, user: str, password: str, base_url: str = "") -> tuple[bool, str]:
    credentials = {"username": user, "password": password}
    answer = check(partner_of(folder, "airflow", base_url or server.base_url, credentials)[CONNECTION])
    assert password not in answer.detail
    return answer.ok, answer.detail


def test_check_distinguishes_password_rights_and_address(server: Airflow, config_folder: Path) -> None:
    viewer, nobody = server.passwords["viewer"], server.passwords["nobody"]
    ok, who = probe(server, config_folder, "viewer", viewer)
    assert ok
    assert "3.3.2" in who
    refusals = {
        "credentials refused (401); check REAL_PASSWORD": probe(server, config_folder, "viewer", "wrong-password"),
        "credentials are accepted, but they may not read this": probe(server, config_folder, "nobody", nobody),
        "is base_url right?": probe(server, config_folder, "viewer", viewer, f"{server.base_url}/airflow"),
        "cannot connect to 127.0.0.1:9 (connection refused)": probe(
            server, config_folder, "viewer", viewer, "http://127.0.0.1:9"
        ),
    }
    for word, (ok, detail) in refusals.items():
        assert not ok
        assert [other for other in refusals if other in detail] == [word]


def test_the_first_sync_finds_every_run_of_every_dag(server: Airflow, ledger: Ledger, proxy: Proxy) -> None:
    report = sync_and_compare(server, ledger)
    assert len(proxy.lists_of_runs) > (BUSY_RUNS + len(FLEET)) / 100  # the server's largest page
    assert report.counts.inserted == BUSY_RUNS + len(FLEET) + len(LIFECYCLE)
    assert_nothing_to_write(ledger)
    assert_read_page_by_page(server, ledger, BUSY)


def test_discovery_lists_every_dag(ledger: Ledger) -> None:
    assert discover(ledger.partners[CONNECTION]) == {*LIFECYCLE, BUSY, *FLEET}


def test_failures_have_a_reason_and_successes_a_row_count(ledger: Ledger) -> None:
    assert ledger.row("fails").error_message == "task boom: ValueError: the orders table is locked"
    assert ledger.row("succeeds").error_message is None
    assert ledger.row("succeeds").rows_processed == 1234


def test_an_error_stays_known_when_the_partner_no_longer_has_it(ledger: Ledger, proxy: Proxy) -> None:
    proxy.broken = "taskInstances"
    try:
        ledger.sync(["acme/fails", "acme/succeeds"], since=BEFORE_ALL)
    finally:
        proxy.broken = None
    assert ledger.row("fails").error_message == "task boom: ValueError: the orders table is locked"
    assert ledger.row("succeeds").rows_processed == 1234


def test_a_quiet_server_with_a_thousand_dags_is_synced_in_five_requests(ledger: Ledger, proxy: Proxy) -> None:
    ledger.catch_up()
    proxy.reset()
    assert_nothing_to_write(ledger)
    assert len(proxy.requests_for_runs) <= 5, proxy.requests


def test_requests_grow_with_the_news_and_not_with_the_dags(server: Airflow, ledger: Ledger, proxy: Proxy) -> None:
    for dag_id in FLEET[:3]:
        server.trigger(dag_id, "news")
        server.mark(dag_id, "news", "success")
    proxy.reset()
    report = sync_and_compare(server, ledger)
    assert report.counts.inserted == 3
    # One page of changed runs and, if the ledger happens to know an unfinished run, one of unfinished runs.
    assert len(proxy.lists_of_runs) <= 2, proxy.lists_of_runs
    assert len(proxy.requests_for_runs) <= 7, proxy.requests


# Each way in which a known run can change: what is done to it, and the state it ends up in.


def run_again(server: Airflow) -> None:
    server.clear("recovers", "first")
    server.until("recovers", "first", "success")


def fail_again(server: Airflow) -> None:
    server.clear("fails", "first")
    server.until("fails", "first", "queued", "running")
    server.until("fails", "first", "failed")


def wait_in_the_queue(server: Airflow) -> None:
    server.pause("stumbles", paused=True)
    server.clear("stumbles", "first")
    server.until("stumbles", "first", "queued")


def leave_the_queue(server: Airflow) -> None:
    server.pause("stumbles", paused=False)
    server.until("stumbles", "first", "success", "failed")


def be_stopped_while_running(server: Airflow) -> None:
    server.mark("runs_long", "first", "failed")


def run_long_again(server: Airflow) -> None:
    server.clear("runs_long", "first")
    server.until("runs_long", "first", "running")


def be_called_a_failure(server: Airflow) -> None:
    server.mark(BUSY, server.history[0], "failed")


def be_called_a_success_again(server: Airflow) -> None:
    server.mark(BUSY, server.history[0], "success")


def wait_for_tomorrow(server: Airflow) -> None:
    server.trigger("succeeds", "tomorrow", after=timedelta(days=1))


def end_without_a_start(server: Airflow) -> None:
    server.trigger(BUSY, "never-started")
    server.mark(BUSY, "never-started", "success")


def be_deleted(server: Airflow) -> None:
    server.delete(BUSY, server.history[1])


def wait_in_a_paused_dag(server: Airflow) -> None:
    server.trigger(BUSY, "waits")


def be_deleted_while_waiting(server: Airflow) -> None:
    server.delete(BUSY, "waits")


def be_deleted_with_its_dag(server: Airflow) -> None:
    server.delete_dag(FLEET[-1])


def come_back_under_a_deleted_id(server: Airflow) -> None:
    server.delete("succeeds", "first")
    server.trigger("succeeds", "first")
    server.until("succeeds", "first", "success")


@pytest.mark.parametrize(
    "happening",
    [
        run_again,
        fail_again,
        wait_in_the_queue,
        leave_the_queue,
        be_stopped_while_running,
        run_long_again,
        be_called_a_failure,
        be_called_a_success_again,
        wait_for_tomorrow,
        end_without_a_start,
        be_deleted,
        wait_in_a_paused_dag,
        be_deleted_while_waiting,
        be_deleted_with_its_dag,
        come_back_under_a_deleted_id,
    ],
)
def test_a_run_may(happening: Callable[[Airflow], None], server: Airflow, ledger: Ledger) -> None:
    # Airflow drops a deleted DAG from its list until it has parsed the file again.
    ledger.may_be_unlisted = {f"acme/{slug_of(FLEET[-1])}"}
    sync_and_compare(server, ledger)
    ledger.catch_up()
    happening(server)
    sync_and_compare(server, ledger)
    assert_nothing_to_write(ledger)

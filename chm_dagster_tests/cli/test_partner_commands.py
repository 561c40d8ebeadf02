"""`chm partner list|check|discover|schema` against scripted partners over a real socket."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chm_dagster_tests.cli.conftest import Chm
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, runs_reply, status_reply
from chm_dagster_tests.partners.scripts.orchestrators import Airflow

FILE = """\
connections:
  acme-airflow:
    platform: airflow
    base_url: {url}
    credentials: {{username: ACME_USER, password: ACME_PASSWORD}}
  half-set:
    platform: dagster
    api: dagster_plus
    base_url: https://dagster.example
    credentials: {{token: NOBODY_SET_THIS}}
"""


@contextmanager
def serving(script: Callable[[Request], Reply]) -> Iterator[str]:
    """Serve a script in a thread; yields its base URL."""
    loop = asyncio.new_event_loop()
    server = FaultServer(script)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server.base_url
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def partners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A partners.yaml with one partner that responds and one without credentials."""
    with serving(Airflow()) as url:
        file = tmp_path / "partners.yaml"
        file.write_text(FILE.format(url=url))
        monkeypatch.setenv("CHM_PARTNERS_FILE", str(file))
        monkeypatch.setenv("ACME_USER", "viewer")
        monkeypatch.setenv("ACME_PASSWORD", "good-secret")
        yield file


def test_check_reports_each_connection_and_fails_if_one_fails(chm: Chm, partners: Path) -> None:
    answer = chm("partner", "check")
    assert answer.code == 1
    good, bad = answer.json
    assert (good["connection"], good["ok"]) == ("acme-airflow", True)
    assert [finding["topic"] for finding in good["findings"]] == ["version", "auth", "rights"]
    assert (bad["connection"], bad["ok"]) == ("half-set", False)
    assert bad["detail"] == (
        "connection half-set: the environment variable NOBODY_SET_THIS is not set (credentials.token)"
    )
    one = chm("partner", "check", "acme-airflow", "--format", "table")
    assert one.code == 0
    assert one.out.splitlines() == [
        "acme-airflow: OK (Apache Airflow 3, version 3.3.2; the credentials are accepted; runs may be read)"
    ]
    other = chm("partner", "check", "half-set", "--format", "table")
    assert other.code == 1
    assert other.out.splitlines() == [
        "half-set: the environment variable NOBODY_SET_THIS is not set (credentials.token)"
    ]


def test_check_requests_the_runs_of_a_known_pipeline_if_the_partner_has_nothing_else(
    chm: Chm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def minimal(request: Request) -> Reply:
        known = request.path == "/base/pipelines/orders/runs"
        return runs_reply([]) if known else status_reply(404)

    with serving(minimal) as url:
        monkeypatch.setenv("CHM_PARTNER_API_BASE_URL", url)
        before = chm("partner", "check", "--format", "table")
        assert before.code == 1
        assert "default: responds, but has none of the expected paths" in before.out
        inventory = "clients: {acme: {name: Acme, pipelines: {orders: {name: Orders, platform: custom, "
        text = inventory + "pipeline_type: ingestion, external_id: orders}}}}"
        file = tmp_path / "inventory.yaml"
        file.write_text(text)
        assert chm("inventory", "apply", "-f", file).code == 0
        after = chm("partner", "check", "--format", "table")
    assert (after.code, after.out) == (0, "default: OK (no credentials are required; runs may be read)\n")


def test_a_pipeline_of_an_unknown_connection_is_created_with_a_warning(chm: Chm, partners: Path) -> None:
    assert chm("client", "create", "Acme").code == 0
    create = ("pipeline", "create", "acme", "Orders", "--platform", "airflow", "--type", "ingestion", "--connection")
    answer = chm(*create, "foo")
    assert answer.code == 0
    said = "acme/orders: there is no connection 'foo'; configured: acme-airflow, half-set"
    assert f"warning: {said}" in answer.err
    assert said in chm("pipeline", "update", "acme/orders", "--connection", "fo").err.replace("'fo'", "'foo'")
    assert "warning" not in chm("pipeline", "update", "acme/orders", "--connection", "acme-airflow").err


def test_an_unknown_connection_is_reported_with_the_known_ones(chm: Chm, partners: Path) -> None:
    answer = chm("partner", "check", "acme")
    assert answer.code == 2
    assert answer.errors == ["there is no connection 'acme'; configured: acme-airflow, half-set"]


def test_a_mistake_in_the_file_is_reported_by_line(chm: Chm, partners: Path) -> None:
    partners.write_text(partners.read_text().replace("platform: airflow", "platform: airflo"))
    answer = chm("partner", "list")
    assert answer.code == 2
    (said,) = answer.errors
    assert said.startswith("partners.yaml, line 3, connections.acme-airflow.platform: must be one of ")
    assert said.endswith("did you mean airflow?")


def test_list_shows_what_each_connection_supports_and_what_is_not_set(chm: Chm, partners: Path) -> None:
    rows = {row["connection"]: row for row in chm("partner", "list").json}
    assert rows["acme-airflow"]["api"] == "Apache Airflow 3"
    assert (rows["acme-airflow"]["scope"], rows["acme-airflow"]["deletions"]) == ("account", True)
    assert rows["half-set"]["unset variables"] == "NOBODY_SET_THIS"
    apis = {row["api"]: row["verified"] for row in chm("partner", "list", "--apis").json}
    assert (apis["airflow"], apis["dbt"]) == ("real_server", "documentation")


def test_discovered_pipelines_can_be_applied_and_are_then_known(chm: Chm, partners: Path, tmp_path: Path) -> None:
    found = chm("partner", "discover", "acme-airflow").json
    assert [(row["external_id"], row["name"], row["active"]) for row in found] == [
        ("p1", "P1", True),
        ("p2", "P2", False),
        ("p3", "P3", True),
    ]
    inventory = tmp_path / "inventory.yaml"
    written = chm("partner", "discover", "acme-airflow", "-o", inventory, "--client", "Acme GmbH")
    assert written.code == 0
    assert "3 of 3 pipelines of acme-airflow are not in the inventory" in written.err
    assert chm("inventory", "apply", "-f", inventory).code == 0
    assert chm("partner", "discover", "acme-airflow").json == []
    assert len(chm("partner", "discover", "acme-airflow", "--all").json) == 3
    assert [row["slug"] for row in chm("pipeline", "list").json] == ["p1", "p2", "p3"]


def test_a_partner_that_cannot_be_reached_says_why(chm: Chm, partners: Path) -> None:
    answer = chm("partner", "discover", "half-set")
    assert answer.code == 2
    assert answer.errors == [
        "connection half-set: the environment variable NOBODY_SET_THIS is not set (credentials.token)"
    ]

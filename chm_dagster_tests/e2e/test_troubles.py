"""Five troubles at once: within two syncs everything that people look at names each of them, and calls none healthy.

Real servers on sockets, a real database, Dagster's own job, the API and the command line.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
import sqlalchemy as sa
import yaml

from chm_dagster.api.app import create_app
from chm_dagster.definitions import assembled
from chm_dagster.defs.automation import resources, sync_partitions
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.connections import load_partners
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import record
from chm_dagster_tests.http.fault_server import Reply, Request, runs_reply, status_reply
from chm_dagster_tests.ingestion.scene import serving
from chm_dagster_tests.partners.scripts.orchestrators import Airflow
from chm_dagster_tests.partners.scripts.script import DATE, stage

PULLED = {"off": "off", "refused": "refused", "ahead": "ahead", "nightly": "fleet", "hourly": "fleet"}
"""Pipelines that are read from a partner, and their connections."""
TROUBLES = {
    "off": ("unknown", "partner unreachable since 2"),
    "refused": ("unknown", "credentials refused since 2"),
    "ahead": ("unknown", "the partner's Date header is 120 minutes ahead of CHM's clock"),
    "nightly": ("unknown", "not known to the partner since 2"),
    "backup": ("late", "no run since it was due at 2"),
}
"""What is said of each; the DAG `hourly` is well and stays so."""


class Partner:
    """Serves one run of three hours ago in the form of CHM's own API, until it refuses everybody."""

    def __init__(self) -> None:
        self.refuses = False
        self.ahead = timedelta(0)

    def __call__(self, request: Request) -> Reply:
        if self.refuses:
            return status_reply(401)
        now = datetime.now(UTC)
        started, ended = (now - timedelta(hours=3, minutes=n) for n in (10, 0))
        times = {"started_at": started.isoformat(), "finished_at": ended.isoformat(), "updated_at": ended.isoformat()}
        return runs_reply([record("r1", **times)], headers={"Date": format_datetime(now + self.ahead, usegmt=True)})


class Stack:
    """An agency with four connections and a job that reports its own runs."""

    def __init__(self, engine: sa.Engine, database_url: str, home: Path, instance: dg.DagsterInstance) -> None:
        self.engine, self.database_url, self.home, self.instance = engine, database_url, home, instance
        self.generic = {name: Partner() for name in ("off", "refused", "ahead")}
        self.fleet = Airflow()
        self.fleet.pipelines = ("hourly", "nightly")  # type: ignore[misc]
        for dag in self.fleet.pipelines:
            self.fleet.add(dag, "scheduled__1", stage("success", started=180, finished=170))
        self.open = ExitStack()
        self.servers = {name: ExitStack() for name in ("off", "refused", "ahead", "fleet")}
        for server in self.servers.values():
            self.open.enter_context(server)
        answers: Mapping[str, Any] = {**self.generic, "fleet": self.fleet}
        urls = {name: self.servers[name].enter_context(serving(answers[name])).base_url for name in answers}
        self.url = self.open.enter_context(serve_in_thread(create_app(Warehouse(engine))))
        self.defs = self._definitions(urls)
        self._enter_inventory()

    def _definitions(self, urls: Mapping[str, str]) -> dg.Definitions:
        login = {"api": "airflow", "credentials": {"username": "T_USER", "password": "T_PASSWORD"}}
        connections = {
            name: {"base_url": url, **(login if name == "fleet" else {"api": "generic"})} for name, url in urls.items()
        }
        file = self.home / "partners.yaml"
        file.write_text(yaml.safe_dump({"connections": connections}))
        partners = load_partners(file, {"T_USER": "viewer", "T_PASSWORD": "good-secret"}, None, None)
        zone = LandingZone(self.home / "landing")
        return assembled(resources(lambda: Warehouse(self.engine), lambda: partners, zone), "*/5 * * * *")

    def _enter_inventory(self) -> None:
        warehouse = Warehouse(self.engine)
        warehouse.clients.create("Acme")
        for name, connection in PULLED.items():
            platform = "airflow" if connection == "fleet" else "custom"
            fields = {"platform": platform, "pipeline_type": "ingestion", "connection": connection}
            warehouse.pipelines.create("acme", {"name": name, "external_id": name, **fields})
        sync_partitions(self.instance, self.engine)

    def start_a_job_that_falls_silent(self) -> None:
        """It runs every hour, and was last heard of four hours ago."""
        with httpx.Client(base_url=f"{self.url}/api/v1", trust_env=False) as api:
            fields = {"name": "backup", "platform": "cron", "pipeline_type": "export", "schedule_cron": "0 * * * *"}
            assert api.post("/clients/acme/pipelines", json=fields).status_code == 201
            ended = (datetime.now(UTC) - timedelta(hours=4)).isoformat()
            run = {"external_run_id": "b1", "status": "success", "started_at": ended, "finished_at": ended}
            assert api.post("/pipelines/acme%2Fbackup/runs", json=run).status_code == 201

    def break_everything(self) -> None:
        self.servers["off"].close()
        self.generic["refused"].refuses = True
        self.generic["ahead"].ahead = timedelta(hours=2)
        self.fleet.pipelines = ("hourly",)  # type: ignore[misc]
        self.fleet.runs = [run for run in self.fleet.runs if run.pipeline == "hourly"]

    def sync(self) -> dg.ExecuteInProcessResult:
        config = {"ops": {"ingest_runs": {"config": {"everything": True}}}}
        job = self.defs.resolve_job_def("ingest")
        return job.execute_in_process(instance=self.instance, run_config=config, raise_on_error=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False).raise_for_status()

    def chm(self, *arguments: str) -> str:
        """What the command prints; one that finds something wrong exits with 1."""
        own = {"CHM_DATABASE_URL": self.database_url, "CHM_HOME": str(self.home), "COLUMNS": "250"}
        done = subprocess.run(
            [sys.executable, "-m", "chm_dagster.cli.main", *arguments],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.stdout


@pytest.fixture
def stack(
    engine: sa.Engine,
    database_url: str,
    tmp_path: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Stack]:
    # The fake Airflow's clock stands still since its module was imported; in a long session it would be behind.
    monkeypatch.setitem(DATE, "Date", format_datetime(datetime.now(UTC), usegmt=True))
    found = Stack(engine, database_url, tmp_path, instance)
    with found.open:
        yield found


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "dagster")) as instance:
        yield instance


def said(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {row["pipeline_slug"]: (row["health"], row["health_reason"]) for row in rows}


def assert_named(found: Mapping[str, tuple[str, str | None]]) -> None:
    for name, (health, reason) in TROUBLES.items():
        assert found[name][0] == health, (name, found[name])
        assert reason in (found[name][1] or ""), (name, found[name])


@pytest.mark.slow
def test_within_two_syncs_each_of_five_troubles_is_named_everywhere_and_none_is_called_healthy(stack: Stack) -> None:
    assert stack.sync().success
    assert {health for health, _ in said(stack.get("/api/v1/health/latest").json()["items"]).values()} == {"healthy"}
    stack.start_a_job_that_falls_silent()
    stack.break_everything()
    stack.sync()
    last = stack.sync()
    api_names_each(stack)
    command_line_names_each(stack)
    metrics_count_each(stack)
    dagster_names_each(last)


def api_names_each(stack: Stack) -> None:
    latest = said(stack.get("/api/v1/health/latest").json()["items"])
    assert_named(latest)
    assert latest["hourly"] == ("healthy", None)
    assert said(stack.get("/api/v1/health/attention").json()["items"]).keys() == TROUBLES.keys()
    (client,) = stack.get("/api/v1/health/clients").json()["items"]
    assert (client["health"], client["unknown"], client["late"], client["healthy"]) == ("late", 4, 1, 1)
    codes = {row["connection"]: row["error_code"] for row in stack.get("/api/v1/health/connections").json()["items"]}
    assert codes == {
        "off": "unreachable",
        "refused": "credentials_refused",
        "ahead": "clock_skew",
        "fleet": "not_at_partner",
    }


def command_line_names_each(stack: Stack) -> None:
    latest = {row["pipeline_slug"]: row["health"] for row in json.loads(stack.chm("latest", "--format", "json"))}
    assert latest == {**{name: health for name, (health, _) in TROUBLES.items()}, "hourly": "healthy"}
    table = stack.chm("status", "--format", "table")
    attention = table.partition("Changed in the last 24 hours")[0]
    for name, (health, reason) in TROUBLES.items():
        lines = [line for line in attention.splitlines() if f"acme/{name} " in line]
        assert [health in line and reason in line for line in lines] == [True], (name, attention)
    assert "acme/hourly" not in attention
    assert "Not read: fleet (1 of 2 pipelines), off, refused." in table


def metrics_count_each(stack: Stack) -> None:
    metrics = dict(re.findall(r"^(chm_\S+) ([\d.e+]+)$", stack.get("/metrics").text, re.MULTILINE))
    by_health = {health: metrics[f'chm_pipelines_by_health{{health="{health}"}}'] for health in ("unknown", "late")}
    assert by_health == {"unknown": "4.0", "late": "1.0"}
    assert metrics['chm_pipelines_by_health{health="healthy"}'] == "1.0"
    up = {name: metrics[f'chm_connection_up{{connection="{name}",platform="custom"}}'] for name in stack.generic}
    assert up == {"off": "0.0", "refused": "0.0", "ahead": "1.0"}
    errors = dict(re.findall(r'chm_connection_error\{code="(\w+)",connection="(\w+)"', "\n".join(metrics)))
    assert errors == {
        "unreachable": "off",
        "credentials_refused": "refused",
        "clock_skew": "ahead",
        "not_at_partner": "fleet",
    }


def dagster_names_each(last: dg.ExecuteInProcessResult) -> None:
    checks = {one.check_name: one for one in last.get_asset_check_evaluations()}
    answered = checks["every_partner_answered"]
    assert not answered.passed
    reasons = {str(names): reason for reason, names in answered.metadata["reasons"].value.items()}  # type: ignore[union-attr]
    found = {names.rpartition("acme/")[2]: reason for names, reason in reasons.items()}
    assert found.keys() == {"off", "refused", "nightly"}
    assert "cannot connect" in found["off"]
    assert "credentials refused (401)" in found["refused"]
    assert "does not know pipeline 'nightly'" in found["nightly"]
    clocks = checks["clocks_agree"]
    assert (clocks.passed, list(clocks.metadata["pipelines"].value)) == (False, ["acme/ahead"])  # type: ignore[arg-type]
    behind = checks["inventory_is_synced"]
    assert (behind.passed, behind.metadata["pipelines"].value) == (False, ["acme/nightly", "acme/off", "acme/refused"])
    (snapshot,) = last.asset_materializations_for_node("health_snapshot")
    attention = str(snapshot.metadata["needs attention"].value)
    for name in TROUBLES:
        assert name in attention
    assert "hourly" not in attention
    assert snapshot.metadata["pipelines that need attention"].value == len(TROUBLES)

"""CHM as one code location beside somebody else's, in their Dagster, with CHM's database alone."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from chm_dagster_tests.deploy.compose import ROOT

pytestmark = pytest.mark.slow

# Names that are CHM's, too.
THEIRS = """
import dagster as dg

@dg.asset
def runs() -> None: ...

@dg.op
def work() -> None: ...

@dg.job
def ingest() -> None:
    work()

@dg.schedule(job=ingest, cron_schedule="0 0 * * *")
def sync_schedule(): ...

defs = dg.Definitions(assets=[runs], jobs=[ingest], schedules=[sync_schedule])
"""
REPOSITORIES = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
  location { name } jobs { name } schedules { name } sensors { name } assetNodes { assetKey { path } }
} } } }"""
NOBODY = "postgresql://chm:secret@127.0.0.1:1/chm"
"""Nothing answers there: loading needs no database."""


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """Somebody's folder: their code, and a workspace with both locations."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "home").mkdir()
    page = (ROOT / "docs" / "your-dagster.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    theirs = {"python_file": {"relative_path": "theirs.py", "location_name": "theirs"}}
    (tmp_path / "workspace.yaml").write_text(json.dumps({"load_from": [theirs, *shown["load_from"]]}))
    return tmp_path


def environment(deployment: Path, **own: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**inherited, "DAGSTER_HOME": str(deployment / "home"), "CHM_DATABASE_URL": NOBODY, **own}


@pytest.mark.parametrize("own", [{}, {"CHM_DAGSTER_PREFIX": "chm"}], ids=["bare", "prefixed"])
def test_dagster_finds_the_workspace_valid(deployment: Path, own: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(command, cwd=deployment, env=environment(deployment, **own), capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("Validation successful for code location") == 2, said
    assert not (deployment / ".chm").exists(), "loading leaves nothing behind"


def test_a_setting_that_is_wrong_fails_the_location_by_name_and_not_theirs(deployment: Path) -> None:
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    wrong = environment(deployment, CHM_DAGSTER_PREFIX="not-a-name")
    done = subprocess.run(command, cwd=deployment, env=wrong, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "CHM_DAGSTER_PREFIX is not a name" in said and "secret" not in said
    assert "Validation successful for code location theirs" in said


@pytest.fixture
def repositories(deployment: Path) -> Iterator[dict[str, Any]]:
    """What a webserver with both locations shows, by location."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = environment(deployment, CHM_DAGSTER_PREFIX="chm", CHM_UI_PORT=str(port))
    command = [sys.executable, "-m", "chm_dagster.ui", "-w", "workspace.yaml"]
    with subprocess.Popen(
        command, cwd=deployment, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield {one["location"]["name"]: one for one in ask(process, port)}
        finally:
            process.terminate()


def ask(process: "subprocess.Popen[str]", port: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 120
    while True:
        try:
            url = f"http://127.0.0.1:{port}/graphql"
            response = httpx.post(url, json={"query": REPOSITORIES}, timeout=60, trust_env=False)
            nodes: list[dict[str, Any]] = response.json()["data"]["repositoriesOrError"]["nodes"]
            return nodes
        except httpx.TransportError:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)


def names(found: list[dict[str, str]]) -> set[str]:
    return {one["name"] for one in found if not one["name"].startswith("__")}


def test_under_a_prefix_nothing_of_chms_has_a_name_of_theirs(repositories: dict[str, Any]) -> None:
    assert set(repositories) == {"theirs", "chm"}
    theirs, ours = repositories["theirs"], repositories["chm"]
    assert names(theirs["jobs"]) == {"ingest"}
    reports = {"chm_client_reports", "chm_client_month_reports"}
    assert names(ours["jobs"]) == {"chm_ingest", "chm_deliver_alerts", *reports}
    assert names(ours["schedules"]) == {"chm_sync_schedule"}
    assert names(ours["sensors"]) == {"chm_pipeline_partitions", "chm_partner_news", "chm_alerts", "chm_reports_due"}
    keys = {"/".join(node["assetKey"]["path"]) for node in ours["assetNodes"]}
    own = {
        "partner_runs",
        "canonical_runs",
        "runs",
        "health_snapshot",
        "alert_episodes",
        "alert_notifications",
        "client_report",
        "client_month_report",
    }
    assert keys == {f"chm/{name}" for name in own}
    assert {"/".join(node["assetKey"]["path"]) for node in theirs["assetNodes"]} == {"runs"}

"""Launches over HTTP, as a person in the UI or a stranger's web page sends them: none chooses an address or a folder."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

SECRET = "sentinel-token-5f1c"
PASSWORD = "sentinel-password-77ab"
LAUNCH = """
mutation ($config: RunConfigData!) {
  launchRun(executionParams: {
    runConfigData: $config,
    selector: {repositoryLocationName: "chm_dagster.definitions", repositoryName: "__repository__", jobName: "ingest"}
  }) {
    __typename
    ... on RunConfigValidationInvalid { errors { message reason } }
    ... on PythonError { message }
    ... on LaunchRunSuccess { run { runId } }
  }
}
"""
RESOURCES = """
{
  allTopLevelResourceDetailsOrError(repositorySelector: {
    repositoryLocationName: "chm_dagster.definitions", repositoryName: "__repository__"
  }) {
    __typename
    ... on ResourceDetailsList {
      results { name description resourceType configFields { name configType { __typename } } configuredValues { key value type } }
    }
    ... on PythonError { message }
  }
}
"""
SCAFFOLD = """
{
  runConfigSchemaOrError(selector: {
    repositoryLocationName: "chm_dagster.definitions", repositoryName: "__repository__", pipelineName: "ingest"
  }) {
    __typename
    ... on RunConfigSchema { allConfigTypes { __typename key description ... on CompositeConfigType { fields { name defaultValueAsJson } } } rootDefaultYaml }
    ... on PythonError { message }
  }
}
"""


class Webserver:
    """Dagster's own webserver over CHM's definitions, in a process of its own."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> tuple[Any, str]:
        """The answer's one field, and all of its text."""
        body = {"query": query, "variables": variables}
        response = httpx.post(self._url, json=body, timeout=60, trust_env=False)
        answer = response.json()
        assert "errors" not in answer, answer
        (field,) = answer["data"].values()
        return field, response.text

    def launch(self, config: dict[str, Any]) -> tuple[Any, str]:
        return self.ask(LAUNCH, config=json.dumps(config))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CHM_", "DAGSTER_", "PG"))},
        "DAGSTER_HOME": str(home),
        "CHM_HOME": str(home / "chm"),
        "CHM_DATABASE_URL": f"postgresql://chm:{PASSWORD}@127.0.0.1:9/chm",
        "CHM_DAGSTER_DATABASE_URL": f"postgresql://chm:{PASSWORD}@127.0.0.1:9/dagster",
        "CHM_PARTNER_API_BASE_URL": "http://127.0.0.1:9",
        "CHM_PARTNER_API_TOKEN": SECRET,
    }
    command = [
        *(sys.executable, "-m", "dagster_webserver", "-m", "chm_dagster.definitions"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    log = Path(home / "log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        _wait_until_it_serves(port, process, log)
        yield Webserver(port)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_it_serves(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/server_info", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            continue


@pytest.fixture
def trap() -> Iterator[tuple[str, socket.socket]]:
    """An address of a stranger, and the socket on which nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


EVERYTHING = {"ops": {"ingest_runs": {"config": {"everything": True}}}}


@pytest.mark.parametrize(
    ("resource", "config"),
    [
        ("partners", {"base_url": "TRAP", "token": {"env": "CHM_DATABASE_URL"}}),
        ("partners", {"base_url": "TRAP"}),
        ("warehouse", {"url": {"env": "CHM_PARTNER_API_TOKEN"}}),
        ("landing", {"root": "/tmp"}),
        ("io_manager", {"base_dir": "/tmp"}),
    ],
)
def test_a_launch_that_says_where_and_as_whom_is_refused(
    webserver: Webserver, trap: tuple[str, socket.socket], resource: str, config: dict[str, Any]
) -> None:
    address, server = trap
    config = {name: address if value == "TRAP" else value for name, value in config.items()}
    refused, text = webserver.launch({**EVERYTHING, "resources": {resource: {"config": config}}})
    assert refused["__typename"] == "RunConfigValidationInvalid"
    assert {error["reason"] for error in refused["errors"]} <= {"FIELD_NOT_DEFINED", "FIELDS_NOT_DEFINED"}
    assert SECRET not in text and PASSWORD not in text
    with pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize(
    "config",
    [
        {"pipelines": [{"env": "CHM_PARTNER_API_TOKEN"}]},
        {"since": {"env": "CHM_PARTNER_API_TOKEN"}},
        {"everything": True, "from_landing": {"env": "CHM_PARTNER_API_TOKEN"}},
        {"everything": True, "progress_file": "/tmp/progress"},
    ],
)
def test_a_launch_that_reads_a_variable_or_names_a_file_is_refused(
    webserver: Webserver, config: dict[str, Any]
) -> None:
    refused, text = webserver.launch({"ops": {"ingest_runs": {"config": config}}})
    assert refused["__typename"] == "RunConfigValidationInvalid"
    assert SECRET not in text


def test_an_ordinary_launch_is_taken(webserver: Webserver) -> None:
    taken, _ = webserver.launch(EVERYTHING)
    assert taken["__typename"] == "LaunchRunSuccess", taken


@pytest.mark.parametrize("query", [RESOURCES, SCAFFOLD], ids=["resources", "run config"])
def test_what_the_ui_shows_of_resources_and_run_config_holds_no_secret(webserver: Webserver, query: str) -> None:
    shown, text = webserver.ask(query)
    assert shown["__typename"] in ("ResourceDetailsList", "RunConfigSchema"), shown
    assert "everything" in text or "partners" in text
    for secret in (SECRET, PASSWORD):
        assert secret not in text

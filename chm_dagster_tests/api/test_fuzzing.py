"""Requests that the contract allows, and many that it does not, get a response that the contract documents."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chm_dagster.api import openapi
from chm_dagster.api.app import POOL_SIZE, create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import add_pipeline
from chm_dagster_tests.api.conftest import TOKEN, caller

RULES = Path(__file__).with_name("schemathesis.toml")
RULE = {"client_id": "acme", "rule_type": "on_failure", "channel": "slack", "destination": "#data"}


@pytest.fixture
def real(database_url: str) -> Iterator[httpx.Client]:
    """The app as its process serves it."""
    engine = make_engine(database_url, pool_size=POOL_SIZE, statement_seconds=30)
    with serve_in_thread(create_app(Warehouse(engine), token=TOKEN)) as url, caller(url, TOKEN) as api:
        yield api
    engine.dispose()


def known(api: httpx.Client) -> dict[str, str]:
    """Path parameters of existing things, so that requests get past the lookup."""
    pipeline = add_pipeline(api, "Acme", "Orders")
    for status in ("failed", "success", "running"):
        api.post("/api/v1/pipelines/acme/orders/runs", json={"status": status})
    rule = api.post("/api/v1/alert_rules", json=RULE).json()
    return {"client_id": pipeline["client_id"], "pipeline_id": pipeline["id"], "rule_id": rule["id"]}


def fuzz(api: httpx.Client, folder: Path, examples: int, phases: str, parameters: dict[str, str]) -> int:
    """The number of cases, all of which passed; otherwise the test fails with the output of Schemathesis."""
    settings, report = folder / "schemathesis.toml", folder / "report.json"
    # Keys of the file's top level come before its tables.
    given = "\n".join(f'"path.{name}" = "{value}"' for name, value in parameters.items())
    settings.write_text(f"{RULES.read_text()}\n[parameters]\n{given}\n")
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(settings), "run", str(openapi.FILE)]
    options = ["--url", str(api.base_url), "--header", f"Authorization: Bearer {TOKEN}", "--phases", phases]
    more = ["--max-examples", str(examples), "--continue-on-failure", "--no-color"]
    same = ["--generation-deterministic", "--seed", "1"]
    reports = ["--report", "json", "--report-json-path", str(report)]
    ended = subprocess.run([*command, *options, *more, *same, *reports], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6_000:]
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["operations"]["tested"] == found["operations"]["total"] > 35
    assert (found["failures"], found["errors"]) == ([], [])
    return int(found["test_cases"]["generated"])


def unexpected(api: httpx.Client) -> list[str]:
    """Routes that responded with a 500, according to the server's own metrics."""
    return re.findall(r'chm_http_requests_total{.*status="500".*', api.get("/metrics").text)


@pytest.mark.slow
@pytest.mark.parametrize("existing", [False, True], ids=["made-up ids", "ids that exist"])
def test_thousands_of_fuzzed_requests_get_responses_that_match_the_contract(
    real: httpx.Client, tmp_path: Path, existing: bool
) -> None:
    parameters = known(real)
    cases = fuzz(real, tmp_path, 50, "examples,coverage,fuzzing,stateful", parameters if existing else {})
    assert cases >= 2_000
    assert unexpected(real) == []

"""`chm ingest` for a client with more pipelines than a command line can name."""

import os

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines
from chm_dagster_tests.cli.conftest import Chm
from chm_dagster_tests.http.fault_server import runs_reply
from chm_dagster_tests.ingestion.scene import serving

MAX_ARGUMENT_BYTES = 32 * os.sysconf("SC_PAGESIZE")
"""Of a single argument, on Linux."""


@pytest.mark.slow
def test_a_client_with_thousands_of_pipelines_is_ingested(
    chm: Chm, engine: sa.Engine, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHM_DAGSTER_DATABASE_URL", empty_database_url)
    names = [f"{n:04}-{'x' * 90}" for n in range(2_200)]
    assert sum(map(len, names)) > MAX_ARGUMENT_BYTES
    add_pipelines(
        engine, [NewPipeline("Acme", "acme", n, n, Platform.CUSTOM, PipelineType.INGESTION, n) for n in names]
    )
    # An account without runs: reading it takes one request.
    with serving(lambda _: runs_reply([])) as partner:
        monkeypatch.setenv("CHM_PARTNER_API_BASE_URL", partner.base_url)
        answer = chm("ingest", "--client", "acme")
    assert answer.code == 0, answer.err
    assert len(answer.json["pipelines"]) == len(names)

"""`chm lineage`: listing unmatched events and replaying them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.ingestion.lineage import UnmatchedEvents
from chm_dagster_tests.factories import rows
from chm_dagster_tests.lineage.recorded import sent
from chm_dagster_tests.lineage.test_receiving import pipeline


def chm(home: Path, database_url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    own = {"CHM_HOME": str(home), "CHM_DATABASE_URL": database_url, "CHM_DAGSTER_DATABASE_URL": database_url}
    return subprocess.run(
        [sys.executable, "-m", "chm_dagster.cli.main", "lineage", *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_unmatched_jobs_are_listed_and_replayed_once_their_pipeline_exists(
    engine: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    unmatched = UnmatchedEvents(tmp_path / "lineage")
    unmatched.put(sent())
    listed = chm(tmp_path, database_url, "unmatched")
    assert listed.returncode == 0, listed.stderr
    assert [(job["namespace"], job["job"]) for job in json.loads(listed.stdout)] == [("acme", "orders")]
    assert json.loads(chm(tmp_path, database_url, "replay").stdout) == {"unmatched": 1}
    pipeline(engine, "orders", connection="openlineage:acme", platform="dbt")
    assert json.loads(chm(tmp_path, database_url, "replay").stdout) == {"inserted": 1}
    assert "1 events: unchanged 1" in chm(tmp_path, database_url, "replay", "--format", "table").stdout
    assert [row["status"] for row in rows(engine, "SELECT status FROM runs")] == ["running"]

"""What `chm ingest` tells a person and a program of an ingestion."""

import json
from datetime import UTC, datetime

import pytest

from chm_dagster.cli.ingest import show_report
from chm_dagster.cli.output import Format
from chm_dagster.ingestion.report import IngestReport, PipelineReport

REPORT = IngestReport(
    datetime(2026, 3, 1, tzinfo=UTC),
    {
        "acme/a": PipelineReport("acme/a", "default", fetched=2, inserted=2, unknown_statuses={"odd": 2}),
        "acme/b": PipelineReport("acme/b", "default", error="connection default: credentials refused (401)"),
        "acme/c": PipelineReport("acme/c", "default"),
    },
)


def test_a_person_is_told_of_errors_and_of_words_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(REPORT, Format.TABLE)
    told = capsys.readouterr()
    assert "acme/b: connection default: credentials refused (401)" in told.err
    assert "acme/a: unknown status 'odd', 2 times" in told.err
    assert "1 without news" in told.out and "1 could not be read" in told.out


def test_a_program_gets_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(REPORT, Format.JSON)
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["inserted"] == 2
    assert answer["totals"]["failed_pipelines"] == 1
    assert answer["pipelines"][0]["unknown_statuses"] == {"odd": 2}

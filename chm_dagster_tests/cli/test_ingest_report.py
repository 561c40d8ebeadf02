"""What `chm ingest` reports to a person and to a program."""

import json
from datetime import UTC, datetime

import pytest

from chm_dagster.cli.ingest import show_report
from chm_dagster.cli.output import Format
from chm_dagster.domain.runs import Counts
from chm_dagster.domain.sync import IngestReport, PipelineReport

REPORT = IngestReport(
    datetime(2026, 3, 1, tzinfo=UTC),
    {
        "acme/a": PipelineReport(
            "acme/a", "default", fetched=2, counts=Counts(inserted=2), unknown_statuses={"odd": 2}
        ),
        "acme/b": PipelineReport("acme/b", "default", error="connection default: credentials refused (401)"),
        "acme/c": PipelineReport("acme/c", "default"),
    },
)


def test_a_person_sees_errors_and_unknown_status_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(REPORT, Format.TABLE)
    printed = capsys.readouterr()
    assert "acme/b: connection default: credentials refused (401)" in printed.err
    assert "acme/a: unknown status 'odd', 2 times" in printed.err
    assert "1 without news" in printed.out and "1 could not be read" in printed.out


def test_a_program_gets_the_whole_report(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(REPORT, Format.JSON)
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["inserted"] == 2
    assert answer["totals"]["failed_pipelines"] == 1
    assert answer["pipelines"][0]["unknown_statuses"] == {"odd": 2}

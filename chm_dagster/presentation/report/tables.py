"""A report as data: CSV with a row for each pipeline, and JSON with everything."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from chm_dagster.domain.reports import PipelineFigures, Report

COLUMNS = (
    *("client", "period", "revision", "pipeline", "pipeline_name", "platform", "owner", "is_active"),
    *("runs", "success", "failed", "retried", "running", "canceled", "skipped", "in_maintenance", "success_rate"),
    *("slots", "on_time", "on_time_rate", "incidents", "incident_seconds", "coverage", "flips", "known_through"),
)
"""The columns of the CSV. Rates are from 0 to 1; an empty cell is unknown."""
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def as_csv(report: Report) -> bytes:
    """A row for each pipeline, by slug. Text that a spreadsheet would run as a formula begins with an apostrophe."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for pipeline in sorted(report.pipelines, key=lambda one: one.slug):
        rows.writerow([_cell(value) for value in _row(report, pipeline)])
    return written.getvalue().encode()


def _row(report: Report, one: PipelineFigures) -> Iterator[Any]:
    tally = one.tally
    yield from (report.client, report.period, report.revision, one.slug, one.name, one.platform, one.owner)
    yield from (one.is_active, tally.runs, tally.success, tally.failed, tally.retried, tally.running)
    yield from (tally.canceled, tally.skipped, tally.in_maintenance, one.success_rate, tally.slots, tally.on_time)
    yield from (one.on_time_rate, one.incidents, round(one.incident_seconds), one.coverage)
    yield None if one.flaky is None else one.flaky.flips
    yield None if one.known_through is None else one.known_through.isoformat()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return f"{value}"
    return f"'{value}" if _FORMULA.match(value) else value


def as_json(report: Report) -> bytes:
    """The whole report. Rates are from 0 to 1, null is unknown; times are in UTC."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"

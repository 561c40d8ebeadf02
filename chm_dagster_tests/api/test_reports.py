"""The report over HTTP."""

import csv
import io

import httpx
import pytest

from chm_dagster.warehouse.engine import Engine
from chm_dagster_tests.reporting.conftest import Office


@pytest.mark.parametrize(
    ("form", "media_type", "start"),
    [
        ("html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("pdf", "application/pdf", b"%PDF-"),
        ("csv", "text/csv; charset=utf-8", b"client,period,"),
        ("json", "application/json", b"{"),
    ],
)
def test_a_report_is_served_in_each_format(
    api: httpx.Client, engine: Engine, form: str, media_type: str, start: bytes
) -> None:
    Office(engine).fill()
    answer = api.get("/api/v1/clients/acme/report", params={"week": "2026-W46", "format": form})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content.startswith(start)
    assert answer.headers["content-disposition"] == f'inline; filename="acme-2026-W46.{form}"'
    again = api.get("/api/v1/clients/acme/report", params={"week": "2026-W46", "format": form})
    assert again.content == answer.content
    if form == "csv":
        assert [row["pipeline"] for row in csv.DictReader(io.StringIO(answer.text))] == ["feed", "invoices", "orders"]


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("acme/report?week=2026-W99", 400, "week"),
        ("acme/report?week=9000-W01", 400, "week"),
        ("acme/report?week=2026-W46&month=2026-10", 400, "month"),
        ("acme/report?format=docx", 400, "format"),
        ("acme/report?wek=2026-W46", 400, "wek"),
        ("nobody/report", 404, None),
    ],
)
def test_what_makes_no_report_is_refused(
    api: httpx.Client, engine: Engine, path: str, status: int, field: str | None
) -> None:
    Office(engine).fill()
    answer = api.get(f"/api/v1/clients/{path}")
    assert answer.status_code == status
    assert [detail["field"] for detail in answer.json()["error"]["details"]] == ([field] if field else [])

"""`chm report`: build, show and send."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster_tests.alerting.mail_server import MailServer
from chm_dagster_tests.cli.conftest import Chm
from chm_dagster_tests.reporting.conftest import Office


@pytest.fixture
def reported(chm: Chm, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chm:
    """`chm` with the client of the other tests of reports, whose week is long over by now."""
    Office(engine).fill()
    monkeypatch.chdir(tmp_path)
    return chm


def test_a_report_is_built_shown_and_sent(reported: Chm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = reported("report", "build", "acme", "--week", "2026-W46")
    assert (built.code, built.out) == (0, "wrote acme-2026-W46.pdf: 2026-W46, revision 1\n")
    assert (tmp_path / "acme-2026-W46.pdf").read_bytes().startswith(b"%PDF-")
    shown = reported("report", "show", "acme", "--week", "2026-W46").json
    assert (shown["period"], shown["revision"], shown["figures"]["runs"]) == ("2026-W46", 1, 42)
    assert "Week 46 of 2026" in reported("report", "show", "acme", "--week", "2026-W46", "--format", "table").out

    missing = reported("report", "send", "acme", "--week", "2026-W46")
    assert (missing.code, missing.errors) == (
        2,
        ["report_email: is not set: chm client update acme --report-email ADDRESS"],
    )
    assert reported("client", "update", "acme", "--report-email", "reports@acme.example").code == 0
    with MailServer(None, needs_login=False) as server:
        monkeypatch.setenv("CHM_SMTP_URL", f"smtp+plain://127.0.0.1:{server.port}")
        sent = reported("report", "send", "acme", "--week", "2026-W46")
    assert (sent.code, sent.out) == (0, "sent to reports@acme.example: 2026-W46, revision 1\n")
    assert len(server.mails) == 1


def test_a_report_goes_to_a_file_or_to_standard_output(reported: Chm, tmp_path: Path) -> None:
    target = tmp_path / "october.json"
    built = reported("report", "build", "acme", "--month", "2026-10", "--format", "json", "--output", target)
    assert built.code == 0 and json.loads(target.read_bytes())["period"] == "2026-10"
    refused = reported("report", "build", "acme", "--week", "2026-W46", "--output", tmp_path / "none" / "x.pdf")
    assert refused.code == 2 and refused.errors[0].endswith("x.pdf cannot be written: no such file or directory")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--week", "2025-W53"), "week: 2025-W53 does not exist: that year has no such ISO week"),
        (("--week", "9000-W01"), "week: 9000-W01 has not begun yet"),
        (("--month", "2026-10", "--week", "2026-W40"), "month: send a week or a month, not both"),
    ],
)
def test_what_is_no_period_is_refused(reported: Chm, options: tuple[str, ...], error: str) -> None:
    answer = reported("report", "show", "acme", *options)
    assert (answer.code, answer.errors) == (2, [error])


def test_an_unknown_client_is_refused_with_a_suggestion(reported: Chm) -> None:
    answer = reported("report", "show", "acne")
    assert (answer.code, answer.errors) == (2, ["no client 'acne'; did you mean acme?"])


def test_the_address_and_the_time_zone_are_checked(reported: Chm) -> None:
    answer = reported("client", "update", "acme", "--report-email", "nobody", "--timezone", "Europe/Berln")
    assert answer.code == 2
    assert answer.errors == [
        "timezone: must be the name of an IANA time zone; did you mean Europe/Berlin?",
        "report_email: must be an email address, such as ops@example.com",
    ]
    assert reported("client", "update", "acme", "--clear", "timezone").json["timezone"] is None

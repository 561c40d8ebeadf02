"""Sending: on Monday morning in the client's time zone, once in effect, over a real socket, whatever crashes."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import pytest
import sqlalchemy as sa

from chm_dagster.alerting.channels import Channels
from chm_dagster.domain.periods import Period
from chm_dagster.domain.reports import Issued
from chm_dagster.errors import InputError, Transient
from chm_dagster.reporting import REVISED_FOR, DueReport, build, pending, run_due, send_report, undeliverable
from chm_dagster.warehouse.reports import receivers, report_source, sending
from chm_dagster_tests.alerting.mail_server import MailServer
from chm_dagster_tests.reporting.conftest import NOW, Office

RECEIVER = "reports@acme.example"


def plain_server(**changes: object) -> MailServer:
    return MailServer(None, needs_login=False, **changes)  # type: ignore[arg-type]


def channels(server: MailServer) -> Channels:
    return Channels(smtp_url=f"smtp+plain://127.0.0.1:{server.port}", email_from="CHM <chm@agency.example>")


def due(office: Office, server: MailServer, now: datetime = NOW, *, revise: bool = False) -> DueReport:
    found = run_due(office.engine, channels(server), lambda: now, revise=revise)
    assert found is not None
    return found


def kept(office: Office, period: str = "2026-W47") -> Issued:
    with report_source(office.engine) as source:
        return source.client("acme").issues[period]


@pytest.fixture
def sent_to(acme: Office) -> Office:
    acme.acme(report_email=RECEIVER)
    return acme


def change_a_run(office: Office) -> None:
    with office.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET status = 'failed' WHERE external_run_id = '20-3'"))


def test_a_report_is_an_email_with_its_words_and_a_pdf(sent_to: Office) -> None:
    with plain_server() as server:
        found = due(sent_to, server)
    assert (found.sent, found.failed) == ((f"acme 2026-W47 to {RECEIVER}",), ())
    [mail] = server.mails
    assert (mail["To"], mail["From"]) == (RECEIVER, "CHM <chm@agency.example>")
    assert mail["Subject"] == "Acme: Week 47 of 2026"
    assert mail["Message-ID"].endswith("@agency.example>")
    body = mail.get_body()
    assert body is not None and "39 of 41 known runs succeeded." in body.get_content()
    [pdf] = list(mail.iter_attachments())
    assert (pdf.get_content_type(), pdf.get_filename()) == ("application/pdf", "acme-2026-W47.pdf")
    assert pdf.get_content().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("zone", "early", "late"),
    [
        ("Europe/Berlin", datetime(2026, 11, 23, 7, 59, tzinfo=UTC), datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("Pacific/Auckland", datetime(2026, 11, 22, 19, 59, tzinfo=UTC), datetime(2026, 11, 22, 20, tzinfo=UTC)),
        ("America/Los_Angeles", datetime(2026, 11, 23, 16, 59, tzinfo=UTC), datetime(2026, 11, 23, 17, tzinfo=UTC)),
    ],
)
def test_it_is_due_on_monday_at_nine_in_the_clients_time_zone(
    sent_to: Office, zone: str, early: datetime, late: datetime
) -> None:
    sent_to.acme(timezone=zone)
    with plain_server() as server:
        due(sent_to, server, late - timedelta(days=7))
        server.mails.clear()
        assert due(sent_to, server, early).sent == ()
        [client] = receivers(sent_to.engine)
        assert (pending(client, late), pending(client, early)) == ([Period.week("2026-W47")], [])
        assert due(sent_to, server, late).sent == (f"acme 2026-W47 to {RECEIVER}",)
    assert len(server.mails) == 1


def test_a_report_that_was_not_issued_all_week_is_due_until_the_next_one_is(sent_to: Office) -> None:
    with plain_server() as server:
        assert due(sent_to, server, NOW + timedelta(days=6, hours=23)).sent == (f"acme 2026-W47 to {RECEIVER}",)


def test_it_is_sent_once(sent_to: Office) -> None:
    with plain_server() as server:
        for hours in (0, 1, 24, 100):
            due(sent_to, server, NOW + timedelta(hours=hours), revise=True)
    assert len(server.mails) == 1


def test_late_data_make_a_revision_that_is_not_sent_by_itself(sent_to: Office) -> None:
    with plain_server() as server:
        due(sent_to, server)
        change_a_run(sent_to)
        assert due(sent_to, server).issued == (), "only a revision looks at weeks that were issued"
        [built] = due(sent_to, server, NOW + timedelta(days=1), revise=True).issued
        assert (built.report.revision, len(server.mails)) == (2, 1)
        assert due(sent_to, server, NOW + timedelta(days=2), revise=True).issued == ()
        send_report(sent_to.engine, channels(server), "acme", "2026-W47", None, NOW)
    first, second = server.mails
    assert second["Subject"] == "Acme: Week 47 of 2026 (revision 2)"
    assert first["Message-ID"] != second["Message-ID"]
    body = second.get_body()
    assert body is not None and "Revision 2 changed: success rate 95.1 % → 87.8 %" in body.get_content()


def test_weeks_that_are_long_over_are_not_built_again(sent_to: Office) -> None:
    with plain_server() as server:
        due(sent_to, server)
        change_a_run(sent_to)
        assert due(sent_to, server, NOW + REVISED_FOR, revise=True).issued[0].report.period != "2026-W47"
    assert kept(sent_to).revision == 1


# --- months ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "month", "due_at"),
    [
        ("Europe/Berlin", "2026-11", datetime(2026, 12, 1, 8, tzinfo=UTC)),
        ("Europe/Berlin", "2026-03", datetime(2026, 4, 1, 7, tzinfo=UTC)),  # clocks went forward on the 29th
        ("Europe/Berlin", "2026-10", datetime(2026, 11, 1, 8, tzinfo=UTC)),  # and back on the 25th
        ("America/New_York", "2026-10", datetime(2026, 11, 1, 14, tzinfo=UTC)),  # clocks go back on this very day
        ("Europe/Berlin", "2028-02", datetime(2028, 3, 1, 8, tzinfo=UTC)),  # has 29 days
        ("Europe/Berlin", "2027-02", datetime(2027, 3, 1, 8, tzinfo=UTC)),
        ("Pacific/Kiritimati", "2028-02", datetime(2028, 2, 29, 19, tzinfo=UTC)),  # 14 hours ahead
        ("Pacific/Pago_Pago", "2026-12", datetime(2027, 1, 1, 20, tzinfo=UTC)),  # 11 hours behind
    ],
)
def test_a_month_is_due_on_the_first_of_the_next_one_at_nine_in_the_clients_time_zone(
    sent_to: Office, zone: str, month: str, due_at: datetime
) -> None:
    sent_to.acme(timezone=zone, report_period="month", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    early, before = due_at - timedelta(minutes=1), Period.month(month).before()
    with plain_server() as server:
        assert due(sent_to, server, due_at - timedelta(days=7)).sent == (f"acme {before} to {RECEIVER}",)
        [client] = receivers(sent_to.engine)
        assert (pending(client, due_at), pending(client, early)) == ([Period.month(month)], [])
        assert due(sent_to, server, early) == DueReport()
        assert due(sent_to, server, due_at).sent == (f"acme {month} to {RECEIVER}",)
        for hours in (1, 24, 24 * 27):
            assert due(sent_to, server, due_at + timedelta(hours=hours), revise=True) == DueReport(), "once"
    assert [mail.get_content_type() for mail in server.mails] == ["multipart/mixed"] * 2


FIRST_OF_DECEMBER = datetime(2026, 12, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("chosen", "periods"),
    [("week", ["2026-W48"]), ("month", ["2026-11"]), ("both", ["2026-W48", "2026-11"])],
)
def test_a_client_gets_the_periods_that_it_chose(sent_to: Office, chosen: str, periods: list[str]) -> None:
    assert sent_to.warehouse.clients.update("acme", {"report_period": chosen}).report_period == chosen
    with plain_server() as server:
        found = due(sent_to, server, FIRST_OF_DECEMBER)
    assert [str(built.period) for built in found.issued] == periods
    assert sorted(found.sent) == sorted(f"acme {period} to {RECEIVER}" for period in periods)
    names = [part.get_filename() for mail in server.mails for part in mail.iter_attachments()]
    assert sorted(names) == sorted(f"acme-{period}.pdf" for period in periods)


def test_late_data_make_a_revision_of_a_month_for_four_weeks(sent_to: Office) -> None:
    sent_to.acme(report_period="month")
    with plain_server() as server:
        [first] = due(sent_to, server, FIRST_OF_DECEMBER).issued
        assert (first.report.figures.runs, len(first.report.days), str(first.period)) == (131, 30, "2026-11")
        change_a_run(sent_to)
        [built] = due(sent_to, server, FIRST_OF_DECEMBER + timedelta(days=27), revise=True).issued
        assert (str(built.period), built.report.revision) == ("2026-11", 2)
        assert due(sent_to, server, FIRST_OF_DECEMBER + timedelta(days=27), revise=True).issued == ()
        sent_to.runs(sent_to.warehouse.pipelines.get("acme/orders").id, [])
        assert due(sent_to, server, FIRST_OF_DECEMBER + REVISED_FOR, revise=True).issued == (), "long over"
        send_report(sent_to.engine, channels(server), "acme", None, "2026-11", FIRST_OF_DECEMBER)
    assert [mail["Subject"] for mail in server.mails] == ["Acme: November 2026", "Acme: November 2026 (revision 3)"]


def test_a_client_that_is_new_gets_no_email_about_the_month_before(sent_to: Office) -> None:
    sent_to.acme(created_at=FIRST_OF_DECEMBER, report_period="both")
    with plain_server() as server:
        assert len(due(sent_to, server, FIRST_OF_DECEMBER).issued) == 2
    assert server.mails == []


# --- who gets it -------------------------------------------------------------------------------------------------------


def test_without_an_address_it_is_issued_and_not_sent(acme: Office) -> None:
    with plain_server() as server:
        [built] = due(acme, server).issued
        acme.acme(report_email=RECEIVER)
        due(acme, server)
        with pytest.raises(InputError, match="2026-W48 is not over yet"):
            send_report(acme.engine, channels(server), "acme", "2026-W48", None, NOW)
        acme.acme(report_email=None)
        with pytest.raises(InputError, match="report_email: is not set"):
            send_report(acme.engine, channels(server), "acme", None, None, NOW)
    assert (built.report.revision, server.mails) == (1, [])


def test_a_client_that_is_new_gets_no_email_about_the_week_before(sent_to: Office) -> None:
    sent_to.acme(created_at=NOW)
    with plain_server() as server:
        due(sent_to, server)
    assert server.mails == []


def test_a_disabled_client_gets_none(sent_to: Office) -> None:
    sent_to.acme(is_active=False)
    with plain_server() as server:
        assert due(sent_to, server) == DueReport()


def test_a_mail_server_that_fails_is_tried_again_with_the_same_id(sent_to: Office) -> None:
    with plain_server(replies={"DATA": "451 try again later"}) as server:
        found = due(sent_to, server)
        assert found.failed == (f"acme 2026-W47 to {RECEIVER}: email: the mail server refuses the message (451)",)
        assert due(sent_to, server).failed == (), "not before its time"
    mail = kept(sent_to).mail
    assert mail is not None and (mail.attempts, mail.next_at) == (1, NOW + timedelta(seconds=15))
    with plain_server() as server:
        assert len(due(sent_to, server, NOW + timedelta(seconds=15)).sent) == 1
    assert server.mails[0]["Message-ID"] == f"<{mail.id}@agency.example>"


def test_a_receiver_that_does_not_exist_is_undeliverable(sent_to: Office) -> None:
    with plain_server(replies={"RCPT": "550 no such user"}) as server:
        due(sent_to, server)
        assert due(sent_to, server, NOW + timedelta(hours=2)) == DueReport()
    assert undeliverable(sent_to.engine) == [
        f"acme 2026-W47 to {RECEIVER}: email: the mail server refuses the receiver (550)"
    ]


def test_after_a_day_it_is_undeliverable(sent_to: Office) -> None:
    now = NOW
    while not undeliverable(sent_to.engine):
        run_due(sent_to.engine, FailingMailer(), lambda: now)  # noqa: B023
        now += timedelta(minutes=30)
        assert now < NOW + timedelta(hours=26)


class FailingMailer:
    """A fake mail server that is down; `broken` is a mistake of CHM's own."""

    email_from = "chm@agency.example"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or Transient("email: the mail server closed the connection")

    def send_mail(self, mail: EmailMessage) -> None:
        raise self.error


def test_what_goes_wrong_for_one_client_holds_up_no_other_one(sent_to: Office) -> None:
    sent_to.warehouse.clients.create({"name": "Aaa", "slug": "aaa"})
    sent_to.warehouse.clients.create({"name": "Zzz", "slug": "zzz"})
    with sent_to.engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET timezone = 'Europe/Berlin'"))
    found = run_due(sent_to.engine, FailingMailer(RuntimeError("password=hunter2")), lambda: NOW)
    assert found is not None
    assert [built.client.slug for built in found.issued] == ["aaa", "acme", "zzz"]
    assert found.failed == ("acme: internal error: RuntimeError",)


def test_only_one_process_sends_at_a_time(sent_to: Office) -> None:
    with sending(sent_to.engine), plain_server() as server:
        assert run_due(sent_to.engine, channels(server), lambda: NOW) is None


# --- crashes -----------------------------------------------------------------------------------------------------------

CRASHING = """
import os, signal, sys
from datetime import datetime
from chm_dagster.alerting.channels import Channels
from chm_dagster.reporting import run_due
from chm_dagster.warehouse.engine import make_engine

url, smtp, now, after = sys.argv[1], sys.argv[2], datetime.fromisoformat(sys.argv[3]), sys.argv[4] == "after"

class Mailer:
    channels = Channels(smtp_url=smtp, email_from="chm@agency.example")
    email_from = channels.email_from
    def send_mail(self, mail):
        if after:
            self.channels.send_mail(mail)
        os.kill(os.getpid(), signal.SIGKILL)

run_due(make_engine(url), Mailer(), lambda: now)
"""


@pytest.mark.parametrize(("when", "copies"), [("before", 1), ("after", 2)])
def test_a_crash_around_the_sending_repeats_it_under_the_same_id(
    sent_to: Office, database_url: str, when: str, copies: int
) -> None:
    with plain_server() as server:
        smtp = f"smtp+plain://127.0.0.1:{server.port}"
        command = [sys.executable, "-c", CRASHING, database_url, smtp, NOW.isoformat(), when]
        assert subprocess.run(command, timeout=120).returncode == -9
        change_a_run(sent_to)  # what is sent again has the same id, whatever came in between
        for minutes in range(3):
            due(sent_to, server, NOW + timedelta(minutes=minutes))
    assert len(server.mails) == copies
    assert len({mail["Message-ID"] for mail in server.mails}) == 1
    assert build(sent_to.engine, "acme", "2026-W47", None, NOW).mail == kept(sent_to).mail

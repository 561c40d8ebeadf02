"""Client reports: build one from the ledger, issue it, and send it.

Building changes nothing. Issuing keeps the figures, so that data that arrive later make a revision that says what
changed. What is to be sent is kept before it is sent and marked after a mail server has accepted it, so a crash in
between repeats it under the same Message-ID.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, time, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from chm_dagster.domain.messages import next_attempt
from chm_dagster.domain.periods import Period, PeriodKind, last_over
from chm_dagster.domain.reports import Issued, Mail, Report, issue, new_mail, report, revised
from chm_dagster.domain.service import Cause, Service, service
from chm_dagster.errors import Busy, ChmError, InputError, Permanent, RateLimited
from chm_dagster.presentation.report.content import content
from chm_dagster.presentation.report.page import as_html, as_pdf
from chm_dagster.presentation.report.tables import as_csv, as_json
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.references import Ref
from chm_dagster.warehouse.reports import (
    BATCH,
    Receiver,
    ReportSource,
    keep_issue,
    receivers,
    report_source,
    sending,
)

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, tuple[Callable[[Report], bytes], str]] = {
    "html": (as_html, "text/html; charset=utf-8"),
    "pdf": (as_pdf, "application/pdf"),
    "csv": (as_csv, "text/csv; charset=utf-8"),
    "json": (as_json, "application/json"),
}
"""How a report is written in each format, and its media type."""
SEND_AT = time(9)
"""When a report is due: on the first day after its week or month, in the client's time zone."""
REVISED_FOR = timedelta(weeks=4)
"""How long after a period late data make a revision by themselves."""


class Mailer(Protocol):
    """Hands an email to a mail server."""

    @property
    def email_from(self) -> str:
        """The sender's address."""

    def send_mail(self, mail: EmailMessage) -> None:
        """Return when the mail server has accepted it. Raises a ChmError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """A report, its client, and what was kept of its last issue."""

    client: Receiver
    period: Period
    report: Report

    @property
    def kept(self) -> Issued | None:
        """What was kept of the last issue."""
        return self.client.issues.get(str(self.period))

    @property
    def mail(self) -> Mail | None:
        """The last email about it."""
        return None if self.kept is None else self.kept.mail

    @property
    def is_news(self) -> bool:
        """Whether it is to be issued: it is final, and differs from the last issue."""
        return self.report.is_final and (self.kept is None or self.kept.revision != self.report.revision)


def period_of(week: str | None, month: str | None, zone: ZoneInfo, now: datetime) -> Period:
    """The week or month of a request; by default the last week that is over. Raises InputError."""
    if week is not None and month is not None:
        raise InputError("month", "send a week or a month, not both")
    if month is not None:
        return Period.month(month)
    return last_over(PeriodKind.WEEK, now, zone) if week is None else Period.week(week)


def build(engine: Engine, client: Ref, week: str | None, month: str | None, now: datetime) -> Built:
    """A client's report on a week or a month; by default on the last week that is over.

    Raises NotFound, InputError for a period that has not begun, DatabaseUnavailable.
    """
    with report_source(engine) as source:
        receiver = source.client(client)
        return _build(source, receiver, period_of(week, month, ZoneInfo(receiver.timezone), now), now)


def _build(source: ReportSource, client: Receiver, period: Period, now: datetime) -> Built:
    zone = ZoneInfo(client.timezone)
    if period.start(zone) > now:
        raise InputError(period.kind, f"{period} has not begun yet")
    days, before = list(period.days(zone)), list(period.before().days(zone))
    start, end = before[0].start, days[-1].end
    pipelines = source.pipelines(client.id, start, end, now)
    services: list[tuple[Service, Service]] = []
    for first in range(0, len(pipelines), BATCH):
        batch = pipelines[first : first + BATCH]
        runs = source.runs([id_ for id_, _ in batch], start, end)
        made = [(id_, service(one, runs[id_], days, now), service(one, runs[id_], before, now)) for id_, one in batch]
        failed = [(id_, i.run) for id_, one, _ in made for i in one.incidents if i.cause is Cause.FAILING and i.run]
        errors = source.errors(failed, now)
        services += [(_explained(one, id_, errors), other) for id_, one, other in made]
    names = client.slug, client.name
    found = report(names, period, client.timezone, days, services, now, source.others(client.id))
    return Built(client, period, revised(found, client.issues.get(str(period))))


def _explained(one: Service, pipeline: UUID, errors: Mapping[tuple[UUID, str], tuple[str, str | None]]) -> Service:
    """The service with the telling error of each incident."""
    incidents = []
    for incident in one.incidents:
        error, url = errors.get((pipeline, incident.run or ""), ("", None))
        incidents.append(msgspec.structs.replace(incident, error=error, source_url=url))
    return dataclasses.replace(one, incidents=tuple(incidents))


def issue_report(engine: Engine, client: Ref, week: str | None, month: str | None, now: datetime) -> Built:
    """Build a report, and keep its figures if it is final: what arrives later makes a revision.

    Raises what `build` does, and Busy.
    """
    with _alone(engine):
        built = build(engine, client, week, month, now)
        if built.is_news:
            keep_issue(engine, built.client.id, str(built.period), issue(built.report, built.mail))
        return built


def send_report(
    engine: Engine, mailer: Mailer, client: Ref, week: str | None, month: str | None, now: datetime
) -> Built:
    """Issue a report and send it to the client's `report_email`, whether or not it was sent before.

    The same revision has the same Message-ID. Raises what `issue_report` does, InputError for a client without an
    address or a period that is not over, and what `Mailer.send_mail` does.
    """
    with _alone(engine):
        built = build(engine, client, week, month, now)
        if built.client.email is None:
            raise InputError(
                "report_email", f"is not set: chm client update {built.client.slug} --report-email ADDRESS"
            )
        if not built.report.is_final:
            raise InputError(built.period.kind, f"{built.period} is not over yet")
        mail = new_mail(built.client.id, str(built.period), built.report.revision, built.client.email, now)
        keep_issue(engine, built.client.id, str(built.period), issue(built.report, mail))
        mailer.send_mail(as_mail(built.report, mail, mailer.email_from, now))
        sent = msgspec.structs.replace(mail, sent_at=now, next_at=None, attempts=1)
        keep_issue(engine, built.client.id, str(built.period), issue(built.report, sent))
        return built


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    with sending(engine) as is_mine:
        if not is_mine:
            raise Busy("another process is issuing or sending reports; try again when it is done")
        yield


# --- what is due -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class DueReport:
    """What became of the reports that were due: issued and sent ones, attempts that failed, and what went wrong."""

    issued: tuple[Built, ...] = ()
    sent: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def pending(client: Receiver, now: datetime) -> list[Period]:
    """The periods of this client whose report is to be issued or sent now."""
    return [*_due(client, now), *(period for period, _ in _waiting(client, now))]


def _due(client: Receiver, now: datetime) -> list[Period]:
    """The latest week and month whose report is due, if the client gets it and it was not issued yet."""
    zone = ZoneInfo(client.timezone)
    over = (last_over(kind, now, zone) for kind in client.period.kinds)
    latest = [one if now >= datetime.combine(one.after, SEND_AT, zone) else one.before() for one in over]
    return [period for period in latest if str(period) not in client.issues]


def _waiting(client: Receiver, now: datetime) -> Iterator[tuple[Period, Mail]]:
    """The emails that are to be sent now."""
    for period, issued in client.issues.items():
        if issued.mail is not None and issued.mail.next_at is not None and issued.mail.next_at <= now:
            yield Period.read(period), issued.mail


def run_due(engine: Engine, mailer: Mailer, clock: Callable[[], datetime], *, revise: bool = False) -> DueReport | None:
    """Issue and send what is due; with `revise`, also issue what late data changed. None if another process does.

    What goes wrong for one client holds up no other one. Raises DatabaseUnavailable.
    """
    issued: list[Built] = []
    sent: list[str] = []
    failed: list[str] = []
    with sending(engine) as is_mine:
        if not is_mine:
            return None
        for client in receivers(engine):
            try:
                issued += _issue_due(engine, client, clock(), revise)
                for name, error in _send_waiting(engine, mailer, client.slug, clock):
                    (failed if error else sent).append(f"{name}: {error}" if error else name)
            except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
                # A mistake of CHM's own. Its text may quote what a client's errors say.
                logger.exception("the report of client %s", client.slug)
                failed.append(f"{client.slug}: internal error: {type(error).__name__}")
    return DueReport(tuple(issued), tuple(sent), tuple(failed))


def _issue_due(engine: Engine, client: Receiver, now: datetime, revise: bool) -> Iterator[Built]:
    due = _due(client, now)
    today = now.astimezone(ZoneInfo(client.timezone)).date()
    recent = [one for one in client.issued if one.after + REVISED_FOR > today] if revise else []
    for period in (*due, *recent):
        with report_source(engine) as source:
            built = _build(source, source.client(client.id), period, now)
        if built.is_news:
            mail = built.mail
            # Who became a client after the period gets no email about it.
            if period in due and client.email is not None and client.created_at < built.report.end:
                mail = new_mail(client.id, str(period), built.report.revision, client.email, now)
            keep_issue(engine, client.id, str(period), issue(built.report, mail))
            yield built


def _send_waiting(
    engine: Engine, mailer: Mailer, slug: str, clock: Callable[[], datetime]
) -> Iterator[tuple[str, str]]:
    """Try each email that is due once. Gives its period and receiver, and what went wrong."""
    with report_source(engine) as source:
        client = source.client(slug)
    for period, mail in _waiting(client, clock()):
        with report_source(engine) as source:
            built = _build(source, client, period, clock())
        after, error = _attempt(mailer, built, mail, clock)
        # The issue stays as it was: a revision is issued when it is built for its own sake.
        keep_issue(engine, client.id, str(period), msgspec.structs.replace(client.issues[str(period)], mail=after))
        yield f"{client.slug} {period} to {mail.receiver}", error


def _attempt(mailer: Mailer, built: Built, mail: Mail, clock: Callable[[], datetime]) -> tuple[Mail, str]:
    attempts = mail.attempts + 1
    try:
        mailer.send_mail(as_mail(built.report, mail, mailer.email_from, clock()))
    except ChmError as error:
        wait = error.retry_after if isinstance(error, RateLimited) else None
        again = None if isinstance(error, Permanent) else next_attempt(mail.created_at, attempts, clock(), wait)
        return msgspec.structs.replace(mail, attempts=attempts, next_at=again, error=str(error)), str(error)
    return msgspec.structs.replace(mail, attempts=attempts, next_at=None, sent_at=clock(), error=""), ""


def undeliverable(engine: Engine) -> list[str]:
    """The emails that no mail server accepted, with the reason. Raises DatabaseUnavailable."""
    return [
        f"{client.slug} {period} to {issued.mail.receiver}: {issued.mail.error}"
        for client in receivers(engine)
        for period, issued in client.issues.items()
        if issued.mail is not None and issued.mail.is_lost
    ]


def file_name(found: Report, form: str) -> str:
    """What a report's file is called: `acme-2026-W47.pdf`, `acme-2026-W47-revision-2.pdf`."""
    revision = f"-revision-{found.revision}" if found.revision > 1 else ""
    return f"{found.client}-{found.period}{revision}.{form}"


def as_mail(found: Report, mail: Mail, sender: str, now: datetime) -> EmailMessage:
    """The email of a report: its sentences as text, and the page as a PDF."""
    said = content(found)
    message = EmailMessage()
    message["From"], message["To"] = sender, mail.receiver
    message["Subject"] = f"{said.title}" + (f" (revision {found.revision})" if found.revision > 1 else "")
    message["Date"] = format_datetime(now)
    message["Message-ID"] = f"<{mail.id}@{sender.rpartition('@')[2].strip('<> ')}>"
    message["Auto-Submitted"] = "auto-generated"
    figures = [f"{tile.label}: {tile.value} ({tile.note}; {tile.before})" for tile in said.tiles]
    notes = [f"{word}: {text}" for word, text in said.notes]
    lines = [said.title, said.span, "", said.summary, *said.revisions, "", *figures, "", *notes, "", said.definitions]
    message.set_content("\n".join(lines) + "\n")
    message.add_attachment(as_pdf(found), maintype="application", subtype="pdf", filename=file_name(found, "pdf"))
    return message

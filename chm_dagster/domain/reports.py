"""A client's report on a week or a month: the figures of all pipelines, and what differs from an earlier issue. Pure.

A figure that cannot be known is None and reads "unknown": nothing has settled, or not all of the period is known and
everything that is known went well. Of what is known only in part, a report never says 100 %.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from uuid import UUID, uuid5

import msgspec

from chm_dagster.domain.periods import Day, Period
from chm_dagster.domain.service import Flakiness, Incident, Service, Tally, Unknown

_NAMESPACE = UUID("2f6c1f1e-6f0a-4f0c-9d1d-5f4b8f0e8a37")
UNCOUNTED = "details"
"""What has changed if no figure did."""


class Figures(msgspec.Struct, frozen=True):
    """The headline figures of a period. Rates are from 0 to 1; None: unknown.

    `settled` runs succeeded or failed for good. `slots` are the scheduled times that could be judged. `recovered` is
    how many incidents ended in the period, `seconds_to_recover` how long they took on average. `coverage` is the share
    of the period, over all active pipelines, in which their runs are known; None without any.
    """

    pipelines: int
    runs: int
    settled: int
    success: int
    success_rate: float | None
    slots: int
    on_time: int
    on_time_rate: float | None
    incidents: int
    open_incidents: int
    recovered: int
    seconds_to_recover: float | None
    coverage: float | None
    in_maintenance: int

    @property
    def is_known(self) -> bool:
        """Whether all of the period is known."""
        return self.coverage == 1.0


class DayFigures(msgspec.Struct, frozen=True):
    """One day: its counts, and the share of it that is known; None without a pipeline."""

    date: date
    tally: Tally
    coverage: float | None


class PipelineFigures(msgspec.Struct, frozen=True):
    """One pipeline: its counts, rates (None: unknown), incidents, and days."""

    slug: str
    name: str
    platform: str
    owner: str | None
    is_active: bool
    reports_itself: bool
    tally: Tally
    success_rate: float | None
    on_time_rate: float | None
    incidents: int
    incident_seconds: float
    coverage: float | None
    unknown: Unknown | None
    known_through: datetime | None
    known_from: datetime | None
    flaky: Flakiness | None
    days: tuple[DayFigures, ...]


class Change(msgspec.Struct, frozen=True):
    """A figure that differs from that of the revision before."""

    figure: str
    before: float | None = None
    after: float | None = None


class Revision(msgspec.Struct, frozen=True):
    """An issue of a report after the first, and what it changed."""

    number: int
    changes: tuple[Change, ...]


class Report(msgspec.Struct, frozen=True):
    """A report. `is_final`: the period is over. `others` is how many active pipelines outside of prod it leaves out.

    `revision` is 1 for the first issue; `revisions` are the later ones, the oldest first. Pipelines come worst first,
    incidents by start.
    """

    client: str
    client_name: str
    period: str
    first: date
    last: date
    timezone: str
    start: datetime
    end: datetime
    is_final: bool
    figures: Figures
    before: Figures
    days: tuple[DayFigures, ...]
    pipelines: tuple[PipelineFigures, ...]
    incidents: tuple[Incident, ...]
    others: int = 0
    revision: int = 1
    revisions: tuple[Revision, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Differs whenever anything but names, the number of the revision and its changes does."""
        plain = msgspec.structs.replace(
            self,
            client_name="",
            revision=1,
            revisions=(),
            pipelines=tuple(msgspec.structs.replace(p, name="", owner=None) for p in self.pipelines),
            incidents=tuple(msgspec.structs.replace(i, pipeline_name="") for i in self.incidents),
        )
        return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:24]


class Mail(msgspec.Struct, frozen=True, omit_defaults=True):
    """The email that sends a report. `id` is the same for every attempt.

    `sent_at`: a mail server accepted it. `next_at` is when to try next; without either it is undeliverable, `error`
    says why.
    """

    id: UUID
    receiver: str
    revision: int
    created_at: datetime
    next_at: datetime | None
    sent_at: datetime | None = None
    attempts: int = 0
    error: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether it is undeliverable."""
        return self.sent_at is None and self.next_at is None


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of the last issue of a report, to say later what changed, and of the email that sends it."""

    revision: int
    fingerprint: str
    figures: Figures
    revisions: tuple[Revision, ...] = ()
    mail: Mail | None = None


MAX_REVISIONS = 10
"""How many revisions a report lists; the oldest are forgotten."""


def report(
    client: tuple[str, str],
    period: Period,
    zone: str,
    days: Sequence[Day],
    services: Iterable[tuple[Service, Service]],
    now: datetime,
    others: int = 0,
) -> Report:
    """The report for a client (slug and name) from each pipeline's service in the period and in the one before."""
    pairs = sorted(services, key=lambda pair: pair[0].pipeline.slug)
    # A disabled pipeline that did not run is of no interest.
    current = [one for one, _ in pairs if one.pipeline.is_active or one.tally.runs or one.tally.in_maintenance]
    figures = figures_of(current)
    shown = sorted((_pipeline(one, days) for one in current), key=_worst_first)
    incidents = sorted((i for one in current for i in one.incidents), key=lambda i: (i.start, i.pipeline, i.cause))
    return Report(
        *client,
        str(period),
        days[0].date,
        days[-1].date,
        zone,
        days[0].start,
        days[-1].end,
        now >= days[-1].end,
        figures,
        figures_of([other for _, other in pairs]),
        tuple(_day(day, [(one.days[n], one.seconds > 0) for one in current]) for n, day in enumerate(days)),
        tuple(shown),
        tuple(incidents),
        others,
    )


def figures_of(services: Sequence[Service]) -> Figures:
    """The headline figures of these pipelines."""
    total = Tally()
    for one in services:
        total.add(one.tally)
    incidents = [incident for one in services for incident in one.incidents]
    ended = [incident.seconds for incident in incidents if incident.end is not None]
    seconds, known = sum(one.seconds for one in services), sum(one.known_seconds for one in services)
    coverage = _share(known, seconds)
    is_known = all(one.is_known for one in services)
    return Figures(
        sum(one.pipeline.is_active for one in services),
        total.runs,
        total.success + total.failed,
        total.success,
        _rate(total.success, total.success + total.failed, is_known),
        total.slots,
        total.on_time,
        _rate(total.on_time, total.slots, is_known),
        len(incidents),
        sum(incident.end is None for incident in incidents),
        len(ended),
        round(sum(ended) / len(ended), 3) if ended else None,
        coverage,
        total.in_maintenance,
    )


def _rate(good: int, all_: int, is_known: bool) -> float | None:
    """A rate; None if there is nothing to judge, or if all is well as far as is known and not all is known."""
    if not all_ or (good == all_ and not is_known):
        return None
    return round(good / all_, 6)


def _share(known: float, seconds: float) -> float | None:
    """A share that is 1 only if nothing is missing."""
    if not seconds:
        return None
    return 1.0 if known >= seconds else min(round(known / seconds, 6), 0.999999)


def _day(day: Day, parts: Iterable[tuple[tuple[Tally, float], bool]]) -> DayFigures:
    total, known, seconds = Tally(), 0.0, 0.0
    for (tally, known_seconds), is_expected in parts:
        total.add(tally)
        if is_expected:
            known, seconds = known + known_seconds, seconds + (day.end - day.start).total_seconds()
    return DayFigures(day.date, total, _share(known, seconds))


def _pipeline(one: Service, days: Sequence[Day]) -> PipelineFigures:
    tally, known, through = one.tally, one.is_known, one.pipeline.coverage.known_through
    return PipelineFigures(
        one.pipeline.slug,
        one.pipeline.name,
        one.pipeline.platform,
        one.pipeline.owner,
        one.pipeline.is_active,
        one.pipeline.reports_itself,
        tally,
        _rate(tally.success, tally.success + tally.failed, known),
        _rate(tally.on_time, tally.slots, known),
        len(one.incidents),
        sum(incident.seconds for incident in one.incidents),
        _share(one.known_seconds, one.seconds),
        one.unknown,
        None if one.unknown is None or through is None else min(through, days[-1].end),
        one.pipeline.known_from if one.unknown is Unknown.NEW else None,
        one.flaky,
        tuple(_day(day, [(one.days[n], one.seconds > 0)]) for n, day in enumerate(days)),
    )


def _worst_first(pipeline: PipelineFigures) -> tuple[float, float, float, str]:
    tally = pipeline.tally
    return (
        -(tally.failed + tally.slots - tally.on_time),
        -pipeline.incident_seconds,
        pipeline.coverage if pipeline.coverage is not None else 1.0,
        pipeline.slug,
    )


# --- revisions -------------------------------------------------------------------------------------------------------

COMPARED = (
    "pipelines",
    "runs",
    "success_rate",
    "on_time_rate",
    "incidents",
    "open_incidents",
    "seconds_to_recover",
    "coverage",
    "in_maintenance",
)
"""The figures that a revision compares."""


def revised(fresh: Report, last: Issued | None) -> Report:
    """The report with its revision: that of the last issue if nothing changed since, else the next one."""
    if last is None:
        return fresh
    if last.fingerprint == fresh.fingerprint:
        return msgspec.structs.replace(fresh, revision=last.revision, revisions=last.revisions)
    changes = [
        Change(name, before, after)
        for name in COMPARED
        if (before := getattr(last.figures, name)) != (after := getattr(fresh.figures, name))
    ]
    revision = Revision(last.revision + 1, tuple(changes) or (Change(UNCOUNTED),))
    kept = (*last.revisions, revision)[-MAX_REVISIONS:]
    return msgspec.structs.replace(fresh, revision=revision.number, revisions=kept)


def issue(found: Report, mail: Mail | None = None) -> Issued:
    """What is to be kept of a report that is issued."""
    return Issued(found.revision, found.fingerprint, found.figures, found.revisions, mail)


def new_mail(client: UUID, period: str, revision: int, receiver: str, now: datetime) -> Mail:
    """The email of a revision to a receiver, to be sent now. The same one has the same id, whenever it is made."""
    return Mail(uuid5(_NAMESPACE, f"{client}/{period}/{revision}/{receiver}"), receiver, revision, now, now)


MAX_ISSUES = 60
"""Of how many periods a client's last issue is kept: over a year of weeks; of both, about 48 weeks and 11 months."""


def bounded(issues: Mapping[str, Issued]) -> dict[str, Issued]:
    """The issues of the latest periods, the oldest first."""
    latest = sorted(issues, key=lambda period: (Period.read(period).first, period))[-MAX_ISSUES:]
    return {period: issues[period] for period in latest}

"""The service of one pipeline in a period: its runs, its incidents, what was on time, and how much is known. Pure.

All of it follows from the runs, and says what was true at the end of the period: a run that started in it counts with
its outcome, but an incident that ended later was still open. The incidents are the spans that alert rules look for.
"""

import bisect
import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from chm_dagster.domain.alerts import Condition, Coverage, Expectations, Gap, RunFact, Span, without
from chm_dagster.domain.evaluation import DEFAULT_GRACE, may_be_lost, spans_of
from chm_dagster.domain.periods import Day
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.schedule import slots_of

_LAST_RUNS, _LEAST_RUNS, _LEAST_RECOVERIES, _FLIP_RATE = 30, 10, 2, 0.2
_DOWN, _CURED = timedelta(days=7), timedelta(days=30)


class Cause(enum.StrEnum):
    """What an incident was: runs that failed, runs that did not come, or a run that took too long."""

    FAILING = "failing"
    MISSED = "missed"
    OVERRUNNING = "overrunning"


_RULES = {
    Cause.FAILING: Condition(RuleType.ON_FAILURE),
    Cause.MISSED: Condition(RuleType.MISSED_RUN),
    Cause.OVERRUNNING: Condition(RuleType.RUNNING_TOO_LONG),
}


class Unknown(enum.StrEnum):
    """Why a part of a period is not known."""

    NEVER_READ = "never_read"
    NOT_READ_SINCE = "not_read_since"
    NOT_UNDERSTOOD = "not_understood"
    NOT_HEARD = "not_heard"
    GONE = "gone"
    NOT_YET = "not_yet"
    NEW = "new"


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """A pipeline as a report sees it. `known_from` is when its history begins, `coverage` what is known of it.

    `reports_itself`: no partner is read, what is known is what its jobs reported. `doubted`: what was read after the
    end of its coverage could not be understood. `maintenance` are the windows of maintenance, in order, none
    overlapping another. A disabled pipeline counts with its runs, and nothing is expected of it.
    """

    slug: str
    name: str
    platform: str
    expectations: Expectations
    known_from: datetime
    coverage: Coverage
    is_active: bool = True
    reports_itself: bool = False
    doubted: bool = False
    owner: str | None = None
    maintenance: tuple[Gap, ...] = ()


class Tally(msgspec.Struct):
    """Counts of runs and slots. `retried`: failed, and about to be tried again by the platform."""

    success: int = 0
    failed: int = 0
    retried: int = 0
    running: int = 0
    canceled: int = 0
    skipped: int = 0
    in_maintenance: int = 0
    slots: int = 0
    on_time: int = 0

    @property
    def runs(self) -> int:
        """All runs outside of maintenance."""
        return self.success + self.failed + self.retried + self.running + self.canceled + self.skipped

    def count(self, run: RunFact) -> None:
        """Count a run."""
        if run.will_retry and run.status is RunStatus.FAILED:
            self.retried += 1
        else:
            setattr(self, run.status, getattr(self, run.status) + 1)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Incident(msgspec.Struct, frozen=True):
    """A time in which a pipeline failed, missed runs or overran. `end` is None if it was not over by the period's end.

    `seconds` is how long it lasted up to its end or that of the period, maintenance left out. `is_open`: known to be
    open at the end of the period; else, without an end, it is not known how it went on. `count`: failed runs up to the
    end of the period, or missed ones; `run` is the first failed one. `slot`: when the first missed run was due.
    """

    pipeline: str
    pipeline_name: str
    cause: Cause
    start: datetime
    end: datetime | None
    seconds: float
    is_open: bool
    count: int
    run: str | None = None
    slot: datetime | None = None
    limit_minutes: int | None = None
    error: str = ""
    source_url: str | None = None


class Flakiness(msgspec.Struct, frozen=True):
    """How often the last settled runs of a flaky pipeline flipped, as the SQL contract defines it."""

    flips: int
    recoveries: int
    settled: int


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """The service of one pipeline in a period. `known_seconds` is how much of the period is known, of `seconds`.

    A pipeline of which nothing is expected has 0 seconds. `days` has the counts of each day and its known seconds.
    """

    pipeline: Watched
    tally: Tally
    incidents: tuple[Incident, ...]
    seconds: float
    known_seconds: float
    days: tuple[tuple[Tally, float], ...]
    flaky: Flakiness | None = None
    unknown: Unknown | None = None

    @property
    def is_known(self) -> bool:
        """Whether all runs of the period are known."""
        return self.known_seconds >= self.seconds


def service(pipeline: Watched, runs: Sequence[RunFact], days: Sequence[Day], now: datetime) -> Service:
    """The service of a pipeline over these days, seen from `now`.

    `runs` are those of the period, in any order; of the time before: the latest run and the runs since the last success
    that are needed to know what was open at its start, and the last 30 settled runs. Later runs are left out.
    """
    start, end = days[0].start, days[-1].end
    before_end = [run for run in runs if run.effective_at < end]
    tallies = [Tally() for _ in days]
    starts = [day.start for day in days]
    for run in before_end:
        if run.effective_at >= start:
            tally = tallies[bisect.bisect_right(starts, run.effective_at) - 1]
            if _within(run.effective_at, pipeline.maintenance):
                tally.in_maintenance += 1
            else:
                tally.count(run)
    known = pipeline.coverage.known(pipeline.known_from, start, min(end, now))
    spans = _spans(pipeline, before_end, end)
    for due, on_time in _slots(pipeline, before_end, spans[Cause.MISSED], start, end):
        tally = tallies[bisect.bisect_right(starts, due) - 1]
        tally.slots += 1
        tally.on_time += on_time
    total = Tally()
    for tally in tallies:
        total.add(tally)
    seconds = [_seconds_within(known, day) for day in days]
    return Service(
        pipeline,
        total,
        tuple(_incidents(pipeline, spans, before_end, start, end, known)),
        (end - start).total_seconds() if pipeline.is_active else 0.0,
        sum(seconds) if pipeline.is_active else 0.0,
        tuple(zip(tallies, seconds, strict=True)),
        flakiness(before_end, end),
        _unknown(pipeline, start, end, now),
    )


def _within(time: datetime, windows: Sequence[Gap]) -> bool:
    index = bisect.bisect_right(windows, time, key=lambda window: window[0]) if windows else 0
    return index > 0 and time < windows[index - 1][1]


def _seconds_within(known: Iterable[Gap], day: Day) -> float:
    parts = ((max(since, day.start), min(until, day.end)) for since, until in known)
    return sum((until - since).total_seconds() for since, until in parts if since < until)


def _unknown(pipeline: Watched, start: datetime, end: datetime, now: datetime) -> Unknown | None:
    """Why a part of the period is not known; the most telling reason."""
    if not pipeline.is_active:
        return None
    through, begin = pipeline.coverage.known_through, max(pipeline.known_from, start)
    if through is None or through < min(end, now):
        if pipeline.coverage.gone:
            return Unknown.GONE
        if pipeline.doubted:
            return Unknown.NOT_UNDERSTOOD
        return Unknown.NEVER_READ if through is None else Unknown.NOT_READ_SINCE
    if now < end:
        return Unknown.NOT_YET
    if any(lost < end and heard > begin for lost, heard in pipeline.coverage.gaps):
        return Unknown.NOT_HEARD
    return Unknown.NEW if begin > start else None


# --- incidents -------------------------------------------------------------------------------------------------------


def _spans(pipeline: Watched, runs: Sequence[RunFact], end: datetime) -> dict[Cause, list[Span]]:
    # What was known of a pipeline before its partner forgot it is known all the same.
    through = pipeline.coverage.known_through
    coverage = Coverage(None if through is None else min(through, end), pipeline.coverage.gaps)
    expected = pipeline.expectations
    if not pipeline.is_active:
        expected = dataclasses.replace(expected, schedule_cron=None, max_runtime_minutes=None)
    # What failed or overran in maintenance is no incident. A success in maintenance ends one.
    counted = timely = runs
    if pipeline.maintenance:
        counted = [run for run in runs if run.status is RunStatus.SUCCESS or not _in_maintenance(run, pipeline)]
        timely = [run for run in runs if not _in_maintenance(run, pipeline)]
    over = {Cause.FAILING: counted, Cause.MISSED: runs, Cause.OVERRUNNING: timely}
    return {cause: spans_of(rule, expected, over[cause], coverage, end) for cause, rule in _RULES.items()}


def _in_maintenance(run: RunFact, pipeline: Watched) -> bool:
    return _within(run.effective_at, pipeline.maintenance)


def _incidents(
    pipeline: Watched,
    spans: dict[Cause, list[Span]],
    runs: Sequence[RunFact],
    start: datetime,
    end: datetime,
    known: Sequence[Gap],
) -> Iterator[Incident]:
    through = known[-1][1] if known else None
    failed = sorted(
        run.settled_at
        for run in runs
        if run.settled and run.status is RunStatus.FAILED and not _in_maintenance(run, pipeline)
    )
    for cause, found in spans.items():
        for span in found:
            until = None if span.until is None or span.until >= end else span.until
            # How it went on after the pipeline was last seen is not known.
            reach = until or max(through or span.since, span.since)
            if span.since >= end or reach < start or _is_excused(span, pipeline.maintenance):
                continue
            outside = list(without(span.since, reach, pipeline.maintenance))
            if outside and outside[-1][1] <= start and span.since < start:
                continue
            if not outside and (span.since < start or _within(span.since, pipeline.maintenance)):
                continue
            first, last = bisect.bisect_left(failed, span.since), bisect.bisect_left(failed, until or end)
            yield Incident(
                pipeline.slug,
                pipeline.name,
                cause,
                outside[0][0] if outside else span.since,
                until,
                sum((b - a).total_seconds() for a, b in outside),
                until is None and through is not None and through >= end,
                last - first if cause is Cause.FAILING else span.evidence.count,
                span.evidence.runs[0] if span.evidence.runs else None,
                span.evidence.slot,
                span.evidence.limit_minutes,
            )


def _is_excused(span: Span, windows: Sequence[Gap]) -> bool:
    """Whether it is about a single missed run that was due in maintenance."""
    slot = span.evidence.slot
    return slot is not None and span.evidence.count == 1 and _within(slot, windows)


# --- what was on time ------------------------------------------------------------------------------------------------


def _slots(
    pipeline: Watched, runs: Sequence[RunFact], missed: Sequence[Span], start: datetime, end: datetime
) -> Iterator[tuple[datetime, bool]]:
    """The slots whose grace time ended in the period, by that time, and whether a run had come by then.

    Without those of maintenance, and those whose runs may have come without being heard.
    """
    expected, known_through = pipeline.expectations, pipeline.coverage.known_through
    if not pipeline.is_active or expected.schedule_cron is None or known_through is None:
        return
    slots = slots_of(expected.schedule_cron, expected.schedule_timezone)
    grace = DEFAULT_GRACE if expected.grace_minutes is None else timedelta(minutes=expected.grace_minutes)
    through = min(known_through, end)
    floor = expected.schedule_changed_at or min(
        [expected.created_at, *(r.effective_at for r in runs if r.kind is not RunKind.BACKFILL)]
    )
    slot = slots.after(max(floor, start - grace - timedelta.resolution))
    place = 0
    while slot is not None and (deadline := slot + grace) < end and deadline <= through:
        while place < len(missed) and (until := missed[place].until) is not None and until <= deadline:
            place += 1
        is_excused = _within(slot, pipeline.maintenance) or _within(deadline, pipeline.maintenance)
        if not (is_excused or may_be_lost(slot, deadline, pipeline.coverage.gaps)):
            yield deadline, not (place < len(missed) and missed[place].since <= deadline)
        slot = slots.after(slot)


# --- flaky -----------------------------------------------------------------------------------------------------------


def flakiness(runs: Iterable[RunFact], at: datetime) -> Flakiness | None:
    """How flaky a pipeline was at a time; None if it was not. As the SQL contract's `flaky_pipelines` defines it."""
    ordered = sorted(
        (run for run in runs if run.settled and run.effective_at < at and run.settled_at < at),
        key=lambda run: (run.effective_at, run.settled_at, run.run),
    )[-_LAST_RUNS:]
    failed = [run.status is RunStatus.FAILED for run in ordered]
    flips = sum(one is not other for one, other in itertools.pairwise(failed))
    recoveries = sum(one and not other for one, other in itertools.pairwise(failed))
    if len(ordered) < _LEAST_RUNS or recoveries < _LEAST_RECOVERIES or flips < _FLIP_RATE * (len(ordered) - 1):
        return None
    latest = ordered[-1].effective_at
    last_failure = max(run.effective_at for run, bad in zip(ordered, failed, strict=True) if bad)
    streak = failed[::-1].index(False)
    if streak and latest - ordered[-streak].effective_at >= _DOWN:
        return None
    return None if latest - last_failure >= _CURED else Flakiness(flips, recoveries, len(ordered))

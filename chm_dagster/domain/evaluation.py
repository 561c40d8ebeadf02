"""Evaluation of alert rules: does a rule fire for a pipeline, since when, and what is the evidence. Pure.

`spans_of` finds all times at which a condition held; `evaluate` says what holds now. Both follow from the runs alone:
it makes no difference in which order or how often these became known. Live evaluation and back-tests share them.

A claim about something that did not happen (a missed run, no success, still running) needs coverage: it is made only
for moments up to which the pipeline's runs are known.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from chm_dagster.domain.alerts import (
    Condition,
    Coverage,
    Doubt,
    Evidence,
    Expectations,
    Gap,
    RunFact,
    Span,
    State,
    Verdict,
)
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import BEFORE_ALL, RunKind, RunStatus
from chm_dagster.domain.schedule import EARLY, Slots, awaited, slots_of
from chm_dagster.domain.sync import FRESH_FOR

DEFAULT_GRACE = timedelta(minutes=15)
"""How late a run may be where nothing else is set."""
MAX_LISTED = 5
"""How many runs an evidence lists by id."""
MAX_SLOTS = 100
"""How far missed slots are counted."""


def evaluate(
    condition: Condition, pipeline: Expectations, runs: Iterable[RunFact], coverage: Coverage, now: datetime
) -> Verdict:
    """The verdict at `now`. `runs` may come in any order, with those of at least the last success and after."""
    known = list(runs)
    return verdict(condition, pipeline, known, coverage, now, spans_of(condition, pipeline, known, coverage, now))


def verdict(
    condition: Condition,
    pipeline: Expectations,
    runs: Sequence[RunFact],
    coverage: Coverage,
    now: datetime,
    found: Sequence[Span],
) -> Verdict:
    """The verdict at `now`, where the spans are known already. Of `runs`, their `ground` is enough."""
    if (undecided := _undecidable(condition, pipeline, coverage)) is not None:
        return undecided
    if (last := next((span for span in reversed(found) if span.until is None), None)) is not None:
        return Verdict(State.FIRING, last.since, last.evidence)
    if coverage.known_through is None or (coverage.stale_at or coverage.known_through + FRESH_FOR) < now:
        return Verdict.unknown(Doubt.BLIND, "not read recently enough")
    if reason := _no_ground(condition, runs, coverage, now):
        return Verdict.unknown(Doubt.TOO_NEW, reason)
    return Verdict(State.OK)


def _undecidable(condition: Condition, pipeline: Expectations, coverage: Coverage) -> Verdict | None:
    if coverage.gone:
        return Verdict.unknown(Doubt.BLIND, "not known to the partner")
    if condition.rule_type is RuleType.MISSED_RUN and pipeline.schedule_cron is None:
        return Verdict.unknown(Doubt.NO_CRITERION, "the pipeline has no schedule_cron")
    if condition.rule_type is RuleType.RUNNING_TOO_LONG and _limit(condition, pipeline) is None:
        return Verdict.unknown(Doubt.NO_CRITERION, "neither window_minutes nor max_runtime_minutes is set")
    return None


def _no_ground(condition: Condition, runs: Sequence[RunFact], coverage: Coverage, now: datetime) -> str:
    """Why "nothing is wrong" cannot be said, though everything up to now is known; empty if it can."""
    if condition.rule_type in (RuleType.ON_FAILURE, RuleType.CONSECUTIVE_FAILURES) and not any(r.settled for r in runs):
        return "no run has settled yet"
    if condition.rule_type is RuleType.NO_SUCCESS_IN_WINDOW and not any(
        now - condition.window < run.settled_at for run in runs if run.settled and run.status is RunStatus.SUCCESS
    ):
        return "not known for a whole window yet"
    return ""


def ground(runs: Iterable[RunFact]) -> list[RunFact]:
    """Of the runs, the one that lets a verdict say "nothing is wrong": the success that settled last.

    Without a success any other that settled; empty if none did.
    """
    settled = (run for run in runs if run.settled)
    last = max(settled, key=lambda run: (run.status is RunStatus.SUCCESS, run.settled_at), default=None)
    return [] if last is None else [last]


def spans_of(
    condition: Condition, pipeline: Expectations, runs: Sequence[RunFact], coverage: Coverage, now: datetime
) -> list[Span]:
    """When the condition held, as far as is known at `now`, the earliest first; an open span is the last one."""
    if _undecidable(condition, pipeline, coverage) is not None:
        return []
    known = None if coverage.known_through is None else min(coverage.known_through, now)
    ordered = InOrder.of(runs)
    match condition.rule_type:
        case RuleType.ON_FAILURE:
            return list(_streaks(ordered, 1))
        case RuleType.CONSECUTIVE_FAILURES:
            return list(_streaks(ordered, condition.threshold or 1))
        case RuleType.FAILURES_IN_WINDOW:
            return list(_crowds(ordered, condition, known))
        case RuleType.NO_SUCCESS_IN_WINDOW:
            return list(_droughts(ordered, condition, pipeline, coverage.gaps, known))
        case RuleType.RUNNING_TOO_LONG:
            return _overruns(ordered, _limit(condition, pipeline), coverage.gaps, known)
        case RuleType.MISSED_RUN:
            return list(_misses(ordered, condition, pipeline, coverage.gaps, known))


def order(run: RunFact) -> tuple[datetime, datetime, str]:
    """What puts the runs of a pipeline in order."""
    return run.effective_at, run.finished_at or BEFORE_ALL, run.run


class InOrder(tuple[RunFact, ...]):
    """Runs of a pipeline in their order. Several rules look at the same runs, which are sorted once."""

    __slots__ = ()

    @classmethod
    def of(cls, runs: Iterable[RunFact]) -> "InOrder":
        """These runs in order; at no cost if they are."""
        return runs if isinstance(runs, cls) else cls(sorted(runs, key=order))


def _listed(runs: Sequence[RunFact]) -> Evidence:
    return Evidence(tuple(run.run for run in runs[:MAX_LISTED]), runs[-1].run if runs else None, len(runs))


def _streaks(ordered: Sequence[RunFact], threshold: int) -> Iterator[Span]:
    """Failures in a row, from the one that reaches the threshold up to the next success."""
    streak: list[RunFact] = []
    good: RunFact | None = None
    for run in ordered:
        if not run.settled:
            continue
        if run.status is RunStatus.FAILED:
            streak.append(run)
            continue
        if streak:
            yield from _streak(streak, threshold, good, run)
            streak = []
        good = run
    yield from _streak(streak, threshold, good, None)


def _streak(streak: Sequence[RunFact], threshold: int, before: RunFact | None, after: RunFact | None) -> Iterator[Span]:
    if len(streak) < threshold:
        return
    since = max(run.settled_at for run in streak[:threshold])
    until = None if after is None else after.settled_at
    # A success that had settled before the failure did, though it started later: the pipeline never failed.
    if until is None or until > since:
        yield Span(
            since,
            until,
            dataclasses.replace(_listed(streak), last_success=None if before is None else before.settled_at),
        )


def _crowds(ordered: Sequence[RunFact], condition: Condition, known: datetime | None) -> Iterator[Span]:
    """Times in which at least N failures had ended within the window before."""
    size, window = condition.threshold or 1, condition.window
    failed = sorted(
        (r for r in ordered if r.settled and r.status is RunStatus.FAILED), key=lambda r: (r.settled_at, r.run)
    )
    first = last = -1
    for index in range(size - 1, len(failed)):
        begin = index - size + 1
        if failed[index].settled_at - failed[begin].settled_at >= window:
            continue
        # The count has dropped below N in between if the N failures before are out of the window by now.
        if first >= 0 and failed[index].settled_at > failed[last - size + 1].settled_at + window:
            yield _crowd(failed[first - size + 1 : last + 1], failed[first], failed[last - size + 1], window, known)
            first = -1
        first, last = (index if first < 0 else first), index
    if first >= 0:
        yield _crowd(failed[first - size + 1 : last + 1], failed[first], failed[last - size + 1], window, known)


def _crowd(
    failed: Sequence[RunFact], reached: RunFact, oldest: RunFact, window: timedelta, known: datetime | None
) -> Span:
    until = oldest.settled_at + window
    # What is not known yet may be further failures.
    return Span(reached.settled_at, until if known is not None and until <= known else None, _listed(failed))


def _droughts(
    ordered: Sequence[RunFact],
    condition: Condition,
    pipeline: Expectations,
    gaps: Sequence[Gap],
    known: datetime | None,
) -> Iterator[Span]:
    """Times without a success for longer than the window, up to the next success."""
    if known is None:
        return
    good = sorted(run.settled_at for run in ordered if run.settled and run.status is RunStatus.SUCCESS)
    restart = pipeline.schedule_changed_at
    begins: list[datetime | None] = [None, *good]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        base = begin or pipeline.created_at
        if restart is not None and base < restart and (end is None or restart < end):
            base = restart
        for lost, heard in gaps:
            if lost < base + condition.window and heard > base:
                base = heard  # a success may have been lost in the gap
        since = base + condition.window
        if since <= known if end is None else since < end:
            yield Span(since, end, Evidence(limit_minutes=condition.window_minutes, last_success=begin))


def _limit(condition: Condition, pipeline: Expectations) -> int | None:
    return condition.window_minutes or pipeline.max_runtime_minutes


def _overruns(ordered: Sequence[RunFact], limit: int | None, gaps: Sequence[Gap], known: datetime | None) -> list[Span]:
    """Times in which a run took longer than the limit; overlapping ones are one span."""
    longest = timedelta(minutes=limit or 0)
    found: list[Span] = []
    for run in ordered:
        if run.started_at is None or run.kind is RunKind.BACKFILL:
            continue
        since, open_ = run.started_at + longest, not run.status.finished
        if open_:
            lost = any(begin < since and end > run.started_at for begin, end in gaps)
            if known is None or since > known or lost:
                continue
        elif run.finished_at is None or run.finished_at <= since:
            continue
        found.append(Span(since, None if open_ else run.finished_at, Evidence((run.run,), run.run, 1, None, limit)))
    return _united(found)


def _united(found: list[Span]) -> list[Span]:
    united: list[Span] = []
    for span in sorted(found, key=lambda span: (span.since, span.evidence.runs)):
        last = united[-1] if united else None
        if last is None or (last.until is not None and last.until < span.since):
            united.append(span)
            continue
        until = None if last.until is None or span.until is None else max(last.until, span.until)
        united[-1] = Span(last.since, until, _joined(last.evidence, span.evidence))
    return united


def _joined(one: Evidence, other: Evidence) -> Evidence:
    return dataclasses.replace(
        one, runs=(*one.runs, *other.runs)[:MAX_LISTED], latest=other.latest, count=one.count + other.count
    )


def _misses(
    ordered: Sequence[RunFact],
    condition: Condition,
    pipeline: Expectations,
    gaps: Sequence[Gap],
    known: datetime | None,
) -> Iterator[Span]:
    """Times in which a slot had passed its grace without a run, up to the next run."""
    if known is None or pipeline.schedule_cron is None:
        return
    slots = slots_of(pipeline.schedule_cron, pipeline.schedule_timezone)
    grace = _grace(condition, pipeline)
    times = [run.effective_at for run in ordered if run.kind is not RunKind.BACKFILL]
    floor = pipeline.schedule_changed_at or min([pipeline.created_at, *times[:1]])
    starts = [time for time in times if time >= floor]
    for slot, after in zip(awaited(slots, floor, starts), [*starts, None], strict=True):
        if (span := _missed(slots, slot, after, grace, gaps, known)) is not None:
            yield span


def may_be_lost(slot: datetime, deadline: datetime, gaps: Sequence[Gap]) -> bool:
    """Whether the report of a run that answered this slot may have been sent while nobody could hear it."""
    return any(lost < deadline and heard > slot - EARLY for lost, heard in gaps)


def _grace(condition: Condition, pipeline: Expectations) -> timedelta:
    if condition.window_minutes is not None:
        return condition.window
    return DEFAULT_GRACE if pipeline.grace_minutes is None else timedelta(minutes=pipeline.grace_minutes)


def _missed(
    slots: Slots, slot: datetime | None, after: datetime | None, grace: timedelta, gaps: Sequence[Gap], known: datetime
) -> Span | None:
    """The span of the first slot from this one on that no run answered in time before the run at `after`."""
    while slot is not None:
        deadline = slot + grace
        if deadline > known or (after is not None and after <= deadline):
            return None
        if not may_be_lost(slot, deadline, gaps):
            break
        slot = slots.after(slot)
    if slot is None:
        return None
    last = (known if after is None else min(after - timedelta.resolution, known)) - grace
    count = max(1, slots.count(slot, last, MAX_SLOTS))
    limit = int(grace.total_seconds() // 60)
    return Span(deadline, after, Evidence(count=count, slot=slot, limit_minutes=limit, at_least=count >= MAX_SLOTS))

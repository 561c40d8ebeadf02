"""Episodes of alerts: what follows from the verdicts of a rule, and what is announced. Pure.

`follow` compares the open episodes of a rule with what its verdicts say now, and returns the episodes that are open
from here on and what is to be announced. Every announced episode is closed by exactly one further notice. Late data
leave no trace: afterwards an open episode is what it would be if they had come in time.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID, uuid5

from msgspec.structs import replace

from chm_dagster.domain.alerts import (
    Condition,
    Doubt,
    Episode,
    Evidence,
    Finding,
    Followed,
    Notice,
    NoticeKind,
    PastEpisode,
    Receiver,
    RunFact,
    Span,
    State,
)
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import RunStatus

_NAMESPACE = UUID("7b0c3a2e-55cf-4f4e-9c8e-0e6f3c8f5d11")
_FIRST_REMINDERS = (timedelta(hours=1), timedelta(hours=4))
_DAY = timedelta(days=1)
_OVER = frozenset({NoticeKind.RECOVERED, NoticeKind.CORRECTED, NoticeKind.ENDED})

_Step: TypeAlias = tuple[Episode | None, tuple[Notice, ...]]


def follow(
    rule_id: UUID,
    condition: Condition,
    episodes: Iterable[Episode],
    findings: Mapping[UUID, Finding],
    now: datetime,
    *,
    ended: Mapping[UUID, str] | None = None,
    receiver: Receiver | None = None,
    is_muted: bool = False,
) -> Followed:
    """The next state of a rule's episodes. `findings` has one entry for each pipeline that was evaluated.

    The episode of a pipeline in `ended` is over for the given reason; one of a pipeline in neither stays as it is. One
    that another `receiver` was notified of is over for that one.
    """
    known = {episode.pipeline_id: episode for episode in episodes}
    steps: list[_Step] = []
    for pipeline_id in [*known, *(pipeline_id for pipeline_id in findings if pipeline_id not in known)]:
        episode, finding = known.get(pipeline_id), findings.get(pipeline_id)
        if episode is not None and ended is not None and pipeline_id in ended:
            steps.append((None, (Notice(NoticeKind.ENDED, episode, reason=ended[pipeline_id]),)))
            continue
        if episode is not None and (reason := _replaced(condition, episode, receiver)):
            steps.append((None, (Notice(NoticeKind.ENDED, episode, reason=reason),)))
            episode = None
        if finding is None:
            steps.append((episode, ()))
        elif finding.verdict.state is State.FIRING:
            steps.append(_firing(rule_id, pipeline_id, condition, episode, finding, now, is_muted))
        elif episode is not None:
            steps.append(_over(condition, episode, finding, now))
    steps = [_addressed(step, receiver) for step in steps]
    notices = [notice for _, announced in steps for notice in announced]
    # What nobody heard of needs no end.
    heard = tuple(n for n in notices if n.kind is NoticeKind.OPENED or n.episode.announced_at is not None)
    over = tuple(PastEpisode(n.episode, n.kind, now, n.until, n.reason) for n in notices if n.kind in _OVER)
    return Followed(tuple(episode for episode, _ in steps if episode is not None), heard, over)


def _replaced(condition: Condition, episode: Episode, receiver: Receiver | None) -> str:
    """Why what an episode was found with is no longer this rule; empty if it is."""
    text = episode.condition
    if text != str(condition) and Condition.read(text).rule_type is not condition.rule_type:
        return "the rule watches something else now"
    if receiver is not None and episode.receiver is not None and episode.receiver != receiver:
        return "the rule notifies somebody else now"
    return ""


def _addressed(step: _Step, receiver: Receiver | None) -> _Step:
    """Note in a new or newly announced episode who is notified."""
    episode, notices = step
    if episode is None or episode.announced_at is None or episode.receiver is not None:
        return step
    if receiver is None:
        return step
    notified = replace(episode, receiver=receiver)
    return notified, tuple(dataclasses.replace(n, episode=notified) if n.episode is episode else n for n in notices)


def _firing(
    rule_id: UUID,
    pipeline_id: UUID,
    condition: Condition,
    episode: Episode | None,
    finding: Finding,
    now: datetime,
    is_muted: bool,
) -> _Step:
    since = finding.verdict.since or now
    before: tuple[Notice, ...] = ()
    if episode is not None and (past := _past(episode, finding.spans)) is not None:
        # It was over, and something new has begun: nobody looked in between, or late data show it.
        over = replace(episode, since=past.since, evidence=past.evidence)
        before, episode = (Notice(NoticeKind.RECOVERED, over, until=past.until),), None
    if episode is None:
        name = f"{rule_id}/{pipeline_id}/{since.isoformat()}/{now.isoformat()}"
        facts = (pipeline_id, str(condition), since, now, finding.verdict.evidence)
        found = Episode(uuid5(_NAMESPACE, name), *facts, expected=finding.expected)
    else:
        if finding.complete_from is not None and episode.since < since <= finding.complete_from:
            since = episode.since  # it began before what was looked at
        news = (str(condition), since, finding.verdict.evidence, finding.expected)
        found = episode
        if news != (episode.condition, episode.since, episode.evidence, episode.expected):
            found = replace(episode, condition=news[0], since=since, evidence=news[2], expected=news[3])
    if is_muted or finding.is_quiet:
        return found, before
    if found.announced_at is None:
        found = replace(found, announced_at=now)
        return found, (*before, Notice(NoticeKind.OPENED, found))
    return _reminded(found, now)


def _past(episode: Episode, spans: Sequence[Span]) -> Span | None:
    """The span that an open episode lay in, if that is over."""
    return next((s for s in spans if s.until is not None and s.since <= episode.since < s.until), None)


def _reminded(episode: Episode, now: datetime) -> _Step:
    due = reminders_due(now - (episode.announced_at or now))
    if episode.acknowledged_at is not None or due <= episode.reminders:
        return episode, ()
    reminded = replace(episode, reminders=due)
    return reminded, (Notice(NoticeKind.REMINDER, reminded),)


def reminders_due(age: timedelta) -> int:
    """How many reminders are due after this time: after one hour, after four, then daily."""
    return sum(age >= first for first in _FIRST_REMINDERS) + max(0, age // _DAY)


def _over(condition: Condition, episode: Episode, finding: Finding, now: datetime) -> _Step:
    doubt = finding.verdict.doubt
    # A clock that was set back knows nothing of what has been found already.
    if now < episode.opened_at or doubt is Doubt.BLIND or _runs_again(condition, episode, finding.runs):
        return episode, ()
    span, cut = _span_of(episode, finding.spans), finding.complete_from
    if doubt is Doubt.NO_CRITERION:
        notice = Notice(NoticeKind.ENDED, episode, reason=finding.verdict.evidence.reason)
    elif str(condition) != episode.condition:
        notice = Notice(NoticeKind.ENDED, episode, reason="the rule was changed")
    elif episode.expected is not None and finding.expected != episode.expected:
        notice = Notice(NoticeKind.ENDED, episode, reason="what is expected of the pipeline was changed")
    elif span is not None:
        began_before = cut is not None and episode.since < span.since <= cut
        since = episode.since if began_before else span.since
        over = replace(episode, since=since, evidence=span.evidence)
        notice = Notice(NoticeKind.RECOVERED, over, until=span.until)
    elif (until := _succeeded_after_all(episode, finding.runs)) is not None:
        notice = Notice(NoticeKind.RECOVERED, episode, until=until)
    elif cut is not None and episode.since <= cut:
        notice = Notice(NoticeKind.ENDED, episode, reason="too many runs since then to say how it went on")
    else:
        notice = Notice(NoticeKind.CORRECTED, episode)
    return None, (notice,)


def _runs_again(condition: Condition, episode: Episode, runs: Sequence[RunFact]) -> bool:
    """Whether a failed run of the episode was started again under its own id: how it ends is worth waiting for."""
    return condition.rule_type is not RuleType.RUNNING_TOO_LONG and any(
        run.run in episode.evidence.runs and run.status is RunStatus.RUNNING for run in runs
    )


def _span_of(episode: Episode, spans: Sequence[Span]) -> Span | None:
    """The last span that an episode lay in, or that has a run in common with it."""
    ids = _runs_of(episode.evidence)
    for span in reversed(spans):
        if span.since <= episode.since and (span.until is None or episode.since < span.until):
            return span
        if not ids.isdisjoint(_runs_of(span.evidence)):
            return span
    return None


def _runs_of(evidence: Evidence) -> set[str]:
    return {*evidence.runs, *([evidence.latest] if evidence.latest else [])}


def _succeeded_after_all(episode: Episode, runs: Sequence[RunFact]) -> datetime | None:
    """When a failed run of the episode succeeded after all, under its own id; None if that is not what happened."""
    again = [
        run.settled_at
        for run in runs
        if run.run in episode.evidence.runs and run.status is RunStatus.SUCCESS and run.settled_at > episode.since
    ]
    return max(again, default=None)

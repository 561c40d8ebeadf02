"""One evaluation of all rules: what is open from here on, and the messages about it, committed together."""

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from chm_dagster.domain.alerts import (
    Condition,
    Doubt,
    Episode,
    Evidence,
    Finding,
    Followed,
    Names,
    Notice,
    NoticeKind,
    Receiver,
    Span,
    State,
    Verdict,
)
from chm_dagster.domain.episodes import follow
from chm_dagster.domain.error_text import fingerprint
from chm_dagster.domain.evaluation import spans_of, verdict
from chm_dagster.domain.maintenance import is_open
from chm_dagster.domain.messages import OPENINGS_WITHIN, SAME_ERROR_WITHIN, Item, Openings, grouped
from chm_dagster.domain.rules import COUNT_FAILURES, Channel, RuleType
from chm_dagster.warehouse.alerts import MAX_FAILURES, Evaluation, RuleState, Situation, Subject, evaluation
from chm_dagster.warehouse.engine import Engine


def _digest(episodes: Iterable[UUID]) -> str:
    return hashlib.sha256(" ".join(sorted(map(str, episodes))).encode()).hexdigest()[:16]


OTHERS_SECONDS = 20.0
"""How long an evaluation of another process is waited for."""
NOTHING_OPEN = _digest(())
"""The digest of a report without open episodes."""


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation did: how many pairs of rule and pipeline it looked at, what is open, and what it announced.

    `digest` differs whenever other episodes are open than before.
    """

    looked_at: int
    open_episodes: int
    digest: str
    notices: dict[NoticeKind, int]
    messages: int


def evaluate_rules(engine: Engine, now: datetime | None = None) -> EvaluationReport | None:
    """Evaluate all rules; None if another process is evaluating. Raises DatabaseUnavailable: nothing happened.

    `now` is for tests; else it is the time of the database.
    Nothing is sent: the messages wait with their rules, under ids that stay the same.
    """
    with evaluation(engine, now) as current:
        if current is None:
            return None
        situation = current.situation()
        findings = {rule_id: _findings(rule, situation) for rule_id, rule in situation.rules.items()}
        followed = {rule_id: _follow(rule, situation, findings[rule_id]) for rule_id, rule in situation.rules.items()}
        openings = _openings(current, situation, followed)
        held = {receiver for receiver, before in openings.items() if before.held_until(current.now)}
        followed |= {
            rule_id: _follow(rule, situation, findings[rule_id], held)
            for rule_id, rule in situation.rules.items()
            if rule.receiver in held
        }
        announced = [(rule_id, notice) for rule_id, after in followed.items() for notice in after.notices]
        messages = grouped(_items(current, situation, followed), current.now, openings)
        changed = {
            rule_id: after.episodes
            for rule_id, after in followed.items()
            if after.episodes != situation.rules[rule_id].episodes
        }
        current.save(changed, messages, {rule_id: after.over for rule_id, after in followed.items() if after.over})
    still_open = [episode.id for after in followed.values() for episode in after.episodes]
    kinds = [notice.kind for _, notice in announced]
    return EvaluationReport(
        looked_at=sum(len(pipelines) for pipelines in situation.candidates.values()),
        open_episodes=len(still_open),
        digest=_digest(still_open),
        notices={kind: kinds.count(kind) for kind in NoticeKind if kind in kinds},
        messages=len(messages),
    )


def evaluate_news(engine: Engine, wait_seconds: float = OTHERS_SECONDS) -> EvaluationReport | None:
    """As `evaluate_rules`, after an evaluation that is under way: it may have begun before the news.

    None if that takes longer than this.
    """
    give_up = time.monotonic() + wait_seconds
    while (report := evaluate_rules(engine)) is None and time.monotonic() < give_up:
        time.sleep(0.2)
    return report


def _openings(
    current: Evaluation, situation: Situation, followed: Mapping[UUID, Followed]
) -> Mapping[Receiver, Openings]:
    """Of each receiver who would be notified of something new: what it was notified of lately."""
    new = {
        situation.rules[rule_id].receiver
        for rule_id, after in followed.items()
        if any(notice.kind is NoticeKind.OPENED for notice in after.notices)
    }
    return current.openings(current.now - OPENINGS_WITHIN) if new else {}


def _findings(rule: RuleState, situation: Situation) -> Mapping[UUID, Finding]:
    return {
        pipeline_id: _finding(rule, situation.subjects[pipeline_id], situation.now)
        for pipeline_id in sorted(situation.candidates.get(rule.id, ()))
        if pipeline_id in situation.subjects
    }


def _follow(
    rule: RuleState, situation: Situation, findings: Mapping[UUID, Finding], held: Collection[Receiver] = ()
) -> Followed:
    followed = follow(
        rule.id,
        rule.condition,
        rule.episodes,
        findings,
        situation.now,
        ended=situation.ended.get(rule.id),
        receiver=rule.receiver,
        is_muted=rule.receiver in held or (rule.muted_until is not None and rule.muted_until > situation.now),
    )
    return dataclasses.replace(followed, episodes=tuple(_named(episode, situation) for episode in followed.episodes))


def _named(episode: Episode, situation: Situation) -> Episode:
    subject = situation.subjects.get(episode.pipeline_id)
    if subject is None or episode.names == subject.names:
        return episode
    return msgspec.structs.replace(episode, names=subject.names)


def _finding(rule: RuleState, subject: Subject, now: datetime) -> Finding:
    facts = (rule.condition, subject.expectations, subject.runs, subject.coverage, now)
    complete_from = subject.complete_from(rule.condition)
    spans = _marked(rule.condition, spans_of(*facts), complete_from)
    said = verdict(*facts, spans)
    if said.state is State.OK and _is_cut(rule.condition, complete_from, now):
        said = Verdict.unknown(Doubt.BLIND, f"more than {MAX_FAILURES:,} failures in the window")
    expected = subject.expectations.of(rule.condition)
    is_quiet = is_open(subject.maintenance, now)
    return Finding(said, spans, subject.runs, is_quiet, complete_from, expected)


def _marked(condition: Condition, spans: Sequence[Span], complete_from: datetime | None) -> Sequence[Span]:
    """The spans; those that may have begun before the runs that were looked at say so in their evidence."""
    if complete_from is None or condition.rule_type not in COUNT_FAILURES:
        return spans
    return [
        msgspec.structs.replace(span, evidence=dataclasses.replace(span.evidence, at_least=True))
        if span.since <= complete_from
        else span
        for span in spans
    ]


def _is_cut(condition: Condition, complete_from: datetime | None, now: datetime) -> bool:
    """Whether failures of the window were not looked at."""
    return condition.rule_type is RuleType.FAILURES_IN_WINDOW and complete_from is not None and complete_from > now


def _items(
    current: Evaluation, situation: Situation, followed: Mapping[UUID, Followed]
) -> Iterator[tuple[Channel, str, Item]]:
    pairs = [(situation.rules[rule_id], notice) for rule_id, after in followed.items() for notice in after.notices]
    lately = _lately_announced(situation, followed) if any(n.kind is NoticeKind.OPENED for _, n in pairs) else []
    wanted = {_run_of(episode) for episode in [*(n.episode for _, n in pairs), *(e for _, e in lately)]}
    errors = current.errors([run for run in wanted if run[1]]) if wanted else {}
    clients: dict[tuple[Receiver, str], dict[str, None]] = {}
    for receiver, episode in lately:
        error = fingerprint(errors.get(_run_of(episode), ("", None))[0])
        if error and episode.names is not None:
            clients.setdefault((receiver, error), {})[episode.names.client_name] = None
    for rule, notice in pairs:
        subject = situation.subjects.get(notice.episode.pipeline_id)
        names = notice.episode.names if subject is None else subject.names
        if names is not None:
            error, source_url = errors.get(_run_of(notice.episode), ("", None))
            receiver = notice.episode.receiver or rule.receiver
            is_new = notice.kind is NoticeKind.OPENED
            same = clients.get((receiver, fingerprint(error)), {}) if is_new and error else {}
            others = tuple(sorted(name for name in same if name != names.client_name))
            item = _item(rule, notice, names, error, source_url)
            yield *receiver, msgspec.structs.replace(item, same_error_at=others) if others else item


def _lately_announced(situation: Situation, followed: Mapping[UUID, Followed]) -> list[tuple[Receiver, Episode]]:
    """The open episodes of which a receiver was notified a short time ago, before this evaluation."""
    after = situation.now - SAME_ERROR_WITHIN
    return [
        (episode.receiver or situation.rules[rule_id].receiver, episode)
        for rule_id, now in followed.items()
        for episode in now.episodes
        if episode.announced_at is not None and after <= episode.announced_at < situation.now
    ]


def _run_of(episode: Episode) -> tuple[UUID, str]:
    return episode.pipeline_id, episode.evidence.latest or ""


def _item(rule: RuleState, notice: Notice, names: Names, error: str, source_url: str | None) -> Item:
    episode = notice.episode
    condition = Condition.read(episode.condition)
    return Item(
        key=notice.key,
        kind=notice.kind,
        rule_id=rule.id,
        rule_type=condition.rule_type,
        threshold=condition.threshold,
        window_minutes=condition.window_minutes,
        episode_id=episode.id,
        client_slug=names.client_slug,
        client_name=names.client_name,
        pipeline_slug=names.slug,
        pipeline_name=names.name,
        platform=names.platform,
        environment=names.environment,
        since=episode.since,
        evidence=episode.evidence or Evidence(),
        until=notice.until,
        reason=notice.reason,
        acknowledged_by=episode.acknowledged_by,
        error=error,
        source_url=source_url,
    )

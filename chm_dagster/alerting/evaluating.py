"""One evaluation of all rules: what is open from here on, and the messages about it, committed together."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

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
    State,
    Verdict,
)
from chm_dagster.domain.episodes import follow
from chm_dagster.domain.evaluation import spans_of, verdict
from chm_dagster.domain.maintenance import is_open
from chm_dagster.domain.messages import Item, grouped
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.warehouse.alerts import MAX_FAILURES, Evaluation, RuleState, Situation, Subject, evaluation
from chm_dagster.warehouse.engine import Engine


def _digest(episodes: Iterable[UUID]) -> str:
    return hashlib.sha256(" ".join(sorted(map(str, episodes))).encode()).hexdigest()[:16]


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
        followed = {rule_id: _follow(rule, situation) for rule_id, rule in situation.rules.items()}
        announced = [(rule_id, notice) for rule_id, after in followed.items() for notice in after.notices]
        messages = grouped(_items(current, situation, announced), current.now)
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


def _follow(rule: RuleState, situation: Situation) -> Followed:
    findings = {
        pipeline_id: _finding(rule, situation.subjects[pipeline_id], situation.now)
        for pipeline_id in sorted(situation.candidates.get(rule.id, ()))
        if pipeline_id in situation.subjects
    }
    followed = follow(
        rule.id,
        rule.condition,
        rule.episodes,
        findings,
        situation.now,
        ended=situation.ended.get(rule.id),
        receiver=(rule.channel, rule.destination),
        is_muted=rule.muted_until is not None and rule.muted_until > situation.now,
    )
    return dataclasses.replace(followed, episodes=tuple(_named(episode, situation) for episode in followed.episodes))


def _named(episode: Episode, situation: Situation) -> Episode:
    subject = situation.subjects.get(episode.pipeline_id)
    return episode if subject is None else dataclasses.replace(episode, names=subject.names)


def _finding(rule: RuleState, subject: Subject, now: datetime) -> Finding:
    facts = (rule.condition, subject.expectations, subject.runs, subject.coverage, now)
    spans = spans_of(*facts)
    said, complete_from = verdict(*facts, spans), subject.complete_from(rule.condition)
    if said.state is State.OK and _is_cut(rule.condition, complete_from, now):
        said = Verdict.unknown(Doubt.BLIND, f"more than {MAX_FAILURES:,} failures in the window")
    expected = subject.expectations.of(rule.condition)
    is_quiet = is_open(subject.maintenance, now)
    return Finding(said, spans, subject.runs, is_quiet, complete_from, expected)


def _is_cut(condition: Condition, complete_from: datetime | None, now: datetime) -> bool:
    """Whether failures of the window were not looked at."""
    return condition.rule_type is RuleType.FAILURES_IN_WINDOW and complete_from is not None and complete_from > now


def _items(
    current: Evaluation, situation: Situation, announced: Iterable[tuple[UUID, Notice]]
) -> Iterator[tuple[Channel, str, Item]]:
    pairs = [(situation.rules[rule_id], notice) for rule_id, notice in announced]
    wanted = {(n.episode.pipeline_id, n.episode.evidence.latest) for _, n in pairs if n.episode.evidence.latest}
    errors = current.errors([(pipeline_id, run) for pipeline_id, run in wanted if run is not None]) if wanted else {}
    for rule, notice in pairs:
        subject = situation.subjects.get(notice.episode.pipeline_id)
        names = notice.episode.names if subject is None else subject.names
        if names is not None:
            run = (notice.episode.pipeline_id, notice.episode.evidence.latest or "")
            channel, destination = notice.episode.receiver or (rule.channel, rule.destination)
            yield channel, destination, _item(rule, notice, names, *errors.get(run, ("", None)))


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

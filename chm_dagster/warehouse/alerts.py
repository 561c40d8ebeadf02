"""What evaluating alert rules reads and writes: the pairs of rule and pipeline that may fire, and what became of them.
Episodes and messages are kept with their rule, and written in one transaction before anything is sent.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from chm_dagster.domain.alerts import (
    Condition,
    Coverage,
    Episode,
    Expectations,
    Gap,
    Names,
    PastEpisode,
    Receiver,
    RunFact,
)
from chm_dagster.domain.error_text import error_summary
from chm_dagster.domain.evaluation import InOrder
from chm_dagster.domain.messages import Message, Openings
from chm_dagster.domain.pipelines import PUSHED, Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.sync import SyncErrorCode
from chm_dagster.warehouse.api_uptime import api_gaps
from chm_dagster.warehouse.engine import Engine, database_errors
from chm_dagster.warehouse.episodes import forget_deleted, openings, save_episodes

MAX_RUNS = 1_000
"""How many runs of a pipeline one evaluation looks at, apart from failures that a window counts."""
MAX_FAILURES = 10_000
"""How many failures of a pipeline one evaluation counts in a window."""
_DELAY = timedelta(minutes=5)
"""Partners show runs with a delay: what did not happen is known up to this long before a complete sync began."""
SLACK = timedelta(days=7)
"""How much longer than the episode itself a run of it may have taken."""
# Calling the enum costs more than a look-up, and a back-test has hundreds of thousands of runs.
_STATUSES, _KINDS = {str(status): status for status in RunStatus}, {str(kind): kind for kind in RunKind}
_EPISODES = msgspec.json.Decoder(tuple[Episode, ...])
EVALUATING_LOCK = "hashtextextended('chm/alerts/evaluating', 0)"

# Which rules apply to which pipelines. Of one type, a rule of the pipeline takes the place of those of its client.
_PAIRS = f"""
WITH watched AS MATERIALIZED (
    SELECT p.id, p.client_id, p.created_at, p.max_runtime_minutes, p.due_at, CASE
        WHEN p.external_id IS NULL OR starts_with(p.connection, '{PUSHED}') THEN :now
        WHEN p.observed_through IS NOT NULL
            THEN least(coalesce(p.known_through, p.observed_through - :delay), p.doubt_since, :now)
    END AS known
    FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
    WHERE p.is_active AND c.is_active
), pairs AS MATERIALIZED (
    SELECT r.id AS rule_id, r.rule_type, r.threshold, r.window_minutes * interval '1 minute' AS span, p.*
    FROM alert_rules AS r JOIN watched AS p ON p.id = r.pipeline_id
    WHERE r.is_enabled
    UNION ALL
    SELECT r.id, r.rule_type, r.threshold, r.window_minutes * interval '1 minute', p.*
    FROM alert_rules AS r JOIN watched AS p ON p.client_id = r.client_id
    WHERE r.is_enabled AND r.pipeline_id IS NULL AND NOT EXISTS (
        SELECT FROM alert_rules AS own
        WHERE own.pipeline_id = p.id AND own.rule_type = r.rule_type AND own.is_enabled
    )
), latest AS MATERIALIZED (
    SELECT p.id, last.status, coalesce(last.finished_at, last.effective_at) AS settled_at
    FROM watched AS p CROSS JOIN LATERAL latest_health_runs(p.id, 1) AS last
)"""  # noqa: S608 - built from a constant

# The pairs that may fire: all that do are among them, and few others. `evaluate` decides.
_CANDIDATES = sa.text(f"""{_PAIRS}
SELECT x.rule_id, x.id AS pipeline_id FROM pairs AS x
WHERE x.rule_type IN ('on_failure', 'consecutive_failures')
  AND x.id IN (SELECT l.id FROM latest AS l WHERE l.status = 'failed')
UNION ALL
SELECT x.rule_id, x.id FROM pairs AS x
WHERE x.rule_type = 'failures_in_window' AND x.threshold <= (
    SELECT count(*) FROM runs AS r
    WHERE r.pipeline_id = x.id AND r.status = 'failed'
      AND r.effective_at > coalesce(x.known, '-infinity') - x.span - :slack
      AND coalesce(r.finished_at, r.effective_at) > coalesce(x.known, '-infinity') - x.span
)
UNION ALL
SELECT x.rule_id, x.id FROM pairs AS x
LEFT JOIN latest AS l ON l.id = x.id
WHERE x.rule_type = 'no_success_in_window' AND x.span + coalesce(
    CASE WHEN l.status = 'success' THEN l.settled_at
        ELSE (SELECT coalesce(good.finished_at, good.effective_at) FROM latest_success(x.id) AS good) END,
    x.created_at
) <= x.known
UNION ALL
SELECT x.rule_id, x.id FROM pairs AS x
WHERE x.rule_type = 'running_too_long' AND EXISTS (
    SELECT FROM runs AS r
    WHERE r.pipeline_id = x.id AND r.status = 'running'
      AND r.started_at + coalesce(x.span, x.max_runtime_minutes * interval '1 minute') <= x.known
)
UNION ALL
SELECT x.rule_id, x.id FROM pairs AS x
WHERE x.rule_type = 'missed_run' AND x.due_at <= x.known
""")  # noqa: S608 - built from constants

_RULES = sa.text("""
SELECT id, rule_type, threshold, window_minutes, channel, destination, muted_until, CAST(episodes AS text) AS episodes
FROM alert_rules WHERE id = ANY(:candidates) OR episodes <> '[]'
""")

# Why an episode's pipeline is no longer watched by its rule; null: it is.
_LEFT = sa.text("""
SELECT r.id AS rule_id, e.pipeline_id, CASE
    WHEN r.deleted_at IS NOT NULL THEN 'the rule was deleted'
    WHEN NOT r.is_enabled THEN 'the rule was disabled'
    WHEN p.id IS NULL THEN 'the pipeline was removed'
    WHEN NOT p.is_active THEN 'the pipeline was disabled'
    WHEN NOT c.is_active THEN 'the client was disabled'
    WHEN coalesce(r.pipeline_id, p.id) <> p.id OR r.pipeline_id IS NULL AND r.client_id <> p.client_id
        THEN 'the rule is about something else now'
    WHEN r.pipeline_id IS NULL AND EXISTS (
        SELECT FROM alert_rules AS own
        WHERE own.pipeline_id = p.id AND own.rule_type = r.rule_type AND own.is_enabled
    ) THEN 'a rule of the pipeline itself takes its place'
END AS reason
FROM alert_rules AS r
CROSS JOIN LATERAL jsonb_array_elements(r.episodes) AS x
CROSS JOIN LATERAL (SELECT CAST(x ->> 'pipeline_id' AS uuid) AS pipeline_id) AS e
LEFT JOIN pipelines AS p ON p.id = e.pipeline_id
LEFT JOIN clients AS c ON c.id = p.client_id
WHERE r.episodes <> '[]'
""")

_SUBJECTS = sa.text("""
SELECT p.id, p.slug, p.name, c.slug AS client_slug, c.name AS client_name, p.platform, p.environment, p.created_at,
       p.schedule_cron, p.schedule_timezone, p.grace_minutes, p.max_runtime_minutes, p.schedule_changed_at,
       p.external_id, p.connection, p.observed_through, p.known_through, p.stale_at, p.doubt_since, p.sync_error_code,
       nullif(c.maintenance || p.maintenance, '[]') AS maintenance
FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
WHERE p.id = ANY(:ids)
""")

_RUN = "r.external_run_id, r.status, r.effective_at, r.started_at, r.finished_at, r.kind, r.will_retry"
_NEWEST = "ORDER BY r.effective_at DESC, r.finished_at DESC NULLS LAST, r.id DESC"
# Everything since the latest success, or since the time that an open episode needs; at least three runs. Where a window
# counts failures, those of the window as well.
# Rows go by the number of their pipeline in `ids`: there may be many, and an id costs more to read and compare. The
# latest success is found in an index, and then read by its id: there may be many failures since.
_RUNS = sa.text(f"""
SELECT p.n, r.* FROM unnest(
    CAST(:ids AS uuid[]), CAST(:since AS timestamptz[]), CAST(:counted AS timestamptz[])
) WITH ORDINALITY AS p(id, since, counted, n)
LEFT JOIN LATERAL (SELECT s.id, s.effective_at FROM latest_success(p.id) AS s) AS good ON true
CROSS JOIN LATERAL (
    SELECT least(
        coalesce(good.effective_at, '-infinity'),
        p.since,
        (SELECT min(third.effective_at) FROM latest_runs(p.id, 3) AS third)
    ) AS first
) AS cut
CROSS JOIN LATERAL (
    (SELECT {_RUN} FROM runs AS r WHERE r.pipeline_id = p.id AND r.effective_at >= cut.first {_NEWEST} LIMIT :limit)
    UNION
    SELECT {_RUN} FROM runs AS r WHERE r.pipeline_id = p.id AND r.status = 'running'
    UNION
    SELECT {_RUN} FROM runs AS r WHERE r.id = good.id
    UNION
    (SELECT {_RUN} FROM runs AS r
     WHERE r.pipeline_id = p.id AND r.status = 'failed' AND r.effective_at >= p.counted {_NEWEST} LIMIT :failures)
) AS r
""")  # noqa: S608 - built from constants

_ERRORS = sa.text("""
SELECT r.pipeline_id, r.external_run_id, r.error_message, r.status_reason, r.source_url
FROM unnest(CAST(:ids AS uuid[]), CAST(:runs AS text[])) AS w(pipeline_id, run)
JOIN runs AS r ON r.pipeline_id = w.pipeline_id AND r.external_run_id = w.run
""")

# The clock of the database, not before what has been found already: a clock that is set back would judge it anew. One
# that was an hour ahead, or more, has been wrong; to wait for it would be to be blind.
_NOW = sa.text("""
SELECT greatest(c.now, least(c.now + interval '1 hour', coalesce((
    SELECT max(CAST(found AS timestamptz)) FROM alert_rules AS r
    CROSS JOIN LATERAL (SELECT e ->> 'opened_at' FROM jsonb_array_elements(r.episodes) AS e
        UNION ALL SELECT r.history -> 0 ->> 'over_at') AS x(found)
    WHERE r.episodes <> '[]' OR r.history <> '[]'), c.now)))
FROM (SELECT coalesce(CAST(:now AS timestamptz), clock_timestamp()) AS now) AS c
""")


@dataclasses.dataclass(frozen=True, slots=True)
class RuleState:
    """A rule that may fire or has open episodes."""

    id: UUID
    condition: Condition
    channel: Channel
    destination: str
    muted_until: datetime | None
    episodes: tuple[Episode, ...]

    @property
    def receiver(self) -> Receiver:
        """The channel, and who gets it there."""
        return self.channel, self.destination


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A pipeline that a rule may fire for. From `failures_from` on, all failures are among `runs`; None: uncounted.

    `maintenance` are its windows and those of its client.
    """

    names: Names
    expectations: Expectations
    coverage: Coverage
    runs: Sequence[RunFact]
    failures_from: datetime | None = None
    maintenance: Sequence[Mapping[str, Any]] = ()

    def complete_from(self, condition: Condition) -> datetime | None:
        """Whatever began later can be seen as a whole in `runs`; None: everything can."""
        if condition.rule_type is RuleType.FAILURES_IN_WINDOW:
            return self.failures_from and self.failures_from + condition.window
        if len(self.runs) < MAX_RUNS:
            return None
        newest = sorted(self.runs, key=lambda run: run.effective_at, reverse=True)[:MAX_RUNS]
        # A streak that began before reaches its threshold with the oldest of these.
        return max(run.settled_at for run in newest[-(condition.threshold or 1) :])


@dataclasses.dataclass(frozen=True, slots=True)
class Situation:
    """What an evaluation at `now` needs. `candidates` are the pipelines to look at for each rule.

    `ended` says why a rule no longer watches the pipeline of an open episode.
    """

    now: datetime
    rules: Mapping[UUID, RuleState]
    candidates: Mapping[UUID, Collection[UUID]]
    ended: Mapping[UUID, Mapping[UUID, str]]
    subjects: Mapping[UUID, Subject]


class Evaluation:
    """One evaluation of all rules, in one transaction. Only one runs at a time."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now

    def situation(self) -> Situation:
        """What is to be evaluated: every pair of rule and pipeline that may fire or has an open episode."""
        times = {"now": self.now, "delay": _DELAY, "slack": SLACK}
        candidates: dict[UUID, set[UUID]] = {}
        for rule_id, pipeline_id in self._connection.execute(_CANDIDATES, times):
            candidates.setdefault(rule_id, set()).add(pipeline_id)
        found = self._connection.execute(_RULES, {"candidates": list(candidates)})
        rules = {row.id: _rule(row) for row in found}
        ended: dict[UUID, dict[UUID, str]] = {}
        for rule_id, pipeline_id, reason in self._connection.execute(_LEFT):
            if reason is None:
                candidates.setdefault(rule_id, set()).add(pipeline_id)
            else:
                ended.setdefault(rule_id, {})[pipeline_id] = reason
        return Situation(self.now, rules, candidates, ended, self._subjects(rules, candidates, ended))

    def _subjects(
        self,
        rules: Mapping[UUID, RuleState],
        candidates: Mapping[UUID, Collection[UUID]],
        ended: Mapping[UUID, Mapping[UUID, str]],
    ) -> dict[UUID, Subject]:
        since = {pipeline_id: self.now for pipelines in ended.values() for pipeline_id in pipelines}
        counted: dict[UUID, datetime] = {}
        for rule_id, pipelines in candidates.items():
            of_rule = counted if rules[rule_id].condition.rule_type is RuleType.FAILURES_IN_WINDOW else since
            for pipeline_id, needed in _needed(rules[rule_id], pipelines, self.now):
                since.setdefault(pipeline_id, self.now)
                of_rule[pipeline_id] = min(needed, of_rule.get(pipeline_id, needed))
        found = self._runs(since, counted)
        rows = self._connection.execute(_SUBJECTS, {"ids": list(since)}).all()
        gaps = tuple(api_gaps(self._connection, self.now)) if rows else ()
        return {row.id: _subject(row, found[row.id], counted.get(row.id), self.now, gaps) for row in rows}

    def _runs(self, since: Mapping[UUID, datetime], counted: Mapping[UUID, datetime]) -> dict[UUID, InOrder]:
        ids = list(since)
        found: list[list[RunFact]] = [[] for _ in ids]
        times = {"since": list(since.values()), "counted": [counted.get(pipeline_id) for pipeline_id in ids]}
        wanted = {"ids": ids, **times, "limit": MAX_RUNS, "failures": MAX_FAILURES}
        # In parts, so that Python's garbage collector does not look at all rows again and again.
        for part in self._connection.execute(_RUNS, wanted).partitions(500):
            for number, *run in part:
                found[number - 1].append(fact_of(*run))
        return {pipeline_id: InOrder.of(runs) for pipeline_id, runs in zip(ids, found, strict=True)}

    def errors(self, runs: Collection[tuple[UUID, str]]) -> dict[tuple[UUID, str], tuple[str, str | None]]:
        """Of each run the telling line of its error, and the link to it."""
        wanted = {"ids": [pipeline_id for pipeline_id, _ in runs], "runs": [run for _, run in runs]}
        return {
            (row.pipeline_id, row.external_run_id): (
                error_summary(row.error_message) or error_summary(row.status_reason),
                row.source_url,
            )
            for row in self._connection.execute(_ERRORS, wanted)
        }

    def save(
        self,
        episodes: Mapping[UUID, Sequence[Episode]],
        messages: Iterable[Message],
        over: Mapping[UUID, Sequence[PastEpisode]],
    ) -> None:
        """Replace the open episodes of these rules, add these messages, and keep what is over, within bounds."""
        save_episodes(self._connection, self.now, episodes, messages, over)
        forget_deleted(self._connection)

    def openings(self, since: datetime) -> dict[Receiver, Openings]:
        """What each receiver was notified of since then."""
        return openings(self._connection, since)


@contextmanager
def evaluation(engine: Engine, now: datetime | None = None) -> Iterator[Evaluation | None]:
    """The only evaluation at this time; None if another process is at it. What it saves is committed at the end.

    `now` is for tests; None: the time of the database. It is never before what was found earlier, unless by an hour.
    Raises DatabaseUnavailable; then nothing was saved.
    """
    with database_errors(), engine.begin() as connection:
        is_mine = connection.scalar(sa.text(f"SELECT pg_try_advisory_xact_lock({EVALUATING_LOCK})"))
        # The pairs of rule and pipeline fit into memory.
        connection.exec_driver_sql("SET LOCAL work_mem = '64MB'")
        # Under the lock, so that evaluations follow each other in time.
        yield Evaluation(connection, connection.execute(_NOW, {"now": now}).scalar_one()) if is_mine else None


def _rule(row: Any) -> RuleState:
    condition = Condition(RuleType(row.rule_type), row.threshold, row.window_minutes)
    episodes = _EPISODES.decode(row.episodes)
    return RuleState(row.id, condition, Channel(row.channel), row.destination, row.muted_until, episodes)


def _needed(rule: RuleState, pipelines: Iterable[UUID], now: datetime) -> Iterator[tuple[UUID, datetime]]:
    """From when on the runs of a pipeline are needed, beyond those since its latest success."""
    window = rule.condition.window
    since = {episode.pipeline_id: episode.since for episode in rule.episodes}
    for pipeline_id in pipelines:
        is_window = rule.condition.rule_type is RuleType.FAILURES_IN_WINDOW
        needed = now - 4 * window - SLACK if is_window else now
        yield pipeline_id, min(needed, since.get(pipeline_id, now) - window - SLACK)


def _subject(
    row: Any, runs: Sequence[RunFact], counted: datetime | None, now: datetime, gaps: tuple[Gap, ...]
) -> Subject:
    names = Names(row.client_slug, row.client_name, row.slug, row.name, Platform(row.platform), row.environment)
    known = coverage_of(row, now, gaps)
    return Subject(names, expectations_of(row), known, runs, _failures_from(runs, counted), row.maintenance or ())


def _failures_from(runs: Sequence[RunFact], counted: datetime | None) -> datetime | None:
    if counted is None or len(runs) < MAX_FAILURES:
        return counted
    failed = sorted((r.effective_at for r in runs if r.status is RunStatus.FAILED), reverse=True)
    return counted if len(failed) < MAX_FAILURES else max(counted, failed[MAX_FAILURES - 1])


def expectations_of(row: Any) -> Expectations:
    """What is expected of the pipeline of a row."""
    limits = (row.grace_minutes, row.max_runtime_minutes)
    schedule = (row.schedule_cron, row.schedule_timezone)
    return Expectations(row.id, row.created_at, *schedule, *limits, row.schedule_changed_at)


def fact_of(run: str, status: str, effective: datetime, *more: Any) -> RunFact:
    """What verdicts need of a run, from its columns: start, end, kind and whether it is about to be retried."""
    started, finished, kind, will_retry = more
    reason = None if kind is None else _KINDS[kind]
    return RunFact(run, _STATUSES[status], effective, started, finished, reason, will_retry)


def coverage_of(row: Any, now: datetime, gaps: tuple[Gap, ...] = ()) -> Coverage:
    """A pipeline that reports its runs itself is known up to now but for the gaps, one that is read as of its last
    complete sync, or up to the first one with records that could not be understood.
    """
    if row.external_id is None or (row.connection or "").startswith(PUSHED):
        return Coverage(now, gaps)
    known = row.known_through or (row.observed_through and row.observed_through - _DELAY)
    stale_at = row.stale_at
    if known is not None and row.doubt_since is not None:
        known = min(known, row.doubt_since)
        stale_at = row.doubt_since
    return Coverage(known, gone=row.sync_error_code == SyncErrorCode.NOT_AT_PARTNER, stale_at=stale_at)

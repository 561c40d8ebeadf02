"""Alerts: what the verdicts of rules and the episodes that follow from them are. Pure.

Evaluating a rule for a pipeline gives a verdict (`chm_dagster.domain.evaluation`). An episode lasts from the time that
a rule fires until it is over (`chm_dagster.domain.episodes`).
"""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import msgspec

from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.rules import AlertRule, Channel, RuleType
from chm_dagster.domain.runs import RunKind, RunStatus


class State(enum.StrEnum):
    """What a verdict says. Unknown is neither good nor bad: it opens no episode and closes none."""

    FIRING = "firing"
    OK = "ok"
    UNKNOWN = "unknown"


class Doubt(enum.StrEnum):
    """Why a verdict is unknown: the pipeline cannot be read, too little has happened yet, or there is no criterion."""

    BLIND = "blind"
    TOO_NEW = "too_new"
    NO_CRITERION = "no_criterion"


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """What a rule watches: its type and parameters, without its scope and its receiver."""

    rule_type: RuleType
    threshold: int | None = None
    window_minutes: int | None = None

    @classmethod
    def of(cls, rule: AlertRule) -> "Condition":
        """The condition of a stored rule."""
        return cls(rule.rule_type, rule.threshold, rule.window_minutes)

    @property
    def window(self) -> timedelta:
        """The window; zero if there is none."""
        return timedelta(minutes=self.window_minutes or 0)

    @classmethod
    def read(cls, text: str) -> "Condition":
        """The condition that this text stands for."""
        kind, threshold, window = text.split("/")
        return cls(RuleType(kind), int(threshold) if threshold else None, int(window) if window else None)

    def __str__(self) -> str:
        """Type and parameters, such as `failures_in_window/3/60`: differs whenever the condition does."""
        return f"{self.rule_type}/{self.threshold or ''}/{self.window_minutes or ''}"


@dataclasses.dataclass(frozen=True, slots=True)
class Expectations:
    """What is expected of a pipeline. `schedule_changed_at`: nothing is expected before; None: since its creation."""

    pipeline_id: UUID
    created_at: datetime
    schedule_cron: str | None = None
    schedule_timezone: str | None = None
    grace_minutes: int | None = None
    max_runtime_minutes: int | None = None
    schedule_changed_at: datetime | None = None

    def of(self, condition: Condition) -> str:
        """Those that the condition is measured by, as text: it differs whenever one of them does."""
        changed = self.schedule_changed_at and self.schedule_changed_at.isoformat()
        match condition.rule_type:
            case RuleType.MISSED_RUN:
                grace = None if condition.window_minutes is not None else self.grace_minutes
                parts: tuple[object, ...] = (self.schedule_cron, self.schedule_timezone, grace, changed)
            case RuleType.RUNNING_TOO_LONG:
                parts = () if condition.window_minutes else (self.max_runtime_minutes,)
            case RuleType.NO_SUCCESS_IN_WINDOW:
                parts = (changed,)
            case _:
                parts = ()
        return "/".join("" if part is None else str(part) for part in parts)


Gap: TypeAlias = tuple[datetime, datetime]


def without(since: datetime, until: datetime, gaps: Sequence[Gap]) -> Iterator[Gap]:
    """The parts of a time that are in none of the gaps, which are in order."""
    for begin, end in gaps:
        if end <= since or begin >= until:
            continue
        if begin > since:
            yield since, begin
        since = end
    if since < until:
        yield since, until


class Coverage(msgspec.Struct, frozen=True):
    """Up to when a pipeline's runs are known; None: it was never read.

    `gaps` are the times, in order, in which a job that reports its own runs could not be heard; its reports are lost. A
    partner has none: the next sync reads what was missed. `gone`: the partner no longer knows the pipeline. From
    `stale_at` on "nothing is wrong" cannot be said any more; None: half an hour after `known_through`.
    """

    known_through: datetime | None
    gaps: tuple[Gap, ...] = ()
    gone: bool = False
    stale_at: datetime | None = None

    def known(self, begin: datetime, since: datetime, until: datetime) -> list[Gap]:
        """The parts of the time from `since` to `until` in which the runs of a pipeline are known.

        `begin` is when its history begins: its first run, or when it was added if that was earlier. What a partner had
        forgotten by then, nobody knows.
        """
        if self.known_through is None:
            return []
        return list(without(max(begin, since), min(self.known_through, until), self.gaps))


class RunFact(msgspec.Struct, frozen=True, gc=False):
    """What verdicts need of a run. Times are aware and in UTC; `effective_at` orders runs."""

    run: str
    status: RunStatus
    effective_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    kind: RunKind | None = None
    will_retry: bool = False

    @property
    def settled(self) -> bool:
        """Whether the run says how its pipeline is: a success, or a failure that is not about to be retried."""
        status = self.status
        is_over = status is RunStatus.SUCCESS or status is RunStatus.FAILED
        return is_over and not self.will_retry and self.kind is not RunKind.BACKFILL

    @property
    def settled_at(self) -> datetime:
        """When it settled, as far as that is known."""
        return self.finished_at or self.effective_at


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Why a verdict is what it is, as data.

    `runs` are the runs that counted, at most `MAX_LISTED`, the first ones; `latest` is the last one of them; `count` is
    how many there are. `slot` is the first missed slot; `limit_minutes` the time that was exceeded; `last_success` the
    success before. `reason` says in words why a verdict is unknown. `at_least`: there are `count` or more, because no
    more are counted or looked at; a streak may have begun earlier.
    """

    runs: tuple[str, ...] = ()
    latest: str | None = None
    count: int = 0
    slot: datetime | None = None
    limit_minutes: int | None = None
    last_success: datetime | None = None
    reason: str = ""
    at_least: bool = False


class Span(msgspec.Struct, frozen=True):
    """A time in which a condition held, from `since` up to `until`; None: it still holds as far as is known."""

    since: datetime
    until: datetime | None
    evidence: Evidence


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says about a pipeline. `since` is the source's time, set if it fires; `doubt` if it is unknown."""

    state: State
    since: datetime | None = None
    evidence: Evidence = Evidence()
    doubt: Doubt | None = None

    @classmethod
    def unknown(cls, doubt: Doubt, reason: str) -> "Verdict":
        """Nothing can be said, for this reason in words."""
        return cls(State.UNKNOWN, evidence=Evidence(reason=reason), doubt=doubt)


class NoticeKind(enum.StrEnum):
    """What is announced about an episode.

    `corrected`: late data showed that it never happened. `ended`: nobody watches any longer, because the pipeline or
    the rule was disabled or changed; how it went on is not known. `test`: sent by hand, nothing is wrong.
    """

    OPENED = "opened"
    REMINDER = "reminder"
    RECOVERED = "recovered"
    CORRECTED = "corrected"
    ENDED = "ended"
    TEST = "test"


Receiver: TypeAlias = tuple[Channel, str]
"""A channel, and who gets it there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """What people call a pipeline."""

    client_slug: str
    client_name: str
    slug: str
    name: str
    platform: Platform
    environment: str


class Episode(msgspec.Struct, frozen=True):
    """An open episode. `since` is the source's time, `opened_at` when CHM found it; `condition` what it was found with.

    `expected` is what was expected of the pipeline (`Expectations.of`); None: not known. `announced_at` is None while
    nobody has been notified: the rule was muted, or the pipeline in maintenance. `receiver` is who was notified.
    `names` are those of the pipeline, for when it is no longer there.
    """

    id: UUID
    pipeline_id: UUID
    condition: str
    since: datetime
    opened_at: datetime
    evidence: Evidence
    announced_at: datetime | None = None
    reminders: int = 0
    acknowledged_at: datetime | None = None
    acknowledged_by: str = ""
    expected: str | None = None
    receiver: Receiver | None = None
    names: Names | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """Something to announce, once. `key` stays the same however often it is sent.

    `until` is when the episode was over, in the source's time, for `recovered`; `reason` says why, for `ended`.
    """

    kind: NoticeKind
    episode: Episode
    until: datetime | None = None
    reason: str = ""

    @property
    def key(self) -> str:
        """The idempotency key: of two reminders, each has its own."""
        number = f"-{self.episode.reminders}" if self.kind is NoticeKind.REMINDER else ""
        return f"{self.episode.id}-{self.kind}{number}"


@dataclasses.dataclass(frozen=True, slots=True)
class PastEpisode:
    """An episode that is over: how it ended, when CHM found that, and when it was over in the source's time."""

    episode: Episode
    outcome: NoticeKind
    over_at: datetime
    until: datetime | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What evaluating a rule for one pipeline gave; `runs` are those that it was evaluated with.

    `is_quiet`: a maintenance window is open, so nothing new is announced. `complete_from`: whatever began later was
    looked at as a whole; None: everything was. `expected` is what the pipeline is measured by.
    """

    verdict: Verdict
    spans: Sequence[Span]
    runs: Sequence[RunFact] = ()
    is_quiet: bool = False
    complete_from: datetime | None = None
    expected: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Followed:
    """The open episodes after an evaluation, what is to be announced, and the episodes that are over."""

    episodes: tuple[Episode, ...]
    notices: tuple[Notice, ...]
    over: tuple[PastEpisode, ...]

"""Back-tests: what a rule would have said over the last days. Pure.

Each pipeline is played with the `spans_of`, `verdict` and `follow` of live evaluation. Episodes change only where a
span begins or ends, or a reminder is due: only those moments are looked at, on the grid of live evaluations. The work
grows with the runs and the moments, not with their product.
"""

import dataclasses
import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import itemgetter
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, Strict

from chm_dagster.domain.alerts import (
    Condition,
    Coverage,
    Episode,
    Evidence,
    Expectations,
    Finding,
    Notice,
    NoticeKind,
    PastEpisode,
    RunFact,
    Span,
)
from chm_dagster.domain.episodes import follow
from chm_dagster.domain.evaluation import ground, spans_of, verdict
from chm_dagster.domain.fields import Count, PositiveMinutes, Reference
from chm_dagster.domain.maintenance import is_open, times_of
from chm_dagster.domain.nouns import New
from chm_dagster.domain.rules import RuleType

EVERY = timedelta(seconds=30)
"""How often live evaluation looks."""
MAX_DAYS = 90
SHORT = timedelta(minutes=15)
"""An episode that is over sooner probably needed nobody."""
NOISIEST, LATEST = 10, 50
"""How many pipelines and episodes a back-test lists."""
NOT_CONSIDERED = (
    "When runs became known: each is taken as known when it began or ended, so live messages come later by the time"
    " until the next sync.",
    "When partners could not be read or CHM was stopped: that is not stored. The share of unknown time is the least"
    " that it can have been.",
    "Former schedules, limits, time zones and maintenance windows: the present ones apply to the whole time. Mutes and"
    " acknowledgements.",
)
"""What the past cannot show."""
_REMINDERS = (timedelta(hours=1), timedelta(hours=4))

Check: TypeAlias = Callable[[], None]
"""Called again and again during a back-test; what it raises ends that."""


def unlimited() -> None:
    """The check of a back-test that may take as long as it takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Played:
    """What a rule would have said about one pipeline. `heard` are the moments of its notices."""

    over: tuple[PastEpisode, ...]
    open: tuple[Episode, ...]
    heard: tuple[tuple[datetime, Notice], ...]
    spans: tuple[Span, ...]
    unknown: timedelta

    @property
    def episodes(self) -> Iterator[tuple[Episode, datetime | None]]:
        """Each episode, the earliest first, and when it was over; None: it is still open."""
        yield from ((past.episode, past.until or past.over_at) for past in self.over)
        yield from ((episode, None) for episode in self.open)


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """The time of a back-test; live evaluation looks every `every`, from `since` on."""

    since: datetime
    until: datetime
    every: timedelta = EVERY

    def look(self, moment: datetime) -> datetime:
        """When evaluation first looks at or after this moment."""
        return self.since + max(0, math.ceil((moment - self.since) / self.every)) * self.every


def play(
    rule_id: UUID,
    condition: Condition,
    pipeline: Expectations,
    runs: Sequence[RunFact],
    coverage: Coverage,
    stretch: Stretch,
    maintenance: Sequence[Mapping[str, Any]] = (),
    check: Check = unlimited,
) -> Played:
    """What the rule would have said, had each run been known when it began or ended. Raises what `check` raises.

    `runs` are those since the last success before the stretch, and since a window before it. `maintenance` are the
    windows of the pipeline and its client.
    """
    spans = [
        span
        for span in spans_of(condition, pipeline, runs, coverage, stretch.until)
        if span.until is None or span.until > stretch.since
    ]
    episodes: tuple[Episode, ...] = ()
    heard: list[tuple[datetime, Notice]] = []
    over: list[PastEpisode] = []
    closings = [end for _, end in times_of(maintenance, stretch.since, stretch.until)] if spans and maintenance else []
    recent, settled, by_id = _Recent(spans), ground(runs), {run.run: run for run in runs}
    for moment in _moments(spans, stretch, closings, check):
        check()
        seen = recent.at(moment, episodes)
        covered = replace(coverage, known_through=coverage.known_through and min(coverage.known_through, moment))
        said = verdict(condition, pipeline, settled, covered, moment, seen)
        counted = [by_id[run] for episode in episodes for run in episode.evidence.runs]
        finding = Finding(said, seen, counted, is_open(maintenance, moment))
        followed = follow(rule_id, condition, episodes, {pipeline.pipeline_id: finding}, moment)
        episodes = followed.episodes
        over += followed.over
        heard += [(moment, notice) for notice in followed.notices]
    return Played(tuple(over), episodes, tuple(heard), tuple(spans), _unknown(pipeline, runs, coverage, stretch))


class _Recent:
    """The spans that evaluation may be about at a moment, in their order. Moments come in order, too.

    A span that is over is left out as soon as no episode lies in it, nor can one that is yet to be found.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self._to_come = sorted(enumerate(spans), key=lambda one: one[1].since, reverse=True)
        self._found: list[tuple[int, Span]] = []

    def at(self, moment: datetime, episodes: Iterable[Episode]) -> list[Span]:
        """The spans as they are known at this moment, at which these episodes are open."""
        while self._to_come and self._to_come[-1][1].since <= moment:
            insort(self._found, self._to_come.pop(), key=itemgetter(0))
        known = [(place, _as_of(span, moment)) for place, span in self._found]
        begins = [*(episode.since for episode in episodes), *(span.since for _, span in known if span.until is None)]
        earliest = min(begins, default=moment)
        kept = [span.until is None or span.until > earliest for _, span in known]
        self._found = [one for one, keep in zip(self._found, kept, strict=True) if keep]
        return [span for (_, span), keep in zip(known, kept, strict=True) if keep]


def _as_of(span: Span, moment: datetime) -> Span:
    return span if span.until is None or span.until <= moment else replace(span, until=None)


def _moments(spans: Iterable[Span], stretch: Stretch, closings: Sequence[datetime], check: Check) -> list[datetime]:
    """When something may have changed: a span began or ended, maintenance was over, or a reminder was due."""
    found: set[datetime] = set()
    looks = [stretch.look(close) for close in closings]
    for span in spans:
        begin, end = stretch.look(span.since), stretch.look(span.until) if span.until else stretch.until
        if span.until is not None and begin >= span.until:
            continue
        found |= {begin, end}
        # Reminders count from the announcement, and that waits until maintenance is over.
        for announced in (begin, *looks[bisect_right(looks, begin) : bisect_left(looks, end)]):
            check()
            days = (timedelta(days=day) for day in range((end - announced).days + 1))
            found |= {due for wait in (*_REMINDERS, *days) if (due := stretch.look(announced + wait)) < end}
    return sorted(moment for moment in found if moment <= stretch.until)


def _unknown(pipeline: Expectations, runs: Sequence[RunFact], coverage: Coverage, stretch: Stretch) -> timedelta:
    """For how long nothing is known: before the pipeline existed, while it was not heard, since it was last read."""
    if coverage.gone:
        return stretch.until - stretch.since
    begin = min([pipeline.created_at, *(run.effective_at for run in runs)])
    known = coverage.known(begin, stretch.since, stretch.until)
    return stretch.until - stretch.since - sum((end - start for start, end in known), timedelta(0))


def fault_at(condition: Condition, evidence: Evidence, runs: Mapping[str, RunFact]) -> datetime | None:
    """When the trouble began at the source; None if it cannot be said.

    The end of the first failed run that counted, the start of the run that takes too long, the slot that was missed, or
    the success before those that did not come.
    """
    match condition.rule_type:
        case RuleType.MISSED_RUN:
            return evidence.slot
        case RuleType.NO_SUCCESS_IN_WINDOW:
            return evidence.last_success
        case kind:
            first = runs.get(evidence.runs[0]) if evidence.runs else None
            if first is None:
                return None
            return first.started_at if kind is RuleType.RUNNING_TOO_LONG else first.settled_at


# --- what people read ------------------------------------------------------------------------------------------------


Days = Annotated[int, Strict(), Field(ge=1, le=MAX_DAYS)]


class BackTestRequest(New):
    """What to test: the condition of a rule as it might be, and the time. What is left out is the rule's own."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rule_type": "on_failure", "client_id": "acme"}]})

    rule_type: RuleType | None = Field(None, description="What is watched.")
    threshold: Count | None = Field(None, description="How many failures it takes.")
    window_minutes: PositiveMinutes | None = Field(None, description="The length of the window in minutes.")
    client_id: Reference | None = Field(None, description="The pipelines of this client: its id or slug.")
    pipeline_id: Reference | None = Field(None, description="This pipeline only: its id or `client/pipeline`.")
    days: Days = Field(30, description="How many days back, 30 by default.")


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class NoisyPipeline(_Result):
    """How often a pipeline would have alerted."""

    pipeline: str = Field(examples=["acme/orders"])
    episodes: int
    open_minutes: float = Field(description="For how long they were open, together.")


class BackTestEpisode(_Result):
    """An episode that the rule would have opened."""

    pipeline: str = Field(examples=["acme/orders"])
    since: datetime = Field(description="When it began, in the source's time.")
    until: datetime | None = Field(description="When it was over; null: it is still open.")
    announced_at: datetime | None = Field(
        description="When the message would have been written; null: never, because of maintenance."
    )
    failures: int = Field(description="How many runs or missed slots counted.")


class Difference(_Result):
    """How the tested condition differs from the rule as it is now."""

    episodes_now: int = Field(description="How many episodes the rule as it is now would have opened.")
    messages_now: int = Field(description="How many messages it would have sent.")
    added: int = Field(description="Tested episodes at times at which the rule as it is now was silent.")
    removed: int = Field(description="Episodes of the rule as it is now at times at which the tested one was silent.")


class BackTest(_Result):
    """What a rule would have said over the last days."""

    condition: str = Field(description="Type, threshold and window.", examples=["consecutive_failures/3/"])
    since: datetime
    until: datetime
    pipelines: int = Field(description="How many pipelines it would have watched.")
    episodes: int = Field(description="How many episodes it would have opened.")
    still_open: int = Field(description="How many of them are still open.")
    short_episodes: int = Field(description="How many of them were over within 15 minutes.")
    notices: dict[NoticeKind, int] = Field(description="What it would have announced, by kind.")
    messages: int = Field(description="How many messages: one for all notices of an evaluation.")
    delay_minutes_p50: float | None = Field(
        description="Half of the episodes were announced so soon after the fault at the source; null: it is not known."
    )
    delay_minutes_p95: float | None = Field(description="The same for 95 of 100.")
    unknown_share: float = Field(description="The share of the time of all pipelines of which nothing is known.")
    noisiest: list[NoisyPipeline] = Field(description="The pipelines with most episodes, ten at most.")
    latest: list[BackTestEpisode] = Field(description="The latest episodes, fifty at most.")
    difference: Difference | None = Field(description="Null unless a rule is tested with other parameters.")
    not_considered: list[str] = Field(description="What the past cannot show.")


Interval: TypeAlias = tuple[datetime, datetime | None]


@dataclasses.dataclass(slots=True)
class Tally:
    """Adds up what was played, pipeline by pipeline."""

    condition: Condition
    stretch: Stretch
    pipelines: int = 0
    short: int = 0
    still_open: int = 0
    unknown: timedelta = timedelta(0)
    notices: Counter[NoticeKind] = dataclasses.field(default_factory=Counter)
    moments: set[datetime] = dataclasses.field(default_factory=set)
    delays: list[float] = dataclasses.field(default_factory=list)
    noisy: list[NoisyPipeline] = dataclasses.field(default_factory=list)
    found: list[BackTestEpisode] = dataclasses.field(default_factory=list)

    def add(self, key: str, played: Played, runs: Iterable[RunFact]) -> list[Interval]:
        """Count what was played for the pipeline of this key; returns when its episodes were open."""
        self.pipelines += 1
        self.unknown += played.unknown
        for moment, notice in played.heard:
            self.notices[notice.kind] += 1
            self.moments.add(moment)
        by_id = {run.run: run for run in runs} if played.heard else {}
        minutes, intervals = 0.0, []
        for episode, until in played.episodes:
            intervals.append((episode.since, until))
            minutes += _minutes((until or self.stretch.until) - max(episode.since, self.stretch.since))
            self.short += until is not None and until - episode.since < SHORT
            self.still_open += until is None
            self._note(key, episode, until, fault_at(self.condition, episode.evidence, by_id))
        if intervals:
            self.noisy.append(NoisyPipeline(pipeline=key, episodes=len(intervals), open_minutes=round(minutes, 1)))
        return intervals

    def _note(self, key: str, episode: Episode, until: datetime | None, fault: datetime | None) -> None:
        if fault is not None and episode.announced_at is not None and episode.since >= self.stretch.since:
            self.delays.append(_minutes(episode.announced_at - fault))
        self.found.append(
            BackTestEpisode(
                pipeline=key,
                since=episode.since,
                until=until,
                announced_at=episode.announced_at,
                failures=episode.evidence.count,
            )
        )

    def result(self, difference: Difference | None = None) -> BackTest:
        """The back-test of all pipelines that were added."""
        whole = (self.stretch.until - self.stretch.since) * self.pipelines
        fields: dict[str, Any] = {name: _percentile(self.delays, share) for name, share in _PERCENTILES.items()}
        return BackTest(
            condition=str(self.condition),
            since=self.stretch.since,
            until=self.stretch.until,
            pipelines=self.pipelines,
            episodes=len(self.found),
            still_open=self.still_open,
            short_episodes=self.short,
            notices={kind: self.notices[kind] for kind in NoticeKind if self.notices[kind]},
            messages=len(self.moments),
            unknown_share=round(self.unknown / whole, 4) if whole else 1.0,
            noisiest=sorted(self.noisy, key=lambda noisy: (-noisy.episodes, noisy.pipeline))[:NOISIEST],
            latest=sorted(self.found, key=lambda one: (one.since, one.pipeline), reverse=True)[:LATEST],
            difference=difference,
            not_considered=list(NOT_CONSIDERED),
            **fields,
        )


_PERCENTILES = {"delay_minutes_p50": 0.5, "delay_minutes_p95": 0.95}


def silent(these: Iterable[Interval], others: Iterable[Interval]) -> int:
    """How many of these episodes overlap none of the others."""
    ordered = sorted(others, key=itemgetter(0))
    begins = [begin for begin, _ in ordered]
    # Up to when, of the first one, the first two and so on, one was open.
    ends = list(accumulate((end or _NEVER for _, end in ordered), max))
    begun = ((begin, len(begins) if end is None else bisect_left(begins, end)) for begin, end in these)
    return sum(not count or ends[count - 1] <= begin for begin, count in begun)


_NEVER = datetime.max.replace(tzinfo=UTC)


def _minutes(span: timedelta) -> float:
    return span / timedelta(minutes=1)


def _percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of all does not exceed."""
    return round(sorted(values)[math.ceil(share * len(values)) - 1], 1) if values else None

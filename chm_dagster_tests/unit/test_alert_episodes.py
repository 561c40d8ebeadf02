"""What follows from verdicts: episodes, and what is announced about them."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.alerts import (
    Condition,
    Coverage,
    Episode,
    Finding,
    Followed,
    Notice,
    NoticeKind,
    RunFact,
)
from chm_dagster.domain.episodes import follow, reminders_due
from chm_dagster.domain.evaluation import spans_of, verdict
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import RunStatus
from chm_dagster_tests.unit.test_alert_evaluation import (
    CONDITIONS,
    CROWD,
    DAILY,
    HOURLY,
    MISSED,
    ON_FAILURE,
    PIPELINE,
    THREE,
    at,
    expects,
    hours,
    known,
    run,
    story,
)

RULE = UUID(int=9)


class Following:
    """A rule that is evaluated again and again for one pipeline, with what was announced."""

    def __init__(self, condition: Condition, **expectations: Any) -> None:
        self.condition, self.expectations = condition, expects(**expectations)
        self.episodes: tuple[Episode, ...] = ()
        self.announced: list[Notice] = []

    def look(
        self,
        runs: Iterable[RunFact],
        now: float,
        coverage: Coverage | None = None,
        *,
        quiet: bool = False,
        muted: bool = False,
    ) -> list[str]:
        """Evaluate; returns what is announced, such as `opened 2.1` or `recovered 2.1-3.1`."""
        facts, moment, covered = list(runs), at(now), coverage or known(now)
        spans = spans_of(self.condition, self.expectations, facts, covered, moment)
        said = verdict(self.condition, self.expectations, facts, covered, moment, spans)
        return self.take(
            follow(
                RULE,
                self.condition,
                self.episodes,
                {PIPELINE: Finding(said, spans, facts, quiet, expected=self.expectations.of(self.condition))},
                moment,
                is_muted=muted,
            )
        )

    def end(self, reason: str, now: float) -> list[str]:
        return self.take(follow(RULE, self.condition, self.episodes, {}, at(now), ended={PIPELINE: reason}))

    def take(self, followed: Followed) -> list[str]:
        self.episodes = followed.episodes
        self.announced += followed.notices
        return [shown(notice) for notice in followed.notices]


def shown(notice: Notice) -> str:
    since = f"{hours(notice.episode.since):.4g}"
    return (
        f"{notice.kind} {since}"
        + (f"-{hours(notice.until):.4g}" if notice.until else "")
        + (f" {notice.reason}" if notice.reason else "")
    )


def test_an_episode_opens_once_and_recovers_once() -> None:
    rule = Following(ON_FAILURE)
    assert rule.look(story("S1"), 1.5) == []
    assert rule.look(story("S1 F2"), 2.5) == ["opened 2.1"]
    assert rule.look(story("S1 F2"), 2.6) == []
    assert rule.look(story("S1 F2 F2.7"), 2.9) == []
    assert rule.episodes[0].evidence.count == 2
    assert rule.look(story("S1 F2 F2.7 S3"), 3.2) == ["recovered 2.1-3.1"]
    assert rule.look(story("S1 F2 F2.7 S3"), 3.3) == []
    assert rule.episodes == ()


def test_what_recovered_and_failed_again_between_two_looks_is_two_episodes() -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("S1 F2"), 2.5)
    first = rule.episodes[0].id
    assert rule.look(story("S1 F2 S3 F4"), 4.5) == ["recovered 2.1-3.1", "opened 4.1"]
    assert rule.episodes[0].id != first


def test_late_failures_move_the_beginning_and_announce_nothing() -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("S1 F4"), 4.5)
    assert rule.look(story("S1 F3 F4"), 4.6) == []
    assert hours(rule.episodes[0].since) == 3.1


def test_a_late_success_in_between_splits_an_episode() -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("F1 F3"), 3.5)
    assert rule.look(story("F1 S2 F3"), 3.6) == ["recovered 1.1-2.1", "opened 3.1"]


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        pytest.param([run("S", 2, run="F2")], "corrected 2.1", id="the-partner-now-reports-a-success-for-that-time"),
        pytest.param([run("C", 2, run="F2")], "corrected 2.1", id="canceled"),
        pytest.param([run("S", 2, 60, run="F2")], "recovered 2.1-3", id="the-same-run-succeeded-in-a-later-attempt"),
        pytest.param([run("b", 2, run="F2")], "corrected 2.1", id="a-backfill-as-it-turns-out"),
        pytest.param([], "corrected 2.1", id="removed-from-the-ledger"),
    ],
)
def test_what_closes_an_episode_whose_run_has_changed(later: list[RunFact], expected: str) -> None:
    rule = Following(ON_FAILURE)
    rule.look([*story("S1"), run("F", 2, run="F2")], 2.5)
    assert rule.look([*story("S1"), *later], 3.5) == [expected]


def test_a_missed_run_that_was_there_is_corrected_and_one_that_was_late_has_recovered() -> None:
    rule = Following(MISSED, **DAILY)
    assert rule.look(story("S-18"), 6.6) == ["opened 6.5"]
    assert rule.look(story("S-18 S6.2"), 6.7) == ["corrected 6.5"]
    rule = Following(MISSED, **DAILY)
    rule.look(story("S-18"), 6.6)
    assert rule.look(story("S-18 S7"), 7.2) == ["recovered 6.5-7"]


def test_a_run_that_was_started_again_keeps_its_episode_open_until_it_ends() -> None:
    rule = Following(ON_FAILURE)
    rule.look([*story("S1"), run("F", 2, run="x")], 2.5)
    again = run("R", 3, run="x")
    assert rule.look([*story("S1"), again], 3.05) == []
    assert len(rule.episodes) == 1
    assert rule.look([*story("S1"), run("S", 3, run="x")], 3.5) == ["recovered 2.1-3.1"]


def test_unknown_closes_nothing() -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("S1 F2"), 2.5)
    assert rule.look(story("S1 F2"), 3.5, Coverage(at(3.5), gone=True)) == []
    assert rule.look(story("S1 F2"), 9.5, known(2.5)) == ["reminder 2.1"]
    assert rule.look([], 9.6, known(2.5)) == []
    assert len(rule.episodes) == 1


def test_an_hour_of_blindness_accuses_nobody() -> None:
    """CHM was down: nothing is known after 6:10, and the run of six o'clock comes with the next sync."""
    rule = Following(MISSED, **DAILY)
    for minute in range(370, 480):
        assert rule.look(story("S-18"), minute / 60, known(370 / 60)) == []
    assert rule.look(story("S-18 S6"), 8, known(8)) == []


@pytest.mark.parametrize("reason", ["the pipeline was disabled", "the rule was disabled", "another rule applies"])
def test_an_episode_that_nobody_watches_any_longer_ends(reason: str) -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("S1 F2"), 2.5)
    assert rule.end(reason, 2.6) == [f"ended 2.1 {reason}"]
    assert rule.end(reason, 2.7) == []


def test_a_rule_that_was_changed_ends_its_episode_or_keeps_it() -> None:
    rule = Following(Condition(RuleType.CONSECUTIVE_FAILURES, 2))
    rule.look(story("S1 F2 F3"), 3.5)
    first = rule.episodes[0].id
    rule.condition = Condition(RuleType.CONSECUTIVE_FAILURES, 1)
    assert rule.look(story("S1 F2 F3"), 3.6) == []
    assert (rule.episodes[0].id, hours(rule.episodes[0].since)) == (first, 2.1)
    rule.condition = THREE
    assert rule.look(story("S1 F2 F3"), 3.7) == ["ended 2.1 the rule was changed"]


def test_a_schedule_that_was_changed_ends_the_episode() -> None:
    rule = Following(MISSED, **DAILY)
    rule.look(story("S-18"), 6.6)
    rule.expectations = dataclasses.replace(rule.expectations, schedule_cron="0 9 * * *", schedule_changed_at=at(6.7))
    assert rule.look(story("S-18"), 6.8) == ["ended 6.5 what is expected of the pipeline was changed"]


def test_a_schedule_that_was_removed_ends_the_episode() -> None:
    rule = Following(MISSED, **DAILY)
    rule.look(story("S-18"), 6.6)
    rule.expectations = dataclasses.replace(rule.expectations, schedule_cron=None)
    assert rule.look(story("S-18"), 6.8) == ["ended 6.5 the pipeline has no schedule_cron"]


def test_reminders_come_after_one_hour_four_hours_and_then_daily() -> None:
    ages = (0.9, 1, 3.9, 4, 23.9, 24, 47, 48, 72)
    assert [reminders_due(timedelta(hours=age)) for age in ages] == [0, 1, 1, 2, 2, 3, 3, 4, 5]
    rule = Following(ON_FAILURE)
    runs = story("S1 F2")
    rule.look(runs, 3)
    heard = [minute / 60 for minute in range(180, 80 * 60, 5) if rule.look(runs, minute / 60)]
    assert heard == [4.0, 7.0, 27.0, 51.0, 75.0]
    assert len({notice.key for notice in rule.announced}) == len(rule.announced) == 6


def test_an_acknowledged_episode_is_not_reminded_of_and_its_end_is_announced() -> None:
    rule = Following(ON_FAILURE)
    rule.look(story("S1 F2"), 2.5)
    rule.episodes = tuple(
        msgspec.structs.replace(e, acknowledged_at=at(2.6), acknowledged_by="ops") for e in rule.episodes
    )
    assert rule.look(story("S1 F2"), 30) == []
    assert rule.look(story("S1 F2 S31"), 31.2) == ["recovered 2.1-31.1"]


@pytest.mark.parametrize("how", [{"muted": True}, {"quiet": True}])
def test_what_is_still_open_when_a_mute_or_maintenance_ends_is_announced_then(how: dict[str, bool]) -> None:
    rule = Following(ON_FAILURE)
    assert rule.look(story("S1 F2"), 2.5, **how) == []
    assert rule.look(story("S1 F2"), 4, **how) == []
    assert rule.look(story("S1 F2"), 5) == ["opened 2.1"]
    assert rule.look(story("S1 F2"), 30, **how) == []
    assert rule.look(story("S1 F2 S31"), 31.5, **how) == ["recovered 2.1-31.1"]


def test_what_came_and_went_while_muted_is_not_announced() -> None:
    rule = Following(ON_FAILURE)
    assert rule.look(story("S1 F2"), 2.5, muted=True) == []
    assert rule.look(story("S1 F2 S3"), 3.5) == []
    assert rule.episodes == ()


def test_failures_before_what_was_looked_at_do_not_move_the_beginning() -> None:
    """A window that has been full for days is looked at from yesterday on only."""
    runs = story("F1 F2 F3 F4 F5 F6 F7 F8")
    rule = Following(CROWD)
    rule.look(runs, 8.5)
    assert hours(rule.episodes[0].since) == 3.1
    recent = runs[4:]
    spans = spans_of(CROWD, rule.expectations, recent, known(8.6), at(8.6))
    said = verdict(CROWD, rule.expectations, recent, known(8.6), at(8.6), spans)
    finding = Finding(said, spans, recent, complete_from=at(5) + CROWD.window)
    rule.take(follow(RULE, CROWD, rule.episodes, {PIPELINE: finding}, at(8.6)))
    assert hours(rule.episodes[0].since) == 3.1


# --- whatever the order ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Seen:
    """A version of a run; of two, the ledger keeps the higher one."""

    version: int
    fact: RunFact


@st.composite
def arrivals(draw: st.DrawFn) -> list[Seen]:
    """Observations of runs in any order, some of them twice; a run that was started again comes to an end again."""
    seen, clock = [], 0.0
    for number in range(draw(st.integers(1, 7))):
        clock += draw(st.integers(1, 150)) / 60
        length = draw(st.integers(1, 130))
        end = run(draw(st.sampled_from("SSFFFFC")), clock, minutes=length, run=str(number))
        versions = [msgspec.structs.replace(end, status=RunStatus.RUNNING, finished_at=None), end]
        clock += length / 60
        if draw(st.booleans()):
            again = run(draw(st.sampled_from("SFC")), clock + 0.1, minutes=length, run=str(number))
            versions += [msgspec.structs.replace(again, status=RunStatus.RUNNING, finished_at=None), again]
            clock += 0.1 + length / 60
        seen += [Seen(version, fact) for version, fact in enumerate(versions)]
    order = draw(st.permutations(seen))
    return [*order, *draw(st.lists(st.sampled_from(seen), max_size=5))]


def outcome(episodes: Iterable[Episode]) -> list[tuple[datetime, object]]:
    return [(episode.since, episode.evidence) for episode in episodes]


def observed(condition: Condition, order: Sequence[Seen], *, each: bool) -> Following:
    """Merge the observations one after the other, and evaluate after each, or after the last one only."""
    rule = Following(condition, schedule_cron=HOURLY.schedule_cron, grace_minutes=20, created_at=at(0))
    ledger: dict[str, Seen] = {}
    for number, seen in enumerate(order):
        stored = ledger.get(seen.fact.run)
        if stored is None or seen.version >= stored.version:
            ledger[seen.fact.run] = seen
        if each:
            rule.look([s.fact for s in ledger.values()], 60 + number / 60, known(60))
    rule.look([s.fact for s in ledger.values()], 61, known(60))
    return rule


@given(CONDITIONS, arrivals())
def test_the_episodes_at_the_end_do_not_depend_on_the_order_of_arrival(condition: Condition, order: list[Seen]) -> None:
    followed, once = observed(condition, order, each=True), observed(condition, order, each=False)
    assert outcome(followed.episodes) == outcome(once.episodes)


@given(CONDITIONS, arrivals())
def test_every_episode_is_opened_once_and_closed_once(condition: Condition, order: list[Seen]) -> None:
    rule = observed(condition, order, each=True)
    kinds = Counter(
        (notice.episode.id, notice.kind is NoticeKind.OPENED)
        for notice in rule.announced
        if notice.kind is not NoticeKind.REMINDER
    )
    opened = {episode for episode, is_open in kinds if is_open}
    closed = {episode for episode, is_open in kinds if not is_open}
    assert set(kinds.values()) <= {1}
    assert opened - closed == {episode.id for episode in rule.episodes}
    assert closed <= opened
    assert len({notice.key for notice in rule.announced}) == len(rule.announced)


@given(CONDITIONS, arrivals())
def test_looking_again_announces_nothing(condition: Condition, order: list[Seen]) -> None:
    rule = observed(condition, order, each=True)
    before, ledger = rule.episodes, {s.fact.run: s for s in sorted(order, key=lambda s: s.version)}
    assert rule.look([s.fact for s in ledger.values()], 61, known(60)) == []
    assert rule.episodes == before

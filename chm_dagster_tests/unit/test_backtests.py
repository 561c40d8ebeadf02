"""Back-tests: the same episodes and messages that live evaluation would have given."""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.alerts import Condition, Coverage, Episode, Finding, Notice, PastEpisode, RunFact
from chm_dagster.domain.backtests import NOT_CONSIDERED, Played, Stretch, Tally, play, silent
from chm_dagster.domain.episodes import follow
from chm_dagster.domain.evaluation import spans_of, verdict
from chm_dagster.domain.maintenance import is_open
from chm_dagster.domain.rules import RuleType
from chm_dagster_tests.unit.test_alert_episodes import RULE
from chm_dagster_tests.unit.test_alert_evaluation import (
    CONDITIONS,
    CROWD,
    DAILY,
    DROUGHT,
    HOURLY,
    LONG,
    MISSED,
    ON_FAILURE,
    PIPELINE,
    THREE,
    as_of,
    at,
    expects,
    histories,
    known,
    run,
    story,
)

HALF_DAY = Condition(RuleType.FAILURES_IN_WINDOW, 3, 720)
HALF_HOURS = timedelta(minutes=30)


WINDOWS: tuple[dict[str, Any], ...] = (
    {"cron": "30 3 * * *", "timezone": "Europe/Berlin", "minutes": 200},
    {"start": at(60).isoformat(), "end": at(110).isoformat()},
    {"start": at(110.25).isoformat(), "end": at(112).isoformat()},
    {"start": at(141).isoformat(), "end": at(150).isoformat()},
)


def live(
    condition: Condition, runs: list[RunFact], stretch: Stretch, maintenance: Sequence[Mapping[str, Any]] = ()
) -> Played:
    """Evaluation at each moment of the stretch, of what was known then."""
    episodes: tuple[Episode, ...] = ()
    heard: list[tuple[object, Notice]] = []
    over: list[PastEpisode] = []
    moment = stretch.since
    while moment <= stretch.until:
        seen, covered = as_of(runs, moment), Coverage(moment)
        spans = spans_of(condition, HOURLY, seen, covered, moment)
        said = verdict(condition, HOURLY, seen, covered, moment, spans)
        finding = Finding(said, spans, seen, is_open(maintenance, moment))
        followed = follow(RULE, condition, episodes, {PIPELINE: finding}, moment)
        episodes, over = followed.episodes, [*over, *followed.over]
        heard += [(moment, notice) for notice in followed.notices]
        moment += stretch.every
    return Played(tuple(over), episodes, tuple(heard), (), timedelta(0))  # type: ignore[arg-type]


def outcome(played: Played) -> tuple[object, ...]:
    return (
        [(past.episode.id, past.episode.since, past.until, past.outcome, past.over_at) for past in played.over],
        [(p.episode.evidence, p.episode.announced_at, p.episode.reminders) for p in played.over],
        [(e.id, e.since, e.evidence, e.announced_at, e.reminders) for e in played.open],
        [(moment, notice.key, notice.until) for moment, notice in played.heard],
    )


def month(seed: int) -> list[RunFact]:
    dice, runs, clock = random.Random(seed), [], 1.0
    while clock < 24 * 30:
        minutes = dice.choice([3, 20, 50, 170])
        bad = 0.8 if (clock // 40) % 3 == 0 else 0.1
        runs.append(run(dice.choice("FFFbr") if dice.random() < bad else dice.choice("SSSSCK"), clock, minutes))
        clock += minutes / 60 + dice.choice([0.2, 1.0, 1.0, 4.0, 9.0])
    return runs


@pytest.mark.parametrize("condition", [ON_FAILURE, THREE, HALF_DAY, DROUGHT, LONG, MISSED], ids=str)
def test_live_episodes_over_a_month_are_those_of_the_back_test(condition: Condition) -> None:
    stretch, runs = Stretch(at(0), at(24 * 30), HALF_HOURS), month(7)
    heard = []
    for windows in ((), WINDOWS):
        played = play(RULE, condition, HOURLY, runs, Coverage(stretch.until), stretch, windows)
        assert outcome(played) == outcome(live(condition, runs, stretch, windows))
        assert len(played.over) > 2
        heard.append([moment for moment, _ in played.heard])
    assert heard[0] != heard[1]
    assert any(is_open(WINDOWS, moment) for moment in heard[0])


MAINTENANCE = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 600)).map(
        lambda p: {"start": at(p[0] / 60).isoformat(), "end": at((p[0] + p[1]) / 60).isoformat()}
    ),
    max_size=3,
)


@given(CONDITIONS, histories(), st.integers(0, 600), MAINTENANCE)
def test_live_episodes_are_those_of_the_back_test_whatever_happened(
    condition: Condition, runs: list[RunFact], minute: int, windows: list[dict[str, str]]
) -> None:
    # As in a real back-test, live evaluation looks at the very end, too: missed slots are counted up to there.
    stretch = Stretch(at(minute / 60), at(minute / 60 + 50), timedelta(minutes=20))
    played = play(RULE, condition, HOURLY, runs, Coverage(stretch.until), stretch, windows)
    assert outcome(played) == outcome(live(condition, runs, stretch, windows))


def tally(condition: Condition, runs: list[RunFact], coverage: Coverage | None = None) -> Tally:
    stretch = Stretch(at(0), at(24))
    found = Tally(condition, stretch)
    pipeline = expects(**DAILY)
    found.add("acme/orders", play(RULE, condition, pipeline, runs, coverage or known(24), stretch), runs)
    return found


def test_what_people_read_of_a_back_test() -> None:
    result = tally(ON_FAILURE, story("S0 F1 S1.2 F3 F4 S6 F20")).result()
    assert (result.episodes, result.short_episodes, result.still_open) == (3, 1, 1)
    assert result.notices == {"opened": 3, "recovered": 2, "reminder": 2}
    assert result.messages == 7
    assert (result.delay_minutes_p50, result.unknown_share) == (0.0, 0.0)
    [noisy] = result.noisiest
    assert (noisy.pipeline, noisy.episodes, noisy.open_minutes) == ("acme/orders", 3, 12 + 180 + 234)
    assert [(e.since, e.until, e.failures) for e in result.latest] == [
        (at(20.1), None, 1),
        (at(3.1), at(6.1), 2),
        (at(1.1), at(1.3), 1),
    ]
    assert result.not_considered == list(NOT_CONSIDERED)


@pytest.mark.parametrize(
    ("condition", "runs", "minutes"),
    [
        (THREE, "F1 F2 F3 S4", 120.0),
        (CROWD, "F1 F2 F2.5 S4", 90.0),
        (Condition(RuleType.RUNNING_TOO_LONG, None, 60), "R1", 60.0),
        (MISSED, "S-18 S8", 30.0),
        (Condition(RuleType.NO_SUCCESS_IN_WINDOW, None, 120), "S1 S9", 120.0),
    ],
)
def test_the_delay_counts_from_the_fault_at_the_source(condition: Condition, runs: str, minutes: float) -> None:
    assert tally(condition, story(runs)).delays[0] == pytest.approx(minutes, abs=0.5)


def test_time_of_which_nothing_is_known_is_said_and_accuses_nobody() -> None:
    assert tally(MISSED, [], Coverage(None)).result().unknown_share == 1.0
    result = tally(MISSED, story("S-18"), known(6, (1, 2))).result()
    assert (result.unknown_share, result.episodes) == (round(19 / 24, 4), 0)
    assert tally(ON_FAILURE, story("S1"), Coverage(at(24), gone=True)).result().unknown_share == 1.0


def test_what_began_and_ended_between_two_evaluations_is_no_episode() -> None:
    runs = [run("S", 0), run("F", 1, 0.1), run("S", 1.002, 0.1)]
    assert tally(ON_FAILURE, runs).result().episodes == 0


def test_episodes_that_overlap_none_of_the_other_rule() -> None:
    one, two, open_ = (at(1), at(2)), (at(3), at(4)), (at(5), None)
    assert silent([one, two, open_], [(at(1.5), at(3)), (at(9), at(10))]) == 1
    assert silent([one], [open_]) == silent([open_], [one, two]) == 1
    assert silent([open_], [open_]) == 0


def calls(work: Callable[[], object]) -> int:
    """How many functions it calls: the same in each run, however fast the machine is."""
    found = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


def every_hour(hours: int, letters: str) -> list[RunFact]:
    return [run(letters[hour % len(letters)], hour, 6) for hour in range(hours)]


@pytest.mark.parametrize(
    ("condition", "letters", "last", "windows"),
    [
        (ON_FAILURE, "SF", "", ()),
        (Condition(RuleType.NO_SUCCESS_IN_WINDOW, None, 45), "S", "F", ()),
        (ON_FAILURE, "SF", "", ({"cron": "20 * * * *", "minutes": 5},)),
    ],
    ids=["spans", "no-success-at-the-end", "maintenance"],
)
def test_twice_the_time_is_twice_the_work(
    condition: Condition, letters: str, last: str, windows: Sequence[Mapping[str, Any]]
) -> None:
    def work(hours: int) -> int:
        runs = every_hour(hours, letters) + [run(letter, hours + n, 6) for letter in last for n in range(hours)]
        stretch = Stretch(at(0), at(hours * (1 + len(last))), HALF_HOURS)
        return calls(lambda: play(RULE, condition, HOURLY, runs, Coverage(stretch.until), stretch, windows))

    # The slots of schedules are found once.
    work(800)
    assert work(800) < 2.5 * work(400)


def test_a_back_test_asks_at_each_moment_whether_it_may_go_on() -> None:
    asked, stretch = [0], Stretch(at(0), at(100), HALF_HOURS)

    def check() -> None:
        asked[0] += 1
        if asked[0] > 60:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        play(RULE, ON_FAILURE, HOURLY, every_hour(100, "SF"), Coverage(at(100)), stretch, check=check)
    assert asked == [61]


def test_many_episodes_are_compared_without_looking_at_each_pair() -> None:
    def work(number: int) -> int:
        these = [(at(hour), at(hour + 0.4)) for hour in range(number)]
        others = [(at(hour + 0.5), at(hour + 0.9)) for hour in range(number)]
        found: list[int] = []
        asked = calls(lambda: found.append(silent(these, others)))
        assert found == [number]
        return asked

    assert work(800) < 2.5 * work(400)

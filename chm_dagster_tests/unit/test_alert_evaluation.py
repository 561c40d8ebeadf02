"""What each type of rule says: when it fires, holds, clears, and when it cannot know."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.alerts import Condition, Coverage, Expectations, RunFact, Span, State, Verdict
from chm_dagster.domain.evaluation import MAX_SLOTS, evaluate, spans_of
from chm_dagster.domain.rules import RuleType
from chm_dagster.domain.runs import RunKind, RunStatus

BERLIN = "Europe/Berlin"
PIPELINE = UUID(int=1)
LETTERS = {
    "S": RunStatus.SUCCESS,
    "F": RunStatus.FAILED,
    "B": RunStatus.SUCCESS,
    "R": RunStatus.RUNNING,
    "C": RunStatus.CANCELED,
    "K": RunStatus.SKIPPED,
}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


DAY = utc("2026-03-02 00:00")


def at(hours: float) -> datetime:
    return DAY + timedelta(hours=hours)


def hours(moment: datetime | None) -> float | None:
    return None if moment is None else (moment - DAY) / timedelta(hours=1)


def run(letter: str, start: float, minutes: float = 6, **changes: Any) -> RunFact:
    """A run that starts so many hours after the day began.

    b means a failed backfill, B one that succeeded, r a failure to be retried.
    """
    if letter in "bB":
        changes["kind"] = RunKind.BACKFILL
    if letter == "r":
        changes["will_retry"] = True
    status = LETTERS.get(letter, RunStatus.FAILED)
    end = at(start) + timedelta(minutes=minutes) if status.finished else None
    return RunFact(
        **{
            "run": f"{letter}{start}",
            "status": status,
            "effective_at": at(start),
            "started_at": at(start),
            "finished_at": end,
            **changes,
        }
    )


def story(text: str) -> list[RunFact]:
    """`S1 F2 R3.5`: runs by their letter and the hour of their start; each takes six minutes."""
    return [run(word[0], float(word[1:])) for word in text.split()]


def expects(**changes: Any) -> Expectations:
    return Expectations(**{"pipeline_id": PIPELINE, "created_at": at(-24), **changes})


def known(hour: float | None, *gaps: tuple[float, float]) -> Coverage:
    return Coverage(None if hour is None else at(hour), tuple((at(a), at(b)) for a, b in gaps))


def judged(
    condition: Condition,
    runs: Sequence[RunFact],
    now: float,
    *,
    coverage: Coverage | None = None,
    pipeline: Expectations | None = None,
) -> Verdict:
    return evaluate(condition, pipeline or expects(), runs, coverage or known(now), at(now))


def says(verdict: Verdict) -> tuple[str, float | None]:
    since = hours(verdict.since)
    return str(verdict.state), None if since is None else round(since, 4)


def times(spans: Sequence[Span]) -> list[tuple[float | None, float | None]]:
    return [
        (round(hours(span.since) or 0, 4), None if span.until is None else round(hours(span.until) or 0, 4))
        for span in spans
    ]


ON_FAILURE = Condition(RuleType.ON_FAILURE)
THREE = Condition(RuleType.CONSECUTIVE_FAILURES, 3)


@pytest.mark.parametrize(
    ("condition", "runs", "expected"),
    [
        pytest.param(ON_FAILURE, "S1 F2", ("firing", 2.1), id="fires"),
        pytest.param(ON_FAILURE, "S1 F2 F3 F4", ("firing", 2.1), id="one-streak"),
        pytest.param(ON_FAILURE, "S1 F2 R3", ("firing", 2.1), id="a-running-run-clears-nothing"),
        pytest.param(ON_FAILURE, "S1 F2 C3 K4", ("firing", 2.1), id="canceled-and-skipped-settle-nothing"),
        pytest.param(ON_FAILURE, "S1 F2 S3", ("ok", None), id="clears"),
        pytest.param(ON_FAILURE, "S1 b2", ("ok", None), id="a-failed-backfill-does-not-count"),
        pytest.param(ON_FAILURE, "F1 B2", ("firing", 1.1), id="a-backfill-clears-nothing"),
        pytest.param(ON_FAILURE, "S1 r2", ("ok", None), id="a-failure-about-to-be-retried-is-not-settled"),
        pytest.param(ON_FAILURE, "F-8000 S1", ("ok", None), id="a-failure-of-a-year-ago"),
        pytest.param(ON_FAILURE, "", ("unknown", None), id="no-data"),
        pytest.param(ON_FAILURE, "C1 K2 R3", ("unknown", None), id="nothing-settled"),
        pytest.param(THREE, "S1 F2 F3", ("ok", None), id="two-of-three"),
        pytest.param(THREE, "F2 F3", ("ok", None), id="never-with-fewer-runs-than-the-threshold"),
        pytest.param(THREE, "S1 F2 F3 F4", ("firing", 4.1), id="three-of-three"),
        pytest.param(THREE, "S1 F2 F3 F4 F5 R6", ("firing", 4.1), id="since-the-third"),
        pytest.param(THREE, "S1 F2 C2.5 F3 K3.5 F4", ("firing", 4.1), id="neutral-runs-do-not-break-the-streak"),
        pytest.param(THREE, "F1 F2 S3 F4 F5", ("ok", None), id="a-success-breaks-it"),
        pytest.param(THREE, "F1 F2 F3 S4", ("ok", None), id="three-clears"),
        pytest.param(THREE, "S1 F2 b2.5 r2.7 F3", ("ok", None), id="backfills-and-retries-are-not-among-the-three"),
        pytest.param(THREE, "F1 F2 B2.5 F3", ("firing", 3.1), id="a-backfill-does-not-break-it"),
        pytest.param(THREE, "", ("unknown", None), id="three-no-data"),
    ],
)
def test_rules_about_failures_in_a_row(condition: Condition, runs: str, expected: tuple[str, float | None]) -> None:
    assert says(judged(condition, story(runs), 8)) == expected


def test_a_failure_is_a_fact_however_old_the_knowledge_is() -> None:
    assert says(judged(ON_FAILURE, story("S1 F2"), 30, coverage=known(2.5))) == ("firing", 2.1)


@pytest.mark.parametrize("condition", [ON_FAILURE, THREE, Condition(RuleType.FAILURES_IN_WINDOW, 3, 60)])
def test_nothing_is_called_good_that_was_not_read_recently(condition: Condition) -> None:
    assert judged(condition, story("S1 S2"), 3, coverage=known(2.6)).state is State.OK
    assert judged(condition, story("S1 S2"), 3, coverage=known(2.4)).state is State.UNKNOWN
    assert judged(condition, story("S1 S2"), 3, coverage=known(None)).state is State.UNKNOWN


def test_a_pipeline_that_its_partner_no_longer_knows_is_unknown() -> None:
    gone = Coverage(at(3), gone=True)
    assert says(judged(ON_FAILURE, story("S1 F2"), 3, coverage=gone)) == ("unknown", None)
    assert judged(ON_FAILURE, story("S1 F2"), 3, coverage=gone).evidence.reason == "not known to the partner"


def test_a_success_that_settled_before_a_failure_that_started_earlier() -> None:
    runs = [run("S", 1), run("F", 2, minutes=180), run("S", 3)]
    assert says(judged(ON_FAILURE, runs, 8)) == ("ok", None)
    assert spans_of(ON_FAILURE, expects(), runs, known(8), at(8)) == []


def test_the_evidence_of_a_streak() -> None:
    found = judged(THREE, story("S1 F2 F3 F4 F5 F6 F7 F8"), 9).evidence
    assert found.runs == ("F2.0", "F3.0", "F4.0", "F5.0", "F6.0")
    assert (found.count, found.latest, hours(found.last_success)) == (7, "F8.0", 1.1)


CROWD = Condition(RuleType.FAILURES_IN_WINDOW, 3, 180)


@pytest.mark.parametrize(
    ("runs", "now", "coverage", "expected"),
    [
        pytest.param("F1 F2", 2.5, None, ("ok", None), id="too-few"),
        pytest.param("F1 F2 F3", 3.5, None, ("firing", 3.1), id="fires"),
        pytest.param("F1 S1.5 F2 S2.5 F3 S3.2", 3.5, None, ("firing", 3.1), id="successes-do-not-matter"),
        pytest.param("F1 b2 r2.5 F3", 3.5, None, ("ok", None), id="backfills-and-retries-do-not-count"),
        pytest.param("F1 F2 F3", 4.0, None, ("firing", 3.1), id="holds"),
        pytest.param("F1 F2 F3", 4.2, None, ("ok", None), id="clears-when-the-first-one-leaves-the-window"),
        pytest.param("F1 F2 F3 F3.9", 4.2, None, ("firing", 3.1), id="holds-through-another-failure"),
        pytest.param("F1 F2 F3", 4.2, known(3.5), ("firing", 3.1), id="blind-does-not-clear"),
        pytest.param("F1 F2 F4", 4.2, None, ("ok", None), id="exactly-a-window-apart-is-outside"),
        pytest.param("", 4.2, None, ("ok", None), id="no-failure-known"),
        pytest.param("", 4.2, known(None), ("unknown", None), id="never-read"),
        pytest.param("", 4.2, known(2), ("unknown", None), id="blind"),
    ],
)
def test_failures_in_a_window(
    runs: str, now: float, coverage: Coverage | None, expected: tuple[str, float | None]
) -> None:
    assert says(judged(CROWD, story(runs), now, coverage=coverage)) == expected


def test_a_window_that_empties_and_fills_again_gives_two_spans() -> None:
    runs = story("F1 F2 F3 F10 F11 F12")
    assert times(spans_of(CROWD, expects(), runs, known(20), at(20))) == [(3.1, 4.1), (12.1, 13.1)]


DROUGHT = Condition(RuleType.NO_SUCCESS_IN_WINDOW, None, 120)


@pytest.mark.parametrize(
    ("runs", "now", "coverage", "changes", "expected"),
    [
        pytest.param("S1", 3.0, None, {}, ("ok", None), id="inside"),
        pytest.param("S1", 3.2, None, {}, ("firing", 3.1), id="fires"),
        pytest.param("S1 F2 F3 R3.1", 3.2, None, {}, ("firing", 3.1), id="failures-are-no-success"),
        pytest.param("S1 C2 K3", 3.2, None, {}, ("firing", 3.1), id="nor-are-skipped-runs"),
        pytest.param("S1 B2", 3.2, None, {}, ("firing", 3.1), id="nor-is-a-backfill"),
        pytest.param("S1 S3.5", 4, None, {}, ("ok", None), id="clears"),
        pytest.param("S1", 9, known(3.0), {}, ("unknown", None), id="blind-before-the-moment"),
        pytest.param("S1", 9, known(3.2), {}, ("firing", 3.1), id="known-past-the-moment"),
        pytest.param("S1", 9, known(None), {}, ("unknown", None), id="never-read"),
        pytest.param("", 9, None, {"created_at": at(8)}, ("unknown", None), id="not-a-whole-window-old"),
        pytest.param("", 9, None, {"created_at": at(6)}, ("firing", 8.0), id="never-had-one"),
        pytest.param("S-50", 9, None, {"created_at": at(8.5)}, ("firing", -47.9), id="history-counts"),
        pytest.param("S1", 9, None, {"schedule_changed_at": at(8)}, ("unknown", None), id="enabled-an-hour-ago"),
        pytest.param("S1", 9, None, {"schedule_changed_at": at(6)}, ("firing", 8.0), id="enabled-long-ago"),
        pytest.param("S1", 5, known(5, (2.5, 4)), {}, ("unknown", None), id="a-success-may-be-lost-in-a-gap"),
        pytest.param("S1", 6.5, known(6.5, (2.5, 4)), {}, ("firing", 6.0), id="a-window-after-the-gap"),
        pytest.param("S1", 5, known(5, (3.5, 4)), {}, ("firing", 3.1), id="a-gap-later-changes-nothing"),
        pytest.param("S1", 3.2, known(3.2, (0, 1)), {}, ("firing", 3.1), id="a-gap-before"),
    ],
)
def test_no_success_in_a_window(
    runs: str, now: float, coverage: Coverage | None, changes: dict[str, Any], expected: tuple[str, float | None]
) -> None:
    verdict = judged(DROUGHT, story(runs), now, coverage=coverage, pipeline=expects(**changes))
    assert says(verdict) == expected


LONG = Condition(RuleType.RUNNING_TOO_LONG, None, 60)
LONG_OF_PIPELINE = Condition(RuleType.RUNNING_TOO_LONG)


@pytest.mark.parametrize(
    ("condition", "runs", "now", "coverage", "limit", "expected"),
    [
        pytest.param(LONG, "S0 R1", 1.9, None, None, ("ok", None), id="inside"),
        pytest.param(LONG, "S0 R1", 2.1, None, None, ("firing", 2.0), id="fires"),
        pytest.param(LONG, "S0 R1", 2.1, None, 600, ("firing", 2.0), id="the-rule-wins"),
        pytest.param(LONG_OF_PIPELINE, "R1", 2.1, None, 60, ("firing", 2.0), id="the-pipeline's-limit"),
        pytest.param(LONG_OF_PIPELINE, "R1", 2.1, None, None, ("unknown", None), id="no-limit"),
        pytest.param(LONG, "S0 R1 S3", 4, None, None, ("firing", 2.0), id="a-later-success-does-not-end-it"),
        pytest.param(LONG, "R1", 9, known(1.9), None, ("unknown", None), id="blind-before-the-moment"),
        pytest.param(LONG, "R1", 9, known(2.1), None, ("firing", 2.0), id="known-past-the-moment"),
        pytest.param(LONG, "R1", 9, known(None), None, ("unknown", None), id="never-read"),
        pytest.param(LONG, "R1", 3, known(3, (1.5, 1.7)), None, ("ok", None), id="its-end-may-be-lost-in-a-gap"),
        pytest.param(LONG, "R1", 3, known(3, (2.5, 2.7)), None, ("firing", 2.0), id="a-gap-after-the-moment"),
        pytest.param(LONG, "", 3, None, None, ("ok", None), id="nothing-runs"),
    ],
)
def test_running_too_long(
    condition: Condition,
    runs: str,
    now: float,
    coverage: Coverage | None,
    limit: int | None,
    expected: tuple[str, float | None],
) -> None:
    pipeline = expects(max_runtime_minutes=limit)
    assert says(judged(condition, story(runs), now, coverage=coverage, pipeline=pipeline)) == expected


def test_long_runs_in_the_past_clear_when_they_finish() -> None:
    runs = [run("S", 1, minutes=90), run("F", 2, minutes=90), run("S", 6, minutes=90), run("S", 9, minutes=60)]
    assert times(spans_of(LONG, expects(), runs, known(20), at(20))) == [(2.0, 2.5), (3.0, 3.5), (7.0, 7.5)]


def test_runs_that_overlap_are_one_span() -> None:
    runs = [run("S", 1, minutes=120), run("R", 1.5)]
    [span] = spans_of(LONG, expects(), runs, known(20), at(20))
    assert (hours(span.since), span.until, span.evidence.runs, span.evidence.count) == (2.0, None, ("S1", "R1.5"), 2)


def test_a_run_without_a_known_start_or_end_is_not_long() -> None:
    waiting = run("R", 1, started_at=None)
    vanished = run("C", 1, finished_at=None)
    backfill = run("R", 1, kind=RunKind.BACKFILL)
    assert judged(LONG, [waiting, vanished, backfill], 9).state is State.OK


DAILY = {"schedule_cron": "0 6 * * *", "grace_minutes": 30}
MISSED = Condition(RuleType.MISSED_RUN)


@pytest.mark.parametrize(
    ("runs", "now", "coverage", "changes", "expected"),
    [
        pytest.param("S-18", 6.4, None, {}, ("ok", None), id="within-grace"),
        pytest.param("S-18", 6.6, None, {}, ("firing", 6.5), id="fires"),
        pytest.param("S-18 S6", 6.6, None, {}, ("ok", None), id="on-time"),
        pytest.param("S-18 F6", 6.6, None, {}, ("ok", None), id="a-failed-run-is-a-run"),
        pytest.param("S-18 K6", 6.6, None, {}, ("ok", None), id="so-is-a-skipped-one"),
        pytest.param("S-18 b6", 6.6, None, {}, ("firing", 6.5), id="a-backfill-is-not"),
        pytest.param("S-18 S5.98", 6.6, None, {}, ("ok", None), id="a-minute-early"),
        pytest.param("S-18 S5.9", 6.6, None, {}, ("firing", 6.5), id="six-minutes-early"),
        pytest.param("S-18 S6.5", 6.6, None, {}, ("ok", None), id="at-the-end-of-the-grace"),
        pytest.param("S-18 S7", 7.2, None, {}, ("ok", None), id="late-clears"),
        pytest.param("S-18", 60, known(6.4), {}, ("unknown", None), id="blind-before-the-deadline"),
        pytest.param("S-18", 60, known(6.5), {}, ("firing", 6.5), id="known-up-to-the-deadline"),
        pytest.param("S-18", 60, known(None), {}, ("unknown", None), id="never-read"),
        pytest.param("S-18", 6.6, None, {"schedule_cron": None}, ("unknown", None), id="no-schedule"),
        pytest.param("S-18", 6.6, None, {"grace_minutes": None}, ("firing", 6.25), id="default-grace"),
        pytest.param("S-18", 6.6, None, {"grace_minutes": 0}, ("firing", 6.0), id="no-grace"),
        pytest.param(
            "S-18", 6.6, None, {"schedule_changed_at": at(6.1)}, ("ok", None), id="schedule-set-after-the-slot"
        ),
        pytest.param("S-18", 30.6, None, {"schedule_changed_at": at(6.1)}, ("firing", 30.5), id="the-next-slot-counts"),
        pytest.param("", 6.6, None, {"created_at": at(5)}, ("firing", 6.5), id="never-ran"),
        pytest.param("", 6.6, None, {"created_at": at(6.1)}, ("ok", None), id="created-after-the-slot"),
        pytest.param("S-18", 6.6, known(6.6, (6.1, 6.2)), {}, ("ok", None), id="its-report-may-be-lost-in-a-gap"),
        pytest.param("S-18", 30.6, known(30.6, (6.1, 6.2)), {}, ("firing", 30.5), id="the-slot-after-the-gap"),
        pytest.param("S-18", 9, known(9, (7, 8)), {}, ("firing", 6.5), id="a-gap-after-the-deadline"),
        pytest.param("S-18 S30", 40, None, {}, ("ok", None), id="the-next-run-ends-it"),
    ],
)
def test_a_missed_run(
    runs: str, now: float, coverage: Coverage | None, changes: dict[str, Any], expected: tuple[str, float | None]
) -> None:
    verdict = judged(MISSED, story(runs), now, coverage=coverage, pipeline=expects(**{**DAILY, **changes}))
    assert says(verdict) == expected


def test_the_window_of_a_rule_is_the_grace_of_a_missed_run() -> None:
    condition = Condition(RuleType.MISSED_RUN, None, 90)
    assert says(judged(condition, story("S-18"), 7.4, pipeline=expects(**DAILY))) == ("ok", None)
    assert says(judged(condition, story("S-18"), 7.6, pipeline=expects(**DAILY))) == ("firing", 7.5)


def test_a_run_that_comes_late_ends_the_span_and_slots_without_one_are_counted() -> None:
    runs = story("S-18 S7.5 S102")
    spans = spans_of(MISSED, expects(**DAILY), runs, known(103), at(103))
    assert times(spans) == [(6.5, 7.5), (30.5, 102.0)]
    assert [(hours(span.evidence.slot), span.evidence.count) for span in spans] == [(6.0, 1), (30.0, 3)]


def test_missed_slots_are_counted_up_to_a_limit_and_the_count_says_so() -> None:
    hourly = expects(schedule_cron="0 * * * *", grace_minutes=15)
    for hour, expected in ((99.5, (MAX_SLOTS - 1, False)), (100.5, (MAX_SLOTS, True)), (300.5, (MAX_SLOTS, True))):
        evidence = judged(MISSED, story("S0"), hour, pipeline=hourly).evidence
        assert (evidence.count, evidence.at_least) == expected


def test_one_run_shortly_before_a_slot_does_not_stand_for_two() -> None:
    hourly = expects(schedule_cron="0 * * * *", grace_minutes=59)
    runs = story("S0 S1.98")
    # The run at 01:58:48 is the late one of 01:00; nothing has run for 02:00.
    assert says(judged(MISSED, runs, 3.0, pipeline=hourly)) == ("firing", 2.9833)
    # With a run at 01:00, it is the early one of 02:00.
    assert says(judged(MISSED, story("S0 S1 S1.98"), 3.0, pipeline=hourly)) == ("ok", None)


def test_a_late_run_shortly_before_the_next_slot_leaves_that_slot_to_the_run_after() -> None:
    hourly = expects(schedule_cron="0 * * * *", grace_minutes=50)
    # The run at 01:58:48 is that of 01:00, the one at 02:58:48 that of 02:00, and nothing has run for 03:00.
    assert says(judged(MISSED, story("S0 S1.98 S2.98"), 3.9, pipeline=hourly)) == ("firing", 3.8333)
    assert says(judged(MISSED, story("S0 S1 S1.98 S2.98"), 3.9, pipeline=hourly)) == ("ok", None)


def test_runs_that_queue_for_longer_than_a_period_are_not_missed_within_a_long_grace() -> None:
    hourly = expects(schedule_cron="0 * * * *", grace_minutes=90, created_at=at(0))
    runs = story("S0.1 S2.2 S3.1 S4.2")
    assert times(spans_of(MISSED, hourly, runs, known(5), at(5))) == []


@pytest.mark.parametrize(
    ("cron", "day", "expected"),
    [
        # Berlin, 2026-03-29: 02:00 to 03:00 does not exist, a job at 02:30 runs once, at 03:00 (01:00 UTC).
        ("30 2 * * *", "2026-03-29", "2026-03-29 01:00"),
        ("30 2 * * *", "2026-03-30", "2026-03-30 00:30"),
        # 2026-10-25: 02:00 to 03:00 comes twice, the job runs in the first of them.
        ("30 2 * * *", "2026-10-25", "2026-10-25 00:30"),
        ("30 2 * * *", "2026-10-26", "2026-10-26 01:30"),
        ("0 6 29 2 *", "2028-02-29", "2028-02-29 05:00"),
        ("0 6 L * *", "2028-02-29", "2028-02-29 05:00"),
        ("0 6 * * 1-5", "2026-03-02", "2026-03-02 05:00"),
    ],
)
def test_slots_in_local_time_are_missed_15_minutes_after_they_were_due(cron: str, day: str, expected: str) -> None:
    slot = utc(expected)
    pipeline = expects(
        created_at=utc(f"{day} 00:00") - timedelta(hours=1), schedule_cron=cron, schedule_timezone=BERLIN
    )
    for minutes, state in ((14, State.OK), (15, State.FIRING)):
        now = slot + timedelta(minutes=minutes)
        assert evaluate(MISSED, pipeline, [], Coverage(now), now).state is state


def test_a_job_every_half_hour_runs_in_both_hours_when_the_clock_is_set_back() -> None:
    pipeline = expects(created_at=utc("2026-10-24 23:59"), schedule_cron="*/30 * * * *", schedule_timezone=BERLIN)
    midnight = utc("2026-10-25 00:00")
    runs = [run("S", 0, effective_at=midnight + timedelta(minutes=30 * n), run=str(n)) for n in range(8)]
    end = utc("2026-10-25 04:00")
    assert spans_of(MISSED, pipeline, runs, Coverage(end), end) == []
    without_second = [r for r in runs if r.run not in ("2", "3")]
    [span, *_] = spans_of(MISSED, pipeline, without_second, Coverage(end), end)
    assert (span.evidence.slot, span.evidence.count) == (utc("2026-10-25 01:00"), 2)


def test_a_pipeline_that_has_been_silent_for_years_is_counted_up_to_a_limit() -> None:
    pipeline = expects(schedule_cron="*/5 * * * *", created_at=at(-24 * 900))
    verdict = judged(MISSED, [], 0, pipeline=pipeline)
    assert verdict.evidence.count == 100


@pytest.mark.parametrize("condition", [MISSED, DROUGHT, LONG])
def test_a_clock_that_is_ahead_claims_nothing_about_the_future(condition: Condition) -> None:
    runs = [run("S", 3.5), run("R", 4)]
    pipeline = expects(**DAILY, schedule_changed_at=at(0))
    assert judged(condition, runs, 4.1, coverage=known(9), pipeline=pipeline).state is State.OK


# --- all types ------------------------------------------------------------------------------------------------------

CONDITIONS = st.one_of(
    st.just(ON_FAILURE),
    st.integers(1, 4).map(lambda n: Condition(RuleType.CONSECUTIVE_FAILURES, n)),
    st.tuples(st.integers(1, 3), st.integers(30, 300)).map(lambda p: Condition(RuleType.FAILURES_IN_WINDOW, *p)),
    st.integers(30, 300).map(lambda n: Condition(RuleType.NO_SUCCESS_IN_WINDOW, None, n)),
    st.integers(5, 100).map(lambda n: Condition(RuleType.RUNNING_TOO_LONG, None, n)),
    st.integers(0, 100).map(lambda n: Condition(RuleType.MISSED_RUN, None, n or None)),
)
HOURLY = expects(schedule_cron="0 * * * *", grace_minutes=20, created_at=at(0))


@st.composite
def histories(draw: st.DrawFn) -> list[RunFact]:
    """Runs one after the other, each with a length of its own."""
    runs, clock = [], 0.0
    for _ in range(draw(st.integers(0, 12))):
        clock += draw(st.integers(1, 150)) / 60
        length = draw(st.integers(1, 130))
        runs.append(run(draw(st.sampled_from("SSFFFCKbr")), clock, minutes=length))
        clock += length / 60
    return runs


def as_of(runs: Sequence[RunFact], moment: datetime) -> list[RunFact]:
    """The runs as everybody knew them at a moment."""
    known_then = []
    for fact in runs:
        if fact.effective_at <= moment:
            running = fact.finished_at is not None and fact.finished_at > moment
            known_then.append(
                run("R", 0, run=fact.run, effective_at=fact.effective_at, started_at=fact.started_at, kind=fact.kind)
                if running
                else fact
            )
    return known_then


@given(CONDITIONS, histories(), st.integers(1, 40 * 60))
def test_the_verdict_at_any_moment_is_what_the_spans_say_afterwards(
    condition: Condition, runs: list[RunFact], minute: int
) -> None:
    """A back-test and live evaluation agree: spans that are found at the end hold what was seen in each minute."""
    end = at(60)
    moment = at(minute / 60)
    spans = spans_of(condition, HOURLY, runs, Coverage(end), end)
    inside = [span for span in spans if span.since <= moment and (span.until is None or moment < span.until)]
    then = evaluate(condition, HOURLY, as_of(runs, moment), Coverage(moment), moment)
    assert (then.state is State.FIRING) == bool(inside)
    if inside:
        assert then.since == inside[0].since


@given(CONDITIONS, histories(), st.randoms(use_true_random=False))
def test_the_order_in_which_runs_are_given_does_not_matter(
    condition: Condition, runs: list[RunFact], random: Any
) -> None:
    shuffled = list(runs)
    random.shuffle(shuffled)
    assert spans_of(condition, HOURLY, shuffled, known(60), at(60)) == spans_of(
        condition, HOURLY, runs, known(60), at(60)
    )


@given(CONDITIONS, histories(), st.integers(0, 40 * 60))
def test_less_coverage_never_accuses(condition: Condition, runs: list[RunFact], minute: int) -> None:
    """Whatever was not read yet: what fires then is about moments that are known, or about failures that were seen."""
    moment, now = at(minute / 60), at(60)
    seen = as_of(runs, moment)
    verdict = evaluate(condition, HOURLY, seen, Coverage(moment), now)
    assert verdict.since is None or verdict.since <= moment
    assert evaluate(condition, HOURLY, [], Coverage(None), now).state is State.UNKNOWN

"""The figures of a report: tables of cases."""

import dataclasses
import random
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from chm_dagster.domain.alerts import Coverage, Expectations, Gap, RunFact
from chm_dagster.domain.periods import Period
from chm_dagster.domain.reports import Change, Figures, Report, issue, report, revised
from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.domain.service import Cause, Unknown, Watched, service

WEEK = Period.week("2026-W47")
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 25, tzinfo=UTC)
ADDED = datetime(2026, 1, 1, tzinfo=UTC)
SKIPPED = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
S, F = RunStatus.SUCCESS, RunStatus.FAILED


def at(day: int, hour: float = 0) -> datetime:
    """A time in November 2026, UTC; the week begins on the 16th."""
    return datetime(2026, 11, day, tzinfo=UTC) + timedelta(hours=hour)


def run(start: datetime, status: RunStatus = S, minutes: float = 10, **changes: Any) -> RunFact:
    end = None if status is RunStatus.RUNNING else start + timedelta(minutes=minutes)
    return RunFact(changes.pop("run", start.isoformat()), status, start, start, end, **changes)


def watched(slug: str = "orders", **changes: Any) -> Watched:
    """A pipeline that was added and read at the two times of `known`; None: it was never read."""
    known, limit = changes.pop("known", (ADDED, NOW)), changes.pop("limit", None)
    added, through = known or (ADDED, None)
    expected = Expectations(
        UUID(int=1), added, changes.pop("cron", None), changes.pop("zone", None), changes.pop("grace", None), limit
    )
    coverage = Coverage(through, changes.pop("gaps", ()), changes.pop("gone", False))
    return Watched(slug, slug.title(), "airflow", expected, added, coverage, **changes)


def made(
    *pipelines: tuple[Watched, Sequence[RunFact]],
    period: Period = WEEK,
    zone: str = "UTC",
    now: datetime = NOW,
) -> Report:
    days, before = list(period.days(ZoneInfo(zone))), list(period.before().days(ZoneInfo(zone)))
    services = [(service(one, runs, days, now), service(one, runs, before, now)) for one, runs in pipelines]
    return report(("acme", "Acme"), period, zone, days, services, now)


def figures(pipeline: Watched, *runs: RunFact, **how: Any) -> Figures:
    return made((pipeline, runs), **how).figures


def daily(hour: float, status: RunStatus = S, *, first: int = 2, last: int = 22) -> list[RunFact]:
    return [run(at(day, hour), status) for day in range(first, last + 1)]


# --- runs and rates ----------------------------------------------------------------------------------------------------


def test_runs_belong_to_the_week_that_they_started_in() -> None:
    runs = [run(at(15, 23.9), F), run(at(16)), run(at(22, 23.99), F), run(at(23), F)]
    found = figures(watched(), *runs)
    assert (found.runs, found.settled, found.success, found.success_rate) == (2, 2, 1, 0.5)


def test_every_status_is_counted_and_only_settled_runs_have_a_rate() -> None:
    runs = [
        run(at(16, 1)),
        run(at(16, 2), F),
        run(at(16, 3), F, will_retry=True),
        run(at(16, 4), RunStatus.CANCELED),
        run(at(16, 5), RunStatus.SKIPPED),
        run(at(16, 6), RunStatus.RUNNING),
        run(at(16, 7), kind=RunKind.BACKFILL),
    ]
    found = made((watched(), runs))
    tally = found.pipelines[0].tally
    assert (tally.success, tally.failed, tally.retried, tally.canceled, tally.skipped, tally.running) == (
        2,
        1,
        1,
        1,
        1,
        1,
    )
    assert (found.figures.runs, found.figures.settled, found.figures.success_rate) == (7, 3, round(2 / 3, 6))


def test_a_known_week_without_a_failure_is_a_hundred_percent() -> None:
    found = figures(watched(cron="0 3 * * *"), *daily(3))
    assert (found.coverage, found.success_rate, found.on_time_rate, found.is_known) == (1.0, 1.0, 1.0, True)


def test_everything_failing_is_zero_and_not_flaky() -> None:
    found = made((watched(cron="0 3 * * *"), daily(3, F)))
    assert (found.figures.success_rate, found.figures.on_time_rate) == (0.0, 1.0)
    assert (found.figures.incidents, found.figures.open_incidents, found.figures.seconds_to_recover) == (1, 1, None)
    assert found.incidents[0].start == at(2, 3) + timedelta(minutes=10), "it began before the week"
    assert (found.incidents[0].count, found.incidents[0].end, found.incidents[0].is_open) == (21, None, True)
    assert found.pipelines[0].flaky is None


@pytest.mark.parametrize("known", [None, (ADDED, at(16)), (at(23), NOW)], ids=["never read", "before", "after"])
def test_of_a_week_of_which_nothing_is_known_nothing_is_claimed(known: Gap | None) -> None:
    found = figures(watched(known=known, cron="0 3 * * *"))
    assert (found.coverage, found.success_rate, found.on_time_rate) == (0.0, None, None)
    assert (found.slots, found.incidents) == (0, 0)


def test_of_a_week_that_is_known_in_part_all_well_is_unknown() -> None:
    part = watched(known=(ADDED, at(19)), cron="0 3 * * *")
    found = figures(part, *daily(3, last=18))
    assert (found.success, found.settled, found.success_rate) == (3, 3, None)
    assert (found.on_time, found.slots, found.on_time_rate) == (3, 3, None)
    assert found.coverage == round(3 / 7, 6)
    # What has failed has failed, whatever else there was.
    assert figures(part, *daily(3, last=17), run(at(18, 3), F)).success_rate == round(2 / 3, 6)


def test_one_blind_pipeline_among_many_takes_the_hundred_percent_from_all() -> None:
    good = [(watched(f"p{n}"), daily(3)) for n in range(9)]
    assert made(*good).figures.success_rate == 1.0
    found = made(*good, (watched("blind", known=(ADDED, at(22, 23.999))), daily(3)))
    assert found.figures.success_rate is None
    assert found.figures.coverage is not None and 0.9999 < found.figures.coverage < 1.0


@pytest.mark.parametrize(
    ("pipeline", "now", "reason"),
    [
        (watched(known=None), NOW, Unknown.NEVER_READ),
        (watched(known=None, gone=True), NOW, Unknown.GONE),
        (watched(known=(ADDED, at(20))), NOW, Unknown.NOT_READ_SINCE),
        (watched(known=(ADDED, at(20)), gone=True), NOW, Unknown.GONE),
        (watched(known=(at(18), NOW)), NOW, Unknown.NEW),
        (watched(known=(ADDED, at(20)), doubted=True), NOW, Unknown.NOT_UNDERSTOOD),
        (watched(gaps=((at(19), at(20)),)), NOW, Unknown.NOT_HEARD),
        (watched(gaps=((at(19), at(20)),), known=(at(18), NOW)), NOW, Unknown.NOT_HEARD),
        (watched(gaps=((at(17), at(18)),), known=(at(18), NOW)), NOW, Unknown.NEW),
        (watched(gaps=((at(14), at(16)), (at(23), at(24)))), NOW, None),
        (watched(known=(ADDED, at(20))), at(20), Unknown.NOT_YET),
        (watched(), NOW, None),
        (watched(known=None, is_active=False), NOW, None),
    ],
)
def test_the_reason_for_what_is_unknown_is_named(pipeline: Watched, now: datetime, reason: Unknown | None) -> None:
    found = made((pipeline, [run(at(18, 1), F)]), now=now).pipelines[0]
    assert found.unknown == reason


def test_a_client_without_pipelines_has_no_figures() -> None:
    found = made()
    assert found.figures == Figures(0, 0, 0, 0, None, 0, 0, None, 0, 0, 0, None, None, 0)
    assert [day.coverage for day in found.days] == [None] * 7


def test_an_empty_week_has_no_rate() -> None:
    found = figures(watched())
    assert (found.runs, found.success_rate, found.on_time_rate, found.coverage) == (0, None, None, 1.0)


def test_a_week_that_is_not_over_is_not_final() -> None:
    found = made((watched(), daily(3)), now=at(19))
    assert not found.is_final and found.figures.coverage == round(3 / 7, 6)
    assert made((watched(), daily(3))).is_final


def test_a_disabled_pipeline_counts_with_its_runs_and_nothing_is_expected_of_it() -> None:
    off = watched("off", is_active=False, known=(ADDED, at(18)), cron="0 3 * * *")
    found = made((off, [run(at(17, 3), F)]), (watched("idle", is_active=False), []), (watched(), daily(3)))
    assert [one.slug for one in found.pipelines] == ["off", "orders"], "one that did not run is left out"
    assert (found.figures.pipelines, found.figures.coverage, found.figures.slots) == (1, 1.0, 0)
    assert found.figures.success_rate == round(7 / 8, 6)


# --- on time -----------------------------------------------------------------------------------------------------------


def test_a_run_within_the_grace_time_is_on_time_and_one_after_it_is_not() -> None:
    runs = [*daily(3, last=18), run(at(19, 3.2)), run(at(20, 3.5)), *daily(3, first=21)]
    found = made((watched(cron="0 3 * * *", grace=15), runs))
    assert (found.figures.slots, found.figures.on_time) == (7, 6)
    [incident] = found.incidents
    assert (incident.cause, incident.start, incident.end) == (Cause.MISSED, at(20, 3.25), at(20, 3.5))
    assert incident.slot == at(20, 3)
    assert (found.figures.recovered, found.figures.seconds_to_recover) == (1, 900.0)


def test_runs_that_never_came_are_one_incident_and_several_slots() -> None:
    found = made((watched(cron="0 3 * * *"), [*daily(3, last=17), *daily(3, first=21)]))
    assert (found.figures.slots, found.figures.on_time, found.figures.on_time_rate) == (7, 4, round(4 / 7, 6))
    assert [(i.cause, i.count) for i in found.incidents] == [(Cause.MISSED, 3)]


def test_a_slot_counts_in_the_period_in_which_its_grace_time_ends() -> None:
    late = watched(cron="50 23 * * *", grace=30)
    runs = [run(at(day, 23.84)) for day in range(1, 23)]
    assert (figures(late, *runs).slots, figures(late, *runs).on_time) == (7, 7)
    assert figures(late, *[one for one in runs if one.effective_at < at(22)]).on_time == 7, "of the last day, not yet"


def test_before_the_schedule_was_set_nothing_was_due() -> None:
    expected = Expectations(UUID(int=1), ADDED, "0 3 * * *", schedule_changed_at=at(20))
    found = figures(dataclasses.replace(watched(), expectations=expected))
    assert (found.slots, found.on_time) == (3, 0)


@pytest.mark.parametrize(("week", "slots"), [("2026-W12", 24 * 7), ("2026-W13", 24 * 7 - 1), ("2026-W43", 24 * 7 + 1)])
def test_an_hourly_pipeline_has_as_many_slots_as_the_week_has_hours(week: str, slots: int) -> None:
    period = Period.week(week)
    start, end = period.start(BERLIN), period.end(BERLIN)
    runs = [run(start + timedelta(hours=n)) for n in range(-200, int((end - start) / timedelta(hours=1)))]
    hourly = watched(cron="0 * * * *", zone="Europe/Berlin")
    found = figures(hourly, *runs, period=period, zone="Europe/Berlin", now=end + timedelta(days=2))
    assert (found.slots, found.on_time_rate) == (slots, 1.0)


@pytest.mark.parametrize(("week", "missing"), [("2026-W13", 29), ("2026-W43", 25)])
def test_a_nightly_pipeline_has_seven_slots_also_when_clocks_change(week: str, missing: int) -> None:
    period = Period.week(week)
    nightly = watched(cron="30 2 * * *", zone="Europe/Berlin", known=(ADDED, datetime(2027, 1, 1, tzinfo=UTC)))
    days = list(Period(period.kind, period.before().first).days(BERLIN)) + list(period.days(BERLIN))
    runs = [run(datetime.combine(d.date, time(2, 30), BERLIN).astimezone(UTC)) for d in days]
    # Half past two did not exist on this day: cron runs the job as soon as the clocks have been put forward.
    runs = [run(datetime(2026, 3, 29, 1, tzinfo=UTC)) if one.effective_at == SKIPPED else one for one in runs]
    found = figures(nightly, *runs, period=period, zone="Europe/Berlin", now=datetime(2026, 12, 1, tzinfo=UTC))
    assert (found.slots, found.on_time) == (7, 7)
    kept = [one for one in runs if one.effective_at.astimezone(BERLIN).day != missing]
    found = figures(nightly, *kept, period=period, zone="Europe/Berlin", now=datetime(2026, 12, 1, tzinfo=UTC))
    assert (found.slots, found.on_time, found.incidents) == (7, 6, 1)


# --- while nobody could be heard ---------------------------------------------------------------------------------------


def test_what_was_due_while_the_api_was_down_is_neither_on_time_nor_missed() -> None:
    deaf = watched(cron="0 3 * * *", gaps=((at(17, 2), at(17, 4)), (at(19, 3.1), at(19, 3.2))))
    missing = [one for one in daily(3) if one.effective_at not in (at(17, 3), at(19, 3), at(21, 3))]
    found = figures(deaf, *missing)
    assert (found.slots, found.on_time, found.incidents) == (5, 4, 1)
    assert figures(watched(cron="0 3 * * *"), *missing).incidents == 3, "without the outages, they are missed"
    all_well = figures(deaf, *daily(3))
    assert (all_well.slots, all_well.on_time, all_well.on_time_rate, all_well.success_rate) == (5, 5, None, None)
    assert all_well.coverage == round(1 - 2.1 / (7 * 24), 6)


def test_the_end_of_a_long_run_that_may_not_have_been_heard_is_no_incident() -> None:
    endless = [run(at(17, 1), RunStatus.RUNNING)]
    assert made((watched(limit=60), endless)).incidents != ()
    assert made((watched(limit=60, gaps=((at(17, 1.5), at(17, 1.7)),)), endless)).incidents == ()


def test_an_incident_that_could_not_be_heard_to_the_end_of_the_week_is_not_known_to_be_open() -> None:
    deaf = watched(gaps=((at(22, 20), at(23, 5)),))
    [incident] = made((deaf, [run(at(17, 1), F, minutes=0)])).incidents
    assert (incident.end, incident.is_open, incident.seconds) == (None, False, (5 * 24 + 19) * 3600)
    [incident] = made((watched(), [run(at(17, 1), F, minutes=0)])).incidents
    assert incident.is_open


def test_a_day_is_known_but_for_the_outages_in_it() -> None:
    deaf = watched(gaps=((at(17, 6), at(17, 12)), (at(17, 18), at(18, 6)), (at(30), at(30, 1))))
    assert [day.coverage for day in made((deaf, [])).days] == [1.0, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


# --- incidents ---------------------------------------------------------------------------------------------------------


def test_an_incident_lasts_from_the_first_failure_to_the_next_success() -> None:
    runs = [run(at(16, 1)), run(at(17, 1), F, run="bad"), run(at(17, 2), F), run(at(17, 5)), run(at(18, 1))]
    [incident] = made((watched(), runs)).incidents
    assert (incident.start, incident.end) == (at(17, 1) + timedelta(minutes=10), at(17, 5) + timedelta(minutes=10))
    assert (incident.seconds, incident.count, incident.run, incident.is_open) == (4 * 3600, 2, "bad", False)


def test_what_happened_after_the_week_does_not_change_it() -> None:
    runs = [run(at(16, 1)), run(at(22, 1), F)]
    later = [*runs, run(at(23, 1)), run(at(24, 1), F)]
    assert made((watched(), runs)) == made((watched(), later))
    [incident] = made((watched(), later)).incidents
    assert (incident.end, incident.is_open) == (None, True)


def test_how_an_incident_went_on_that_could_not_be_read_is_unknown() -> None:
    [incident] = made((watched(known=(ADDED, at(18))), [run(at(17, 1), F)])).incidents
    assert (incident.end, incident.is_open) == (None, False)


def test_an_incident_that_ended_before_the_week_is_not_of_it() -> None:
    assert made((watched(), [run(at(14, 1), F), run(at(15, 1))])).incidents == ()


def test_a_run_that_took_too_long_is_an_incident() -> None:
    found = made((watched(limit=60), [run(at(17, 1), minutes=150), run(at(22, 23), RunStatus.RUNNING)]))
    [incident] = found.incidents
    assert (incident.cause, incident.start, incident.end, incident.seconds) == (
        Cause.OVERRUNNING,
        at(17, 2),
        at(17, 3.5),
        5400,
    )


def test_the_mean_time_to_recover_is_over_the_incidents_that_ended() -> None:
    hour = [run(at(16, 1), F), run(at(16, 2))]
    three = [run(at(17, 1), F), run(at(17, 4))]
    open_ = [run(at(18, 1), F)]
    found = made((watched("a"), hour), (watched("b"), three), (watched("c"), open_)).figures
    assert (found.incidents, found.recovered, found.open_incidents, found.seconds_to_recover) == (3, 2, 1, 2 * 3600)


def test_a_backfill_is_no_incident() -> None:
    assert made((watched(), [run(at(16, 1)), run(at(17, 1), F, kind=RunKind.BACKFILL)])).incidents == ()


# --- maintenance -------------------------------------------------------------------------------------------------------


def test_maintenance_is_left_out_of_service_figures() -> None:
    quiet = watched(cron="0 * * * *", maintenance=((at(17, 2), at(17, 6)),))
    good = [run(at(day, hour)) for day in range(9, 23) for hour in range(24)]
    in_window = (at(17, 2), at(17, 3), at(17, 4), at(17, 5))
    broken = [run(one.effective_at, F) if one.effective_at in in_window else one for one in good]
    found = made((quiet, broken))
    assert (found.figures.success_rate, found.figures.incidents, found.figures.in_maintenance) == (1.0, 0, 4)
    missing = [one for one in good if one.effective_at not in in_window]
    found = made((quiet, missing))
    assert (found.figures.on_time_rate, found.figures.slots, found.figures.incidents) == (1.0, 7 * 24 - 4, 0)
    assert made((watched(cron="0 * * * *"), broken)).figures.incidents == 1, "without the window, it is one"


def test_a_failure_after_maintenance_is_an_incident() -> None:
    runs = [run(at(16, 1)), run(at(17, 3), F), run(at(17, 7), F, minutes=0, run="after"), run(at(17, 9), minutes=0)]
    [incident] = made((watched(maintenance=((at(17, 2), at(17, 6)),)), runs)).incidents
    assert (incident.start, incident.seconds, incident.count, incident.run) == (at(17, 7), 2 * 3600, 1, "after")


def test_a_run_that_was_due_in_maintenance_is_not_missed() -> None:
    quiet = watched(cron="0 3 * * *", maintenance=((at(17, 2.9), at(17, 3.1)),))
    found = made((quiet, [one for one in daily(3) if one.effective_at.day != 17])).figures
    assert (found.slots, found.on_time, found.incidents) == (6, 6, 0)


def test_a_run_that_overran_in_maintenance_is_no_incident() -> None:
    long = run(at(17, 3), minutes=180)
    assert len(made((watched(limit=60), [long])).incidents) == 1
    assert made((watched(limit=60, maintenance=((at(17, 2), at(17, 6)),)), [long])).incidents == ()


def test_maintenance_within_an_incident_does_not_count_to_its_length() -> None:
    runs = [run(at(16, 1)), run(at(17, 1), F, minutes=0), run(at(17, 9), minutes=0)]
    [incident] = made((watched(maintenance=((at(17, 2), at(17, 6)),)), runs)).incidents
    assert (incident.start, incident.end, incident.seconds) == (at(17, 1), at(17, 9), 4 * 3600)


# --- the whole ---------------------------------------------------------------------------------------------------------


def test_the_worst_pipeline_comes_first() -> None:
    found = made(
        (watched("fine"), daily(3)),
        (watched("blind", known=None), []),
        (watched("bad"), daily(3, F)),
        (watched("once"), [run(at(17, 1), F), run(at(17, 2))]),
    )
    assert [one.slug for one in found.pipelines] == ["bad", "once", "blind", "fine"]


def test_days_have_the_runs_and_the_coverage_of_all_pipelines() -> None:
    found = made((watched("a"), daily(3)), (watched("b", known=(ADDED, at(18, 12))), [run(at(16, 5), F)]))
    assert [(day.tally.success, day.tally.failed) for day in found.days] == [(1, 1), *[(1, 0)] * 6]
    assert [day.coverage for day in found.days] == [1.0, 1.0, 0.75, 0.5, 0.5, 0.5, 0.5]


def test_the_order_of_the_input_makes_no_difference() -> None:
    rng = random.Random(7)
    pipelines = [
        (watched(f"p{n}", cron="0 3 * * *"), [run(at(day, 3), rng.choice([S, S, F])) for day in range(5, 23)])
        for n in range(6)
    ]
    shuffled = [(one, rng.sample(runs, len(runs))) for one, runs in rng.sample(pipelines, len(pipelines))]
    assert made(*pipelines) == made(*shuffled)
    assert made(*pipelines).fingerprint == made(*shuffled).fingerprint


def test_the_week_before_is_judged_like_the_week() -> None:
    runs = [*daily(3, last=14), run(at(15, 3), F), *daily(3, first=16)]
    found = made((watched(cron="0 3 * * *"), runs))
    assert (found.before.runs, found.before.success_rate) == (7, round(6 / 7, 6))
    assert (found.figures.runs, found.figures.success_rate) == (7, 1.0)
    assert found.before == made((watched(cron="0 3 * * *"), runs), period=WEEK.before()).figures


def test_a_pipeline_that_flips_is_flaky() -> None:
    flipping = [run(at(day, hour), F if hour == 4 else S) for day in range(16, 23) for hour in (2, 4)]
    found = made((watched(), flipping)).pipelines[0].flaky
    assert found is not None and (found.flips, found.recoveries, found.settled) == (13, 6, 14)
    assert made((watched(), flipping[:9])).pipelines[0].flaky is None, "nine runs are too few"


# --- revisions ---------------------------------------------------------------------------------------------------------


def test_late_data_make_a_revision_that_says_what_changed() -> None:
    first = revised(made((watched(), daily(3))), None)
    assert (first.revision, first.revisions) == (1, ())
    issued = issue(first)
    assert revised(made((watched(), daily(3))), issued) == first, "the same data are the same issue"

    late = made((watched(), [*daily(3), run(at(17, 5), F)]))
    second = revised(late, issued)
    assert second.revision == 2
    assert second.revisions[0].number == 2
    assert second.revisions[0].changes[:2] == (Change("runs", 7, 8), Change("success_rate", 1.0, 0.875))
    assert Change("incidents", 0, 1) in second.revisions[0].changes
    assert revised(late, issue(second)) == second

    third = revised(made((watched(), daily(3))), issue(second))
    assert [one.number for one in third.revisions] == [2, 3]


def test_a_change_that_moves_no_figure_is_a_revision_too() -> None:
    first = revised(made((watched(), [run(at(17, 1)), run(at(18, 1))])), None)
    second = revised(made((watched(), [run(at(17, 1)), run(at(19, 1))])), issue(first))
    assert (second.revision, second.revisions[0].changes) == (2, (Change("details"),))


def test_a_new_name_is_no_revision() -> None:
    first = revised(made((watched(), daily(3))), None)
    renamed = dataclasses.replace(watched(), name="Orders, renamed")
    assert revised(made((renamed, daily(3))), issue(first)).revision == 1


def test_only_the_latest_revisions_are_kept() -> None:
    found = revised(made((watched(), [])), None)
    for count in range(1, 14):
        found = revised(made((watched(), [run(at(16, n / 2)) for n in range(count)])), issue(found))
    assert found.revision == 14
    assert [one.number for one in found.revisions] == list(range(5, 15))

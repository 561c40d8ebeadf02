import itertools
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chm_dagster.domain.pipelines import Platform
from chm_dagster.partners.sandbox import World
from chm_dagster.partners.sandbox.catalogue import Habit
from chm_dagster.partners.sandbox.world import ANCHOR_US, Listing, Position, microseconds

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def everything() -> list[dict[str, Any]]:
    """The full listing of the default world at NOON."""
    return World(7).records(None, None, NOON)


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


def as_bytes(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records).encode()


def runs_of(world: World, external_id: str, now: datetime) -> list[dict[str, Any]]:
    return world.records(world.pipeline(external_id), None, now)


def key(record: dict[str, Any]) -> tuple[str, str]:
    return record["pipeline_id"], str(record["id"])


def test_the_same_seed_and_time_give_the_same_bytes_whatever_was_requested_before() -> None:
    used, fresh = World(7), World(7)
    since = NOON - timedelta(days=2)
    used.records(None, None, NOON + 3 * MINUTE)
    used.records(used.pipelines()[3], NOON - MINUTE, NOON)
    assert as_bytes(used.records(None, since, NOON)) == as_bytes(fresh.records(None, since, NOON))


def test_another_process_sees_the_same_world() -> None:
    code = (
        "import hashlib, json; from datetime import datetime, UTC; from chm_dagster.partners.sandbox import World; "
        "r = World(7).records(None, datetime(2026, 3, 10, 11, tzinfo=UTC), datetime(2026, 3, 10, 12, tzinfo=UTC)); "
        "print(json.dumps(r), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert other == as_bytes(World(7).records(None, NOON - 60 * MINUTE, NOON))


def test_another_seed_gives_another_world() -> None:
    since = NOON - 60 * MINUTE
    assert as_bytes(World(7).records(None, since, NOON)) != as_bytes(World(8).records(None, since, NOON))


def test_a_larger_world_only_adds_pipelines() -> None:
    assert World(7, 100).pipelines()[:24] == World(7).pipelines()


def test_external_ids_are_unique_and_readable_in_a_world_of_10000_pipelines() -> None:
    pipelines = World(7, 10_000).pipelines()
    assert len({p.external_id for p in pipelines}) == 10_000
    assert len({(p.client_name, p.name) for p in pipelines}) == 10_000
    assert pipelines[0].external_id == "amberwick-orders-sync"
    assert all(p.external_id.replace("-", "").isalnum() for p in pipelines)


def test_the_default_world_has_six_clients_eight_platforms_and_every_habit() -> None:
    pipelines = World(7).pipelines()
    assert len({p.client_name for p in pipelines}) == 6
    assert {p.platform for p in pipelines} == set(Platform) - {
        Platform.CUSTOM,
        Platform.DATABRICKS,
        Platform.GITHUB_ACTIONS,
    }
    assert {p.habit for p in pipelines} == set(Habit)
    assert all(120 <= p.period_seconds <= 86_400 for p in pipelines)


def test_every_five_minutes_bring_news() -> None:
    world = World(7)
    assert all(world.news(NOON + n * 5 * MINUTE, NOON + (n + 1) * 5 * MINUTE) > 0 for n in range(50))


def test_history_goes_back_fourteen_days_and_no_further(everything: list[dict[str, Any]]) -> None:
    for pipeline in World(7).pipelines():
        created = [time_of(r["created_at"]) for r in everything if r["pipeline_id"] == pipeline.external_id]
        assert NOON - timedelta(days=14) < min(created) < NOON - timedelta(days=12.9)
        assert max(created) <= NOON


def test_no_record_contains_the_future(everything: list[dict[str, Any]]) -> None:
    times = [r[f] for r in everything for f in ("created_at", "started_at", "finished_at", "updated_at") if r[f]]
    assert max(map(time_of, times)) <= NOON


def test_records_are_sorted_by_pipeline_then_run_and_their_ids_are_unique_within_the_pipeline(
    everything: list[dict[str, Any]],
) -> None:
    order = {p.external_id: p.index for p in World(7).pipelines()}
    places = [(order[r["pipeline_id"]], r["run_number"]) for r in everything]
    assert places == sorted(set(places))
    assert len({key(r) for r in everything}) == len(everything)


def lives(world: World, external_id: str, minutes: int) -> dict[str, list[dict[str, Any]]]:
    """Every distinct state of the runs created from NOON on, observed twice a minute."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for step in range(2 * minutes):
        for record in world.records(world.pipeline(external_id), NOON, NOON + step * MINUTE / 2):
            forms = seen.setdefault(str(record["id"]), [])
            if time_of(record["created_at"]) >= NOON and (not forms or forms[-1] != record):
                forms.append(record)
    return {run_id: forms for run_id, forms in seen.items() if forms}


def test_a_run_is_absent_then_running_then_finished_and_then_never_changes() -> None:
    found = lives(World(7), "dunmarrow-appointments-sync", 60)
    stories = {tuple(r["status"] for r in forms) for forms in found.values()}
    assert ("running", "success") in stories
    assert stories <= {("running", "success"), ("running", "failed"), ("running",), ("success",)}
    for forms in found.values():
        running = forms[0]
        if running["status"] == "running":
            assert running["finished_at"] is running["duration_seconds"] is running["error_message"] is None
        if len(forms) == 2:
            assert forms[1]["updated_at"] == forms[1]["finished_at"] > running["updated_at"]


def test_a_failed_run_is_reopened_under_its_id_and_loses_its_error_until_it_ends_again() -> None:
    found = lives(World(7), "brindlemoor-shipment-events", 180)
    reopened = [forms for forms in found.values() if forms[-1]["attempt"] == 1 and len(forms) == 4]
    assert reopened
    for first, failed, again, last in reopened:
        assert [r["status"] for r in (first, failed, again)] == ["running", "failed", "running"]
        assert [r["attempt"] for r in (first, failed, again, last)] == [0, 0, 1, 1]
        assert "\n" in failed["error_message"]
        assert again["error_message"] is again["finished_at"] is again["duration_seconds"] is None
        assert timedelta(minutes=3) <= time_of(again["started_at"]) - time_of(failed["finished_at"]) <= 12 * MINUTE
        assert last["status"] in ("success", "failed")


def test_a_late_run_counts_as_updated_when_it_became_visible() -> None:
    world = World(7)
    pipeline = world.pipeline("amberwick-orders-sync")
    late = [
        (r, lateness)
        for r in world.records(pipeline, None, NOON)
        if r["status"] != "running"
        and (lateness := time_of(r["updated_at"]) - time_of(r["finished_at"])) > timedelta(seconds=5)
    ]
    assert late
    assert all(time_of(r["updated_at"]) - time_of(r["created_at"]) <= timedelta(seconds=90) for r, _ in late)
    record, _ = late[-1]
    appeared = time_of(record["updated_at"])
    before = world.records(pipeline, None, appeared - timedelta(microseconds=1))
    after = world.records(pipeline, None, appeared)
    assert record["id"] not in {r["id"] for r in before}
    assert record["id"] in {r["id"] for r in after}


def statuses(world: World, external_id: str, now: datetime = NOON) -> list[str]:
    return [r["status"] for r in runs_of(world, external_id, now) if r["status"] != "running"]


def test_pipelines_keep_their_habits() -> None:
    world = World(7)
    flaky = statuses(world, "elderquay-fare-scraper")[-30:]
    assert sum(a != b for a, b in itertools.pairwise(flaky)) >= 15
    assert statuses(world, "amberwick-orders-sync").count("success") > 9_000
    assert statuses(world, "dunmarrow-patient-dedupe").count("canceled") > 20
    skipping = [r for r in runs_of(world, "amberwick-price-feed-export", NOON) if r["status"] == "skipped"]
    assert len(skipping) > 80
    assert {r["duration_seconds"] for r in skipping} == {0}
    slow = [r["duration_seconds"] for r in runs_of(world, "cobaltfen-grid-forecast", NOON) if r["finished_at"]]
    assert sorted(slow)[len(slow) // 2] > 0.5 * 3600


@pytest.mark.parametrize("day", range(0, 36, 4))
def test_at_any_time_two_of_the_three_brittle_pipelines_are_broken(day: int) -> None:
    world, now = World(7), NOON + timedelta(days=day)
    brittle = [p for p in world.pipelines() if p.habit is Habit.BROKEN]
    newest = {p.external_id: statuses(world, p.external_id, now) for p in brittle}
    assert sum(found[-1] == "failed" for found in newest.values()) == 2
    assert all({"success", "failed"} == set(found) for found in newest.values())


def test_a_broken_pipeline_gives_the_same_reason_until_it_is_fixed() -> None:
    world = World(7)
    for pipeline in (p for p in world.pipelines() if p.habit is Habit.BROKEN):
        first_lines = {(r["error_message"] or "").split("\n")[0] for r in world.records(pipeline, None, NOON)}
        assert len(first_lines - {""}) == 1


@pytest.mark.parametrize("step_seconds", [45, 301.5, 1800])
def test_incremental_polls_add_up_to_the_full_listing(step_seconds: float) -> None:
    world, step = World(7, 200, history=timedelta(hours=12)), timedelta(seconds=step_seconds)
    known = {key(r): r for r in world.records(None, None, NOON)}
    now, end = NOON, NOON + timedelta(hours=4)
    while now < end:
        since, now = now, min(now + step, end)
        known.update({key(r): r for r in world.records(None, since, now)})
    full = {key(r): r for r in world.records(None, None, end)}
    assert {k: known.get(k) for k in full} == full


def test_updated_since_is_inclusive_and_nothing_older_is_listed() -> None:
    world = World(7)
    recent = world.records(None, NOON - 30 * MINUTE, NOON)
    since = sorted(r["updated_at"] for r in recent)[len(recent) // 2]
    from_then_on = world.records(None, time_of(since), NOON)
    assert {r["updated_at"] for r in recent if r["updated_at"] >= since} == {r["updated_at"] for r in from_then_on}
    assert since in {r["updated_at"] for r in from_then_on}


def test_pages_of_any_size_add_up_to_the_listing() -> None:
    world = World(7)
    listing = world.listing(None, NOON - 120 * MINUTE, NOON)
    whole, _ = world.page(listing, None, 10_000)
    for limit in (1, 7, 100, len(whole)):
        collected: list[dict[str, Any]] = []
        start: Position | None = None
        for _ in whole:
            records, start = world.page(listing, start, limit)
            assert len(records) == limit or start is None
            collected += records
            if start is None:
                break
        assert collected == whole


def test_an_incremental_listing_of_10000_pipelines_computes_few_runs() -> None:
    world = World(7, 10_000)
    news = world.records(None, NOON - 5 * MINUTE, NOON)
    assert len(news) > 50
    assert world.generated < 2_000


def test_a_later_page_does_not_compute_the_earlier_ones_again() -> None:
    world = World.bench(7, 1_000, runs_per_pipeline=10)
    listing = world.listing(None, None, NOON)
    _, start = world.page(listing, None, 9_000)
    before = world.generated
    world.page(listing, start, 100)
    assert world.generated - before <= 101


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(seconds=0.3), timedelta(days=3, microseconds=1)])
def test_a_bench_world_has_exactly_500_new_runs_in_any_window(offset: timedelta) -> None:
    world = World.bench(7, 10_000, runs_per_pipeline=3, new_runs=500, window=timedelta(minutes=5))
    now = NOON + offset
    assert [world.news(now + n * 5 * MINUTE, now + (n + 1) * 5 * MINUTE) for n in range(3)] == [500, 500, 500]
    assert world.generated == 1_500
    assert world.pipelines()[0].period_seconds == 20 * 300


def test_a_bench_world_lists_exactly_the_requested_number_of_runs_at_any_time() -> None:
    world = World.bench(7, 500, runs_per_pipeline=4, new_runs=25)
    for now in (NOON, NOON + timedelta(seconds=17.123)):
        records = world.records(None, None, now)
        counts: dict[str, int] = {}
        for record in records:
            counts[record["pipeline_id"]] = counts.get(record["pipeline_id"], 0) + 1
        assert set(counts.values()) == {4}
        assert len(counts) == 500
        assert {r["status"] for r in records} <= {"success", "failed", "canceled", "skipped"}


def test_a_forced_period_spreads_the_pipelines_evenly() -> None:
    world = World(7, 100, period_seconds=1000)
    assert world.news(NOON, NOON + timedelta(seconds=50)) == 5
    slots = sorted(p.offset_us for p in world.pipelines())
    assert {b - a for a, b in itertools.pairwise(slots)} == {10_000_000}


def test_a_bench_window_that_cannot_be_even_is_rejected() -> None:
    with pytest.raises(ValueError, match="multiple"):
        World.bench(7, 10, new_runs=7, window=timedelta(seconds=1))


def test_a_world_without_pipelines_or_with_too_short_a_period_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one"):
        World(7, 0)
    with pytest.raises(ValueError, match="too short"):
        World(7, 1000, period_seconds=0.0001)


def test_naive_times_are_rejected() -> None:
    with pytest.raises(TypeError):
        World(7).listing(None, None, datetime(2026, 1, 1))


def test_runs_before_the_beginning_of_the_world_do_not_exist() -> None:
    world = World(7)
    day_one = Listing(ANCHOR_US + 86_400_000_000, 0, 0)
    records, _ = world.page(day_one, None, 10_000)
    assert 700 <= len(records) <= 720
    assert min(r["run_number"] for r in records) == 0
    assert microseconds(time_of(records[0]["created_at"])) >= ANCHOR_US

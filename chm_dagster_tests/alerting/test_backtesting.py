"""Back-tests over a real database."""

from datetime import timedelta
from typing import Any

import pytest

from chm_dagster.alerting.backtesting import back_test, within
from chm_dagster.domain.backtests import BackTest, BackTestRequest
from chm_dagster.domain.rules import AlertRule
from chm_dagster.errors import InputError, NotFound
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.unit.test_alert_evaluation import at, run


def tried(world: World, rule: AlertRule | None = None, hour: float = 48, **fields: Any) -> BackTest:
    return back_test(world.warehouse, BackTestRequest.read({"days": 2, **fields}), at(hour), rule)


@pytest.mark.slow
def test_a_back_test_finds_what_live_evaluation_found(world: World) -> None:
    """Every six minutes of two days, with runs as they were known then; then the same from the database at the end."""
    pipeline = world.pipeline(schedule_cron="0 */4 * * *", grace_minutes=30)
    whole = [
        run(letter, hour, minutes)
        for letter, hour, minutes in [
            ("S", 0, 6), ("F", 4, 6), ("F", 8, 6), ("S", 12, 90), ("F", 17, 6), ("S", 20, 6), ("F", 30, 6), ("F", 32, 6),
        ]
    ]  # fmt: skip
    rules = [
        world.rule(),
        world.rule("consecutive_failures", threshold=2),
        world.rule("failures_in_window", threshold=2, window_minutes=360),
        world.rule("no_success_in_window", window_minutes=600),
        world.rule("running_too_long", window_minutes=60),
        world.rule("missed_run"),
    ]
    for tick in range(480):
        hour = tick / 10
        known = [r for r in whole if r.effective_at <= at(hour)]
        started = [r for r in known if r.finished_at is not None and r.finished_at > at(hour)]
        then = [run("R", 0, run=r.run, effective_at=r.effective_at, started_at=r.started_at) for r in started]
        if any(abs((t - at(hour)).total_seconds()) < 400 for r in whole for t in (r.effective_at, r.finished_at) if t):
            world.runs(pipeline, [*(r for r in known if r not in started), *then])
        starts = [r.effective_at for r in known]
        slot = at((((max(starts, default=at(0)) - at(0)) / timedelta(hours=4)) // 1 + 1) * 4)
        world.set("pipelines", pipeline, due_at=slot)
        world.known(hour, pipeline)
        world.evaluate(hour)
    world.known(48, pipeline)
    live = {rule.id: _live(world, rule) for rule in rules}
    found = {rule.id: _back_tested(world, rule) for rule in rules}
    assert found == live
    assert all(episodes for episodes in found.values())


def _live(world: World, rule: AlertRule) -> list[Any]:
    over = [
        (row["since"], row["until"])
        for row in world.warehouse.ask("past_episodes", since=at(-1000))
        if row["rule_id"] == rule.id
    ]
    still = [(episode.since, None) for (rule_id, _), episode in world.episodes().items() if rule_id == rule.id]
    return sorted([*over, *still], key=lambda one: one[0])


def _back_tested(world: World, rule: AlertRule) -> list[Any]:
    return sorted(((e.since, e.until) for e in tried(world, rule).latest), key=lambda one: one[0])


def test_other_parameters_are_compared_with_the_rule_as_it_is(world: World) -> None:
    pipeline = world.pipeline()
    world.runs(pipeline, "S0 F2 S3 F4 F5 S6 F7 F8 F9 S10")
    world.known(48, pipeline)
    rule = world.rule("consecutive_failures", threshold=3)
    as_it_is = tried(world, rule)
    assert (as_it_is.episodes, as_it_is.difference) == (1, None)
    changed = tried(world, rule, threshold=2)
    assert changed.episodes == 2
    assert changed.difference is not None
    assert changed.difference.model_dump() == {"episodes_now": 1, "messages_now": 2, "added": 1, "removed": 0}
    other_type = tried(world, rule, rule_type="on_failure")
    assert other_type.episodes == 3


def test_a_streak_that_began_before_the_time_in_question_is_whole(world: World) -> None:
    pipeline = world.pipeline()
    world.runs(pipeline, "S-200 F-150 F-100 F-90 S-20 F-10 F3")
    world.known(48, pipeline)
    found = tried(world, rule_type="consecutive_failures", threshold=2)
    assert [(e.since, e.failures) for e in found.latest] == [(at(3.1), 2)]
    found = tried(world, rule_type="on_failure")
    assert [(e.since, e.failures) for e in found.latest] == [(at(-9.9), 2)]


def test_a_long_run_that_began_before_the_time_in_question_counts(world: World) -> None:
    pipeline = world.pipeline()
    world.runs(pipeline, [run("R", -90), run("S", -60), run("S", 3)])
    world.known(48, pipeline)
    assert tried(world, rule_type="running_too_long", window_minutes=60).still_open == 1


def test_the_scope_is_that_of_the_rule_or_what_is_asked_for(world: World) -> None:
    for key in ("acme/orders", "acme/billing", "zeta/export"):
        world.runs(world.pipeline(key), "F2")
    own = world.rule(pipeline_id="acme/orders")
    of_client = world.rule(client_id="acme", destination="#other")
    assert [n.pipeline for n in tried(world, own).noisiest] == ["acme/orders"]
    # The pipeline's own rule takes the place of its client's.
    assert [n.pipeline for n in tried(world, of_client).noisiest] == ["acme/billing"]
    assert [n.pipeline for n in tried(world, of_client, client_id="zeta").noisiest] == ["zeta/export"]
    assert tried(world, rule_type="on_failure").pipelines == 3
    assert tried(world, rule_type="on_failure", pipeline_id="acme/orders").pipelines == 1
    world.warehouse.pipelines.disable("zeta/export")
    assert tried(world, rule_type="on_failure").pipelines == 2


def test_maintenance_of_a_pipeline_and_its_client_is_considered(world: World) -> None:
    pipeline = world.pipeline()
    world.runs(pipeline, "S0 F1 S4 F6 S7 F20")
    world.known(48, pipeline)
    world.warehouse.clients.update("acme", {"maintenance": [{"start": at(0.5), "end": at(2)}]})
    world.warehouse.pipelines.update("acme/orders", {"maintenance": [{"start": at(5), "end": at(8)}]})
    found = tried(world, rule_type="on_failure")
    assert [(e.since, e.announced_at) for e in found.latest] == [
        (at(20.1), at(20.1)),
        (at(6.1), None),
        (at(1.1), at(2)),
    ]
    assert (found.notices["opened"], found.notices["recovered"]) == (2, 1)


def test_time_that_is_not_known_is_said(world: World) -> None:
    pipeline = world.pipeline()
    world.known(24, pipeline)
    result = tried(world, rule_type="missed_run")
    assert (result.pipelines, result.unknown_share, result.episodes) == (1, 0.5, 0)
    assert any("not stored" in sentence for sentence in result.not_considered)


@pytest.mark.parametrize(
    ("fields", "issue"),
    [
        ({}, "rule_type: is required"),
        ({"rule_type": "consecutive_failures"}, "threshold: is required for a rule of type"),
        ({"rule_type": "on_failure", "threshold": 3}, "threshold: has no meaning"),
        ({"rule_type": "on_failure", "days": 91}, "days: must be at most 90"),
        ({"rule_type": "on_failure", "client_id": "acme", "pipeline_id": "acme/orders"}, "pipeline_id: has no meaning"),
    ],
)
def test_what_cannot_be_tested_is_refused(world: World, fields: dict[str, Any], issue: str) -> None:
    with pytest.raises(InputError, match=issue):
        tried(world, **fields)


def test_a_scope_that_does_not_exist_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        tried(world, rule_type="on_failure", client_id="nobody")


def test_a_back_test_ends_when_its_time_is_over(world: World) -> None:
    for key in ("acme/orders", "acme/billing"):
        world.runs(world.pipeline(key), "S0 F1 S2 F3")
    clock = iter(range(100))
    request = BackTestRequest.read({"rule_type": "on_failure", "days": 2})
    with pytest.raises(InputError, match=r"^days: take longer than 4 s here; .* with `chm rule test`") as refused:
        back_test(world.warehouse, request, at(48), check=within(4, clock=lambda: next(clock)))
    assert next(clock) == 5
    # Whoever keeps the error does not keep the connection.
    assert world.engine.pool.checkedout() == 0, refused  # type: ignore[attr-defined]
    assert tried(world, rule_type="on_failure").episodes == 4

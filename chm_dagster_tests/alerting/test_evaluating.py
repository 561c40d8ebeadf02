"""Evaluation over a real database: which rules look at which pipelines, and what is committed."""

import json
import random
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
import sqlalchemy as sa

from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.domain.alerts import Condition, Coverage, Expectations, NoticeKind, RunFact, State
from chm_dagster.domain.evaluation import evaluate
from chm_dagster.domain.messages import MAX_OPENINGS, Item, SameError, entries
from chm_dagster.errors import NotFound
from chm_dagster.presentation.alerts import sentence
from chm_dagster.warehouse.alerts import MAX_FAILURES, MAX_RUNS, evaluation
from chm_dagster.warehouse.inventory.pipelines import purge
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.factories import rows
from chm_dagster_tests.unit.test_alert_evaluation import at, run, story

TYPES: list[dict[str, Any]] = [
    {"kind": "on_failure"},
    {"kind": "consecutive_failures", "threshold": 3},
    {"kind": "failures_in_window", "threshold": 3, "window_minutes": 180},
    {"kind": "no_success_in_window", "window_minutes": 120},
    {"kind": "running_too_long", "window_minutes": 60},
    {"kind": "running_too_long"},
    {"kind": "missed_run"},
    {"kind": "missed_run", "window_minutes": 90},
]


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (TYPES[0], "S1 F2", "S1 F2 S3"),
        (TYPES[1], "S1 F2 F3 F4", "S1 F2 F3 F4 S5"),
        (TYPES[2], "S7.5 F7.6 F7.7 F7.8", ""),
        (TYPES[3], "S5", "S5 S7.9"),
        (TYPES[4], "S1 R6", "S1 S6"),
    ],
)
def test_each_type_opens_and_closes_an_episode(world: World, rule: dict[str, Any], bad: str, good: str) -> None:
    pipeline = world.pipeline()
    world.rule(**rule)
    world.runs(pipeline, bad)
    assert world.look(8, pipeline) == ["opened acme/orders"]
    assert world.look(8.1, pipeline) == []
    world.runs(pipeline, good)
    assert world.look(8.2, pipeline) in (["recovered acme/orders"], ["corrected acme/orders"])
    assert world.episodes() == {}


def test_a_missed_run_opens_and_closes_an_episode(world: World) -> None:
    pipeline = world.pipeline(schedule_cron="0 6 * * *", grace_minutes=30)
    world.rule("missed_run")
    world.runs(pipeline, "S-18")
    world.set("pipelines", pipeline, due_at=at(6))
    assert world.look(6.4, pipeline) == []
    assert world.look(6.6, pipeline) == ["opened acme/orders"]
    world.runs(pipeline, "S-18 S7")
    assert world.look(7.2, pipeline) == ["recovered acme/orders"]


def test_a_missed_run_without_grace_opens_at_once(world: World) -> None:
    pipeline = world.pipeline(schedule_cron="0 6 * * *", grace_minutes=0)
    world.rule("missed_run")
    world.runs(pipeline, "S-18")
    world.set("pipelines", pipeline, due_at=at(6))
    assert world.look(5.99, pipeline) == []
    assert world.look(6, pipeline) == ["opened acme/orders"]


def test_a_message_has_what_one_needs_at_night(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    traceback = "Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>\nKeyError: 'price'"
    world.runs(pipeline, "S1 F2 F3", error=traceback)
    world.known(4, pipeline)
    world.evaluate(4)
    [message] = world.messages()
    [item] = message.items
    assert (message.channel, message.destination, item.rule_id) == ("slack", "#alerts", rule.id)
    assert (item.client_name, item.pipeline_name, item.pipeline_key) == ("Acme", "Orders", "acme/orders")
    assert (item.since, item.evidence.count, item.error) == (at(2.1), 2, "KeyError: 'price'")
    assert item.source_url == "https://partner.example/runs/F3.0"


def test_one_receiver_gets_one_message_per_evaluation(world: World) -> None:
    pipelines = [world.pipeline(key) for key in ("acme/orders", "acme/billing", "zeta/orders")]
    for pipeline in pipelines:
        world.runs(pipeline, "F2")
    world.rule(client_id="acme")
    world.rule(client_id="zeta")
    world.rule(client_id="zeta", destination="#zeta")
    world.known(4, *pipelines)
    report = world.evaluate(4)
    assert {m.destination: [i.pipeline_key for i in m.items] for m in world.messages()} == {
        "#alerts": ["acme/billing", "acme/orders", "zeta/orders"],
        "#zeta": ["zeta/orders"],
    }
    assert (report.messages, report.open_episodes, report.notices) == (2, 4, {"opened": 4})


def test_a_rule_of_a_pipeline_takes_the_place_of_its_clients_rule_of_that_type(world: World) -> None:
    orders, billing = world.pipeline("acme/orders"), world.pipeline("acme/billing")
    for pipeline in (orders, billing):
        world.runs(pipeline, "F2")
    of_client = world.rule(client_id="acme")
    world.look(4, orders, billing)
    assert set(world.episodes()) == {(of_client.id, orders), (of_client.id, billing)}
    own = world.rule(pipeline_id="acme/orders", destination="#orders")
    assert sorted(world.look(4.1, orders, billing)) == ["ended acme/orders", "opened acme/orders"]
    assert set(world.episodes()) == {(own.id, orders), (of_client.id, billing)}
    world.warehouse.rules.disable(own.id)
    assert sorted(world.look(4.2, orders, billing)) == ["ended acme/orders", "opened acme/orders"]


@pytest.mark.parametrize("what", ["pipeline", "client", "rule"])
def test_what_is_disabled_ends_its_episodes(world: World, what: str) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    assert world.look(4, pipeline) == ["opened acme/orders"]
    if what == "pipeline":
        world.warehouse.pipelines.disable("acme/orders")
    elif what == "client":
        world.warehouse.clients.disable("acme")
    else:
        world.warehouse.rules.disable(rule.id)
    world.evaluate(4.1)
    [message] = world.messages()
    assert (message.items[0].kind, message.items[0].reason) == ("ended", f"the {what} was disabled")
    assert world.look(4.2, pipeline) == ["ended acme/orders"]
    assert world.episodes() == {}


def test_a_renamed_pipeline_keeps_its_episode(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "F2")
    world.look(4, pipeline)
    before = world.episodes()
    world.warehouse.pipelines.update("acme/orders", {"name": "Orders, new"})
    assert world.look(4.1, pipeline) == []
    after = world.episodes()
    assert {pair: e.names and e.names.name for pair, e in after.items()} == dict.fromkeys(before, "Orders, new")
    assert {e.id for e in after.values()} == {e.id for e in before.values()}


def test_the_end_of_an_episode_is_announced_when_its_rule_is_deleted(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    world.look(4, pipeline)
    world.warehouse.rules.delete(rule.id)
    for find in (world.warehouse.rules.get, world.warehouse.rules.delete, world.warehouse.rules.disable):
        with pytest.raises(NotFound):
            find(rule.id)
    assert world.warehouse.rules.list().items == []
    again = world.rule()
    world.evaluate(4.1)
    assert {(i.rule_id, i.kind, i.reason) for m in world.messages() for i in m.items} == {
        (rule.id, NoticeKind.ENDED, "the rule was deleted"),
        (again.id, NoticeKind.OPENED, ""),
    }
    world.evaluate(4.2)
    kept = "SELECT id FROM alert_rules"
    assert {row["id"] for row in rows(world.engine, kept)} == {rule.id, again.id}, "its message waits"
    world.taken()
    world.evaluate(4.3)
    assert [row["id"] for row in rows(world.engine, kept)] == [again.id]


def test_a_rule_without_open_episodes_is_deleted_at_once(world: World) -> None:
    world.pipeline()
    world.warehouse.rules.delete(world.rule().id)
    assert rows(world.engine, "SELECT id FROM alert_rules") == []


def _alike(world: World, *clients: str, error: str = "KeyError: 'price' in row {}") -> list[UUID]:
    """One failing pipeline of each client, with the same error but for a number."""
    found = []
    for number, client in enumerate(clients):
        found.append(world.pipeline(f"{client}/orders"))
        world.rule(client_id=client)
        world.runs(found[-1], "F2", error=error.format(number))
    return found


def test_the_same_error_at_three_clients_is_one_entry_of_a_message(world: World) -> None:
    failing = _alike(world, "acme", "beta", "zeta")
    other = world.pipeline("beta/export")
    world.runs(other, "F2", error="TimeoutError")
    world.known(4, *failing, other)
    world.evaluate(4)
    [message] = world.messages()
    one, same = sorted(entries(message), key=lambda entry: isinstance(entry, SameError))
    assert isinstance(one, Item)
    assert one.pipeline_key == "beta/export"
    assert isinstance(same, SameError)
    assert [item.pipeline_key for item in same.items] == ["acme/orders", "beta/orders", "zeta/orders"]
    assert same.clients == ("Acme", "Beta", "Zeta")


def test_the_same_error_at_two_clients_is_two_entries(world: World) -> None:
    world.known(4, *_alike(world, "acme", "beta"))
    world.evaluate(4)
    [message] = world.messages()
    assert len(entries(message)) == 2


@pytest.mark.parametrize(("later", "others"), [(0.4, ("Acme", "Beta")), (0.6, ())])
def test_a_message_names_clients_that_had_the_same_error_shortly_before(
    world: World, later: float, others: tuple[str, ...]
) -> None:
    world.known(4, *_alike(world, "acme", "beta"))
    world.evaluate(4)
    world.taken()
    world.known(4 + later, *_alike(world, "zeta"))
    world.evaluate(4 + later)
    [message] = world.messages()
    assert [item.same_error_at for item in message.items] == [others]


def test_a_receiver_that_has_had_enough_gets_the_rest_in_one_message(world: World) -> None:
    pipelines = [world.pipeline(f"acme/p{number}") for number in range(MAX_OPENINGS + 3)]
    calm = world.pipeline("zeta/orders")
    for client, destination in (("acme", "#alerts"), ("zeta", "#zeta")):
        world.rule(client_id=client, destination=destination)
    hours = [4 + number / 60 for number in range(MAX_OPENINGS)]
    for pipeline, hour in zip(pipelines, hours, strict=False):
        world.runs(pipeline, "F2", error=f"{pipeline} broke")
        world.known(hour, pipeline)
        world.evaluate(hour)
    *before, last = world.messages()
    assert len(before) == MAX_OPENINGS - 1
    assert {message.held_until for message in before} == {None}
    assert last.held_until == at(5)
    world.taken()
    flapping, *rest = pipelines[MAX_OPENINGS:]
    for pipeline in (flapping, *rest, calm):
        world.runs(pipeline, "F2")
    assert world.look(4.5, *pipelines, calm) == ["opened zeta/orders"], "another receiver has its own measure"
    world.runs(flapping, "F2 S4")
    world.runs(pipelines[0], "F2 S4")
    assert world.look(4.6, *pipelines) == ["recovered acme/p0"], "what was announced is announced as over"
    assert world.look(4.9, *pipelines) == []
    world.known(5.01, *pipelines)
    world.evaluate(5.01)
    [message] = [message for message in world.messages() if message.destination == "#alerts"]
    opened = [item.pipeline_key for item in message.items if item.kind is NoticeKind.OPENED]
    assert opened == [f"acme/p{MAX_OPENINGS + 1}", f"acme/p{MAX_OPENINGS + 2}"]
    # The oldest of the twelve no longer counts, and this one does.
    assert message.held_until == at(hours[1] + 1)
    assert message.unannounced == 1


def test_a_muted_rule_says_nothing_until_the_mute_ends(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    world.set("alert_rules", rule.id, muted_until=at(5))
    assert world.look(4, pipeline) == []
    assert world.look(5.1, pipeline) == ["opened acme/orders"]


def test_state_of_alerts_is_no_edit_of_the_rule(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    world.known(4, pipeline)
    world.evaluate(4)
    assert world.warehouse.rules.get(rule.id) == rule


def test_a_partner_that_cannot_be_read_accuses_nobody(world: World) -> None:
    pipeline = world.pipeline(schedule_cron="0 * * * *", grace_minutes=0)
    world.rule("no_success_in_window", window_minutes=120)
    world.rule("missed_run")
    world.rule("running_too_long", window_minutes=60)
    world.runs(pipeline, "S1 R2")
    world.set("pipelines", pipeline, due_at=at(3))
    world.known(2.5, pipeline)
    report = world.evaluate(200)
    assert (report.open_episodes, world.messages()) == (0, [])
    world.known(200, pipeline)
    assert world.evaluate(200).open_episodes == 3


def test_records_that_could_not_be_understood_accuse_nobody(world: World) -> None:
    pipeline = world.pipeline(schedule_cron="0 * * * *", grace_minutes=0)
    for kind, window in (("missed_run", None), ("no_success_in_window", 120), ("running_too_long", 60)):
        world.rule(kind, window_minutes=window)
    world.runs(pipeline, "S1 R2")
    world.set("pipelines", pipeline, due_at=at(3), doubt="1 record of the last sync was rejected", doubt_since=at(2.5))
    world.known(6, pipeline)
    assert (world.evaluate(6).open_episodes, world.messages()) == (0, [])
    world.set("pipelines", pipeline, doubt=None, doubt_since=None)
    assert world.evaluate(6.1).open_episodes == 3


@pytest.mark.parametrize(("heard", "said"), [(2.5, ["opened acme/orders"]), (3.5, [])], ids=["before", "since"])
def test_a_heartbeat_that_may_have_been_lost_while_the_api_was_down_accuses_nobody(
    world: World, heard: float, said: list[str]
) -> None:
    pipeline = world.pipeline(pushed=True, schedule_cron="0 * * * *", grace_minutes=0)
    world.rule("missed_run")
    world.runs(pipeline, "S2")
    world.set("pipelines", pipeline, due_at=at(3))
    gap = {"lost": at(2.4).isoformat(), "heard": at(heard).isoformat()}
    owner = rows(world.engine, "SELECT client_id FROM pipelines")[0]["client_id"]
    world.set("clients", owner, api_gaps=json.dumps([gap]))
    world.evaluate(3.6)
    assert world.taken() == said


def test_a_pipeline_that_its_partner_no_longer_knows_keeps_its_episode(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "F2")
    world.look(4, pipeline)
    world.set("pipelines", pipeline, sync_error="gone", sync_error_code="not_at_partner", sync_failing_since=at(4))
    world.runs(pipeline, "")
    assert world.look(4.1, pipeline) == []
    assert len(world.episodes()) == 1


def test_only_one_process_evaluates_at_a_time(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "F2")
    with evaluation(world.engine, at(4)) as mine:
        assert mine is not None
        assert evaluate_rules(world.engine, at(4)) is None
    assert world.evaluate(4).notices == {"opened": 1}


def test_nothing_is_saved_by_an_evaluation_that_fails(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    with pytest.raises(ZeroDivisionError), evaluation(world.engine, at(4)) as mine:
        assert mine is not None
        mine.save({rule.id: []}, [], {})
        raise ZeroDivisionError
    assert world.look(4, pipeline) == ["opened acme/orders"]


def test_a_streak_that_is_longer_than_what_is_looked_at_keeps_its_beginning(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, [run("F", n / 10, 1, run=f"{n:05}") for n in range(MAX_RUNS - 5)])
    world.look(150, pipeline)
    [since] = world.open_since().values()
    world.runs(pipeline, [run("F", n / 10, 1, run=f"{n:05}") for n in range(MAX_RUNS + 20)])
    world.look(150.1, pipeline)
    assert list(world.open_since().values()) == [since] == [at(0) + timedelta(minutes=1)]
    # An hour later it is time for a reminder. It does not pretend to know how many there are.
    world.known(151.2, pipeline)
    world.evaluate(151.2)
    [[item]] = [message.items for message in world.messages()]
    assert sentence(item).endswith("or earlier, at least 1,000 failures in a row")
    over = msgspec.structs.replace(item, kind=NoticeKind.RECOVERED, until=at(152))
    assert "after at least 6 d" in sentence(over) and sentence(over).endswith("at least 1,000 failed runs")
    world.runs(pipeline, [run("F", n / 10, 1, run=f"{n:05}") for n in range(MAX_RUNS - 5)])
    world.evaluate(151.3)
    [episode] = world.episodes().values()
    assert (episode.evidence.count, episode.evidence.at_least) == (MAX_RUNS - 5, False)


def test_a_run_that_has_been_stuck_since_long_ago_is_seen(world: World) -> None:
    pipeline = world.pipeline()
    world.rule("running_too_long", window_minutes=60)
    world.runs(pipeline, [run("R", 0), *(run("S", 1 + n / 10, 1, run=f"{n:05}") for n in range(MAX_RUNS + 20))])
    assert world.look(150, pipeline) == ["opened acme/orders"]


def test_more_failures_than_runs_that_are_looked_at_count_in_a_window(world: World) -> None:
    pipeline = world.pipeline()
    world.rule("failures_in_window", threshold=3, window_minutes=24 * 60)
    busy = [run("S", 5 + n / 100, 0.1, run=f"s{n}") for n in range(MAX_RUNS + 50)]
    world.runs(pipeline, [*story("F1 F2 F3"), *busy])
    assert world.look(16, pipeline) == ["opened acme/orders"]
    assert list(world.open_since().values()) == [at(3.1)]
    assert world.look(26, pipeline) == ["recovered acme/orders"]


def test_a_window_with_more_failures_than_are_counted_is_unknown(world: World) -> None:
    pipeline = world.pipeline()
    world.rule("failures_in_window", threshold=5, window_minutes=600)
    world.runs(pipeline, "F1 F2 F3 F4 F5")
    assert world.look(6, pipeline) == ["opened acme/orders"]
    rule = next(iter(world.episodes()))[0]
    world.warehouse.rules.update(rule, {"threshold": 10_001})
    world.runs(pipeline, [run("F", n / 3600, 0.01, run=f"f{n}") for n in range(MAX_FAILURES + 5)])
    # All of them lie in the window, and one more than are counted would be needed.
    assert world.look(6.1, pipeline) == []
    assert len(world.episodes()) == 1


def test_what_nobody_can_see_any_more_is_not_called_a_correction(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    failed = [run("F", n / 10, 1, run=f"{n:05}") for n in range(MAX_RUNS + 20)]
    world.runs(pipeline, failed)
    assert world.look(150, pipeline) == ["opened acme/orders"]
    world.runs(pipeline, [*failed, run("F", 150, 1, run="x"), run("S", 151, 1, run="y")])
    assert world.look(152, pipeline) in (["recovered acme/orders"], ["ended acme/orders"])


@pytest.mark.parametrize(
    ("rule", "before", "runs", "changes"),
    [
        ({"kind": "running_too_long"}, {"max_runtime_minutes": 60}, "S1 R5", {"max_runtime_minutes": 600}),
        (
            {"kind": "missed_run"},
            {"schedule_cron": "0 6 * * *", "grace_minutes": 30},
            "S-18",
            {"grace_minutes": 600},
        ),
        (
            {"kind": "missed_run"},
            {"schedule_cron": "0 6 * * *", "grace_minutes": 30},
            "S-18",
            {"schedule_cron": "0 9 * * *"},
        ),
    ],
    ids=["max_runtime", "grace", "schedule"],
)
def test_an_episode_ends_when_what_is_expected_of_the_pipeline_is_changed(
    world: World, rule: dict[str, Any], before: dict[str, Any], runs: str, changes: dict[str, Any]
) -> None:
    pipeline = world.pipeline(**before)
    world.rule(**rule)
    world.runs(pipeline, runs)
    world.due(pipeline)
    assert world.look(7, pipeline) == ["opened acme/orders"]
    world.warehouse.pipelines.update("acme/orders", changes)
    world.known(7.1, pipeline)
    world.evaluate(7.1)
    [message] = world.messages()
    assert [(i.kind, i.reason) for i in message.items] == [("ended", "what is expected of the pipeline was changed")]


@pytest.mark.parametrize(
    "changes",
    [{"destination": "#others"}, {"channel": "email", "destination": "a@example.com"}],
    ids=["destination", "channel"],
)
def test_whoever_was_notified_hears_of_the_end_when_the_receiver_is_changed(
    world: World, changes: dict[str, Any]
) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.runs(pipeline, "F2")
    assert world.look(4, pipeline) == ["opened acme/orders"]
    changed = world.warehouse.rules.update(rule.id, changes)
    world.known(4.1, pipeline)
    world.evaluate(4.1)
    found = {(m.channel, m.destination, i.kind, i.reason) for m in world.messages() for i in m.items}
    assert found == {
        ("slack", "#alerts", "ended", "the rule notifies somebody else now"),
        (changed.channel, changed.destination, "opened", ""),
    }
    world.taken()
    world.runs(pipeline, "F2 S5")
    world.known(6, pipeline)
    world.evaluate(6)
    assert [(m.channel, m.destination) for m in world.messages()] == [(changed.channel, changed.destination)]


def test_the_end_of_an_episode_is_announced_when_its_rule_watches_something_else(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule("consecutive_failures", threshold=2)
    world.runs(pipeline, "F2 F3")
    assert world.look(4, pipeline) == ["opened acme/orders"]
    world.warehouse.rules.update(rule.id, {"rule_type": "on_failure", "threshold": None})
    world.known(4.1, pipeline)
    world.evaluate(4.1)
    [message] = world.messages()
    assert [(i.kind, i.rule_type, i.threshold, i.reason) for i in message.items] == [
        ("opened", "on_failure", None, ""),
        ("ended", "consecutive_failures", 2, "the rule watches something else now"),
    ]


def test_the_end_of_an_episode_is_announced_when_its_pipeline_is_purged(world: World) -> None:
    pipeline = world.pipeline()
    world.rule(client_id="acme")
    world.runs(pipeline, "F2")
    assert world.look(4, pipeline) == ["opened acme/orders"]
    purge(world.engine, pipeline_ids=[pipeline])
    world.evaluate(4.1)
    [message] = world.messages()
    assert [(i.kind, i.pipeline_key, i.pipeline_name, i.reason) for i in message.items] == [
        ("ended", "acme/orders", "Orders", "the pipeline was removed")
    ]
    assert world.look(4.2) == ["ended acme/orders"]
    assert world.episodes() == {}


def test_a_late_run_before_a_slot_does_not_hide_that_nothing_ran_at_that_slot(world: World) -> None:
    pipeline = world.pipeline(schedule_cron="0 * * * *", grace_minutes=10)
    world.rule("missed_run")
    # The run at 01:58:48 is that of 01:00; nothing has run for 02:00.
    world.runs(pipeline, "S0 S1.98")
    world.due(pipeline)
    assert world.look(2.2, pipeline) == ["opened acme/orders"]


def test_a_clock_that_is_set_back_ends_nothing(world: World) -> None:
    pipeline = world.pipeline()
    world.rule("no_success_in_window", window_minutes=120)
    world.runs(pipeline, "S1")
    assert world.look(3.2, pipeline) == ["opened acme/orders"]
    with evaluation(world.engine, at(2.9)) as mine:
        assert mine is not None
        assert mine.now == at(3.2)
    for hour in (2.9, 1.5):
        assert world.evaluate(hour).open_episodes == 1
        assert world.taken() == []
    world.runs(pipeline, "S1 S3.3")
    assert world.look(3.5, pipeline) == ["recovered acme/orders"]
    with evaluation(world.engine, at(3)) as mine:
        assert mine is not None
        assert mine.now == at(3.5)


def test_a_clock_that_was_far_ahead_does_not_stop_evaluation(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "F2")
    world.look(4 + 24 * 365, pipeline)
    with evaluation(world.engine, at(4)) as mine:
        assert mine is not None
        assert mine.now == at(5)


def test_evaluation_goes_by_the_clock_of_the_database(world: World) -> None:
    with evaluation(world.engine) as mine, world.engine.connect() as connection:
        assert mine is not None
        later = connection.scalar(sa.text("SELECT clock_timestamp()"))
        assert timedelta(0) <= later - mine.now < timedelta(minutes=5)


def expectations(engine: sa.Engine) -> dict[UUID, tuple[Expectations, Coverage]]:
    found = rows(engine, "SELECT * FROM pipelines")
    return {
        r["id"]: (
            Expectations(
                r["id"], r["created_at"], r["schedule_cron"], None, r["grace_minutes"], r["max_runtime_minutes"]
            ),
            Coverage(r["observed_through"] and r["observed_through"] - timedelta(minutes=5)),
        )
        for r in found
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_database_leaves_out_no_pair_that_fires(world: World, seed: int) -> None:
    """Every rule for every pipeline, evaluated with all runs, gives the episodes that set-based reading gives."""
    dice = random.Random(seed)
    histories: dict[UUID, list[RunFact]] = {}
    for number in range(25):
        schedule = {"schedule_cron": "0 * * * *", "grace_minutes": dice.choice([0, 20, 90])}
        fields = {"max_runtime_minutes": dice.choice([None, 45]), **(schedule if dice.random() < 0.7 else {})}
        pipeline = world.pipeline(f"acme/p{number}", **fields)
        clock, facts = dice.uniform(0, 20), []
        for index in range(dice.randrange(12)):
            minutes = dice.uniform(1, 100)
            facts.append(run(dice.choice("SSFFFRCKbr"), clock, minutes, run=str(index)))
            clock += minutes / 60 + dice.choice([0.1, 0.5, 1.5])
        world.runs(pipeline, facts)
        world.known(dice.choice([None, dice.uniform(1, 30), 29.9]), pipeline)
        if "schedule_cron" in fields:
            world.due(pipeline)
        histories[pipeline] = facts
    rules = [world.rule(client_id="acme", destination=f"#{n}", **fields) for n, fields in enumerate(TYPES)]
    now = at(30)
    world.evaluate(30)
    known = expectations(world.engine)
    expected = {}
    for rule in rules:
        for pipeline, facts in histories.items():
            verdict = evaluate(Condition.of(rule), known[pipeline][0], facts, known[pipeline][1], now)
            if verdict.state is State.FIRING:
                expected[rule.id, pipeline] = verdict.since
    assert world.open_since() == expected
    assert len(expected) > 10

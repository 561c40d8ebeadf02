"""What is kept with rules: messages in parts, and episodes that are over."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from chm_dagster.domain.messages import GIVE_UP_AFTER
from chm_dagster.errors import Permanent, Transient
from chm_dagster.warehouse.episodes import KEPT_EPISODES, KEPT_FOR
from chm_dagster.warehouse.inventory.pipelines import purge
from chm_dagster.warehouse.outbox import Outbox
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.alerting.test_delivering import Receiver, sent
from chm_dagster_tests.unit.test_alert_evaluation import at


@pytest.fixture
def two(world: World) -> World:
    """One message to #alerts about two clients, from a rule of each."""
    for key in ("acme/orders", "zeta/orders"):
        pipeline = world.pipeline(key)
        world.rule(pipeline_id=key)
        world.runs(pipeline, "F2")
        world.known(4, pipeline)
    world.evaluate(4)
    return world


def rule_of(world: World, client: str) -> Any:
    return world.warehouse.rules.list(client=client).items[0]


def about(world: World) -> list[tuple[str, list[str]]]:
    return [(m.destination, [item.client_slug for item in m.items]) for m in world.messages()]


def test_rules_with_one_receiver_make_one_message(two: World) -> None:
    assert about(two) == [("#alerts", ["acme", "zeta"])]
    receiver = Receiver()
    assert len(sent(two, receiver, 4).delivered) == 1
    assert about(two) == []


def test_who_purges_a_client_takes_no_line_of_another_rule_away(two: World) -> None:
    [before] = two.messages()
    purge(two.engine, [two.warehouse.clients.get("acme").id])
    [after] = two.messages()
    assert (after.id, about(two)) == (before.id, [("#alerts", ["zeta"])])
    receiver = Receiver(Transient("no"))
    sent(two, receiver, 4)
    sent(two, receiver, 5)
    assert [m.id for m in receiver.accepted] == [before.id]
    assert two.messages() == []


def test_who_deletes_a_rule_takes_no_line_away(two: World) -> None:
    [before] = two.messages()
    two.warehouse.rules.delete(rule_of(two, "acme").id)
    assert two.messages() == [before]


def test_a_failed_attempt_is_noted_in_every_part(two: World) -> None:
    sent(two, Receiver(Permanent("gone")), 4)
    purge(two.engine, [two.warehouse.clients.get("acme").id])
    [left] = two.messages()
    assert (left.attempts, left.error, left.next_at) == (1, "gone", None)


def test_a_retried_message_goes_to_the_present_receivers_for_another_day(two: World) -> None:
    sent(two, Receiver(Permanent("no such channel")), 4)
    two.warehouse.rules.update(rule_of(two, "zeta").id, {"destination": "#zeta"})
    [message] = two.messages()
    assert Outbox(two.engine).retry(message.id, at(40))
    assert about(two) == [("#alerts", ["acme"]), ("#zeta", ["zeta"])]
    receiver = Receiver(Transient("not yet"), Transient("not yet"))
    report = sent(two, receiver, 40)
    assert (len(report.postponed), report.undeliverable) == (2, ())
    assert len(sent(two, receiver, 41).delivered) == 2
    assert {m.id for m in receiver.accepted} == {message.id}


def test_a_retried_message_is_given_up_after_a_day_again(two: World) -> None:
    sent(two, Receiver(Permanent("no")), 4)
    [message] = two.messages()
    Outbox(two.engine).retry(message.id, at(40))
    days = (at(40) + GIVE_UP_AFTER - timedelta(seconds=1) - at(0)) / timedelta(hours=1)
    assert len(sent(two, Receiver(Transient("no")), days).undeliverable) == 1


def test_a_dropped_message_is_not_sent(two: World) -> None:
    [message] = two.messages()
    assert Outbox(two.engine).drop(message.id)
    assert not Outbox(two.engine).drop(message.id)
    assert not Outbox(two.engine).retry(uuid4(), at(4))
    assert sent(two, Receiver(), 4).delivered == ()


def test_an_episode_that_is_over_is_kept_with_how_it_ended(two: World) -> None:
    acme = {episode.pipeline_id for (rule, _), episode in two.episodes().items() if rule == rule_of(two, "acme").id}
    pipeline = acme.pop()
    two.runs(pipeline, "F2 S3.5")
    two.known(5, pipeline)
    two.warehouse.rules.disable(rule_of(two, "zeta").id)
    two.evaluate(5)
    found = two.warehouse.ask("past_episodes", since=at(0))
    assert [(row["client_slug"], row["outcome"], row["failures"], row["reason"]) for row in found] == [
        ("acme", "recovered", 1, None),
        ("zeta", "ended", 1, "the rule was disabled"),
    ]
    assert [(row["announced_at"], row["over_at"]) for row in found] == [(at(4), at(5))] * 2
    assert found[0]["duration_seconds"] == (found[0]["until"] - found[0]["since"]).total_seconds() > 0


def test_an_episode_that_nobody_heard_of_is_kept_as_well(world: World) -> None:
    pipeline = world.pipeline()
    rule = world.rule()
    world.set("alert_rules", rule.id, muted_until=at(9))
    world.runs(pipeline, "F2")
    assert world.look(4, pipeline) == []
    world.runs(pipeline, "F2 S4.5")
    assert world.look(5, pipeline) == []
    [row] = world.warehouse.ask("past_episodes", since=at(0))
    assert (row["outcome"], row["announced_at"]) == ("recovered", None)


def test_the_history_of_a_rule_is_bounded(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()

    def episode(hour: float) -> None:
        world.runs(pipeline, f"F{hour}")
        world.look(hour + 0.2, pipeline)
        world.runs(pipeline, f"F{hour} S{hour + 0.3}")
        world.look(hour + 0.5, pipeline)

    def kept() -> list[Any]:
        return world.warehouse.ask("past_episodes", since=at(0) - KEPT_FOR)

    episode(1)
    [first] = kept()
    sql = "UPDATE alert_rules SET history = (SELECT jsonb_agg(h.e) FROM (SELECT history -> 0 AS e) AS h, generate_series(1, :n))"
    with world.engine.begin() as connection:
        connection.exec_driver_sql(sql.replace(":n", str(KEPT_EPISODES + 5)))
    episode(2)
    assert len(kept()) == KEPT_EPISODES
    assert kept()[0]["over_at"] == at(2.5)
    episode(3 + KEPT_FOR / timedelta(hours=1))
    assert first["episode_id"] not in {row["episode_id"] for row in kept()}
    assert len(kept()) == 1

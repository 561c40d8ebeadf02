"""Alerts and maintenance windows: nothing new is announced while one is open."""

from datetime import datetime
from typing import Any

import pytest

from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.unit.test_alert_evaluation import at


def window(start: float, end: float) -> dict[str, Any]:
    return {"start": at(start), "end": at(end)}


@pytest.mark.parametrize("owner", ["client", "pipeline"])
def test_nothing_is_announced_in_maintenance_and_what_is_still_open_is_announced_then(world: World, owner: str) -> None:
    pipeline = world.pipeline()
    world.rule()
    if owner == "client":
        world.warehouse.clients.update("acme", {"maintenance": [window(2, 4)]})
    else:
        world.warehouse.pipelines.update("acme/orders", {"maintenance": [window(2, 4)]})
    world.runs(pipeline, "S1 F2")
    assert world.look(2.5, pipeline) == []
    [episode] = world.episodes().values()
    assert episode.announced_at is None
    assert world.look(3.9, pipeline) == []
    assert world.look(4, pipeline) == ["opened acme/orders"]
    assert [one.id for one in world.episodes().values()] == [episode.id]


def test_what_came_and_went_in_maintenance_is_not_announced_and_is_kept(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.warehouse.clients.update("acme", {"maintenance": [window(2, 4)]})
    world.runs(pipeline, "S1 F2")
    assert world.look(2.5, pipeline) == []
    world.runs(pipeline, "S1 F2 S3")
    assert world.look(3.5, pipeline) == []
    assert world.look(5, pipeline) == []
    [past] = world.warehouse.ask("past_episodes", since=at(0))
    assert past["pipeline_slug"] == "orders"


def test_in_maintenance_there_are_no_reminders_and_the_end_is_announced(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.warehouse.clients.update("acme", {"maintenance": [window(3, 6)]})
    world.runs(pipeline, "S1 F2")
    assert world.look(2.5, pipeline) == ["opened acme/orders"]
    assert world.look(3.6, pipeline) == []
    world.runs(pipeline, "S1 F2 S4")
    assert world.look(4.5, pipeline) == ["recovered acme/orders"]


def test_a_window_that_is_edited_while_it_is_open_counts_as_it_is_now(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "S1 F2")
    world.warehouse.clients.update("acme", {"maintenance": [window(2, 8)]})
    assert world.look(2.5, pipeline) == []
    world.warehouse.clients.update("acme", {"maintenance": [window(2, 9)]})
    assert world.look(8.5, pipeline) == []
    world.warehouse.clients.update("acme", {"maintenance": [window(2, 8.6)]})
    assert world.look(8.7, pipeline) == ["opened acme/orders"]


def test_a_window_that_is_removed_while_it_is_open_ends(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "S1 F2")
    world.warehouse.pipelines.update("acme/orders", {"maintenance": [window(2, 8)]})
    assert world.look(2.5, pipeline) == []
    world.warehouse.pipelines.update("acme/orders", {"maintenance": []})
    assert world.look(2.6, pipeline) == ["opened acme/orders"]


def test_while_one_of_two_windows_is_open_nothing_is_announced(world: World) -> None:
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "S1 F2")
    world.warehouse.clients.update("acme", {"maintenance": [window(2, 4)]})
    opens: datetime = at(3)
    recurring = {"cron": f"{opens.minute} {opens.hour} * * *", "minutes": 180}
    world.warehouse.pipelines.update("acme/orders", {"maintenance": [recurring]})
    assert [world.look(hour, pipeline) for hour in (2.5, 3.5, 4.5, 5.9)] == [[], [], [], []]
    assert world.look(6, pipeline) == ["opened acme/orders"]


def test_a_window_of_one_pipeline_or_client_silences_no_other(world: World) -> None:
    orders, other, theirs = world.pipeline(), world.pipeline("acme/other"), world.pipeline("zeta/export")
    world.rule(client_id="acme")
    world.rule(client_id="zeta")
    world.warehouse.pipelines.update("acme/orders", {"maintenance": [window(2, 4)]})
    for pipeline in (orders, other, theirs):
        world.runs(pipeline, "S1 F2")
    assert sorted(world.look(2.5, orders, other, theirs)) == ["opened acme/other", "opened zeta/export"]

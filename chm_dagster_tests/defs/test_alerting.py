"""Alerts in Dagster: the sensor evaluates and asks for a delivery, the asset delivers, the checks say what is wrong."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from chm_dagster.alerting.evaluating import evaluate_news
from chm_dagster.alerting.operator import Operator
from chm_dagster.definitions import assembled
from chm_dagster.defs.automation import resources
from chm_dagster.domain.rules import Channel
from chm_dagster.errors import Permanent, Transient
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.warehouse.alerts import evaluation
from chm_dagster.warehouse.outbox import delivering
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.alerting.test_delivering import Receiver
from chm_dagster_tests.unit.test_alert_evaluation import DAY


class Alerting:
    """CHM's definitions on a real instance, with one pipeline that is failing now."""

    def __init__(self, engine: sa.Engine, instance: dg.DagsterInstance, zone: LandingZone, home: Path) -> None:
        self.world, self.instance, self.receiver = World(engine), instance, Receiver()
        self.is_broken = False
        self.operator = Operator(home, (Channel.INBOX, "operator"))
        self.resources = resources(lambda: Warehouse(engine), dict, zone, self.sender, self.operator)
        self.defs = assembled(self.resources, "*/5 * * * *")
        now = (datetime.now(UTC) - DAY) / timedelta(hours=1)
        pipeline = self.world.pipeline()
        self.world.rule()
        self.world.runs(pipeline, f"S{now - 3:.3f} F{now - 1:.3f}")
        self.world.known(now, pipeline)

    def sender(self) -> Receiver:
        if self.is_broken:
            raise RuntimeError("no receiver")
        return self.receiver

    def tick(self) -> list[str | None]:
        """The run keys of the runs that a tick of the sensor asks for."""
        vended = {"warehouse": self.world.warehouse, "operator": self.operator}
        with dg.build_sensor_context(instance=self.instance, resources=vended) as context:
            data = self.defs.resolve_sensor_def("alerts").evaluate_tick(context)
        return [request.run_key for request in data.run_requests or ()]

    def deliver(self) -> Any:
        job = self.defs.resolve_job_def("deliver_alerts")
        return job.execute_in_process(instance=self.instance, raise_on_error=False)


@pytest.fixture
def alerting(engine: sa.Engine, tmp_path: Any) -> Any:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield Alerting(engine, instance, LandingZone(tmp_path / "landing"), tmp_path / "home")


def metadata(result: Any) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node("alert_notifications")
    return {name: value.value for name, value in event.metadata.items()}


def checks(result: Any) -> dict[str, bool]:
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def test_the_sensor_asks_for_one_delivery_and_the_asset_delivers(alerting: Alerting) -> None:
    assert len(alerting.tick()) == 1
    result = alerting.deliver()
    assert result.success
    assert metadata(result)["delivered"] == 1
    assert metadata(result)["messages"][0].startswith("Acme / Orders: failing since")
    assert checks(result) == {"every_message_is_deliverable": True, "no_open_episodes": False}
    assert len(alerting.receiver.accepted) == 1
    assert alerting.tick() == []


def test_a_failed_attempt_is_another_run_later(alerting: Alerting) -> None:
    alerting.receiver.errors = [Transient("the server is down")]
    assert len(alerting.tick()) == 1
    result = alerting.deliver()
    assert metadata(result)["errors"] == ["slack #alerts: the server is down"]
    assert alerting.tick() == []
    [message] = alerting.world.messages()
    assert message.attempts == 1
    alerting.world.make_due(message)
    assert len(alerting.tick()) == 1
    assert metadata(alerting.deliver())["delivered"] == 1


def test_a_delivery_that_died_is_asked_for_again(alerting: Alerting) -> None:
    first = alerting.tick()
    alerting.is_broken = True
    assert not alerting.deliver().success
    alerting.is_broken = False
    # Dagster starts no second run for a run_key that already has one.
    assert first == alerting.tick() == [None]
    assert metadata(alerting.deliver())["delivered"] == 1


def test_a_delivery_that_found_another_one_is_asked_for_again(alerting: Alerting) -> None:
    alerting.tick()
    with delivering(alerting.world.engine):
        assert metadata(alerting.deliver())["delivered"] == 0
    assert alerting.tick() == [None]


def test_what_a_sync_has_delivered_is_not_delivered_again_and_needs_no_run_of_its_own(alerting: Alerting) -> None:
    """A sync has the same two assets as its last steps."""
    assert metadata(alerting.deliver())["delivered"] == 1
    assert alerting.tick() == []


def test_while_a_sync_delivers_no_run_of_its_own_is_asked_for(alerting: Alerting) -> None:
    with delivering(alerting.world.engine):
        assert alerting.tick() == []
    assert alerting.tick() == [None]


def test_news_are_evaluated_after_an_evaluation_that_began_before_them(alerting: Alerting) -> None:
    engine = alerting.world.engine
    with evaluation(engine):
        assert evaluate_news(engine, wait_seconds=0.3) is None
        waiting = ThreadPoolExecutor(1).submit(evaluate_news, engine)
    report = waiting.result(20)
    assert report is not None and report.open_episodes == 1


@pytest.mark.parametrize(
    "status",
    [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED],
    ids=lambda status: str(status.value),
)
def test_while_a_delivery_is_under_way_no_other_one_is_asked_for(
    alerting: Alerting, status: dg.DagsterRunStatus
) -> None:
    alerting.instance.add_run(dg.DagsterRun(job_name="deliver_alerts", status=status))
    assert alerting.tick() == []
    alerting.instance.add_run(dg.DagsterRun(job_name="another_job", status=status))
    for run in alerting.instance.get_runs(dg.RunsFilter(job_name="deliver_alerts")):
        alerting.instance.report_run_failed(run)
    assert alerting.tick() == [None]


def test_an_episode_that_nobody_is_notified_of_is_shown_as_well(alerting: Alerting) -> None:
    [rule] = alerting.world.warehouse.rules.list().items
    alerting.world.set("alert_rules", rule.id, muted_until=datetime.now(UTC) + timedelta(hours=1))
    assert alerting.tick() == [None]
    assert checks(alerting.deliver())["no_open_episodes"] is False
    assert alerting.tick() == []
    assert alerting.receiver.accepted == []


def test_what_is_undeliverable_turns_the_check_red(alerting: Alerting) -> None:
    alerting.receiver.errors = [Permanent("no such user")]
    alerting.tick()
    assert checks(alerting.deliver())["every_message_is_deliverable"] is False
    assert alerting.tick() == []


def test_nothing_open_is_green(alerting: Alerting) -> None:
    [rule] = alerting.world.warehouse.rules.list().items
    alerting.world.set("alert_rules", rule.id, is_enabled=False)
    result = alerting.deliver()
    assert checks(result) == {"every_message_is_deliverable": True, "no_open_episodes": True}
    assert metadata(result)["delivered"] == 0


def test_launches_cannot_configure_where_messages_go(alerting: Alerting) -> None:
    job = alerting.defs.resolve_job_def("deliver_alerts")
    with pytest.raises(dg.DagsterInvalidConfigError):
        job.execute_in_process(
            instance=alerting.instance, run_config={"resources": {"channels": {"config": {"url": "x"}}}}
        )

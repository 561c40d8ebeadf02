"""Alerts in Dagster: the sensor that evaluates the rules, what is open as an asset, and the one that delivers."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import dagster as dg

from chm_dagster.alerting.delivering import Sender, deliver
from chm_dagster.alerting.evaluating import NOTHING_OPEN, evaluate_news, evaluate_rules
from chm_dagster.alerting.operator import Operator
from chm_dagster.defs.automation import ALERT_STEPS, RUNS, UNFINISHED, named
from chm_dagster.presentation.alerts import subject
from chm_dagster.presentation.columns import EPISODES, MESSAGES, PAST_EPISODES, count, listed
from chm_dagster.presentation.rendering import markdown_table
from chm_dagster.warehouse.api_uptime import api_state
from chm_dagster.warehouse.outbox import Outbox, is_delivering
from chm_dagster.warehouse.warehouse import Warehouse

ALERTS, DELIVER = "alerts", "deliver_alerts"
EVERY_SECONDS = 30
SHOWN = 50
"""Messages and episodes that metadata name."""
DAY = timedelta(days=1)

Channels: TypeAlias = Callable[[], Sender]
"""Gives what sends messages."""
Notified: TypeAlias = Operator | None
"""Who is notified of CHM's own blindness; nobody in tests that do not ask for it."""


@dg.asset(name=ALERT_STEPS[0], deps=[RUNS], group_name="alerting", kinds={"postgres", "markdown"}, owners=["team:chm"])
def alert_episodes(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
    """What alert rules have found: the episodes that are open, those that were over in the last day, and messages.

    Materialized after each sync: it evaluates the rules then. If a gate fails, and between syncs, that is left to the
    sensor `alerts`, which materializes this whenever an episode opens or is over, and with each delivery.
    """
    report = evaluate_news(warehouse.engine)
    found, over = warehouse.ask("open_episodes"), warehouse.ask("past_episodes", since=datetime.now(UTC) - DAY)
    waiting = warehouse.ask("waiting_messages")
    return dg.MaterializeResult(
        data_version=None if report is None else dg.DataVersion(report.digest),
        metadata={
            "open episodes": dg.MetadataValue.md(markdown_table(found[:SHOWN], EPISODES)),
            "over in the last day": dg.MetadataValue.md(markdown_table(over[:SHOWN], PAST_EPISODES)),
            "messages": dg.MetadataValue.md(markdown_table(waiting[:SHOWN], MESSAGES)),
            "open": len(found),
            "over": len(over),
            "waiting": len(waiting),
        },
    )


@dg.asset(name=ALERT_STEPS[1], deps=[alert_episodes], group_name="alerting", kinds={"python"}, owners=["team:chm"])
def alert_notifications(
    context: dg.AssetExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    channels: dg.ResourceParam[Channels],
    operator: dg.ResourceParam[Notified],
) -> dg.MaterializeResult[None]:
    """Sends the messages of alert rules that are due: each is kept until its receiver accepts it, for a day at most.

    A message that fails waits and is tried again by a later run, under the same id. Red: the check
    `every_message_is_deliverable` says which receivers refuse theirs.
    """
    report = deliver(warehouse.engine, channels(), lambda: datetime.now(UTC), operator=operator)
    if report is None:
        return dg.MaterializeResult(metadata={"delivered": 0, "note": "another run is delivering"})
    for message in report.delivered:
        context.log.info("delivered to %s: %s", message.destination, subject(message))
    failed = [f"{m.channel} {m.destination}: {m.error}" for m in (*report.postponed, *report.undeliverable)]
    return dg.MaterializeResult(
        metadata={
            "delivered": len(report.delivered),
            "messages": [subject(message) for message in report.delivered[:SHOWN]],
            "to be tried again": len(report.postponed),
            "undeliverable": len(report.undeliverable),
            "errors": failed[:SHOWN],
        }
    )


@dg.asset_check(
    asset=alert_notifications, description="Every message of an alert rule can be delivered, or is being tried again."
)
def every_message_is_deliverable(
    warehouse: dg.ResourceParam[Warehouse], operator: dg.ResourceParam[Notified]
) -> dg.AssetCheckResult:
    """Red while a message is undeliverable: its receiver refused it for good, or for a whole day."""
    lost = warehouse.ask("waiting_messages", message_state="undeliverable")
    receivers = [f"{row['channel']} {row['destination']}: {row['error']}" for row in lost]
    if operator is not None:
        to_operator = [message for message in operator.messages() if message.next_at is None]
        receivers += [f"the operator, {m.channel} {m.destination}: {m.error}" for m in to_operator]
    return dg.AssetCheckResult(
        passed=not receivers, metadata={"undeliverable": len(receivers), "receivers": receivers[:SHOWN]}
    )


@dg.asset_check(asset=alert_episodes, description="No alert rule has found anything wrong that is not over.")
def no_open_episodes(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Lists what is firing."""
    found = warehouse.ask("open_episodes")
    names = listed([f"{row['client_slug']}/{row['pipeline_slug']}: {row['rule_type']}" for row in found], SHOWN)
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"open": len(found), "episodes": names},
    )


def alerting(prefix: Sequence[str] = ()) -> dg.Definitions:
    """The job that delivers, and the sensor that evaluates the rules and starts it."""
    job = dg.define_asset_job(
        named(DELIVER, prefix),
        selection=dg.AssetSelection.groups("alerting"),
        description="Sends the messages of alert rules that are due.",
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": "600"},
    )
    return dg.Definitions(jobs=[job], sensors=[alert_sensor(prefix)])


def alert_sensor(prefix: Sequence[str] = ()) -> dg.SensorDefinition:
    """The sensor that evaluates all rules, and asks for a delivery if a message is due."""

    @dg.sensor(
        name=named(ALERTS, prefix),
        job_name=named(DELIVER, prefix),
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Evaluates the alert rules every 30 seconds, and starts a delivery when a message is due.",
    )
    def sensor(
        context: dg.SensorEvaluationContext,
        warehouse: dg.ResourceParam[Warehouse],
        operator: dg.ResourceParam[Notified],
    ) -> dg.SensorResult:
        now = datetime.now(UTC)
        waiting = []
        if operator is not None:
            operator.look(warehouse.ask("connections"), now, api_state(warehouse.engine))
            waiting = operator.messages()
        report = evaluate_rules(warehouse.engine)
        now = datetime.now(UTC)
        waiting += Outbox(warehouse.engine).messages()
        due = [message for message in waiting if message.next_at is not None and message.next_at <= now]
        shown = _shown(context.instance, dg.AssetKey([*prefix, ALERT_STEPS[0]]))
        if due or (report is not None and report.digest != shown):
            # No run_key: Dagster would never repeat a run that died, or that found another one delivering.
            wanted = dg.RunsFilter(job_name=named(DELIVER, prefix), statuses=UNFINISHED)
            if context.instance.get_runs(wanted, limit=1) or is_delivering(warehouse.engine):
                return dg.SensorResult(skip_reason=f"{count(len(due), 'message')} due, and a delivery is under way")
            return dg.SensorResult(run_requests=[dg.RunRequest()])
        if report is None:
            return dg.SensorResult(skip_reason="another process is evaluating the rules")
        return dg.SensorResult(skip_reason=f"{count(report.open_episodes, 'open episode')}; nothing is to be sent now")

    return sensor


def _shown(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    """The digest of the episodes that the asset shows; at first, of none."""
    event = instance.get_latest_materialization_event(key)
    tags = event.asset_materialization.tags if event and event.asset_materialization else None
    return NOTHING_OPEN if tags is None else tags.get("dagster/data_version", "")

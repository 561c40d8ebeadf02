"""Client reports in Dagster: one partition for each client and week, and the sensor that asks for what is due."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import dagster as dg

from chm_dagster.defs.automation import RUNS, UNFINISHED, named
from chm_dagster.defs.ingestion import words_only
from chm_dagster.defs.partition_events import PlainFailure
from chm_dagster.domain.periods import Period
from chm_dagster.presentation.columns import count
from chm_dagster.presentation.rendering import markdown_text
from chm_dagster.presentation.report.content import content
from chm_dagster.reporting import Built, DueReport, Mailer, is_due, issue_report, latest_week, run_due, undeliverable
from chm_dagster.warehouse.reports import receivers
from chm_dagster.warehouse.warehouse import Warehouse

REPORTS, CLIENTS = "client_reports", "chm_clients"
GATES = ("unique_external_run_ids", "status_progression", "every_record_accounted_for")
EVERY_SECONDS = 300
SHOWN = 50
"""Reports that metadata name."""
clients_partitions = dg.DynamicPartitionsDefinition(name=CLIENTS)
report_partitions = dg.MultiPartitionsDefinition(
    {
        "client": clients_partitions,
        # Monday's date. East of Greenwich a week is over before it is in UTC.
        "week": dg.WeeklyPartitionsDefinition(start_date="2025-12-29", day_offset=1, end_offset=1),
    }
)
CONFIG = {
    "due": dg.Field(bool, default_value=False, description="Issue and send what is due, of every client."),
    "revise": dg.Field(bool, default_value=False, description="With `due`: issue anew what late data have changed."),
}

Channels: TypeAlias = Callable[[], Mailer]
"""Gives what sends emails."""


@dg.asset(
    deps=[dg.AssetDep(RUNS, partition_mapping=dg.AllPartitionMapping())],
    partitions_def=report_partitions,
    group_name="reports",
    kinds={"html", "pdf"},
    owners=["team:chm"],
    config_schema=CONFIG,
)
def client_report(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Warehouse], channels: dg.ResourceParam[Channels]
) -> dg.MaterializeResult[None]:
    """What a client is owed each week: one partition for each client and week, behind the gates of the ledger.

    Issued on Monday at 09:00 in the client's time zone, and emailed if the client has a `report_email`. What arrives
    later is a revision that says what changed. Red: the run's log names the client and the reason.
    """
    config = context.op_execution_context.op_config
    with words_only():
        if not config["due"]:
            client, week = _chosen(context.partition_key)
            built = issue_report(warehouse.engine, client, week, None, datetime.now(UTC))
            return dg.MaterializeResult(metadata=_metadata(built))
        done = run_due(warehouse.engine, channels(), lambda: datetime.now(UTC), revise=config["revise"])
    return _reported(context, done or DueReport())


def _chosen(key: str) -> tuple[str, str]:
    """The client and the week of a partition."""
    parts = key.keys_by_dimension if isinstance(key, dg.MultiPartitionKey) else {}
    return parts["client"], str(Period.week_of(date.fromisoformat(parts["week"])))


def _reported(context: dg.AssetExecutionContext, done: DueReport) -> dg.MaterializeResult[None]:
    of_run: dict[str, Any] = {"issued": len(done.issued), "sent": len(done.sent)}
    for built in done.issued:
        partition = _partition(built.client.slug, built.period)
        if partition == context.partition_key and not done.failed:
            of_run |= _metadata(built)
        else:
            context.log_event(
                dg.AssetMaterialization(context.asset_key, partition=partition, metadata=_metadata(built))
            )
    for sent in done.sent:
        context.log.info("sent %s", sent)
    if done.failed:
        raise PlainFailure("\n".join(done.failed[:SHOWN]))
    return dg.MaterializeResult(metadata=of_run)


def _partition(client: str, week: Period) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"client": client, "week": week.first.isoformat()})


def _tags(client: str, week: Period) -> dict[str, str]:
    """The tags of a run for this partition. A sensor cannot name one of clients that it has yet to add."""
    key = _partition(client, week)
    return {"dagster/partition": str(key), **{f"dagster/partition/{n}": k for n, k in key.keys_by_dimension.items()}}


def _metadata(built: Built) -> dict[str, Any]:
    report = built.report
    page, figures = content(report), report.figures
    rates = {"success rate": figures.success_rate, "on-time rate": figures.on_time_rate, "coverage": figures.coverage}
    return {
        "report": dg.MetadataValue.md(markdown_text(f"{page.title}. {page.summary} {' '.join(page.revisions)}")),
        "revision": report.revision if report.is_final else "preliminary",
        "runs": figures.runs,
        "incidents": figures.incidents,
        **{name: "unknown" if rate is None else dg.MetadataValue.float(rate) for name, rate in rates.items()},
    }


@dg.asset_check(asset=client_report, description="Every report that is to be sent was accepted by the mail server.")
def every_report_is_deliverable(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Red while an email was refused for good, or for a whole day: `chm report send` tries again."""
    lost = undeliverable(warehouse.engine)
    return dg.AssetCheckResult(passed=not lost, metadata={"undeliverable": len(lost), "reports": lost[:SHOWN]})


def reports(prefix: Sequence[str] = ()) -> dg.Definitions:
    """The job that issues and sends, and the sensor that starts it."""
    gates = [dg.AssetCheckKey(dg.AssetKey([*prefix, RUNS]), gate) for gate in GATES]
    job = dg.define_asset_job(
        named(REPORTS, prefix),
        selection=dg.AssetSelection.groups("reports") | dg.AssetSelection.checks(*gates),
        description="Checks the ledger; if it is sound, issues and sends the reports that are due.",
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": "3600"},
    )
    return dg.Definitions(jobs=[job], sensors=[report_sensor(prefix)])


def report_sensor(prefix: Sequence[str] = ()) -> dg.SensorDefinition:
    """The sensor that keeps the clients' partitions, and asks for a run if a report is due; once a day for all."""

    @dg.sensor(
        name=named("reports_due", prefix),
        job_name=named(REPORTS, prefix),
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Every five minutes: issues and sends the reports that are due, Monday 09:00 in the client's time"
        " zone. Once a day, looks whether late data changed the reports of the last four weeks.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
    ) -> dg.SensorResult | dg.SkipReason:
        now, found = datetime.now(UTC), receivers(warehouse.engine)
        present = set(context.instance.get_dynamic_partitions(CLIENTS))
        wanted = {client.slug for client in found}
        steps: list[Any] = []
        if missing := sorted(wanted - present):
            steps.append(clients_partitions.build_add_request(missing))
        if gone := sorted(present - wanted):
            steps.append(clients_partitions.build_delete_request(gone))
        today, due = now.date().isoformat(), [client.slug for client in found if is_due(client, now)]
        revise = context.cursor != today and any(client.issues for client in found)
        running = dg.RunsFilter(job_name=named(REPORTS, prefix), statuses=UNFINISHED)
        if not (due or revise) or context.instance.get_runs(running, limit=1):
            reason = f"{count(len(due), 'report')} due" + (", and a run is under way" if due or revise else "")
            return dg.SensorResult(skip_reason=reason, dynamic_partitions_requests=steps)
        # Dagster runs an asset with partitions for one of them; the run records the others that it issues.
        first = next(client for client in found if is_due(client, now) or (not due and client.issues))
        config = {"ops": {"client_report": {"config": {"due": True, "revise": revise}}}}
        request = dg.RunRequest(run_config=config, tags=_tags(first.slug, latest_week(first, now)))
        return dg.SensorResult([request], cursor=today if revise else None, dynamic_partitions_requests=steps)

    return sensor

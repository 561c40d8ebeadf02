"""Client reports in Dagster: a partition for each client and week or month, and the sensor that asks for those due."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import dagster as dg

from chm_dagster.defs.automation import RUNS, UNFINISHED, named
from chm_dagster.defs.ingestion import words_only
from chm_dagster.defs.partition_events import PlainFailure
from chm_dagster.domain.periods import Period, PeriodKind
from chm_dagster.presentation.columns import count
from chm_dagster.presentation.rendering import markdown_text
from chm_dagster.presentation.report.content import content
from chm_dagster.reporting import Built, DueReport, Mailer, issue_report, pending, run_due, undeliverable
from chm_dagster.warehouse.reports import receivers
from chm_dagster.warehouse.warehouse import Warehouse

CLIENTS = "chm_clients"
ASSETS = {PeriodKind.WEEK: "client_report", PeriodKind.MONTH: "client_month_report"}
JOBS = {PeriodKind.WEEK: "client_reports", PeriodKind.MONTH: "client_month_reports"}
DELIVERABLE = "every_report_is_deliverable"
GATES = ("unique_external_run_ids", "status_progression", "every_record_accounted_for")
EVERY_SECONDS = 300
SHOWN = 50
"""Reports that metadata name."""
clients_partitions = dg.DynamicPartitionsDefinition(name=CLIENTS)
FIRST_DAYS = {PeriodKind.WEEK: date(2025, 12, 29), PeriodKind.MONTH: date(2026, 1, 1)}
"""The first periods that have a partition."""
# By the date of the first day. East of Greenwich a period is over before it is in UTC.
PARTITIONS = {
    kind: dg.MultiPartitionsDefinition({"client": clients_partitions, str(kind): periods})
    for kind, periods in (
        (
            PeriodKind.WEEK,
            dg.WeeklyPartitionsDefinition(FIRST_DAYS[PeriodKind.WEEK].isoformat(), day_offset=1, end_offset=1),
        ),
        (PeriodKind.MONTH, dg.MonthlyPartitionsDefinition(FIRST_DAYS[PeriodKind.MONTH].isoformat(), end_offset=1)),
    )
}
CONFIG = {
    "due": dg.Field(bool, default_value=False, description="Issue and send what is due, of every client."),
    "revise": dg.Field(bool, default_value=False, description="With `due`: issue anew what late data have changed."),
}

Channels: TypeAlias = Callable[[], Mailer]
"""Gives what sends emails."""


def _asset(kind: PeriodKind) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    return dg.asset(
        name=ASSETS[kind],
        deps=[dg.AssetDep(RUNS, partition_mapping=dg.AllPartitionMapping())],
        partitions_def=PARTITIONS[kind],
        group_name="reports",
        kinds={"html", "pdf"},
        owners=["team:chm"],
        config_schema=CONFIG,
    )


@_asset(PeriodKind.WEEK)
def client_report(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Warehouse], channels: dg.ResourceParam[Channels]
) -> dg.MaterializeResult[None]:
    """What a client is owed each week: one partition for each client and week, behind the gates of the ledger.

    Issued on Monday at 09:00 in the client's time zone, unless the client only gets months, and emailed if it has a
    `report_email`. What arrives later is a revision that says what changed. Red: the run's log names the client and the
    reason.
    """
    return _made(context, warehouse, channels)


@_asset(PeriodKind.MONTH)
def client_month_report(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Warehouse], channels: dg.ResourceParam[Channels]
) -> dg.MaterializeResult[None]:
    """What a client whose `report_period` is month or both is owed each month: one partition for each client and month.

    Issued on the first day of the next month at 09:00 in the client's time zone; otherwise like `client_report`.
    """
    return _made(context, warehouse, channels)


def _made(context: dg.AssetExecutionContext, warehouse: Warehouse, channels: Channels) -> dg.MaterializeResult[None]:
    """Issue the report of the run's partition; or all that are due, weeks and months."""
    config = context.op_execution_context.op_config
    with words_only():
        if not config["due"]:
            built = issue_report(warehouse.engine, *_chosen(context.partition_key), datetime.now(UTC))
            return dg.MaterializeResult(metadata=_metadata(built))
        done = run_due(warehouse.engine, channels(), lambda: datetime.now(UTC), revise=config["revise"])
    return _reported(context, done or DueReport())


def _chosen(key: str) -> tuple[str, str | None, str | None]:
    """The client of a partition, and its week or its month."""
    parts = key.keys_by_dimension if isinstance(key, dg.MultiPartitionKey) else {}
    week, month = (
        str(Period.of(kind, date.fromisoformat(parts[kind]))) if kind in parts else None for kind in PeriodKind
    )
    return parts["client"], week, month


def _reported(context: dg.AssetExecutionContext, done: DueReport) -> dg.MaterializeResult[None]:
    of_run: dict[str, Any] = {"issued": len(done.issued), "sent": len(done.sent)}
    for built in done.issued:
        key = dg.AssetKey([*context.asset_key.path[:-1], ASSETS[built.period.kind]])
        partition = _partition(built.client.slug, built.period)
        if (key, partition) == (context.asset_key, context.partition_key) and not done.failed:
            of_run |= _metadata(built)
        else:
            context.log_event(dg.AssetMaterialization(key, partition=partition, metadata=_metadata(built)))
    for sent in done.sent:
        context.log.info("sent %s", sent)
    if done.failed:
        raise PlainFailure("\n".join(done.failed[:SHOWN]))
    return dg.MaterializeResult(metadata=of_run)


def _partition(client: str, period: Period) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"client": client, str(period.kind): period.first.isoformat()})


def _tags(client: str, period: Period) -> dict[str, str]:
    """The tags of a run for this partition. A sensor cannot name one of clients that it has yet to add."""
    key = _partition(client, period)
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
    """The jobs that issue and send, and the sensor that starts them."""
    gates = [dg.AssetCheckKey(dg.AssetKey([*prefix, RUNS]), gate) for gate in GATES]
    deliverable = dg.AssetCheckKey(dg.AssetKey([*prefix, ASSETS[PeriodKind.WEEK]]), DELIVERABLE)
    jobs = [
        dg.define_asset_job(
            named(JOBS[kind], prefix),
            selection=dg.AssetSelection.assets(dg.AssetKey([*prefix, asset]))
            | dg.AssetSelection.checks(*gates, deliverable),
            description=f"Checks the ledger; if it is sound, issues and sends reports: of a client and {kind}, or all"
            " that are due.",
            executor_def=dg.in_process_executor,
            tags={"dagster/max_runtime": "3600"},
        )
        for kind, asset in ASSETS.items()
    ]
    return dg.Definitions(jobs=jobs, sensors=[report_sensor(jobs, prefix)])


def report_sensor(jobs: Sequence[Any], prefix: Sequence[str] = ()) -> dg.SensorDefinition:
    """The sensor that keeps the clients' partitions, and asks for a run if a report is due; once a day for all."""

    @dg.sensor(
        name=named("reports_due", prefix),
        jobs=jobs,
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Every five minutes: issues and sends the reports that are due, at 09:00 in the client's time zone"
        " on the day after the week or month. Once a day, looks whether late data changed those of the last weeks.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
    ) -> dg.SensorResult | dg.SkipReason:
        now, found = datetime.now(UTC), receivers(warehouse.engine)
        steps = _partition_steps(context.instance, {client.slug for client in found})
        due = [(client.slug, period) for client in found for period in pending(client, now)]
        issued = [(client.slug, client.issued[0]) for client in found if client.issues]
        today = now.date().isoformat()
        revise = context.cursor != today and bool(issued)
        if not (due or revise) or _is_under_way(context.instance, prefix):
            reason = f"{count(len(due), 'report')} due" + (", and a run is under way" if due or revise else "")
            return dg.SensorResult(skip_reason=reason, dynamic_partitions_requests=steps)
        # Dagster runs an asset with partitions for one of them; the run records the others that it issues. An email may
        # wait whose period has no partition.
        client, period = min(due + issued, key=lambda one: one[1].first < FIRST_DAYS[one[1].kind])
        config = {"ops": {ASSETS[period.kind]: {"config": {"due": True, "revise": revise}}}}
        job = named(JOBS[period.kind], prefix)
        request = dg.RunRequest(job_name=job, run_config=config, tags=_tags(client, period))
        return dg.SensorResult([request], cursor=today if revise else None, dynamic_partitions_requests=steps)

    return sensor


def _partition_steps(instance: dg.DagsterInstance, wanted: set[str]) -> list[Any]:
    """The requests after which each of these clients has its partitions, and no other one has."""
    present = set(instance.get_dynamic_partitions(CLIENTS))
    steps: list[Any] = []
    if missing := sorted(wanted - present):
        steps.append(clients_partitions.build_add_request(missing))
    if gone := sorted(present - wanted):
        steps.append(clients_partitions.build_delete_request(gone))
    return steps


def _is_under_way(instance: dg.DagsterInstance, prefix: Sequence[str]) -> bool:
    """Whether a run of these jobs has not ended."""
    return any(
        instance.get_runs(dg.RunsFilter(job_name=named(job, prefix), statuses=UNFINISHED), limit=1)
        for job in JOBS.values()
    )

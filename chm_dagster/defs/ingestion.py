"""The ingestion graph: three assets that one step materializes, because the data stays in one process."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime

import dagster as dg

from chm_dagster.defs.automation import RUNS, STEPS, Partners, pipelines_partitions
from chm_dagster.defs.partition_events import (
    PlainFailure,
    failed_partitions,
    keys,
    metadata,
    report_failed_partitions,
    report_partition,
)
from chm_dagster.domain.sync import IngestReport
from chm_dagster.errors import ChmError, InputError
from chm_dagster.ingestion.ingest import ingest, remap, silent
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.ingestion.news import of_connections
from chm_dagster.presentation.columns import by_reason, count, listed
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.warehouse import Warehouse

CONFIG = {
    "pipelines": dg.Field(
        [str], default_value=[], description="Pipelines to ingest, as client/pipeline, if no partition is chosen."
    ),
    "everything": dg.Field(bool, default_value=False, description="Ingest all pipelines instead."),
    "connections": dg.Field([str], default_value=[], description="Ingest all pipelines of these connections instead."),
    "since": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="Read the partners again from this time: ISO 8601, in UTC if it has no offset.",
    ),
    "from_landing": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="Map this landing (the id of an earlier Dagster run) again, without any request to a partner.",
    ),
    "scheduled": dg.Field(
        bool,
        default_value=False,
        description="Skip pipelines that failed recently, and connections that another run is reading.",
    ),
    "report_progress": dg.Field(
        bool, default_value=False, description="Write progress into the landing folder, for `chm ingest`."
    ),
}
"""What a launch may choose. Not a dg.Config: that would let a launch read any environment variable as a value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The run config of one ingestion; see `CONFIG`."""

    pipelines: list[str]
    everything: bool
    connections: list[str]
    since: str | None
    from_landing: str | None
    scheduled: bool
    report_progress: bool


@dg.multi_asset(
    name="ingest_runs",
    specs=[
        dg.AssetSpec(
            STEPS[0],
            partitions_def=pipelines_partitions,
            description="Raw records, as the partner's API sent them since the pipeline's watermark. They are kept in"
            " the landing folder named after the Dagster run. A red partition means that the partner could not be read:"
            " see the run's log for the reason. The watermark has not moved, so the next sync catches up.",
            kinds={"http", "json"},
            owners=["team:chm"],
            tags={"layer": "raw"},
        ),
        dg.AssetSpec(
            STEPS[1],
            deps=[STEPS[0]],
            partitions_def=pipelines_partitions,
            description="The records as CHM understands them: one status vocabulary, times in UTC, secrets masked."
            " What is not a run is rejected with a reason and kept beside the landed records.",
            kinds={"python"},
            owners=["team:chm"],
            tags={"layer": "canonical"},
        ),
        dg.AssetSpec(
            RUNS,
            deps=[STEPS[1]],
            partitions_def=pipelines_partitions,
            description="The ledger: one row for each run of each pipeline in the table `runs`, whatever the order and"
            " however often the partner reports it. Replaying the same records writes nothing.",
            kinds={"postgres", "table"},
            owners=["team:chm"],
            tags={"layer": "ledger"},
        ),
    ],
    partitions_def=pipelines_partitions,
    backfill_policy=dg.BackfillPolicy.single_run(),
    config_schema=CONFIG,
    group_name="ingestion",
)
def ingest_runs(
    context: dg.AssetExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    partners: dg.ResourceParam[Partners],
    landing: dg.ResourceParam[LandingZone],
) -> Iterator[dg.MaterializeResult[None]]:
    """Read the partners, land, map and merge, for the chosen pipelines."""
    choice = Choice(**context.op_execution_context.op_config)
    by_partition = context.has_partition_key or context.has_partition_key_range
    everything = choice.everything or bool(choice.connections)
    wanted = list(context.partition_keys) if by_partition else None if everything else choice.pipelines
    with words_only():
        report = _ingest(context.run_id, choice, wanted, warehouse.engine, partners, landing)
    context.log.info("%s", summary(report))
    if report.failed:
        context.log.error("%s", unreadable(report))
    for outcome in report.pipelines.values():
        for warning in outcome.warnings:
            context.log.warning("%s: %s", outcome.key, warning)
    if by_partition:
        yield from _chosen_partitions(context, report)
    else:
        _synced_partitions(context, report)
        yield from (dg.MaterializeResult(asset_key=key) for key in keys(context).values())


@contextmanager
def words_only() -> Iterator[None]:
    """Turn CHM's own errors into a failure that shows their message, without retries and without their traceback."""
    try:
        yield
    except ChmError as error:
        raise PlainFailure(str(error)) from None


def _ingest(
    run_id: str, choice: Choice, wanted: list[str] | None, engine: Engine, partners: Partners, landing: LandingZone
) -> IngestReport:
    pipelines = ingested_pipelines(engine, wanted)
    unknown = sorted(set(wanted or ()) - {p.key for p in pipelines})
    if unknown or wanted == []:
        raise InputError("pipelines", f"not ingested: {listed(unknown, 20)}" if unknown else "none chosen")
    since = None if choice.since is None else _time(choice.since)
    if choice.connections:
        pipelines = of_connections(partners(), pipelines, choice.connections)
    landing.prune(datetime.now(UTC))
    if choice.from_landing is not None:
        return remap(engine, partners(), pipelines, landing.open(choice.from_landing))
    folder = landing.open(run_id)
    with folder.progress() if choice.report_progress else nullcontext(silent) as progress:
        return ingest(
            engine,
            partners(),
            pipelines,
            folder,
            since=since,
            scheduled=choice.scheduled,
            owner=run_id,
            progress=progress,
        )


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError("since", "not a time; write ISO 8601, such as 2026-01-31T06:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _chosen_partitions(context: dg.AssetExecutionContext, report: IngestReport) -> Iterator[dg.MaterializeResult[None]]:
    """A person chose these partitions: each of them shows as materialized or as failed."""
    if report.failed:
        # Returning results would mark all partitions of the run as materialized, the failed ones too.
        for outcome in report.pipelines.values():
            if outcome.error is None:
                report_partition(context, outcome)
        raise PlainFailure(unreadable(report))
    for step, key in keys(context).items():
        for outcome in report.pipelines.values():
            context.add_asset_metadata(metadata(step, outcome), asset_key=key, partition_key=outcome.key)
        yield dg.MaterializeResult(asset_key=key)


def _synced_partitions(context: dg.AssetExecutionContext, report: IngestReport) -> None:
    """A sync reports changes: ten thousand times "nothing new" or "still not readable" would drown the log.

    A pipeline that can be read again is news: its partition must not stay red.
    """
    red = failed_partitions(context.instance, keys(context)[RUNS])
    for outcome in report.pipelines.values():
        if outcome.error is None and not outcome.deferred and (outcome.counts.has_news or outcome.key in red):
            report_partition(context, outcome)
    report_failed_partitions(context, [o.key for o in report.failed if o.key not in red])


def summary(report: IngestReport) -> str:
    """One line on what an ingestion did."""
    totals = {"fetched": report.fetched, **dataclasses.asdict(report.counts)}
    counts = ", ".join(f"{name} {count}" for name, count in totals.items())
    return f"{len(report.pipelines)} pipelines: {counts}, failed pipelines {len(report.failed)}"


def unreadable(report: IngestReport, reasons: int = 20) -> str:
    """Which pipelines could not be read and why: a line for each of the most frequent reasons."""
    groups = by_reason((outcome.key, outcome.error or "") for outcome in report.failed)
    lines = [f"{reason} ({listed(names)})" for reason, names in list(groups.items())[:reasons]]
    if len(groups) > reasons:
        lines.append(f"and {count(len(groups) - reasons, 'more reason')}")
    total = count(len(report.pipelines), "pipeline")
    return "\n".join([f"{len(report.failed):,} of {total} could not be read:", *lines])

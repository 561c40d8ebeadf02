"""The ingestion graph: three assets that one step materializes, because the data need not leave the process."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import orjson

from chm_dagster.defs.ingestion.events import (
    RUNS,
    STEPS,
    failed_partitions,
    metadata,
    report_failed_partitions,
    report_partition,
)
from chm_dagster.defs.partitions import pipelines_partitions
from chm_dagster.errors import ChmError
from chm_dagster.ingestion.ingest import Progress, ingest, remap, silent
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.ingestion.report import IngestReport
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory import ingested_pipelines
from chm_dagster.warehouse.warehouse import Warehouse


class IngestConfig(dg.Config):
    """Which pipelines, where the Dagster run has no partitions chosen, and from when."""

    pipelines: list[str] = []
    everything: bool = False
    since: str | None = None
    from_landing: str | None = None
    progress_file: str | None = None


@dg.multi_asset(
    name="ingest_runs",
    specs=[
        dg.AssetSpec(
            STEPS[0],
            partitions_def=pipelines_partitions,
            description="Raw records, as the partner's API sent them since the pipeline's watermark. They are kept in"
            " the landing folder named after the Dagster run. A red partition means that the partner could not be read:"
            " see the run's log for what it said. The watermark has not moved, so the next sweep catches up.",
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
            " however often the partner tells of it. Replaying the same records writes nothing.",
            kinds={"postgres", "table"},
            owners=["team:chm"],
            tags={"layer": "ledger"},
        ),
    ],
    partitions_def=pipelines_partitions,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="ingestion",
)
def ingest_runs(
    context: dg.AssetExecutionContext,
    config: IngestConfig,
    warehouse: dg.ResourceParam[Warehouse],
    partners: dg.ResourceParam[Mapping[str, Partner]],
    landing: dg.ResourceParam[LandingZone],
) -> Iterator[dg.MaterializeResult[None]]:
    """Ask the partners, land, map and merge, for the chosen pipelines."""
    by_partition = context.has_partition_key or context.has_partition_key_range
    keys = list(context.partition_keys) if by_partition else None if config.everything else config.pipelines
    report = _ingest(context.run_id, config, keys, warehouse.engine, partners, landing)
    context.log.info("%s", summary(report))
    for outcome in report.failed:
        context.log.error("%s: %s", outcome.key, outcome.error)
    if by_partition:
        yield from _chosen_partitions(context, report)
    else:
        _swept_partitions(context, report)
        yield from (dg.MaterializeResult(asset_key=step) for step in STEPS)


def _ingest(
    run_id: str,
    config: IngestConfig,
    keys: list[str] | None,
    engine: Engine,
    partners: Mapping[str, Partner],
    landing: LandingZone,
) -> IngestReport:
    try:
        pipelines = ingested_pipelines(engine, keys)
        unknown = sorted(set(keys or ()) - {p.key for p in pipelines})
        if unknown or keys == []:
            raise dg.Failure(
                f"not ingested pipelines: {', '.join(unknown[:20]) or 'none was chosen'}", allow_retries=False
            )
        landing.prune(datetime.now(UTC))
        if config.from_landing is not None:
            return remap(engine, partners, pipelines, landing.open(config.from_landing))
        since = datetime.fromisoformat(config.since) if config.since else None
        return ingest(
            engine, partners, pipelines, landing.open(run_id), since=since, progress=_progress(config.progress_file)
        )
    except ChmError as error:
        # The message is made for people; the traceback would only bury it.
        raise dg.Failure(str(error), allow_retries=False) from None


def _chosen_partitions(context: dg.AssetExecutionContext, report: IngestReport) -> Iterator[dg.MaterializeResult[None]]:
    """A person chose these partitions: each of them shows as materialized or as failed."""
    if report.failed:
        # Returning results would mark all partitions of the run as materialized, the failed ones too.
        for outcome in report.pipelines.values():
            if outcome.error is None:
                report_partition(context, outcome)
        raise dg.Failure(
            f"{len(report.failed)} of {len(report.pipelines)} pipelines could not be read",
            metadata={o.key: o.error or "" for o in report.failed},
            allow_retries=False,
        )
    for step in STEPS:
        for outcome in report.pipelines.values():
            context.add_asset_metadata(metadata(step, outcome), asset_key=step, partition_key=outcome.key)
        yield dg.MaterializeResult(asset_key=step)


def _swept_partitions(context: dg.AssetExecutionContext, report: IngestReport) -> None:
    """A sweep: only pipelines with news get an event; ten thousand times "nothing new" would drown the log.

    A pipeline that can be read again is news: its partition must not stay red.
    """
    red = failed_partitions(context)
    for outcome in report.pipelines.values():
        if outcome.error is None and (outcome.has_news or outcome.key in red):
            report_partition(context, outcome)
    report_failed_partitions(context, [o.key for o in report.failed])


def summary(report: IngestReport) -> str:
    """One line on what an ingestion did."""
    counts = ", ".join(
        f"{name} {report.total(name)}" for name in ("fetched", "inserted", "updated", "unchanged", "stale", "rejected")
    )
    return f"{len(report.pipelines)} pipelines: {counts}, failed pipelines {len(report.failed)}"


def _progress(file: str | None) -> Progress:
    """Append progress to a file that whoever started this Dagster run reads along."""
    if file is None:
        return silent
    path = Path(file)

    def tell(pipelines: int, records: int) -> None:
        with path.open("ab") as stream:
            stream.write(orjson.dumps([pipelines, records]) + b"\n")

    return tell

"""How one pipeline's outcome becomes events of its partition.

The one place that reaches into Dagster: a run whose config names its pipelines plans no partition, and only a planned
partition of a failed run shows as failed in the grid. Dagster 1.13 has no public way to say "this partition was
planned" (docs/adr/0005-failed-partitions.md; a test pins the behaviour).
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from chm_dagster.defs.partitions import pipelines_partitions
from chm_dagster.ingestion.report import PipelineReport

RUNS = "runs"
STEPS = ("partner_runs", "canonical_runs", RUNS)


def metadata(step: str, outcome: PipelineReport) -> dict[str, Any]:
    """What the operator sees beside a partition of this step."""
    if step == "partner_runs":
        return {"records": outcome.fetched, "connection": outcome.connection}
    if step == "canonical_runs":
        return {
            "observations": outcome.fetched - outcome.rejected,
            "rejected": outcome.rejected,
            "unknown statuses": sum(outcome.unknown_statuses.values()),
        }
    counts = {name: getattr(outcome, name) for name in ("inserted", "updated", "unchanged", "stale", "rejected")}
    newest = {"newest run": dg.TimestampMetadataValue(outcome.newest_run.timestamp())} if outcome.newest_run else {}
    return {**counts, **newest}


def report_partition(context: dg.AssetExecutionContext, outcome: PipelineReport) -> None:
    """Log that this pipeline's partition is up to date in all three assets."""
    for step in STEPS:
        event = dg.AssetMaterialization(step, partition=outcome.key, metadata=metadata(step, outcome))
        context.log_event(event)


def failed_partitions(context: dg.AssetExecutionContext) -> set[str]:
    """Keys that show as failed in the grid now."""
    keys = context.instance.get_dynamic_partitions("pipelines")
    statuses = context.instance.get_status_by_partition(dg.AssetKey(RUNS), keys, pipelines_partitions) or {}
    return {key for key, status in statuses.items() if status is not None and status.value == "FAILED"}


def report_failed_partitions(context: dg.AssetExecutionContext, keys: Sequence[str]) -> None:
    """Let these partitions show as failed once the Dagster run has failed."""
    for key in keys:
        for step in STEPS:
            event = DagsterEvent.build_asset_materialization_planned_event(
                context.job_name,
                context.op_execution_context.op.name,
                AssetMaterializationPlannedData(dg.AssetKey(step), partition=key, partitions_subset=None),
            )
            context.instance.report_dagster_event(event, context.run_id)

"""Turns the outcome of one pipeline into events of its partition.

Uses private Dagster names, as only `ui.py` does beside it. A run whose config names its pipelines plans no partition,
and only a planned partition of a failed run shows as failed. Dagster 1.13 has no public way to say "this partition was
planned" (docs/adr/0005-failed-partitions.md; a test pins the behaviour).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent
from dagster_shared.error import SerializableErrorInfo

from chm_dagster.defs.automation import PARTITIONS, STEPS, pipelines_partitions
from chm_dagster.domain.sync import PipelineReport


class PlainFailure(DagsterUserCodeProcessError, dg.Failure):
    """Fails the step and the run, without retries; the UI shows these words and no stack trace."""

    def __init__(self, words: str) -> None:
        # Dagster shows this instead of the frames between its executor and our `raise`.
        shown = SerializableErrorInfo(words, [], None)
        super().__init__(words, allow_retries=False, user_code_process_error_infos=[shown])  # type: ignore[no-untyped-call]


def beside(key: dg.AssetKey, step: str) -> dg.AssetKey:
    """The key of another of CHM's assets, under the prefix that this one has."""
    return dg.AssetKey([*key.path[:-1], step])


def keys(context: dg.AssetExecutionContext) -> dict[str, dg.AssetKey]:
    """The three ingestion assets' keys, by step."""
    some = next(iter(context.assets_def.keys))
    return {step: beside(some, step) for step in STEPS}


def metadata(step: str, outcome: PipelineReport) -> dict[str, Any]:
    """The metadata of a partition of this step."""
    if step == "partner_runs":
        return {"records": outcome.fetched, "connection": outcome.connection}
    if step == "canonical_runs":
        return {
            "observations": outcome.fetched - outcome.counts.rejected,
            "rejected": outcome.counts.rejected,
            "unknown statuses": sum(outcome.unknown_statuses.values()),
        }
    counts = dataclasses.asdict(outcome.counts)
    newest = {"newest run": dg.TimestampMetadataValue(outcome.newest_run.timestamp())} if outcome.newest_run else {}
    return {**counts, **newest}


def report_partition(context: dg.AssetExecutionContext, outcome: PipelineReport) -> None:
    """Log that this pipeline's partition is up to date in all three assets."""
    for step, key in keys(context).items():
        event = dg.AssetMaterialization(key, partition=outcome.key, metadata=metadata(step, outcome))
        context.log_event(event)


def failed_partitions(instance: dg.DagsterInstance, runs: dg.AssetKey) -> set[str]:
    """Keys of the partitions that show as failed now. `runs` is the key of the ledger's asset."""
    present = instance.get_dynamic_partitions(PARTITIONS)
    statuses = instance.get_status_by_partition(runs, present, pipelines_partitions) or {}
    return {key for key, status in statuses.items() if status is not None and status.value == "FAILED"}


def report_failed_partitions(context: dg.AssetExecutionContext, failed: Iterable[str]) -> None:
    """Make these partitions show as failed once the Dagster run has failed."""
    for partition in failed:
        for key in keys(context).values():
            event = DagsterEvent.build_asset_materialization_planned_event(
                context.job_name,
                context.op_execution_context.op.name,
                AssetMaterializationPlannedData(key, partition=partition, partitions_subset=None),
            )
            context.instance.report_dagster_event(event, context.run_id)

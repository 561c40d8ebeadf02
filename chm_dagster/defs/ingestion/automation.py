"""What happens by itself: the sweep, and partitions that follow the inventory."""

import dagster as dg

from chm_dagster.defs.partitions import CHUNK, missing_and_gone, pipelines_partitions
from chm_dagster.warehouse.warehouse import Warehouse

MAX_RUNTIME_SECONDS = 3_600
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
WAITING = [dg.DagsterRunStatus.QUEUED]

ingest_job = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.groups("ingestion", "health"),
    description="Ingest the pipelines that the run config names (or everything), check the ledger, tell the health.",
    # Three steps in processes of their own would take five times as long (docs/adr/0004-one-step-in-process.md).
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)},
)


def sweep_config() -> dict[str, object]:
    """Run config of a sweep over everything."""
    return {"ops": {"ingest_runs": {"config": {"everything": True}}}}


def sweep_schedule(cron: str) -> dg.ScheduleDefinition:
    """The sweep at this cadence (UTC)."""

    @dg.schedule(
        name="sweep",
        job=ingest_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Asks every partner for news of all pipelines. Skips while the sweep before is still at work.",
    )
    def sweep(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = context.instance.get_run_ids(
            dg.RunsFilter(tags={"dagster/schedule_name": "sweep"}, statuses=UNFINISHED), limit=1
        )
        if busy:
            return dg.SkipReason(f"the sweep before is still at work: run {busy[0]}")
        return dg.RunRequest(run_config=sweep_config())

    return sweep


def fail_leftovers(instance: dg.DagsterInstance) -> int:
    """Fail the Dagster runs that a crash of everything has cut off, and tell how many there were.

    Nobody else would before their longest runtime is over, and until then the schedule skips its ticks. Only for an
    instance on which nothing runs; what is queued is left to its daemon.
    """
    cut_off = instance.get_runs(dg.RunsFilter(statuses=[status for status in UNFINISHED if status not in WAITING]))
    for run in cut_off:
        instance.report_run_failed(run, "CHM was ended while this was under way; the next sweep catches up")
    return len(cut_off)


@dg.sensor(
    name="pipeline_partitions",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps one partition for each active pipeline that has an external id.",
)
def pipeline_partitions(
    context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.SensorResult | dg.SkipReason:
    """Adds keys of new or enabled pipelines, removes those of disabled ones."""
    missing, gone = missing_and_gone(context.instance, warehouse.engine)
    if not missing and not gone:
        return dg.SkipReason("partitions are in step with the inventory")
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if missing:
        requests.append(pipelines_partitions.build_add_request(missing[:CHUNK]))
    if gone:
        requests.append(pipelines_partitions.build_delete_request(gone[:CHUNK]))
    return dg.SensorResult(dynamic_partitions_requests=requests)

"""Automation: the scheduled sync, the sensors for news and partitions, and runs that a crash cut off. The resources,
plain objects of the layers below with nothing that whoever launches a Dagster run could configure.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import orjson

from chm_dagster.alerting.channels import Channels
from chm_dagster.alerting.delivering import Sender
from chm_dagster.alerting.operator import Operator
from chm_dagster.errors import ChmError
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.ingestion.news import News, ask_partners
from chm_dagster.partners.port import Partner
from chm_dagster.presentation.columns import count
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.syncs import is_ingesting
from chm_dagster.warehouse.warehouse import Warehouse

Partners = Callable[[], Mapping[str, Partner]]
"""Reads partners.yaml and gives the partners by connection name. Raises ConfigError."""


def resources(
    warehouse: Callable[[], Warehouse],
    partners: Partners,
    landing: LandingZone,
    channels: Callable[[], Sender] = Channels,
    operator: Operator | None = None,
) -> dict[str, dg.ResourceDefinition]:
    """The resources of all assets, checks, schedules and sensors, by name."""
    return {
        "warehouse": _closed_after_use(warehouse),
        "partners": _fixed(partners),
        "landing": _fixed(landing),
        "channels": _fixed(channels),
        "operator": _fixed(operator),
        # Dagster's own would let a launch choose the folder of step outputs.
        "io_manager": dg.IOManagerDefinition(lambda _: NoOutputs(), config_schema={}),
    }


def _fixed(value: object) -> dg.ResourceDefinition:
    return dg.ResourceDefinition(lambda _: value, config_schema={})


def _closed_after_use(opened: Callable[[], Warehouse]) -> dg.ResourceDefinition:
    """A warehouse whose connections are closed when the step, or the sensor's tick, is done with it."""

    @dg.resource(config_schema={})
    def warehouse(_: dg.InitResourceContext) -> Generator[Warehouse, None, None]:
        found = opened()
        try:
            yield found
        finally:
            found.close()

    return warehouse


class NoOutputs(dg.IOManager):
    """Refuses to store a step's output: CHM's steps hand nothing on."""

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Raise."""
        raise NotImplementedError("CHM's steps store their results in the ledger and not as outputs")

    def load_input(self, context: dg.InputContext) -> None:
        """Raise."""
        raise NotImplementedError("CHM's steps read the ledger, not each other's outputs")


RUNS = "runs"
STEPS = ("partner_runs", "canonical_runs", RUNS)
"""The assets of the ingestion graph, in its order."""
ALERT_STEPS = ("alert_episodes", "alert_notifications")
"""The assets that evaluate the alert rules and send what follows."""
PARTITIONS = "chm_pipelines"
"""All code locations of a Dagster instance share the names of dynamic partitions."""
pipelines_partitions = dg.DynamicPartitionsDefinition(name=PARTITIONS)

CHUNK = 2_000
"""Keys added at a time: a sensor tick has one minute, and each key costs some of it."""


def missing_and_gone(instance: dg.DagsterInstance, engine: Engine) -> tuple[list[str], list[str]]:
    """The keys that are missing in Dagster, and those whose pipeline is no longer ingested."""
    wanted = {pipeline.key for pipeline in ingested_pipelines(engine)}
    present = set(instance.get_dynamic_partitions(PARTITIONS))
    return sorted(wanted - present), sorted(present - wanted)


def sync_partitions(instance: dg.DagsterInstance, engine: Engine) -> None:
    """Bring Dagster's keys in step with the inventory at once."""
    missing, gone = missing_and_gone(instance, engine)
    for first in range(0, len(missing), CHUNK):
        instance.add_dynamic_partitions(PARTITIONS, missing[first : first + CHUNK])
    for key in gone:
        instance.delete_dynamic_partition(PARTITIONS, key)


MAX_RUNTIME_SECONDS = 3_600
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
INGEST, SYNC_SCHEDULE, PIPELINE_PARTITIONS = "ingest", "sync_schedule", "pipeline_partitions"
PARTNER_NEWS = "partner_news"
NEWS_SECONDS = 30
ASK_AGAIN = timedelta(minutes=1)
"""A sync that was under way may have read a partner just before its news: the same news starts a second run."""
WAITING = [dg.DagsterRunStatus.QUEUED]
MAX_SYNCS = 3
"""Scheduled syncs at the same time: while one reads a slow connection, the next one reads the others."""
SILENCE = timedelta(minutes=10)
"""A Dagster run that ingests nothing and has logged nothing for so long is no longer there."""


def named(name: str, prefix: Sequence[str] = ()) -> str:
    """The name of a job, a schedule or a sensor under the prefix that the asset keys have."""
    return "_".join([*prefix, name])


def automation(cron: str, prefix: Sequence[str] = ()) -> dg.Definitions:
    """The job that ingests, the schedule that starts it at this cadence (UTC), and the sensors."""
    job = dg.define_asset_job(
        named(INGEST, prefix),
        selection=dg.AssetSelection.groups("ingestion", "health", "alerting"),
        description="Ingests the pipelines that the run config names (or all), checks the ledger, reports health, and"
        " sends what alert rules find.",
        # Three steps in processes of their own would take five times as long (docs/adr/0004-one-step-in-process.md).
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)},
    )
    schedule = sync_schedule(named(SYNC_SCHEDULE, prefix), named(INGEST, prefix), cron)
    sensors = [pipeline_partitions(prefix), partner_news(prefix)]
    return dg.Definitions(jobs=[job], schedules=[schedule], sensors=sensors)


def sync_config() -> dict[str, object]:
    """Run config of a scheduled sync of everything."""
    return {"ops": {"ingest_runs": {"config": {"everything": True, "scheduled": True}}}}


def sync_schedule(name: str, job: str, cron: str) -> dg.ScheduleDefinition:
    """The sync at this cadence (UTC)."""

    @dg.schedule(
        name=name,
        job_name=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Syncs all pipelines. Skips connections that an earlier sync is still reading.",
    )
    def sync(
        context: dg.ScheduleEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
    ) -> dg.RunRequest | dg.SkipReason:
        running = context.instance.get_runs(dg.RunsFilter(tags={"dagster/schedule_name": name}, statuses=UNFINISHED))
        alive = [run.run_id for run in running if not _fail_if_gone(context.instance, warehouse, run)]
        if len(alive) >= MAX_SYNCS:
            return dg.SkipReason(f"{len(alive)} earlier syncs are still running: runs {', '.join(alive)}")
        return dg.RunRequest(run_config=sync_config())

    return sync


def _fail_if_gone(instance: dg.DagsterInstance, warehouse: Warehouse, run: dg.DagsterRun) -> bool:
    """Fail a Dagster run whose process and code server have died together; whether it was one."""
    if run.status is not dg.DagsterRunStatus.STARTED or is_ingesting(warehouse.engine, run.run_id):
        return False
    last = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    if last and datetime.fromtimestamp(last[0].timestamp, UTC) > datetime.now(UTC) - SILENCE:
        return False
    instance.report_run_failed(run, "its process is gone; the next sync catches up")
    return True


def fail_leftovers(instance: dg.DagsterInstance) -> int:
    """Fail the Dagster runs that were cut off by a crash of everything. Returns their number.

    Only for an instance on which nothing is running. Queued runs are left to the daemon.
    """
    cut_off = instance.get_runs(dg.RunsFilter(statuses=[status for status in UNFINISHED if status not in WAITING]))
    for run in cut_off:
        instance.report_run_failed(run, "CHM was stopped while this was running; the next sync catches up")
    return len(cut_off)


def pipeline_partitions(prefix: Sequence[str] = ()) -> dg.SensorDefinition:
    """The sensor that keeps partitions in step with the inventory."""

    @dg.sensor(
        name=named(PIPELINE_PARTITIONS, prefix),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps one partition for each active pipeline that has an external id.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
    ) -> dg.SensorResult | dg.SkipReason:
        missing, gone = missing_and_gone(context.instance, warehouse.engine)
        if not missing and not gone:
            return dg.SkipReason("partitions are in step with the inventory")
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if missing:
            requests.append(pipelines_partitions.build_add_request(missing[:CHUNK]))
        if gone:
            requests.append(pipelines_partitions.build_delete_request(gone[:CHUNK]))
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return sensor


def partner_news(prefix: Sequence[str] = ()) -> dg.SensorDefinition:
    """The sensor that asks the partners what is new, and syncs exactly the connections with news."""
    name = named(PARTNER_NEWS, prefix)

    @dg.sensor(
        name=name,
        job_name=named(INGEST, prefix),
        minimum_interval_seconds=NEWS_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks each partner, in a request or a few, whether the ledger lacks anything, and syncs those"
        " connections at once. Alert rules are evaluated right after that. The schedule syncs all the others.",
    )
    def sensor(
        context: dg.SensorEvaluationContext,
        warehouse: dg.ResourceParam[Warehouse],
        partners: dg.ResourceParam[Partners],
    ) -> dg.SensorResult | dg.SkipReason:
        started = context.instance.get_runs(dg.RunsFilter(tags={"dagster/sensor_name": name}, statuses=UNFINISHED))
        running = [run for run in started if not _fail_if_gone(context.instance, warehouse, run)]
        if len(running) >= MAX_SYNCS:
            return dg.SkipReason(f"{len(running)} earlier syncs are still running")
        now = datetime.now(UTC)
        try:
            news = ask_partners(warehouse.engine, partners(), ingested_pipelines(warehouse.engine), now)
        except ChmError as error:
            return dg.SkipReason(f"the partners could not be asked: {error}")
        assets = [dg.AssetKey([*prefix, step]) for step in (*STEPS, *ALERT_STEPS)]
        due, cursor = requests_for(news, context.cursor, now)
        said = summary_of(news)
        if not due:
            return dg.SensorResult(skip_reason=dg.SkipReason(said), cursor=cursor)
        context.log.info("%s", said)
        return dg.SensorResult([dg.RunRequest(run_config=news_config(due), asset_selection=assets)], cursor=cursor)

    return sensor


def news_config(connections: Sequence[str]) -> dict[str, object]:
    """Run config of a sync of these connections."""
    return {"ops": {"ingest_runs": {"config": {"connections": list(connections), "scheduled": True}}}}


def requests_for(news: News, cursor: str | None, now: datetime) -> tuple[list[str], str]:
    """The connections to sync, and the next cursor: each connection's digest, how often it was acted on, and when.

    The same news starts a run once more after `ASK_AGAIN`, and no third one: what a sync does not bring into the
    ledger, asking again does not either.
    """
    asked: dict[str, list[Any]] = orjson.loads(cursor) if cursor else {}
    due, kept = [], {}
    for name, digest in sorted(news.unknown.items()):
        last, times, at = asked.get(name, ["", 0, 0.0])
        again = last == digest and times == 1 and now.timestamp() >= at + ASK_AGAIN.total_seconds()
        if last != digest or again:
            due.append(name)
            kept[name] = [digest, 2 if again else 1, now.timestamp()]
        else:
            kept[name] = [last, times, at]
    for name in (*news.unanswered, *news.too_many_requests):
        if name in asked:
            kept[name] = asked[name]
    return due, orjson.dumps(kept).decode()


def summary_of(news: News) -> str:
    """One sentence on what the partners answered."""
    answers = (
        (news.unknown, "with news"),
        (news.nothing, "without news"),
        (news.too_many_requests, "left to the schedule, because asking takes a request for each pipeline"),
        (news.unanswered, "that failed lately or did not answer"),
    )
    said = [f"{count(len(names), 'connection')} {words}" for names, words in answers if names]
    return ", ".join(said) or "no connection has pipelines"

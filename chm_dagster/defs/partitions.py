"""One partition for each pipeline that is ingested; its key is `client-slug/pipeline-slug`."""

import dagster as dg

from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory import ingested_pipelines

pipelines_partitions = dg.DynamicPartitionsDefinition(name="pipelines")

CHUNK = 2_000
"""Keys added in one go: a sensor tick has a minute, and each key costs some of it."""


def missing_and_gone(instance: dg.DagsterInstance, engine: Engine) -> tuple[list[str], list[str]]:
    """The keys that Dagster lacks, and those whose pipeline is no longer ingested."""
    wanted = {pipeline.key for pipeline in ingested_pipelines(engine)}
    present = set(instance.get_dynamic_partitions("pipelines"))
    return sorted(wanted - present), sorted(present - wanted)


def sync_partitions(instance: dg.DagsterInstance, engine: Engine) -> None:
    """Bring Dagster's keys in step with the inventory at once."""
    missing, gone = missing_and_gone(instance, engine)
    for first in range(0, len(missing), CHUNK):
        instance.add_dynamic_partitions("pipelines", missing[first : first + CHUNK])
    for key in gone:
        instance.delete_dynamic_partition("pipelines", key)

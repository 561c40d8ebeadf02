"""CHM's definitions with a real database, a real Dagster instance and a scripted partner."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from chm_dagster.definitions import assembled
from chm_dagster.defs.automation import resources, sync_partitions
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch, SyncTarget
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import FakeFeed, add_pipeline, fake_partner, one_page, record

Script = Callable[[SyncTarget], Sequence[RecordBatch | PipelinesSynced | PipelinesFailed]]


@dataclasses.dataclass
class Deployment:
    """Definitions, their instance, and control over what the partner returns."""

    engine: sa.Engine
    instance: dg.DagsterInstance
    zone: LandingZone
    feed: FakeFeed
    defs: dg.Definitions
    job: str = "ingest"

    def says(self, script: Script) -> None:
        self.feed.script = script

    def sync(self, **config: Any) -> dg.ExecuteInProcessResult:
        """A run whose config selects pipelines; no selection means everything."""
        chosen = config or {"everything": True}
        return self.defs.resolve_job_def(self.job).execute_in_process(
            instance=self.instance,
            run_config={"ops": {"ingest_runs": {"config": chosen}}},
            raise_on_error=False,
        )

    def choose(self, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
        """What the UI does for a partition or a range of partitions."""
        tags = (
            {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
            if last
            else {"dagster/partition": first}
        )
        return self.defs.resolve_job_def(self.job).execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False
        )

    def check(self, result: dg.ExecuteInProcessResult, name: str) -> Any:
        evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
        return evaluations[name]

    def statuses(self, asset: str) -> dict[str, str]:
        """Partition key -> status, as the grid shows it."""
        values = self.instance.get_status_by_partition(
            dg.AssetKey(asset.split("/")),
            self.instance.get_dynamic_partitions("chm_pipelines"),
            dg.DynamicPartitionsDefinition(name="chm_pipelines"),
        )
        assert values is not None
        return {key: status.value if status else "MISSING" for key, status in values.items()}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def deployment(engine: sa.Engine, instance: dg.DagsterInstance, landing_root: Path) -> Deployment:
    """Three pipelines of one client, each with one successful run."""
    for name in ("a", "b", "c"):
        add_pipeline(engine, name)
    sync_partitions(instance, engine)
    feed = FakeFeed(lambda t: one_page(t.external_id, record()))
    zone = LandingZone(landing_root)
    partners = fake_partner(feed)
    defs = assembled(resources(lambda: Warehouse(engine), lambda: partners, zone), "*/5 * * * *")
    return Deployment(engine, instance, zone, feed, defs)

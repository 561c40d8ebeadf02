"""Factories for the objects that tests need."""

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from chm_dagster.domain.pipelines import IngestedPipeline, PipelineType, Platform
from chm_dagster.domain.runs import Observation, RunStatus
from chm_dagster.partners.platforms.generic import GenericMapper
from chm_dagster.partners.port import Partner, PipelinesFailed, PipelinesSynced, Probe, RecordBatch, SyncTarget
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines, ingested_pipelines

T0 = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


def minutes(n: float) -> timedelta:
    return timedelta(minutes=n)


def observation(pipeline_id: UUID | None = None, run: str = "r1", **changes: Any) -> Observation:
    """A successful run of ten minutes, observed after an hour."""
    fields: dict[str, Any] = {
        "pipeline_id": pipeline_id or uuid4(),
        "external_run_id": run,
        "status": RunStatus.SUCCESS,
        "started_at": T0,
        "finished_at": T0 + minutes(10),
        "duration_seconds": 600.0,
        "rows_processed": 5,
        "error_message": None,
        "status_reason": None,
        "source_url": None,
        "payload": {"id": run},
        "attempt": 0,
        "progress": 0,
        "source_version": T0 + minutes(10),
        "observed_at": T0 + minutes(60),
    }
    fields.update(changes)
    if fields["status"] is RunStatus.RUNNING:
        fields.update({"finished_at": None, "duration_seconds": None})
    return Observation(**fields)


def add_pipeline(
    engine: sa.Engine, name: str = "orders", client: str = "Acme", external_id: str | None = None
) -> IngestedPipeline:
    """A pipeline in the inventory, with its client created if needed."""
    new = NewPipeline(
        client,
        client.lower(),
        name,
        name,
        Platform.CUSTOM,
        PipelineType.INGESTION,
        external_id or f"{client.lower()}-{name}",
    )
    add_pipelines(engine, [new])
    return ingested_pipelines(engine, [f"{client.lower()}/{name}"])[0]


def rows(engine: sa.Engine, query: str, **parameters: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text(query), parameters).mappings())


class FakeFeed:
    """A scripted run history of a partner: what a sync yields for each target, and what was requested."""

    overlap = timedelta(minutes=5)

    def __init__(
        self, script: Callable[[SyncTarget], Sequence[RecordBatch | PipelinesSynced | PipelinesFailed]]
    ) -> None:
        self.script = script
        self.asked: list[SyncTarget] = []

    async def sync(
        self, targets: Sequence[SyncTarget]
    ) -> AsyncGenerator[RecordBatch | PipelinesSynced | PipelinesFailed, None]:
        for target in targets:
            self.asked.append(target)
            for event in self.script(target):
                yield event

    async def recent(self, targets: Sequence[SyncTarget]) -> Sequence[RecordBatch] | None:
        return [event for target in targets for event in self.script(target) if isinstance(event, RecordBatch)]

    async def check(self, external_id: str | None = None) -> Probe:
        return Probe(True, "fake")

    async def aclose(self) -> None:
        pass


def fake_partner(feed: FakeFeed, name: str = "default", *, reopens: bool = False) -> dict[str, Partner]:
    return {name: Partner(name, lambda: feed, GenericMapper(reopens=reopens))}


def one_page(
    external_id: str, *records: Any, at: datetime = T0 + timedelta(hours=1)
) -> list[RecordBatch | PipelinesSynced | PipelinesFailed]:
    """One page of records, then done."""
    return [
        RecordBatch([(external_id, r) for r in records], at),
        PipelinesSynced([external_id], at - timedelta(minutes=5), at),
    ]


def record(run: str = "r1", status: str = "success", **changes: Any) -> dict[str, Any]:
    """A record of the generic API."""
    finished = None if status in ("running", "queued") else (T0 + minutes(10)).isoformat()
    return {"id": run, "status": status, "started_at": T0.isoformat(), "finished_at": finished, **changes}

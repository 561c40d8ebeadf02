"""The ledger under test: an inventory of one server's pipelines, its syncs, and the resulting rows."""

import asyncio
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.domain.sync import IngestReport
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone, new_name
from chm_dagster.partners.port import Partner, Probe
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines, ingested_pipelines
from chm_dagster_tests.real_partners.server import RealServer, Word, Words, differences

TRIES = 8

BEFORE_ALL = datetime(2020, 1, 1, tzinfo=UTC)
_ROWS = "SELECT p.external_id, r.* FROM runs AS r JOIN pipelines AS p ON p.id = r.pipeline_id"
_VERSIONS = "SELECT id::text, xmin::text, ctid::text FROM runs"


@dataclasses.dataclass(slots=True)
class Ledger:
    """CHM with one connection."""

    engine: sa.Engine
    landings: LandingZone
    partners: Mapping[str, Partner]
    connection: str
    may_be_unlisted: set[str] = dataclasses.field(default_factory=set)
    """Keys of pipelines that the partner may have dropped from its list of pipelines."""

    def follow(self, platform: Platform, external_ids: Iterable[str]) -> None:
        """Add pipelines to the inventory."""
        new = [
            NewPipeline("Acme", "acme", name, slug_of(name), platform, PipelineType.INGESTION, name)
            for name in external_ids
        ]
        add_pipelines(self.engine, new)
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET connection = :name"), {"name": self.connection})

    def sync(self, keys: Collection[str] | None = None, since: datetime | None = None) -> IngestReport:
        """One ingestion, of everything by default. Every record must be accounted for, and nothing may fail."""
        landing = self.landings.open(new_name(datetime.now(UTC), uuid4()))
        pipelines = ingested_pipelines(self.engine, keys)
        report = ingest(self.engine, self.partners, pipelines, landing, since=since)
        assert [(p.key, p.error) for p in report.failed if p.key not in self.may_be_unlisted] == []
        assert all(p.accounted_for for p in report.pipelines.values())
        assert report.counts.rejected == 0
        assert [p.unknown_statuses for p in report.pipelines.values() if p.unknown_statuses] == []
        return report

    def catch_up(self) -> None:
        """Let time pass: the next sync reads only what happens from now on, as if the overlap were long over."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET synced_through = :now"), {"now": datetime.now(UTC)})

    def row(self, external_id: str, run_id: str | None = None) -> Any:
        """The row of this run, or of the only run of the pipeline."""
        query = sa.text(f"{_ROWS} WHERE p.external_id = :id AND r.external_run_id = coalesce(:run, r.external_run_id)")
        with self.engine.connect() as connection:
            return connection.execute(query, {"id": external_id, "run": run_id}).one()

    def words(self) -> Words:
        with self.engine.connect() as connection:
            rows = connection.execute(sa.text(_ROWS)).all()
        return {
            (r.external_id, r.external_run_id): Word(r.status, r.started_at or r.queued_at, r.finished_at) for r in rows
        }

    def versions(self) -> frozenset[tuple[str, ...]]:
        """Every row version: any update of a row, even without a change, creates a new one."""
        with self.engine.connect() as connection:
            return frozenset(tuple(row) for row in connection.execute(sa.text(_VERSIONS)))


def slug_of(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name)


def discover(partner: Partner) -> set[str]:
    """External ids of all pipelines that the partner lists."""

    async def ask() -> set[str]:
        feed: Any = partner.open_feed()
        try:
            return {pipeline.external_id for pipeline in await feed.discover()}
        finally:
            await feed.aclose()

    return asyncio.run(ask())


def check(partner: Partner) -> Probe:
    """Check the partner's version, and our credentials and rights."""

    async def ask() -> Probe:
        feed = partner.open_feed()
        try:
            return await feed.check()
        finally:
            await feed.aclose()

    return asyncio.run(ask())


def sync_and_compare(server: RealServer, ledger: Ledger) -> IngestReport:
    """Sync, and compare the ledger with the server's list, run by run.

    The server keeps running: only a sync during which its list did not change can be compared.
    """
    for _ in range(TRIES):
        known, before = ledger.words(), server.words()
        report = ledger.sync()
        if server.words() == before:
            assert differences({**before, **_remembered(known, before)}, ledger.words()) == []
            return report
    raise AssertionError(f"the server's runs changed during each of {TRIES} syncs")


def _remembered(known: Words, server: Words) -> Words:
    """What remains of runs that were deleted at the server: history is kept, but none of them is running."""
    gone = {key: word for key, word in known.items() if key not in server}
    return {
        key: Word("canceled", word.started_at, None) if word.status == "running" else word for key, word in gone.items()
    }


def assert_read_page_by_page(server: RealServer, ledger: Ledger, external_id: str) -> None:
    """The full history of one pipeline, read on its own, equals what the ledger already has."""
    report = ledger.sync([f"acme/{slug_of(external_id)}"], since=BEFORE_ALL)
    there = sum(owner == external_id for owner, _ in server.words())
    assert there > 250
    # Pages may overlap by a few runs, which are then stale records of the same sync.
    counts = {name: getattr(report.counts, name) for name in ("inserted", "updated", "unchanged")}
    assert counts == {"inserted": 0, "updated": 0, "unchanged": there}


def assert_nothing_to_write(ledger: Ledger) -> None:
    """Another sync finds nothing new and leaves every row version as it is."""
    before = ledger.versions()
    report = ledger.sync()
    assert (report.counts.inserted, report.counts.updated) == (0, 0)
    assert ledger.versions() == before

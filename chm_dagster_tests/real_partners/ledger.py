"""The ledger under test: an inventory of one server's pipelines, sweeps of it, and what is then in the database."""

import asyncio
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from uuid import uuid4

import sqlalchemy as sa

from chm_dagster.domain.inventory import PipelineType, Platform
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone, new_name
from chm_dagster.ingestion.report import IngestReport
from chm_dagster.partners.port import Partner, Probe
from chm_dagster.warehouse.inventory import NewPipeline, add_pipelines, ingested_pipelines
from chm_dagster_tests.real_partners.server import RealServer, Word, Words, differences

TRIES = 8

_WORDS = """
SELECT p.external_id, r.external_run_id, r.status, r.started_at, r.finished_at
FROM runs AS r JOIN pipelines AS p ON p.id = r.pipeline_id
"""
_VERSIONS = "SELECT id::text, xmin::text, ctid::text FROM runs"


@dataclasses.dataclass(slots=True)
class Ledger:
    """CHM over one connection."""

    engine: sa.Engine
    landings: LandingZone
    partners: Mapping[str, Partner]
    connection: str

    def follow(self, platform: Platform, external_ids: Iterable[str]) -> None:
        """Put pipelines into the inventory."""
        new = [
            NewPipeline("Acme", "acme", name, name.replace("_", "-"), platform, PipelineType.INGESTION, name)
            for name in external_ids
        ]
        add_pipelines(self.engine, new)
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET connection = :name"), {"name": self.connection})

    def sweep(self, keys: Collection[str] | None = None, since: datetime | None = None) -> IngestReport:
        """One ingestion, of everything by default; every record must be accounted for, and nothing may fail."""
        landing = self.landings.open(new_name(datetime.now(UTC), uuid4()))
        pipelines = ingested_pipelines(self.engine, keys)
        report = ingest(self.engine, self.partners, pipelines, landing, since=since)
        assert [(p.key, p.error) for p in report.failed] == []
        assert all(p.accounted_for for p in report.pipelines.values())
        assert report.total("rejected") == 0
        assert [p.unknown_statuses for p in report.pipelines.values() if p.unknown_statuses] == []
        return report

    def catch_up(self) -> None:
        """Let time pass: the next sweep asks only for what happens from now on, as if the overlap were long over."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET synced_through = :now"), {"now": datetime.now(UTC)})

    def words(self) -> Words:
        with self.engine.connect() as connection:
            return {(row[0], row[1]): Word(*row[2:]) for row in connection.execute(sa.text(_WORDS))}

    def versions(self) -> frozenset[tuple[str, ...]]:
        """Every row version: an update of a row, even to what it was, makes a new one."""
        with self.engine.connect() as connection:
            return frozenset(tuple(row) for row in connection.execute(sa.text(_VERSIONS)))


def check(partner: Partner) -> Probe:
    """Ask a partner who it is and who we are."""

    async def ask() -> Probe:
        feed = partner.open_feed()
        try:
            return await feed.check()
        finally:
            await feed.aclose()

    return asyncio.run(ask())


def sweep_and_compare(server: RealServer, ledger: Ledger) -> IngestReport:
    """Sweep, and hold the ledger against the server's list, run by run.

    The server goes on working: only a sweep during which its list stayed the same can be compared.
    """
    for _ in range(TRIES):
        known, before = ledger.words(), server.words()
        report = ledger.sweep()
        if server.words() == before:
            assert differences({**before, **_remembered(known, before)}, ledger.words()) == []
            return report
    raise AssertionError(f"the server's runs changed during each of {TRIES} sweeps")


def _remembered(known: Words, server: Words) -> Words:
    """What stays of runs that were deleted at the server: history is kept, but nothing runs that nobody knows of."""
    gone = {key: word for key, word in known.items() if key not in server}
    return {
        key: Word("canceled", word.started_at, None) if word.status == "running" else word for key, word in gone.items()
    }


def assert_nothing_to_write(ledger: Ledger) -> None:
    """Another sweep finds what it knows already, and leaves every row version as it is."""
    before = ledger.versions()
    report = ledger.sweep()
    assert (report.total("inserted"), report.total("updated")) == (0, 0)
    assert ledger.versions() == before

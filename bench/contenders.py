"""Three ways to turn a partner's data into committed rows of `runs`: CHM's own, the fastest possible, the usual one."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Session

from bench.material import Pages
from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.runs import Observation
from chm_dagster.domain.sync import IngestReport
from chm_dagster.http.body import parse_json
from chm_dagster.ingestion.ingest import ingest, remap
from chm_dagster.ingestion.landing import Landing
from chm_dagster.partners.platforms.generic import GenericMapper
from chm_dagster.partners.port import Partner, PipelinesFailed, PipelinesSynced, Probe, RecordBatch, SyncTarget
from chm_dagster.warehouse import tables
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.staging import COLUMNS, KEY, encode

CONNECTION = "default"
OVERLAP = timedelta(minutes=5)


class PagesInMemory(Landing):
    """A landing whose records are JSON bytes in memory, so that only parsing, mapping and writing are measured."""

    def __init__(self, pages: Pages, external_ids: Sequence[str]) -> None:
        super().__init__(Path("bench"))
        self._pages = pages
        self._external_ids = external_ids

    def connections(self) -> list[str]:
        return [CONNECTION]

    def events(self, connection: str) -> Iterator[RecordBatch | PipelinesSynced | PipelinesFailed]:
        return _events(self._pages, self._external_ids)


class PagesFeed:
    """A partner that responds at once from memory, so that all of `ingest` is measured, landing included."""

    overlap = OVERLAP

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def sync(self, targets: Sequence[SyncTarget]) -> AsyncGenerator[RecordBatch | PipelinesSynced, None]:
        for event in _events(self._pages, [t.external_id for t in targets]):
            yield event

    async def recent(self, targets: Sequence[SyncTarget]) -> Sequence[RecordBatch] | None:
        return None

    async def check(self, external_id: str | None = None) -> Probe:
        return Probe(True, "in memory")

    async def aclose(self) -> None:
        pass


def _events(pages: Pages, external_ids: Sequence[str]) -> Iterator[RecordBatch | PipelinesSynced | PipelinesFailed]:
    for body in pages.bodies:
        yield RecordBatch([(run["pipeline_id"], run) for run in parse_json(body)["runs"]], pages.observed_at)
    yield PipelinesSynced(external_ids, pages.observed_at - OVERLAP, pages.observed_at)


def chm(engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages) -> IngestReport:
    """Parse, map and merge with the product's own functions, in one transaction with watermarks and report."""
    landing = PagesInMemory(pages, [p.external_id for p in pipelines])
    return remap(engine, _partners(pages), pipelines, landing)


def chm_with_landing(
    engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages, landing: Landing
) -> IngestReport:
    """As `chm`, but write each page to the landing file and read it back first, as every ingestion does."""
    return ingest(engine, _partners(pages), pipelines, landing)


def _partners(pages: Pages) -> dict[str, Partner]:
    return {CONNECTION: Partner(CONNECTION, lambda: PagesFeed(pages), GenericMapper())}


def observations(pipelines: Sequence[IngestedPipeline], pages: Pages) -> Iterator[Observation]:
    """The records of the pages, mapped."""
    ids = {p.external_id: p.id for p in pipelines}
    mapping = GenericMapper()
    for body in pages.bodies:
        for run in parse_json(body)["runs"]:
            mapped = mapping(ids[run["pipeline_id"]], run, pages.observed_at)
            assert isinstance(mapped, Observation)
            yield mapped


def ready_rows(pipelines: Sequence[IngestedPipeline], pages: Pages) -> list[bytes]:
    """The pages as rows in COPY's own format, ready to be sent."""
    return [encode(observations(pipelines, Pages([body], pages.observed_at))) for body in pages.bodies]


def plain_copy(url: str, rows: Sequence[bytes]) -> None:
    """COPY ready rows straight into an empty `runs` in one transaction: the upper limit."""
    statement = f"COPY runs ({', '.join(COLUMNS)}) FROM STDIN"
    with psycopg.connect(url) as connection, connection.cursor().copy(statement) as copy:
        for block in rows:
            copy.write(block)


class Base(DeclarativeBase):
    metadata = tables.metadata


class Run(Base):
    __table__ = tables.runs


def per_row(engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages) -> int:
    """For every run: an upsert through SQLAlchemy's ORM, a commit, and reading the row back. Returns the count."""
    count = 0
    with Session(engine) as session:
        for observation in observations(pipelines, pages):
            values = _values(observation)
            insert = pg.insert(Run).values(values)
            news = {name: insert.excluded[name] for name in COLUMNS if name not in KEY}
            session.execute(insert.on_conflict_do_update(index_elements=KEY, set_=news))
            session.commit()
            key = {name: values[name] for name in KEY}
            assert session.scalars(sa.select(Run).filter_by(**key)).one()
            count += 1
    return count


def _values(observation: Observation) -> dict[str, Any]:
    return {**{name: getattr(observation, name) for name in COLUMNS}, "status": observation.status.value}

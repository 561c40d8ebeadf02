"""Ways from what a partner sent to committed rows of `runs`: CHM's own, the best there could be, the usual one."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Session

from bench.material import Pages
from chm_dagster.domain.inventory import IngestedPipeline
from chm_dagster.domain.runs import Observation
from chm_dagster.ingestion.ingest import ingest, remap
from chm_dagster.ingestion.landing import Landing
from chm_dagster.ingestion.report import IngestReport
from chm_dagster.partners.body import parse_json
from chm_dagster.partners.generic.mapping import GenericMapping
from chm_dagster.partners.port import Done, Failed, Page, Partner, Probe, Target
from chm_dagster.warehouse import tables
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.staging import COLUMNS, KEY, encode

CONNECTION = "default"
OVERLAP = timedelta(minutes=5)


class PagesInMemory(Landing):
    """A landing whose records are JSON bytes in memory: parsing, mapping and writing them is all that is left to do."""

    def __init__(self, pages: Pages, external_ids: Sequence[str]) -> None:
        super().__init__(Path("bench"))
        self._pages = pages
        self._external_ids = external_ids

    def connections(self) -> list[str]:
        return [CONNECTION]

    def events(self, connection: str) -> Iterator[Page | Done | Failed]:
        return _events(self._pages, self._external_ids)


class PagesFeed:
    """A partner that answers at once, out of memory: everything that `ingest` does is left, its landing included."""

    overlap = OVERLAP

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Page | Done | Failed, None]:
        for event in _events(self._pages, [t.external_id for t in targets]):
            yield event

    async def check(self) -> Probe:
        return Probe(True, "in memory")

    async def aclose(self) -> None:
        pass


def _events(pages: Pages, external_ids: Sequence[str]) -> Iterator[Page | Done | Failed]:
    for body in pages.bodies:
        yield Page([(run["pipeline_id"], run) for run in parse_json(body)["runs"]], pages.observed_at)
    yield Done(external_ids, pages.observed_at - OVERLAP, pages.observed_at)


def chm(engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages) -> IngestReport:
    """Parse, map and merge with the product's own functions, watermarks and report included, in one transaction."""
    landing = PagesInMemory(pages, [p.external_id for p in pipelines])
    return remap(engine, _partners(pages), pipelines, landing)


def chm_with_landing(
    engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages, landing: Landing
) -> IngestReport:
    """The same, and each page is written to the landing file first and read back from it, as in every ingestion."""
    return ingest(engine, _partners(pages), pipelines, landing)


def _partners(pages: Pages) -> dict[str, Partner]:
    return {CONNECTION: Partner(CONNECTION, lambda: PagesFeed(pages), GenericMapping())}


def observations(pipelines: Sequence[IngestedPipeline], pages: Pages) -> Iterator[Observation]:
    """What the pages tell of, mapped."""
    ids = {p.external_id: p.id for p in pipelines}
    mapping = GenericMapping()
    for body in pages.bodies:
        for run in parse_json(body)["runs"]:
            mapped = mapping(ids[run["pipeline_id"]], run, pages.observed_at)
            assert isinstance(mapped, Observation)
            yield mapped


def ready_rows(pipelines: Sequence[IngestedPipeline], pages: Pages) -> list[bytes]:
    """The pages as rows in COPY's own format: nothing is left to do but to send them."""
    return [encode(observations(pipelines, Pages([body], pages.observed_at))) for body in pages.bodies]


def plain_copy(url: str, rows: Sequence[bytes]) -> None:
    """COPY of ready rows straight into `runs`, in one transaction: the limit. It only works into an empty table."""
    statement = f"COPY runs ({', '.join(COLUMNS)}) FROM STDIN"
    with psycopg.connect(url) as connection, connection.cursor().copy(statement) as copy:
        for block in rows:
            copy.write(block)


class Base(DeclarativeBase):
    metadata = tables.metadata


class Run(Base):
    __table__ = tables.runs


def per_row(engine: Engine, pipelines: Sequence[IngestedPipeline], pages: Pages) -> int:
    """An upsert through SQLAlchemy's ORM, a commit and the row read back, for every single run. Returns how many."""
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

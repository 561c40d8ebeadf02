"""Partners that answer over real sockets while an ingestion runs in another thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from chm_dagster.domain.sync import IngestReport
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.connections import load_partners
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster_tests.factories import add_pipeline, rows
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request

Answer = Callable[[Request], Reply]
PATIENCE = 60.0
"""Seconds after which a test gives up. Nothing here is decided by time."""


class Held:
    """A reply that is sent once the test lets go."""

    def __init__(self, then: Reply) -> None:
        self.asked = threading.Event()
        self._let_go = threading.Event()
        self._then = then

    def __call__(self, _: Request) -> Reply:
        async def send(writer: asyncio.StreamWriter) -> None:
            self.asked.set()
            for _ in range(int(2 * PATIENCE / 0.01)):
                if self._let_go.is_set():
                    break
                await asyncio.sleep(0.01)
            await self._then.send(writer)

        return Reply(send, keep_alive=self._then.keep_alive)

    def let_go(self) -> None:
        self._let_go.set()


@contextmanager
def serving(answer: Answer) -> Iterator[FaultServer]:
    """A fault server with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = FaultServer(answer)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(PATIENCE)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Scene:
    """An inventory with one pipeline for each connection, `acme/NAME`, and what there is to do with it."""

    def __init__(self, engine: sa.Engine, folder: Path, addresses: Mapping[str, str]) -> None:
        self.engine = engine
        self.zone = LandingZone(folder / "landing")
        self._numbers = iter(range(1_000))
        self.partners = self._partners(folder, addresses)
        for name in addresses:
            pipeline = add_pipeline(engine, name)
            with engine.begin() as connection:
                connection.execute(
                    sa.text("UPDATE pipelines SET connection = :name WHERE id = :id"), {"name": name, "id": pipeline.id}
                )

    @staticmethod
    def _partners(folder: Path, addresses: Mapping[str, str]) -> dict[str, Partner]:
        http = {"deadline_seconds": 600}
        connections = {name: {"api": "generic", "base_url": url, "http": http} for name, url in addresses.items()}
        file = folder / "partners.yaml"
        file.write_text(yaml.safe_dump({"connections": connections}))
        return load_partners(file, {}, None, None)

    def ingest(self, **options: Any) -> IngestReport:
        landing = self.zone.open(f"n{next(self._numbers)}")
        return ingest(self.engine, self.partners, ingested_pipelines(self.engine), landing, **options)

    @contextmanager
    def ingesting(self, **options: Any) -> Iterator[Future[IngestReport]]:
        """An ingestion in another thread."""
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(self.ingest, **options)

    def runs(self, name: str) -> list[str]:
        query = """
            SELECT r.external_run_id FROM runs AS r JOIN pipelines AS p ON p.id = r.pipeline_id
            WHERE p.slug = :name ORDER BY 1
        """
        return [row["external_run_id"] for row in rows(self.engine, query, name=name)]

    def pipeline(self, name: str) -> Any:
        return rows(self.engine, "SELECT * FROM pipelines WHERE slug = :name", name=name)[0]

    def wait_until(self, condition: Callable[[], object]) -> None:
        for _ in range(int(PATIENCE / 0.05)):
            if condition():
                return
            threading.Event().wait(0.05)
        raise AssertionError("it did not happen")

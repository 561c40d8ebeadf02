"""A scheduled sync of many pipelines along the real path: HTTP, landing, mapping, merge, watermarks, report.

CHM's own time runs from reading the inventory to saving the report, minus the time in which the partner, a separate
process, had a request to answer. Transport between the two counts as CHM's own.
"""

import time
from pathlib import Path
from typing import Any

from bench.material import fill_inventory, utc_now
from bench.measuring import spread
from bench.partner import SEED, WINDOW, Partner, partner
from bench.sizes import Sizes
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.connections import default_partners
from chm_dagster.partners.sandbox.world import World
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines


class Syncer:
    """Syncs one partner repeatedly and measures each sync."""

    def __init__(self, engine: Engine, partner: Partner, folder: Path) -> None:
        self._engine, self._partner, self._landings = engine, partner, LandingZone(folder)
        self._partners = default_partners(partner.base_url, None)
        self._count = 0

    def sync(self, expected: int) -> dict[str, float]:
        """Sync once and require exactly `expected` new runs."""
        self._partner.busy()
        self._count += 1
        begin = time.perf_counter()
        pipelines = ingested_pipelines(self._engine)
        report = ingest(self._engine, self._partners, pipelines, self._landings.open(f"sync-{self._count}"))
        total = time.perf_counter() - begin
        busy, requests = self._partner.busy()
        found = {name: getattr(report.counts, name) for name in ("inserted", "updated", "stale", "rejected")}
        if report.failed or found != {"inserted": expected, "updated": 0, "stale": 0, "rejected": 0}:
            raise AssertionError(f"{found}, {len(report.failed)} failed, expected {expected} new runs")
        return {
            "own_seconds": total - busy,
            "partner_seconds": busy,
            "requests": requests,
            "fetched": report.fetched,
        }


def sync_rounds(url: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measure a first load over HTTP, then alternate between syncs with news and syncs without."""
    engine = make_engine(url)
    world = World.bench(SEED, sizes.sync_pipelines, new_runs=sizes.sync_news, window=WINDOW)
    fill_inventory(engine, world.pipelines())
    start = utc_now() - (sizes.sync_rounds + 1) * WINDOW
    news, no_news = [], []
    with partner(sizes.sync_pipelines, sizes.sync_news, sizes.sync_runs_per_pipeline, start) as process:
        syncer = Syncer(engine, process, folder)
        first = syncer.sync(sizes.sync_pipelines * sizes.sync_runs_per_pipeline)
        for _ in range(sizes.sync_rounds):
            process.advance()
            news.append(syncer.sync(sizes.sync_news))
            no_news.append(syncer.sync(0))
    engine.dispose()
    return {
        "pipelines": sizes.sync_pipelines,
        "new_runs": sizes.sync_news,
        "first_load": {name: round(value, 3) for name, value in first.items()},
        "news": _spreads(news),
        "no_news": _spreads(no_news),
    }


def _spreads(syncs: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([sync[name] for sync in syncs]) for name in syncs[0]}

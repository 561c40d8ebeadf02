"""A scheduled sweep over many pipelines, through the real path: HTTP, landing, mapping, merge, watermarks, report.

What is ours is the time from before the inventory is read to after the report is saved, less the time in which the
partner, a process of its own, had a request to answer. What travels between the two counts as ours.
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
from chm_dagster.warehouse.inventory import ingested_pipelines


class Sweeper:
    """Sweeps one partner again and again, and keeps what each sweep took."""

    def __init__(self, engine: Engine, partner: Partner, folder: Path) -> None:
        self._engine, self._partner, self._landings = engine, partner, LandingZone(folder)
        self._partners = default_partners(partner.base_url, None)
        self._count = 0

    def sweep(self, expected: int) -> dict[str, float]:
        """One sweep, which must bring `expected` new runs."""
        self._partner.busy()
        self._count += 1
        begin = time.perf_counter()
        pipelines = ingested_pipelines(self._engine)
        report = ingest(self._engine, self._partners, pipelines, self._landings.open(f"sweep-{self._count}"))
        total = time.perf_counter() - begin
        busy, requests = self._partner.busy()
        found = {name: report.total(name) for name in ("inserted", "updated", "stale", "rejected")}
        if report.failed or found != {"inserted": expected, "updated": 0, "stale": 0, "rejected": 0}:
            raise AssertionError(f"{found}, {len(report.failed)} failed, where {expected} new runs were to be")
        return {
            "own_seconds": total - busy,
            "partner_seconds": busy,
            "requests": requests,
            "fetched": report.total("fetched"),
        }


def sweeps(url: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """A first load over HTTP, then sweeps with news and sweeps without, in turn."""
    engine = make_engine(url)
    world = World.bench(SEED, sizes.sweep_pipelines, new_runs=sizes.sweep_news, window=WINDOW)
    fill_inventory(engine, world.pipelines())
    start = utc_now() - (sizes.sweep_rounds + 1) * WINDOW
    news, no_news = [], []
    with partner(sizes.sweep_pipelines, sizes.sweep_news, sizes.sweep_runs_per_pipeline, start) as process:
        sweeper = Sweeper(engine, process, folder)
        first = sweeper.sweep(sizes.sweep_pipelines * sizes.sweep_runs_per_pipeline)
        for _ in range(sizes.sweep_rounds):
            process.advance()
            news.append(sweeper.sweep(sizes.sweep_news))
            no_news.append(sweeper.sweep(0))
    engine.dispose()
    return {
        "pipelines": sizes.sweep_pipelines,
        "new_runs": sizes.sweep_news,
        "first_load": {name: round(value, 3) for name, value in first.items()},
        "news": _spreads(news),
        "no_news": _spreads(no_news),
    }


def _spreads(sweeps: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([sweep[name] for sweep in sweeps]) for name in sweeps[0]}

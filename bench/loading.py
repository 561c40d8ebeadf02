"""First load, identical replay and changed replay, compared with plain COPY and with one row at a time."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench import contenders
from bench.material import SEED, fill_inventory, head, material, utc_now
from bench.measuring import Work, measured, spread
from bench.sizes import Sizes
from chm_dagster.domain.sync import IngestReport
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.sandbox.world import World
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines

# The checkpoint comes last, so that no contender pays for earlier writes and all write into fresh pages.
_EMPTY = (
    "TRUNCATE runs",
    "UPDATE pipelines SET synced_through = NULL, observed_through = NULL",
    "VACUUM pipelines",
    "CHECKPOINT",
)


class Arena:
    """One server, one inventory and one history. Each contender starts with an empty table of runs.

    `works` maps the name of each step to its costs, in the order of the rounds.
    """

    def __init__(self, url: str, sizes: Sizes, folder: Path) -> None:
        world = World.bench(SEED, sizes.pipelines, runs_per_pipeline=sizes.runs_per_pipeline, new_runs=sizes.pipelines)
        self.engine = make_engine(url)
        fill_inventory(self.engine, world.pipelines())
        self.pipelines = ingested_pipelines(self.engine)
        self.material = material(world, utc_now())
        self.few = head(self.material.first, sizes.per_row_runs)
        self.few_runs = sizes.per_row_runs
        self.rows = contenders.ready_rows(self.pipelines, self.material.first)
        self.works: dict[str, list[Work]] = defaultdict(list)
        self._url, self._landings = url, LandingZone(folder)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def round(self, number: int) -> None:
        """Run every contender once. Pairs swap places from round to round, so that machine drift cancels out."""
        pairs = ((self.chm, self.copy), (self.chm_with_landing, self.per_row))
        for one, other in pairs if number % 2 == 0 else [(b, a) for a, b in pairs]:
            one()
            other()

    def chm(self) -> None:
        """Load, replay five minutes later, and replay with one run in ten changed."""
        runs, changed = self.material.runs, self.material.changed_runs
        with self._step("load", empty=True):
            report = contenders.chm(self.engine, self.pipelines, self.material.first)
        _require(report, inserted=runs)
        with self._step("replay"):
            report = contenders.chm(self.engine, self.pipelines, self.material.again)
        _require(report, unchanged=runs)
        with self._step("changed"):
            report = contenders.chm(self.engine, self.pipelines, self.material.changed)
        _require(report, unchanged=runs - changed, updated=changed)

    def chm_with_landing(self) -> None:
        """Load the way `ingest` does: through the landing file."""
        landing = self._landings.open(f"round-{len(self.works['landed'])}")
        with self._step("landed", empty=True):
            report = contenders.chm_with_landing(self.engine, self.pipelines, self.material.first, landing)
        _require(report, inserted=self.material.runs)

    def copy(self) -> None:
        """Load with plain COPY, the upper limit."""
        with self._step("copy", empty=True):
            contenders.plain_copy(self._url, self.rows)
        self._require_rows(self.material.runs)

    def per_row(self) -> None:
        """Load the first few runs the usual way, one row at a time."""
        with self._step("per_row", empty=True):
            contenders.per_row(self.engine, self.pipelines, self.few)
        self._require_rows(self.few_runs)

    @contextmanager
    def _step(self, name: str, *, empty: bool = False) -> Iterator[None]:
        if empty:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                for statement in _EMPTY:
                    connection.execute(sa.text(statement))
        with measured(self.engine) as work:
            yield
        self.works[name].append(work)

    def _require_rows(self, wanted: int) -> None:
        with self.engine.connect() as connection:
            found = connection.scalar(sa.text("SELECT count(*) FROM runs"))
        if found != wanted:
            raise AssertionError(f"found {found} rows, expected {wanted}")


def compare(url: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Run all rounds. Returns rates in rows/s, the ratios that have targets, WAL and dead tuples."""
    arena = Arena(url, sizes, folder)
    try:
        for number in range(sizes.rounds):
            arena.round(number)
    finally:
        arena.close()
    return _summary(arena)


def _summary(arena: Arena) -> dict[str, Any]:
    rates = {
        name: [(arena.few_runs if name == "per_row" else arena.material.runs) / work.seconds for work in works]
        for name, works in arena.works.items()
    }
    wal = {name: statistics.median(work.wal_bytes for work in works) for name, works in arena.works.items()}

    def ratio(one: str, other: str) -> dict[str, Any]:
        # Within a round: what slows one contender down slows its neighbour down as well.
        return spread([a / b for a, b in zip(rates[one], rates[other], strict=True)])

    return {
        "runs": arena.material.runs,
        "per_row_runs": arena.few_runs,
        "rows_per_second": {name: spread(values, 0) for name, values in rates.items()},
        "ratios": {
            "load_vs_copy": ratio("load", "copy"),
            "landed_load_vs_copy": ratio("landed", "copy"),
            "load_vs_per_row": ratio("load", "per_row"),
            "replay_vs_load": ratio("replay", "load"),
            "replay_wal_share": spread(
                [a.wal_bytes / b.wal_bytes for a, b in zip(arena.works["replay"], arena.works["load"], strict=True)], 5
            ),
        },
        "wal_bytes_per_row": {
            n: round(b / (arena.few_runs if n == "per_row" else arena.material.runs), 1) for n, b in wal.items()
        },
        "replay_dead_tuples": max(work.dead_tuples for work in arena.works["replay"]),
        "changed_dead_tuples": min(work.dead_tuples for work in arena.works["changed"]),
    }


def _require(report: IngestReport, **wanted: int) -> None:
    """Require that the work was really done; otherwise its figure means nothing."""
    names = ("fetched", "inserted", "updated", "unchanged", "stale", "rejected")
    found = {name: getattr(report.counts, name) for name in names if name != "fetched" and getattr(report.counts, name)}
    if found != wanted or report.fetched != sum(wanted.values()) or report.failed:
        raise AssertionError(f"found {found}, expected {wanted}")

"""Pages of run records as a partner would send them, and the inventory that they belong to."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from chm_dagster.partners.sandbox.catalogue import SandboxPipeline
from chm_dagster.partners.sandbox.world import World
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines

SEED = 7
PAGE = 1_000
BASE_URL = "https://partner.example/api"


@dataclasses.dataclass(frozen=True, slots=True)
class Pages:
    """The JSON bodies of an account-wide list of runs, and when the request for it started."""

    bodies: Sequence[bytes]
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Material:
    """The same history three times: first, repeated five minutes later, and with one run in ten changed."""

    first: Pages
    again: Pages
    changed: Pages
    runs: int
    changed_runs: int


def material(world: World, now: datetime) -> Material:
    """All runs of the world as of `now`, in the order of its lists: pipeline by pipeline."""
    records = world.records(None, None, now, BASE_URL)
    changed = [_changed(record, now) if n % 10 == 0 else record for n, record in enumerate(records)]
    return Material(
        first=Pages(_bodies(records), now),
        again=Pages(_bodies(records), now + timedelta(minutes=5)),
        changed=Pages(_bodies(changed), now + timedelta(minutes=10)),
        runs=len(records),
        changed_runs=len(range(0, len(records), 10)),
    )


def head(pages: Pages, runs: int) -> Pages:
    """The first `runs` runs of the pages."""
    records = [run for body in pages.bodies[: -(-runs // PAGE)] for run in orjson.loads(body)["runs"]]
    return Pages(_bodies(records[:runs]), pages.observed_at)


def fill_inventory(engine: Engine, pipelines: Sequence[SandboxPipeline]) -> None:
    """Add the world's pipelines to the inventory, each with a slug of its own."""
    add_pipelines(engine, (_new(p) for p in pipelines))


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def _new(p: SandboxPipeline) -> NewPipeline:
    client = p.client_name.lower().replace(" ", "-")
    return NewPipeline(
        p.client_name, client, f"{p.name} {p.index}", f"p-{p.index}", p.platform, p.pipeline_type, p.external_id
    )


def _changed(record: dict[str, Any], now: datetime) -> dict[str, Any]:
    return {**record, "rows_processed": (record["rows_processed"] or 0) + 1, "updated_at": now.isoformat()}


def _bodies(records: Sequence[dict[str, Any]]) -> list[bytes]:
    return [
        orjson.dumps({"runs": records[n : n + PAGE], "next_cursor": str(n + PAGE)})
        for n in range(0, len(records), PAGE)
    ]

"""The pages of the board over a large ledger, requested over a socket: how long each takes, and how large it is.

Each page is measured twice: as it is served, where costly answers are kept for some seconds, and with nothing kept.
The second is compared with the contract query that the page mainly shows, asked for all its rows.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import sqlalchemy as sa

from bench.large_ledger import SEED
from chm_dagster.api.app import create_app
from chm_dagster.board.answers import Answers
from chm_dagster.board.filters import Filters
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.reports import receivers
from chm_dagster.warehouse.warehouse import Warehouse

ROUNDS = 25
"""Requests of a page, each way. Pages about one client, pipeline or run show another one each time."""
TARGET_MS, TARGET_BYTES = 150.0, 100_000

ABOUT_ONE = ("client", "pipeline", "run")

_RUNS = """
SELECT c.slug AS client, p.slug AS pipeline, latest.external_run_id AS run
FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
CROSS JOIN LATERAL (
    SELECT external_run_id FROM runs WHERE pipeline_id = p.id ORDER BY started_at DESC LIMIT 1
) AS latest
ORDER BY c.slug, p.slug
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page: its path, and the question that it mainly shows. Both are about one run's row of `_RUNS`."""

    name: str
    path: Callable[[Any], str]
    ask: Callable[[Any], object]


def run(engine: Engine, *, quick: bool = False) -> dict[str, Any]:
    """Measure and print a table. The database is one of `bench.large_ledger`, with the rules of `bench.alerts`."""
    warehouse, rounds = Warehouse(engine), 3 if quick else ROUNDS
    with engine.connect() as connection:
        rows = connection.execute(sa.text(_RUNS)).all()
    with served(warehouse) as (client, kept, unkept):
        found = {
            page.name: _measure(page, client, kept, unkept, random.Random(SEED).choices(rows, k=rounds))
            for page in _pages(warehouse, datetime.now(UTC))
        }
    print(_table(found))
    return found


@contextmanager
def served(warehouse: Warehouse) -> Iterator[tuple[httpx.Client, str, str]]:
    """A client, and the addresses of two servers: one as it is, and one that keeps no answer."""
    usual, unkept = create_app(warehouse), create_app(warehouse)
    unkept.state.answers = Answers(warehouse, costly=float("inf"))
    with (
        serve_in_thread(usual, lifespan="off") as usual_url,
        serve_in_thread(unkept, lifespan="off") as unkept_url,
        httpx.Client(trust_env=False, timeout=120) as client,
    ):
        yield client, usual_url, unkept_url


def _pages(warehouse: Warehouse, now: datetime) -> list[Page]:
    ask, day = warehouse.ask, timedelta(days=1)
    then = now - 7 * day
    at = httpx.QueryParams({"at": then.isoformat()})
    of_all: dict[str, tuple[str, Callable[[], object]]] = {
        "overview": ("/", lambda: ask("latest_status_by_client")),
        "overview, a week ago": (f"/?{at}", lambda: ask("latest_status_by_client", at=then)),
        "wall": ("/wall", lambda: ask("latest_status_by_client")),
        "pipelines": ("/pipelines", lambda: ask("latest_status_by_pipeline")),
        "errors": ("/errors", lambda: ask("error_groups", since=now - Filters().days * day)),
        "failed runs": ("/errors/runs", lambda: ask("failed_runs", since=now - Filters().days * day)),
        "changes": ("/changes", lambda: ask("changed_since", since=now - day)),
        "flaky": ("/flaky", lambda: ask("flaky_pipelines")),
        "rules": ("/rules", lambda: ask("open_episodes")),
        "partners": ("/partners", lambda: ask("connections")),
        "reports": ("/reports", lambda: receivers(warehouse.engine)),
    }
    pages = [_of_all(name, path, question) for name, (path, question) in of_all.items()]
    latest = "latest_status_by_pipeline"
    return [
        *pages,
        Page("client", lambda r: f"/clients/{r.client}", lambda r: ask(latest, client_slug=r.client)),
        Page("pipeline", lambda r: f"/clients/{r.client}/{r.pipeline}", lambda r: ask(latest, client_slug=r.client)),
        Page(
            "run",
            lambda r: f"/clients/{r.client}/{r.pipeline}/run?id={r.run}",
            lambda r: warehouse.runs.get(warehouse.pipelines.get(f"{r.client}/{r.pipeline}").id, r.run),
        ),
    ]


def _of_all(name: str, path: str, ask: Callable[[], object]) -> Page:
    return Page(name, lambda _: path, lambda _: ask())


def _measure(page: Page, client: httpx.Client, kept: str, unkept: str, subjects: list[Any]) -> dict[str, Any]:
    sizes = []

    def get(server: str, subject: Any) -> None:
        response = client.get(server + page.path(subject))
        if response.status_code != 200:
            raise AssertionError(f"{page.name}: {response.status_code} {response.text[:200]}")
        sizes.append(len(response.content))

    query = _timed(page.ask, subjects)
    without = _timed(lambda subject: get(unkept, subject), subjects)
    usual = _timed(lambda subject: get(kept, subject), subjects)
    p95, size = usual["p95_ms"], max(sizes)
    return {
        "served": usual,
        "nothing_kept": without,
        "query": query,
        "ratio_to_query": round(without["p50_ms"] / query["p50_ms"], 2),
        "bytes": size,
        "within_target": p95 < TARGET_MS and size < TARGET_BYTES,
        "within_target_with_nothing_kept": without["p95_ms"] < TARGET_MS and size < TARGET_BYTES,
    }


def _timed(action: Callable[[Any], object], subjects: list[Any]) -> dict[str, float]:
    """p50 and p95 in milliseconds, after a first call that does not count."""
    action(subjects[0])
    spent = []
    for subject in subjects:
        begin = time.perf_counter()
        action(subject)
        spent.append((time.perf_counter() - begin) * 1_000)
    return {"p50_ms": round(statistics.median(spent), 1), "p95_ms": round(statistics.quantiles(spent, n=20)[-1], 1)}


def _table(found: dict[str, dict[str, Any]]) -> str:
    head = ("served p50", "p95", "nothing kept p50", "p95", "query p50", "ratio", "bytes")
    lines = [
        f"Pages of the board, in milliseconds; target: p95 < {TARGET_MS:g}, < {TARGET_BYTES:,} bytes",
        f"{'page':22}" + "".join(f"{name:>18}" for name in head),
    ]
    for name, page in found.items():
        times = [page[way][key] for way in ("served", "nothing_kept") for key in ("p50_ms", "p95_ms")]
        numbers = [*times, page["query"]["p50_ms"], page["ratio_to_query"], page["bytes"]]
        lines.append(f"{name:22}" + "".join(f"{n:>18,}" for n in numbers) + ("" if page["within_target"] else " !"))
    return "\n".join(lines)

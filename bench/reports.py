"""A client's report on a week over 1,000 pipelines that run every hour: how long building and writing it takes."""

import gc
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa

from bench.large_ledger import LedgerSize, make
from chm_dagster.domain.reports import Report
from chm_dagster.reporting import FORMATS, build
from chm_dagster.warehouse.engine import Engine

FULL = LedgerSize(clients=1, pipelines_per_client=1_000, runs_per_pipeline=24 * 24, days=24)
QUICK = LedgerSize(clients=1, pipelines_per_client=20, runs_per_pipeline=24 * 24, days=24)
"""Runs of the last 24 days: the last week that is over, the one before, and some earlier ones."""
ROUNDS = 5
CLIENT = "client-001"

# All run in production, each at its own minute of the hour, and were read just now.
_HOURLY = """
UPDATE pipelines AS p SET
    environment = 'prod', observed_through = now(), created_at = first.started_at, schedule_timezone = 'UTC',
    schedule_cron = CAST(extract(minute FROM first.started_at) AS int) || ' * * * *', max_runtime_minutes = 120
FROM (SELECT pipeline_id, min(started_at) AS started_at FROM runs GROUP BY pipeline_id) AS first
WHERE first.pipeline_id = p.id
"""


def run(engine: Engine, *, quick: bool = False) -> dict[str, Any]:
    """Fill an empty database, measure and print a table."""
    size = QUICK if quick else FULL
    make(engine, size)
    with engine.begin() as connection:
        connection.execute(sa.text(_HOURLY))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE pipelines")
    rounds, now = 1 if quick else ROUNDS, datetime.now(UTC)
    report = build(engine, CLIENT, None, None, now).report
    seconds = {"build": _timed(lambda _: build(engine, CLIENT, None, None, now), rounds)}
    for form, (write, _) in FORMATS.items():
        # Another name each time: the compiler of the PDF knows the page that it made last.
        seconds[form] = _timed(partial(_write, write, report), rounds)
    found = {
        "pipelines": size.pipelines,
        "runs_of_two_weeks": report.figures.runs + report.before.runs,
        "incidents": report.figures.incidents,
        "rounds": rounds,
        "seconds": {name: _spread(times) for name, times in seconds.items()},
        "bytes": {form: len(write(report)) for form, (write, _) in FORMATS.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(_table(found, report))
    return found


def _write(write: Callable[[Report], bytes], report: Report, number: int) -> bytes:
    return write(msgspec.structs.replace(report, client_name=f"Client {number}"))


def _timed(action: Callable[[int], object], rounds: int) -> list[float]:
    found = []
    for number in range(rounds):
        gc.collect()
        begin = time.perf_counter()
        action(number)
        found.append(time.perf_counter() - begin)
    return found


def _spread(seconds: list[float]) -> dict[str, float]:
    shown = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 6) for name, value in shown.items()}


def _table(found: dict[str, Any], report: Report) -> str:
    lines = [
        f"Report on {report.period} over {found['pipelines']:,} pipelines: {found['runs_of_two_weeks']:,} runs of two"
        f" weeks, {found['incidents']:,} incidents; {found['rounds']} rounds, load average {found['load_average']}",
        f"{'':10}{'median':>10}{'smallest':>11}{'largest':>11}{'size':>12}",
    ]
    for name, spread in found["seconds"].items():
        size = f"{found['bytes'][name] / 1024:,.0f} KiB" if name in found["bytes"] else ""
        lines.append(f"{name:10}{spread['median']:>8.2f} s{spread['min']:>9.2f} s{spread['max']:>9.2f} s{size:>12}")
    return "\n".join(lines)

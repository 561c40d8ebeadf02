"""Clocks, counters and medians, and a description of the machine."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from chm_dagster.warehouse.engine import Engine


@dataclasses.dataclass(slots=True)
class Work:
    """The cost of one piece of work: wall-clock seconds, bytes of WAL, and dead rows left in `runs`."""

    seconds: float = 0.0
    wal_bytes: int = 0
    dead_tuples: int = 0


@contextmanager
def measured(engine: Engine) -> Iterator[Work]:
    """Measure the body of the `with` statement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        work = Work()
        wal, dead = _wal_position(connection), _dead_tuples(connection)
        begin = time.perf_counter()
        yield work
        work.seconds = time.perf_counter() - begin
        work.wal_bytes = _wal_position(connection) - wal
        work.dead_tuples = _dead_tuples(connection) - dead


def _wal_position(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")) or 0)


def _dead_tuples(connection: sa.Connection) -> int:
    connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    return int(connection.scalar(sa.text("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'")) or 0)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float | list[float]]:
    """Median, minimum, maximum, and all values in the order of the rounds."""
    shown = [round(value, digits) for value in values]
    return {"median": round(statistics.median(values), digits), "min": min(shown), "max": max(shown), "rounds": shown}


def machine(engine: Engine) -> dict[str, Any]:
    """The machine and the server settings of this measurement."""
    with engine.connect() as connection:
        settings = (
            "server_version",
            "shared_buffers",
            "synchronous_commit",
            "fsync",
            "max_wal_size",
            "wal_compression",
        )
        server = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in settings}
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average": [round(n, 2) for n in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "postgres": server,
    }


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()

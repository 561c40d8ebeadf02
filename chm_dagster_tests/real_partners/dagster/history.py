"""Writes a history into Dagster's storage: Dagster creates one run, and the others are copies of its row.

Creating each of them with Dagster costs a file and about ten disk flushes, which takes minutes on a busy machine.
"""

import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
from jobs import busy

STATES = ("SUCCESS", "SUCCESS", "CANCELED", "SUCCESS")
TOGETHER = 4
FORMAT = "%Y-%m-%d %H:%M:%S.%f"


def write(count: int) -> None:
    """The number of finished runs of the job `busy`, the newest two hours old.

    Four at a time start simultaneously: a page that ends between them must not lose any.
    """
    with dg.DagsterInstance.get() as instance:
        model = instance.create_run_for_job(busy).run_id
        storage = Path(instance.root_directory) / "history" / "runs.db"
    newest = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    with sqlite3.connect(storage) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM runs WHERE run_id = ?", [model]).fetchone())
        connection.execute("DELETE FROM runs WHERE run_id = ?", [model])
        # Dagster lists runs in the order of their rows.
        for number in reversed(range(count)):
            begin = newest - timedelta(hours=number // TOGETHER)
            _insert(connection, row, begin, begin + timedelta(seconds=60, microseconds=number + 1), number)
    connection.close()


def _insert(connection: sqlite3.Connection, model: dict, begin: datetime, end: datetime, number: int) -> None:
    run_id, status = str(uuid4()), STATES[number % len(STATES)]
    body = model["run_body"].replace(model["run_id"], run_id).replace("RunStatus.NOT_STARTED", f"RunStatus.{status}")
    row = {
        **model,
        "id": None,
        "run_id": run_id,
        "status": status,
        "run_body": body,
        "create_timestamp": begin.strftime(FORMAT),
        "update_timestamp": end.strftime(FORMAT),
        "start_time": begin.timestamp(),
        "end_time": end.timestamp(),
    }
    names = ", ".join(row)
    connection.execute(f"INSERT INTO runs ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


if __name__ == "__main__":
    write(int(sys.argv[1]))

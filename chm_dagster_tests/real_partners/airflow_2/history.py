"""Writes a history into Airflow 2's database, like that of a server that has been up for a month."""

import sys
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.settings import engine

STATES = ("success", "success", "failed", "success")


def write(busy_runs: int, *busy: str) -> None:
    """The number of finished runs of each busy DAG, one an hour, the newest two hours old; other DAGs have one run."""
    newest = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    with engine.begin() as connection:
        dag_ids = connection.execute(sa.select(DagModel.dag_id)).scalars().all()
        counts = {dag_id: 1 for dag_id in dag_ids if dag_id.startswith("fleet_")}
        counts.update(dict.fromkeys(busy, busy_runs))
        rows = []
        for dag_id, count in counts.items():
            for number in range(count):
                begin = newest - timedelta(hours=number)
                end = begin + timedelta(seconds=60, microseconds=number + 1)
                rows.append(
                    {
                        "dag_id": dag_id,
                        "run_id": f"scheduled__{begin.isoformat()}",
                        "run_type": "scheduled",
                        "state": STATES[number % len(STATES)],
                        "queued_at": begin - timedelta(seconds=1),
                        "execution_date": begin,
                        "start_date": begin,
                        "end_date": end,
                        "updated_at": end,
                        "external_trigger": False,
                        "clear_number": 0,
                    }
                )
        connection.execute(sa.insert(DagRun.__table__), rows)


if __name__ == "__main__":
    write(int(sys.argv[1]), *sys.argv[2:])

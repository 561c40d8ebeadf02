"""The DAGs of the Airflow 2 server: three that the tests run, and a few that never start by themselves."""

import os
import time
from typing import Any

from airflow import DAG
from airflow.decorators import dag, task
from airflow.operators.empty import EmptyOperator


@task
def load() -> None:
    """Succeeds."""


@task
def boom() -> None:
    """Fails."""
    raise ValueError("the orders table is locked")


@task
def wait() -> None:
    """Runs until somebody marks it."""
    time.sleep(600)


def _dag(dag_id: str, step: Any) -> None:
    dag(dag_id=dag_id, schedule=None, is_paused_upon_creation=False)(lambda: step())()


_dag("succeeds", load)
_dag("fails", boom)
_dag("runs_long", wait)

for dag_id in [*(f"fleet_{number:04}" for number in range(int(os.environ["FLEET_SIZE"]))), "busy"]:
    with DAG(dag_id, schedule=None, is_paused_upon_creation=True) as made:
        EmptyOperator(task_id="step")
    globals()[dag_id] = made

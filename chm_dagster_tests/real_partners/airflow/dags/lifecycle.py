"""One DAG for each way a run can end. Parsed and run by the Airflow server itself."""

import time
from datetime import timedelta
from typing import Any

from airflow.exceptions import AirflowSkipException
from airflow.sdk import dag, get_current_context, task


@task
def load() -> None:
    get_current_context()["ti"].xcom_push(key="rows_processed", value=1234)


@task
def boom() -> None:
    raise ValueError("the orders table is locked")


@task
def wait() -> None:
    time.sleep(600)


@task
def skip() -> None:
    raise AirflowSkipException("nothing to do")


@task(retries=1, retry_delay=timedelta(seconds=1))
def stumble() -> None:
    if get_current_context()["ti"].try_number == 1:
        raise ConnectionError("reset by peer")


@task
def recover() -> None:
    # Clearing the run makes this its second try.
    if get_current_context()["ti"].try_number == 1:
        raise ConnectionError("the source is down")


def _dag(dag_id: str, step: Any) -> None:
    dag(dag_id=dag_id, schedule=None, is_paused_upon_creation=False)(lambda: step())()


_dag("succeeds", load)
_dag("fails", boom)
_dag("runs_long", wait)
_dag("skips", skip)
_dag("stumbles", stumble)
_dag("recovers", recover)

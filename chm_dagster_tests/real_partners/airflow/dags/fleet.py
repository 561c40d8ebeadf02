"""Many DAGs that never start by themselves: they are paused, and the tests end their runs."""

import os

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

for number in range(int(os.environ["FLEET_SIZE"])):
    with DAG(f"fleet_{number:04}", schedule=None, is_paused_upon_creation=True) as dag:
        EmptyOperator(task_id="step")

with DAG("busy", schedule=None, is_paused_upon_creation=True) as busy:
    EmptyOperator(task_id="step")

"""A thousand DAGs that nothing runs by itself: they are paused, and their runs end when the tests say so."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

for number in range(1_000):
    with DAG(f"fleet_{number:04}", schedule=None, is_paused_upon_creation=True) as dag:
        EmptyOperator(task_id="step")

with DAG("busy", schedule=None, is_paused_upon_creation=True) as busy:
    EmptyOperator(task_id="step")

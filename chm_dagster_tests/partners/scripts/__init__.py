"""Every platform as a small server that answers like the real one, over records that the tests write."""

from chm_dagster_tests.partners.scripts.cloud import Airbyte, AzureDataFactory, Databricks, Dbt, Fivetran, GithubActions
from chm_dagster_tests.partners.scripts.orchestrators import (
    Airflow,
    Airflow2,
    Dagster,
    DagsterPlus,
    Prefect,
    PrefectCloud,
)
from chm_dagster_tests.partners.scripts.script import Script

SCRIPTS: dict[str, type[Script]] = {
    "airbyte": Airbyte,
    "airflow": Airflow,
    "airflow_2": Airflow2,
    "azure_data_factory": AzureDataFactory,
    "dagster": Dagster,
    "dagster_plus": DagsterPlus,
    "databricks": Databricks,
    "dbt": Dbt,
    "fivetran": Fivetran,
    "github_actions": GithubActions,
    "prefect": Prefect,
    "prefect_cloud": PrefectCloud,
}

"""Every platform as a small server that responds like the real one, with records that the tests write."""

from chm_dagster_tests.partners.scripts.cloud import (
    Airbyte,
    AzureDataFactory,
    Databricks,
    Dbt,
    Fivetran,
    Generic,
    GithubActions,
)
from chm_dagster_tests.partners.scripts.hosted import (
    AzureSynapse,
    Composer,
    ComposerAirflow2,
    Jenkins,
    Kestra,
    Mwaa,
    PowerBi,
    StepFunctions,
)
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
    "azure_synapse": AzureSynapse,
    "composer": Composer,
    "composer_airflow_2": ComposerAirflow2,
    "dagster": Dagster,
    "dagster_plus": DagsterPlus,
    "databricks": Databricks,
    "dbt": Dbt,
    "fivetran": Fivetran,
    "generic": Generic,
    "github_actions": GithubActions,
    "jenkins": Jenkins,
    "kestra": Kestra,
    "mwaa": Mwaa,
    "power_bi": PowerBi,
    "prefect": Prefect,
    "prefect_cloud": PrefectCloud,
    "step_functions": StepFunctions,
}

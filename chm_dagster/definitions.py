"""The one door for Dagster."""

import os
from pathlib import Path

import dagster as dg

from chm_dagster import settings as names
from chm_dagster.defs.health.assets import health_snapshot
from chm_dagster.defs.ingestion import checks
from chm_dagster.defs.ingestion.assets import ingest_runs
from chm_dagster.defs.ingestion.automation import ingest_job, pipeline_partitions, sweep_schedule
from chm_dagster.defs.resources import LandingResource, PartnersResource, WarehouseResource
from chm_dagster.errors import ConfigError
from chm_dagster.partners.connections import named_variables
from chm_dagster.settings import Settings


def _named(partners_file: Path | None) -> set[str]:
    try:
        return named_variables(partners_file)
    except ConfigError:
        # The code location must load all the same: the resource says what is wrong, where somebody sees it.
        return set()


@dg.definitions
def defs() -> dg.Definitions:
    """All that CHM shows to Dagster. Secrets stay in the environment: the UI sees only their variables' names."""
    settings = Settings.from_env(os.environ)
    base_url = dg.EnvVar(names.PARTNER_API_BASE_URL) if settings.partner_api_base_url else ""
    token = dg.EnvVar(names.PARTNER_API_TOKEN) if settings.partner_api_token else ""
    return dg.Definitions(
        assets=[ingest_runs, health_snapshot],
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=[ingest_job],
        schedules=[sweep_schedule(settings.sweep_cron)],
        sensors=[pipeline_partitions],
        executor=dg.in_process_executor,
        resources={
            "warehouse": WarehouseResource(url=dg.EnvVar(names.DATABASE_URL)),
            "partners": PartnersResource(
                base_url=base_url,
                token=token,
                file=str(settings.partners_file or ""),
                variables={name: dg.EnvVar(name) for name in _named(settings.partners_file) if os.environ.get(name)},
            ),
            "landing": LandingResource(root=str(settings.home / "landing")),
        },
    )

"""`chm_dagster.definitions`, what Dagster loads: assets, checks, job, schedule and sensors over the installation."""

from collections.abc import Mapping, Sequence

import dagster as dg

from chm_dagster.defs import alerting, checks, health, ingestion, reports
from chm_dagster.defs.automation import automation, resources
from chm_dagster.installation import configured


@dg.definitions
def defs() -> dg.Definitions:
    """All that CHM shows in Dagster, for the settings in the environment."""
    installation = configured()
    installed = (installation.warehouse, installation.partners, installation.landing(), installation.channels)
    vended = resources(*installed, installation.operator())
    prefix = installation.settings.dagster_prefix
    return assembled(vended, installation.settings.sync_cron, [] if prefix is None else [prefix])


def assembled(
    with_resources: Mapping[str, dg.ResourceDefinition], sync_cron: str, key_prefix: Sequence[str] = ()
) -> dg.Definitions:
    """Assets, checks, job, schedule and sensor over these resources. `key_prefix` goes in front of all their names."""
    prefix = list(key_prefix) or None
    own = dg.Definitions(
        assets=dg.load_assets_from_modules([ingestion, health, alerting, reports], key_prefix=prefix),
        asset_checks=dg.load_asset_checks_from_modules([checks, alerting, reports], asset_key_prefix=prefix),
        executor=dg.in_process_executor,
        resources=with_resources,
    )
    return dg.Definitions.merge(
        own, automation(sync_cron, key_prefix), alerting.alerting(key_prefix), reports.reports(key_prefix)
    )

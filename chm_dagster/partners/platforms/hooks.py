"""Which platforms need code beside their configuration, and which code."""

from collections.abc import Callable, Mapping
from typing import Any

from chm_dagster.partners.declared.enriching import BudgetedEnricher
from chm_dagster.partners.declared.feed import Enricher
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.http import PartnerHttp
from chm_dagster.partners.platforms.airflow import AirflowLookup
from chm_dagster.partners.platforms.dagster import DagsterLookup


def enricher_of(rest: Rest, options: Mapping[str, Any]) -> Callable[[PartnerHttp], Enricher] | None:
    """What makes an enricher for each sweep; None where the lists of runs say all there is."""
    budget = {"errors": int(options.get("error_lookups") or 0), "rows": int(options.get("row_lookups") or 0)}
    if rest.enrich == "airflow":
        xcom = options.get("rows_xcom")
        return lambda http: BudgetedEnricher(
            http.connection, AirflowLookup(http, None if xcom is None else str(xcom)), **budget
        )
    if rest.enrich == "dagster":
        counts = bool(options.get("count_rows"))
        return lambda http: BudgetedEnricher(http.connection, DagsterLookup(http, counts_rows=counts), **budget)
    return None

"""Health at a glance, as an asset: what an operator wants to know before opening anything else."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pandas as pd

from chm_dagster.defs.ingestion.events import RUNS
from chm_dagster.warehouse.warehouse import Warehouse

NONE = "*none*"
SHOWN = 50


@dg.asset(
    deps=[RUNS],
    group_name="health",
    kinds={"postgres", "markdown"},
    owners=["team:chm"],
    tags={"layer": "health"},
)
def health_snapshot(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
    """What is failing now, what changed since yesterday, and how each client stands.

    Materialized after each sweep, if the ledger's gates let it pass: an old snapshot is better than a wrong one.
    """
    clients = pd.DataFrame(warehouse.ask("latest_status_by_client"))
    failing = pd.DataFrame(warehouse.ask("failing_now"))
    changed = pd.DataFrame(warehouse.ask("changed_since", since=datetime.now(UTC) - timedelta(days=1)))
    return dg.MaterializeResult(
        metadata={
            "failing": len(failing),
            "failing now": _table(failing, ["client_name", "pipeline_name", "platform", "failing_since", "failures"]),
            "changed since yesterday": _table(changed, ["change", "client_name", "pipeline_name", "started_at"]),
            "clients": _table(clients, list(clients.columns[1:])),
        }
    )


def _table(rows: pd.DataFrame, columns: list[str]) -> dg.MarkdownMetadataValue:
    if rows.empty:
        return dg.MetadataValue.md(NONE)
    shown = rows[columns].head(SHOWN).copy()
    for column in shown.select_dtypes(include=["datetimetz"]).columns:
        shown[column] = shown[column].dt.strftime("%Y-%m-%d %H:%M")
    more = f"\n\n{len(rows) - SHOWN} more." if len(rows) > SHOWN else ""
    # A client's name is text, not markup.
    shown = shown.map(lambda cell: cell.replace("|", "\\|").replace("<", "&lt;") if isinstance(cell, str) else cell)
    shown.columns = pd.Index([column.replace("_", " ") for column in columns])
    return dg.MetadataValue.md(shown.to_markdown(index=False) + more)

"""Health at a glance, as an asset: what an operator wants to know before opening anything else."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from chm_dagster.defs.health import grid, tables
from chm_dagster.defs.ingestion.events import RUNS
from chm_dagster.warehouse.warehouse import Warehouse

Rows = Sequence[Mapping[str, Any]]

QUESTIONS = ("failing_now", "changed_since", "flaky_pipelines", "latest_status_by_client", "recent_runs_by_pipeline")


@dg.asset(
    deps=[RUNS],
    group_name="health",
    kinds={"postgres", "markdown"},
    owners=["team:chm"],
    tags={"layer": "health"},
)
def health_snapshot(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
    """What is failing now, what changed since yesterday, what is flaky, and the last runs of each pipeline.

    Materialized after each sweep, if the ledger's gates let it pass: an old snapshot is better than a wrong one.
    The numbers among the metadata are plotted over time; the tables and the picture are as of the materialization.
    """
    answers = {name: warehouse.ask(name) for name in QUESTIONS}
    return dg.MaterializeResult(metadata=_metadata(answers, datetime.now(UTC)))


def _metadata(answers: Mapping[str, Rows], now: datetime) -> dict[str, dg.MetadataValue[Any]]:
    failing, changed, flaky, clients, strips = (answers[name] for name in QUESTIONS)
    return {
        "status grid": _picture(strips, now),
        "failing now": dg.MetadataValue.md(tables.markdown(failing, tables.FAILING)),
        "changed since yesterday": dg.MetadataValue.md(tables.markdown(changed, tables.CHANGED)),
        "flaky": dg.MetadataValue.md(tables.markdown(flaky, tables.FLAKY)),
        "clients": dg.MetadataValue.md(tables.markdown(clients, tables.CLIENTS)),
        "failing pipelines": dg.MetadataValue.int(len(failing)),
        "regressions": dg.MetadataValue.int(sum(row["change"] == "regression" for row in changed)),
        "flaky pipelines": dg.MetadataValue.int(len(flaky)),
        "pipelines": dg.MetadataValue.int(len(strips)),
    }


def _picture(strips: Rows, now: datetime) -> dg.MarkdownMetadataValue:
    if not strips:
        return dg.MetadataValue.md(tables.NONE)
    data = base64.b64encode(grid.draw(strips, now)).decode()
    return dg.MetadataValue.md(f"![The last {grid.RUNS} runs of each pipeline](data:image/png;base64,{data})")

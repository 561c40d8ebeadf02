"""Health at a glance, as an asset: what an operator wants to know first."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from chm_dagster.defs.automation import RUNS
from chm_dagster.presentation.columns import ATTENTION, CHANGED, CLIENTS, FAILING, FLAKY, freshness
from chm_dagster.presentation.rendering import RUNS as RUNS_SHOWN
from chm_dagster.presentation.rendering import markdown_table, status_grid
from chm_dagster.warehouse.warehouse import Warehouse

Rows = Sequence[Mapping[str, Any]]

_NO_PIPELINES = "No active pipelines yet."
QUESTIONS = (
    "failing_now",
    "changed_since",
    "flaky_pipelines",
    "latest_status_by_client",
    "recent_runs_by_pipeline",
    "needs_attention",
    "connections",
)


@dg.asset(
    deps=[RUNS],
    group_name="health",
    kinds={"postgres", "markdown"},
    owners=["team:chm"],
    tags={"layer": "health"},
)
def health_snapshot(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
    """What needs attention, what changed since yesterday, what is flaky, and the last runs of each pipeline.

    Materialized after each sync, unless a gate fails: an old snapshot is better than a wrong one.
    The numbers among the metadata are plotted over time; the tables and the picture are as of the materialization.
    """
    answers = {name: warehouse.ask(name) for name in QUESTIONS}
    return dg.MaterializeResult(metadata=_metadata(answers, datetime.now(UTC)))


def _metadata(answers: Mapping[str, Rows], now: datetime) -> dict[str, dg.MetadataValue[Any]]:
    failing, changed, flaky, clients, strips, attention, connections = (answers[name] for name in QUESTIONS)
    return {
        "status grid": _picture(strips, now),
        "freshness": dg.MetadataValue.text(freshness(connections, now)),
        "needs attention": dg.MetadataValue.md(markdown_table(attention, ATTENTION)),
        "failing now": dg.MetadataValue.md(markdown_table(failing, FAILING)),
        "changed since yesterday": dg.MetadataValue.md(markdown_table(changed, CHANGED)),
        "flaky": dg.MetadataValue.md(markdown_table(flaky, FLAKY)),
        "clients": dg.MetadataValue.md(markdown_table(clients, CLIENTS)),
        "failing pipelines": dg.MetadataValue.int(len(failing)),
        "pipelines that need attention": dg.MetadataValue.int(len(attention)),
        "regressions": dg.MetadataValue.int(sum(row["change"] == "regression" for row in changed)),
        "flaky pipelines": dg.MetadataValue.int(len(flaky)),
        "pipelines": dg.MetadataValue.int(len(strips)),
    }


def _picture(strips: Rows, now: datetime) -> dg.MarkdownMetadataValue:
    if not strips:
        return dg.MetadataValue.md(_NO_PIPELINES)
    data = base64.b64encode(status_grid(strips, now).encode()).decode()
    return dg.MetadataValue.md(f"![The last {RUNS_SHOWN} runs of each pipeline](data:image/svg+xml;base64,{data})")

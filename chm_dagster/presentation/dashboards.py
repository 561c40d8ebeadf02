"""What dashboards show, in whatever tool: the panels, each one query of the SQL contract, and the words around them."""

import dataclasses
import re
from collections.abc import Mapping

from chm_dagster.shipped import shipped
from chm_dagster.warehouse.named_queries import Query, queries

_PLACEHOLDER = re.compile(r"(?<![:\w]):(\w+)(?!:)")
COLORS = {
    "failing": "red",
    "regression": "red",
    "still failing": "red",
    "failed": "red",
    "late": "orange",
    "overrunning": "orange",
    "new": "blue",
    "running": "blue",
    "unknown": "purple",
    "healthy": "green",
    "fixed": "green",
    "success": "green",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """A query on a dashboard, in a grid of 24 columns. `empty` is shown if it returns no row."""

    query: str
    title: str
    empty: str
    width: int = 24
    type: str = "table"


_FOUR = (
    Panel("needs_attention", "What needs attention now?", "Nothing needs attention.", 12),
    Panel("changed_since", "What changed in the selected time?", "Nothing changed.", 12),
    Panel("latest_status_by_client", "How is each client doing?", "There are no clients yet.", 12),
    Panel("flaky_pipelines", "Which pipelines are flaky?", "No pipeline is flaky.", 12),
)
DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "chm-overview": (
        "CHM: overview",
        (
            *_FOUR,
            Panel("failures_over_time", "Failures over time", "No time is selected.", 12, "timeseries"),
            Panel("failure_rate_by_platform", "Failure rate by platform", "Nothing settled.", 12),
            Panel("failure_counts_by_client", "Failures by client", "There are no clients yet.", 12),
            Panel("error_groups", "Errors in the selected time, at the most clients first", "No run failed.", 12),
        ),
    ),
    "chm-client": (
        "CHM: client",
        (
            Panel("latest_status_by_pipeline", "Latest run and health", "There are no pipelines yet."),
            Panel("failing_now", "Failing now", "Nothing is failing."),
            Panel("client_summary", "Runs in the selected time", "There are no pipelines yet."),
            Panel("failed_runs", "Failed runs in the selected time", "No run failed."),
            Panel("flakiness_over_time", "Flips over time", "No time is selected.", 24, "timeseries"),
        ),
    ),
    "chm-pipeline": (
        "CHM: pipeline",
        (
            Panel("recent_runs_by_pipeline", "Last runs, the oldest first", "There are no pipelines yet."),
            Panel("duration_distribution", "How long runs take", "No runs.", 12, "barchart"),
            Panel("open_episodes", "Open alert episodes", "No rule has found anything wrong.", 12),
            Panel("past_episodes", "Past alert episodes", "None in the selected time."),
        ),
    ),
    "chm-operations": (
        "CHM: operations",
        (
            Panel("connections", "Connections: how recently was each read?", "No pipeline is read from a partner."),
            Panel("waiting_messages", "Messages that no receiver accepted", "Every message was accepted."),
        ),
    ),
}
WITHOUT_PANEL: dict[str, str] = {}
"""Queries that no dashboard shows, each with the reason."""


def filled(query: Query, values: Mapping[str, str]) -> str:
    """The statement of a query with SQL in place of its parameters; NULL, the default, where there is no value."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], "NULL"), query.sql)


def taken(panels: tuple[Panel, ...]) -> set[str]:
    """The parameters of the queries of these panels."""
    return {parameter.name for panel in panels for parameter in queries()[panel.query].parameters}


def choices(parameter: str) -> list[str]:
    """The values that a parameter takes, where there are few."""
    found = [c for q in queries().values() for p in q.parameters if p.name == parameter for c in p.choices]
    return list(dict.fromkeys(found))


def write(files: Mapping[str, str]) -> None:
    """Write generated files, by their path below the folder that holds what ships."""
    for name, text in files.items():
        path = shipped(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

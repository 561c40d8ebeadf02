"""Dashboards for Grafana, made from the SQL contract: no query is written a second time.

`python -m chm_dagster.presentation.grafana` rewrites `dashboards/grafana/`; a test compares the files with `build()`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from chm_dagster.shipped import shipped
from chm_dagster.warehouse.named_queries import Column, Query, queries

SOURCE = {"type": "grafana-postgresql-datasource", "uid": "chm"}
FOLDER = "dashboards/grafana"
_PLACEHOLDER = re.compile(r"(?<![:\w]):(\w+)(?!:)")
# What a dashboard puts in place of a parameter; the others stay at their defaults.
VALUES = {
    "client_slug": "nullif(${client:sqlstring}, '')",
    "environment": "nullif(${environment:sqlstring}, '')",
    "pipeline_slug": "nullif(${pipeline:sqlstring}, '')",
    "platform": "nullif(${platform:sqlstring}, '')",
    "since": "$__timeFrom()",
    "until": "$__timeTo()",
}
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


def build() -> dict[str, str]:
    """The text of each generated file, by its path in the repository. Raises KeyError for an unknown query."""
    return {
        f"{FOLDER}/dashboards/{uid}.json": json.dumps(dashboard(uid), indent=2, ensure_ascii=False) + "\n"
        for uid in DASHBOARDS
    }


def dashboard(uid: str) -> dict[str, Any]:
    """One dashboard as Grafana imports it."""
    title, panels = DASHBOARDS[uid]
    return {
        "uid": uid,
        "title": title,
        "tags": ["chm"],
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": [_variable(name) for name in _variables(panels)]},
        "links": [{"type": "dashboards", "title": "CHM", "tags": ["chm"], "asDropdown": True, "keepTime": True,
                   "includeVars": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": ""}],
        "panels": list(_placed(panels)),
    }  # fmt: skip


def statement(query: Query) -> str:
    """The statement of a query with Grafana's variables and macros in place of its parameters."""
    return _PLACEHOLDER.sub(lambda found: VALUES.get(found[1], "NULL"), query.sql)


def _variables(panels: tuple[Panel, ...]) -> list[str]:
    used = {name for panel in panels for name in re.findall(r"\$\{(\w+):", statement(queries()[panel.query]))}
    return [name for name in ("client", "pipeline", "platform", "environment") if name in used]


def _variable(name: str) -> dict[str, Any]:
    choices = [c for q in queries().values() for p in q.parameters if p.name == name for c in p.choices]
    if choices:
        options = ",".join(dict.fromkeys(["All : ", *(f"{c} : {c}" for c in choices)]))
        return {"name": name, "label": name.capitalize(), "type": "custom", "query": options,
                "current": {"text": "All", "value": ""}}  # fmt: skip
    return {"name": name, "label": f"{name.capitalize()} (empty: all)", "type": "textbox", "query": "",
            "current": {"text": "", "value": ""}}  # fmt: skip


def _placed(panels: tuple[Panel, ...]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y = 0, y + 9
        yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": 9})
        x += panel.width


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    query = queries()[panel.query]
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": query.answers,
        "gridPos": place,
        "datasource": SOURCE,
        "targets": [{"refId": "A", "datasource": SOURCE, "format": "table", "rawQuery": True, "editorMode": "code",
                     "rawSql": statement(query)}],
        "fieldConfig": {
            "defaults": {"noValue": panel.empty, "mappings": [_colors()]},
            "overrides": [override for column in query.columns if (override := _override(column))],
        },
        "options": {},
    }  # fmt: skip


def _colors() -> dict[str, Any]:
    return {
        "type": "value",
        "options": {word: {"color": color, "index": i} for i, (word, color) in enumerate(COLORS.items())},
    }


def _override(column: Column) -> dict[str, Any] | None:
    properties: list[dict[str, Any]] = []
    if column.name.endswith("_id"):
        properties.append({"id": "custom.hidden", "value": True})
    if column.name.endswith(("_rate", "share")):
        properties.append({"id": "unit", "value": "percentunit"})
    if column.name.endswith("_seconds"):
        properties.append({"id": "unit", "value": "s"})
    if column.type == "timestamptz":
        properties.append({"id": "unit", "value": "dateTimeAsIso"})
    if column.name == "source_url":
        properties.append({"id": "links", "value": [{"title": "At the partner", "url": "${__value.raw}"}]})
    if column.name in ("health", "change", "status"):
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    if column.name == "client_name":
        url = "/d/chm-client?var-client=${__data.fields.client_slug}&${__url_time_range}"
        properties.append({"id": "links", "value": [{"title": "Client", "url": url}]})
    if column.name == "pipeline_name":
        url = (
            "/d/chm-pipeline?var-client=${__data.fields.client_slug}"
            "&var-pipeline=${__data.fields.pipeline_slug}&${__url_time_range}"
        )
        properties.append({"id": "links", "value": [{"title": "Pipeline", "url": url}]})
    return {"matcher": {"id": "byName", "options": column.name}, "properties": properties} if properties else None


def main() -> None:
    """Write the files."""
    for name, text in build().items():
        path = shipped(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

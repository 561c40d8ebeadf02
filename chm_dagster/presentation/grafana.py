"""Dashboards for Grafana, made from the SQL contract: no query is written a second time.

`python -m chm_dagster.presentation.grafana` rewrites `dashboards/grafana/`; a test compares the files with `build()`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from chm_dagster.presentation.dashboards import COLORS, DASHBOARDS, Panel, choices, filled, taken, write
from chm_dagster.warehouse.named_queries import Column, Query, queries

SOURCE = {"type": "grafana-postgresql-datasource", "uid": "chm"}
FOLDER = "dashboards/grafana"
# What a dashboard puts in place of a parameter; the others stay at their defaults.
VALUES = {
    "client_slug": "nullif(${client:sqlstring}, '')",
    "environment": "nullif(${environment:sqlstring}, '')",
    "pipeline_slug": "nullif(${pipeline:sqlstring}, '')",
    "platform": "nullif(${platform:sqlstring}, '')",
    "since": "$__timeFrom()",
    "until": "$__timeTo()",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Blindness:
    """An alert rule about CHM itself. It fires if `counts` is above 0 over the rows `q` of a query of the contract."""

    uid: str
    title: str
    query: str
    counts: str
    minutes: int
    summary: str


_COUNTED = "SELECT CAST({counts} AS float8) AS value FROM (\n{sql}\n) AS q"
_STALE = "coalesce(q.stale_at, '-infinity') < now()"
ALERTS = (
    Blindness("chm-sync-too-old", "CHM's last sync is too old", "connections",
              f"CASE WHEN count(*) > 0 AND bool_and({_STALE}) THEN 1 ELSE 0 END", 5,
              "No connection was read recently enough, so CHM knows how no pipeline is. Is the daemon running?"),
    Blindness("chm-connection-silent", "A connection is silent", "connections",
              f"count(*) FILTER (WHERE {_STALE})", 10,
              "CHM does not know how the pipelines of at least one connection are. `chm partner check` shows why."),
    Blindness("chm-undeliverable", "Messages are undeliverable", "waiting_messages",
              "count(*) FILTER (WHERE q.state = 'undeliverable')", 0,
              "CHM gave up sending messages of alert rules. `chm alert messages` lists them."),
)  # fmt: skip


def build() -> dict[str, str]:
    """The text of each generated file, by its path in the repository. Raises KeyError for an unknown query."""
    found = {
        f"{FOLDER}/dashboards/{uid}.json": json.dumps(dashboard(uid), indent=2, ensure_ascii=False) + "\n"
        for uid in DASHBOARDS
    }
    return found | {f"{FOLDER}/provisioning/alerting/chm.yaml": yaml.safe_dump(alerting(), sort_keys=False, width=120)}


def alerting() -> dict[str, Any]:
    """The alert rules as Grafana provisions them. They fire as well if their query cannot be answered."""
    group = {"orgId": 1, "name": "CHM", "folder": "CHM", "interval": "1m", "rules": [_rule(a) for a in ALERTS]}
    return {"apiVersion": 1, "groups": [group]}


def _rule(alert: Blindness) -> dict[str, Any]:
    sql = _COUNTED.format(counts=alert.counts, sql=filled(queries()[alert.query], {}))
    expression = {"type": "__expr__", "uid": "__expr__"}
    asked = {"refId": "A", "datasource": SOURCE, "format": "table", "rawQuery": True, "editorMode": "code",
             "rawSql": sql}  # fmt: skip
    above = {"refId": "B", "datasource": expression, "type": "threshold", "expression": "A",
             "conditions": [{"evaluator": {"type": "gt", "params": [0]}}]}  # fmt: skip
    span = {"from": 600, "to": 0}
    return {
        "uid": alert.uid,
        "title": alert.title,
        "condition": "B",
        "data": [{"refId": "A", "datasourceUid": SOURCE["uid"], "relativeTimeRange": span, "model": asked},
                 {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": span, "model": above}],
        "for": f"{alert.minutes}m",
        "noDataState": "Alerting",
        "execErrState": "Alerting",
        "annotations": {"summary": alert.summary},
        "labels": {"service": "chm"},
    }  # fmt: skip


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
    return filled(query, VALUES)


def _variables(panels: tuple[Panel, ...]) -> list[str]:
    used = {name for parameter in taken(panels) for name in re.findall(r"\$\{(\w+):", VALUES.get(parameter, ""))}
    return [name for name in ("client", "pipeline", "platform", "environment") if name in used]


def _variable(name: str) -> dict[str, Any]:
    if known := choices(name):
        options = ",".join(["All : ", *(f"{c} : {c}" for c in known)])
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


if __name__ == "__main__":
    write(build())

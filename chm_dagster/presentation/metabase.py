"""A collection for Metabase, made from the SQL contract: a question for each query, and dashboards of them.

`python -m chm_dagster.presentation.metabase` rewrites `dashboards/metabase/`, in Metabase's own format for files; a
test compares the files with `build()`.
"""

import base64
import dataclasses
import hashlib
import json
import re
import uuid
from typing import Any

from chm_dagster.presentation.dashboards import DASHBOARDS, Panel, choices, filled, taken, write
from chm_dagster.warehouse.named_queries import Column, Query, queries
from chm_dagster.yaml_document import dump

FOLDER = "dashboards/metabase"
DATABASE = "CHM"
"""The name of the connection to CHM's database in Metabase."""
COLLECTION = "Client Health Monitor"
_HEIGHT = 8
_DISPLAYS = {"timeseries": "line", "barchart": "bar", "table": "table"}
_SERIES = {
    "failures_over_time": ("bucket", ("failures", "failed_pipelines", "failed_clients")),
    "flakiness_over_time": ("bucket", ("flips", "recoveries")),
    "duration_distribution": ("label", ("success", "failed")),
}
"""What the charts draw: the column along the x axis, and those along the y axis."""

Entity = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """A filter of dashboards, which is a template tag of the same name in questions."""

    name: str
    label: str
    kind: str = "text"

    @property
    def id(self) -> str:
        """The same on every dashboard, so that links pass its value on."""
        return _uuid(f"filter {self.name}")

    @property
    def sql(self) -> str:
        """The value, or NULL if the filter is empty: Metabase leaves out what is in double brackets then."""
        return f"nullif('' [[|| {{{{{self.name}}}}}]], '')"


FILTERS = {
    "client_slug": Filter("client", "Client"),
    "pipeline_slug": Filter("pipeline", "Pipeline"),
    "platform": Filter("platform", "Platform"),
    "environment": Filter("environment", "Environment"),
    "since": Filter("since", "Since", "date"),
    "until": Filter("until", "Until (not included)", "date"),
}
"""The filter of each parameter that has one; the others stay at their defaults."""


def build() -> dict[str, str]:
    """The text of each generated file, by its path in the repository. Raises KeyError for an unknown query."""
    folder = f"{FOLDER}/collections/main"
    texts = {f"{folder}/{slug(COLLECTION)}.yaml": collection()}
    texts |= {f"{folder}/{slug(COLLECTION)}/{slug(e['name'])}.yaml": e for e in [*cards(), *dashboards()]}
    return {path: dump(entity) for path, entity in texts.items()}


def collection() -> Entity:
    """The collection that holds everything."""
    return _entity("Collection", COLLECTION) | {
        "description": "How healthy every client's data pipelines are. CHM makes this: change it there.",
        "slug": slug(COLLECTION),
    }


def cards() -> list[Entity]:
    """A question for each panel."""
    return [_card(panel) for _, panels in DASHBOARDS.values() for panel in panels]


def dashboards() -> list[Entity]:
    """The dashboards, with their filters mapped to their questions."""
    return [_dashboard(uid) for uid in DASHBOARDS]


def statement(query: Query) -> str:
    """The statement of a query with template tags in place of its parameters."""
    return filled(query, {parameter: found.sql for parameter, found in FILTERS.items()})


def slug(name: str) -> str:
    """A name as Metabase writes it in paths and labels."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def card_id(query: str) -> str:
    """The entity id of the question for a query."""
    return _entity_id("Card", query)


def dashboard_id(uid: str) -> str:
    """The entity id of a dashboard."""
    return _entity_id("Dashboard", DASHBOARDS[uid][0])


# --- entities ---------------------------------------------------------------------------------------------------------


def _entity(model: str, name: str, key: str | None = None) -> Entity:
    own = _entity_id(model, key or name)
    owned = {} if model == "Collection" else {"creator_id": "internal@metabase.com",
                                              "collection_id": _entity_id("Collection", COLLECTION)}  # fmt: skip
    return {"name": name, "entity_id": own, **owned,
            "serdes/meta": [{"id": own, "label": slug(name), "model": model}]}  # fmt: skip


def _card(panel: Panel) -> Entity:
    query = queries()[panel.query]
    found = _filters((panel,))
    return _entity("Card", panel.title, panel.query) | {
        "description": f"{query.answers} (The query {query.name} of CHM's SQL contract.)",
        "display": _DISPLAYS[panel.type],
        "type": "question",
        "database_id": DATABASE,
        "dataset_query": {
            "lib/type": "mbql/query",
            "database": DATABASE,
            "stages": [{"lib/type": "mbql.stage/native", "native": statement(query),
                        "template-tags": [_tag(f) for f in found]}],
        },
        "parameters": [_parameter(f) | {"target": _target(f)} for f in found],
        "parameter_mappings": [],
        "visualization_settings": _settings(panel, query),
    }  # fmt: skip


def _dashboard(uid: str) -> Entity:
    title, panels = DASHBOARDS[uid]
    return _entity("Dashboard", title) | {
        "description": "Empty filters leave nothing out; without a time span, each question uses its own.",
        "width": "full",
        "parameters": [_parameter(f) for f in _filters(panels)],
        "dashcards": _placed(uid, panels),
    }


def _placed(uid: str, panels: tuple[Panel, ...]) -> list[Entity]:
    placed: list[Entity] = []
    x = y = 0
    for panel in panels:
        if x + panel.width > 24:
            x, y = 0, y + _HEIGHT
        own = _entity_id("DashboardCard", panel.query)
        placed.append({
            "entity_id": own,
            "card_id": card_id(panel.query),
            "row": y, "col": x, "size_x": panel.width, "size_y": _HEIGHT,
            "parameter_mappings": [{"card_id": card_id(panel.query), "parameter_id": f.id, "target": _target(f)}
                                   for f in _filters((panel,))],
            "visualization_settings": _links(panel),
            "serdes/meta": [{"id": dashboard_id(uid), "model": "Dashboard"}, {"id": own, "model": "DashboardCard"}],
        })  # fmt: skip
        x += panel.width
    return placed


def _filters(panels: tuple[Panel, ...]) -> list[Filter]:
    used = taken(panels)
    return [found for parameter, found in FILTERS.items() if parameter in used]


def _tag(found: Filter) -> Entity:
    return {"type": found.kind, "name": found.name, "id": _uuid(f"tag {found.name}"), "display-name": found.label}


def _parameter(found: Filter) -> Entity:
    type_ = "date/single" if found.kind == "date" else "string/="
    own: Entity = {"id": found.id, "name": found.label, "slug": found.name, "type": type_}
    if found.kind == "date":
        return own | {"sectionId": "date"}
    own |= {"sectionId": "string", "isMultiSelect": False}
    if known := choices(found.name):
        return own | {"values_query_type": "list", "values_source_type": "static-list",
                      "values_source_config": {"values": [[value, value] for value in known]}}  # fmt: skip
    return own | {"values_query_type": "none"}


def _target(found: Filter) -> list[Any]:
    return ["variable", ["template-tag", found.name]]


# --- how it looks -----------------------------------------------------------------------------------------------------


def _settings(panel: Panel, query: Query) -> Entity:
    columns = {_column_key(c.name): s for c in query.columns if (s := _column(c))}
    own: Entity = {"column_settings": columns} if columns else {}
    if panel.type == "table":
        shown = [{"name": c.name, "enabled": not c.name.endswith("_id") and c.type != "uuid"} for c in query.columns]
        return own | {"table.columns": shown}
    along, drawn = _SERIES[panel.query]
    return own | {"graph.dimensions": [along], "graph.metrics": list(drawn), "graph.x_axis.title_text": "",
                  "graph.show_values": False}  # fmt: skip


def _column(column: Column) -> Entity:
    if column.name.endswith(("_rate", "share")):
        return {"number_style": "percent", "decimals": 1}
    if column.name.endswith("_seconds"):
        return {"suffix": " s", "decimals": 0}
    if column.type == "timestamptz":
        return {"time_enabled": "minutes", "time_style": "HH:mm"}
    if column.name == "source_url":
        return {"view_as": "link", "link_text": "At the partner"}
    return {}


def _links(panel: Panel) -> Entity:
    """Names of clients and pipelines open their dashboards, filtered."""
    columns = {column.name for column in queries()[panel.query].columns}
    ways = {"client_name": ("chm-client", ("client_slug",)),
            "pipeline_name": ("chm-pipeline", ("client_slug", "pipeline_slug"))}  # fmt: skip
    found = {
        _column_key(name): {"click_behavior": {
            "type": "link", "linkType": "dashboard", "targetId": dashboard_id(uid),
            "parameterMapping": {FILTERS[c].id: _passed(c) for c in passed},
        }}
        for name, (uid, passed) in ways.items() if {name, *passed} <= columns
    }  # fmt: skip
    return {"column_settings": found} if found else {}


def _passed(column: str) -> Entity:
    own = FILTERS[column].id
    return {"id": own, "source": {"type": "column", "id": column, "name": column},
            "target": {"type": "parameter", "id": own}}  # fmt: skip


def _column_key(name: str) -> str:
    return json.dumps(["name", name], separators=(",", ":"))


# --- ids and files ----------------------------------------------------------------------------------------------------


def _entity_id(model: str, key: str) -> str:
    """An id of 21 characters, as Metabase wants it, that stays the same."""
    return base64.urlsafe_b64encode(hashlib.sha256(f"chm {model} {key}".encode()).digest())[:21].decode()


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"chm:{name}"))


if __name__ == "__main__":
    write(build())

"""The generated Grafana dashboards: in step with the contract, well formed, and each statement runs as the BI role."""

import copy
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import yaml

from chm_dagster.presentation.dashboards import COLORS, DASHBOARDS, WITHOUT_PANEL
from chm_dagster.presentation.grafana import ALERTS, FOLDER, SOURCE, alerting, build, dashboard
from chm_dagster.shipped import checkout
from chm_dagster.warehouse.named_queries import ask, queries
from chm_dagster.warehouse.roles import BI
from chm_dagster_tests.contracts.histories import DAY, NOW

pytestmark = pytest.mark.alone

ROOT = checkout()
assert ROOT is not None
SINCE, UNTIL = NOW - 7 * DAY, NOW + timedelta(minutes=5)
PANEL_TYPES = {"table", "timeseries", "barchart", "stat"}
UNITS = {"percentunit", "s", "dateTimeAsIso"}
Dashboard = dict[str, Any]


def filled(text: str, **variables: str) -> str:
    """A statement as Grafana sends it: macros and variables in place. Raises ValueError for one that is left."""
    text = text.replace("$__timeFrom()", f"'{SINCE.isoformat()}'").replace("$__timeTo()", f"'{UNTIL.isoformat()}'")

    def value(found: re.Match[str]) -> str:
        return "'" + variables.get(found[1], "").replace("'", "''") + "'"

    text = re.sub(r"\$\{(\w+):sqlstring\}", value, text)
    if "$" in text:
        raise ValueError(f"a macro or variable is not known: {text[text.index('$') :][:40]}")
    return text


def problems(board: Dashboard) -> Iterator[str]:
    """What Grafana's own schema does not notice."""
    names = {variable["name"] for variable in board["templating"]["list"]}
    taken: dict[tuple[int, int], int] = {}
    ids = [panel["id"] for panel in board["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have one id"
    for panel in board["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if panel["type"] not in PANEL_TYPES:
            yield f"{title}: unknown type {panel['type']}"
        if place["x"] + place["w"] > 24:
            yield f"{title}: too wide"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if taken.setdefault((x, y), panel["id"]) != panel["id"]:
                    yield f"{title}: overlaps another panel"
        if not panel["description"] or not panel["fieldConfig"]["defaults"].get("noValue"):
            yield f"{title}: no description or no empty state"
        for target in panel["targets"]:
            if target["datasource"] != SOURCE or panel["datasource"] != SOURCE:
                yield f"{title}: another data source"
            if not target.get("rawSql"):
                yield f"{title}: no statement"
                continue
            for name in re.findall(r"\$\{(\w+):", target["rawSql"]):
                if name not in names:
                    yield f"{title}: no variable {name}"
        for override in panel["fieldConfig"]["overrides"]:
            for p in override["properties"]:
                if p["id"] == "unit" and p["value"] not in UNITS:
                    yield f"{title}: unknown unit {p['value']}"
                for link in p["value"] if p["id"] == "links" else ():
                    target = re.match(r"/d/([\w-]+)", link["url"])
                    if target and target[1] not in DASHBOARDS:
                        yield f"{title}: a link to {target[1]}, which does not exist"


def test_the_files_are_those_that_the_contract_gives() -> None:
    assert ROOT is not None
    files = [*(ROOT / FOLDER / "dashboards").glob("*"), *(ROOT / FOLDER / "provisioning" / "alerting").glob("*")]
    found = {str(p.relative_to(ROOT)): p.read_text() for p in files}
    assert found == build(), "run `python -m chm_dagster.presentation.grafana`"


def test_every_query_has_a_panel_or_a_reason_for_none() -> None:
    shown = [panel.query for _, panels in DASHBOARDS.values() for panel in panels]
    assert len(shown) == len(set(shown))
    assert set(shown) | set(WITHOUT_PANEL) == set(queries())
    assert not set(shown) & set(WITHOUT_PANEL)
    assert all(reason.endswith(".") for reason in WITHOUT_PANEL.values())


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_a_dashboard_is_well_formed(uid: str) -> None:
    assert list(problems(dashboard(uid))) == []


def test_the_source_is_the_provisioned_one_with_few_connections_and_no_password() -> None:
    assert ROOT is not None
    text = (ROOT / FOLDER / "provisioning" / "datasources" / "chm.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    assert (source["uid"], source["type"], source["user"]) == (SOURCE["uid"], SOURCE["type"], BI)
    assert source["jsonData"]["maxOpenConns"] <= 5 and source["editable"] is False
    assert source["secureJsonData"] == {"password": "$CHM_BI_POSTGRES_PASSWORD"}


def test_the_page_lists_every_panel() -> None:
    assert ROOT is not None
    text = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (.+?) \| (.+?) \| `(\w+)` \|$", text, re.MULTILINE)
    assert listed == [(title, p.title, p.query) for title, panels in DASHBOARDS.values() for p in panels]


def contract_rows(text: str) -> list[tuple[str, ...]]:
    """Query, parameters, number of columns, dashboard and question of each row of the contract's table."""
    row = r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$"
    return re.findall(row, text, re.MULTILINE)


def test_the_contracts_page_says_what_each_query_takes_and_where_it_is_shown() -> None:
    assert ROOT is not None
    shown = {p.query: (title.removeprefix("CHM: "), p.title) for title, panels in DASHBOARDS.values() for p in panels}
    wanted = [
        (q.name, ", ".join(f"`{p.name}`" for p in q.parameters) or "-", str(len(q.columns)), *shown[q.name])
        for q in queries().values()
        if q.name not in WITHOUT_PANEL
    ]
    page = (ROOT / "contracts" / "README.md").read_text(encoding="utf-8")
    assert sorted(contract_rows(page)) == sorted(wanted)
    assert sorted(contract_rows(page.replace("| overview |", "| operations |"))) != sorted(wanted)


def test_every_health_state_has_a_colour() -> None:
    assert {"failing", "late", "overrunning", "unknown", "healthy"} <= set(COLORS)


# --- statements ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["", "acme"])
def test_every_panel_shows_what_the_contract_answers(
    client: str, engine: sa.Engine, reader: "psycopg.Connection[dict[str, Any]]"
) -> None:
    for uid, (_, panels) in DASHBOARDS.items():
        for panel, shown in zip(panels, dashboard(uid)["panels"], strict=True):
            query = queries()[panel.query]
            given: dict[str, Any] = {"client_slug": client or None, "since": SINCE, "until": UNTIL}
            wanted = ask(engine, query.name, **{p.name: given[p.name] for p in query.parameters if p.name in given})
            found = reader.execute(filled(shown["targets"][0]["rawSql"], client=client).encode()).fetchall()
            reader.rollback()
            moving = {column.name for column in query.columns if column.name == "failing_seconds"}
            assert [without(row, moving) for row in found] == [without(row, moving) for row in wanted], query.name


def without(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


# --- alert rules about CHM itself ------------------------------------------------------------------------------------------


def rule_problems(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with provisioned alert rules."""
    rules = [rule for group in found["groups"] for rule in group["rules"]]
    if len({r["uid"] for r in rules}) != len(rules) or any(len(r["uid"]) > 40 for r in rules):
        yield "two rules have one uid, or it is too long"
    for rule in rules:
        steps = {step["refId"]: step for step in rule["data"]}
        if rule["condition"] not in steps or steps[rule["condition"]]["datasourceUid"] != "__expr__":
            yield f"{rule['title']}: its condition is no expression"
        for ref, step in steps.items():
            model = step["model"]
            if model["refId"] != ref or model["datasource"]["uid"] != step["datasourceUid"]:
                yield f"{rule['title']}: {ref} contradicts itself"
            if step["datasourceUid"] not in (SOURCE["uid"], "__expr__"):
                yield f"{rule['title']}: another data source"
            if model.get("type") == "threshold" and model["expression"] not in steps:
                yield f"{rule['title']}: an expression over nothing"
            if "$" in model.get("rawSql", ""):
                yield f"{rule['title']}: Grafana would expand a variable"
        if {rule["noDataState"], rule["execErrState"]} != {"Alerting"} or not re.fullmatch(r"\d+m", rule["for"]):
            yield f"{rule['title']}: it is silent if CHM's database is"
        if not rule["annotations"].get("summary"):
            yield f"{rule['title']}: no summary"


def test_the_alert_rules_are_well_formed() -> None:
    assert list(rule_problems(alerting())) == []
    assert len(ALERTS) == 3


def value_of(reader: "psycopg.Connection[dict[str, Any]]", uid: str) -> float:
    (rule,) = (rule for rule in alerting()["groups"][0]["rules"] if rule["uid"] == uid)
    ((value,),) = (row.values() for row in reader.execute(rule["data"][0]["model"]["rawSql"].encode()).fetchall())
    reader.rollback()
    assert isinstance(value, float)
    return value


def test_the_alert_rules_fire_exactly_if_chm_is_blind(
    engine: sa.Engine, reader: "psycopg.Connection[dict[str, Any]]"
) -> None:
    def watched(minutes: int, connection: str) -> None:
        with engine.begin() as c:
            c.execute(
                sa.text(
                    "UPDATE pipelines SET connection = :connection, external_id = slug,"
                    " observed_through = now() - make_interval(mins => :m), stale_at = NULL WHERE slug = :slug"
                ),
                {"connection": connection, "m": minutes, "slug": connection},
            )

    def fire() -> list[bool]:
        return [value_of(reader, alert.uid) > 0 for alert in ALERTS]

    with engine.begin() as c:
        c.execute(sa.text("UPDATE pipelines SET external_id = NULL, observed_through = NULL, connection = NULL"))
    assert fire() == [False, False, False], "nothing is read from a partner"
    watched(1, "orders")
    watched(2, "stock")
    assert fire() == [False, False, False]
    watched(120, "stock")
    assert fire() == [False, True, False], "one connection is silent"
    watched(120, "orders")
    assert fire() == [True, True, False], "all are"


RULE_MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "one uid": lambda r: r.update(uid="chm-undeliverable"),
    "its condition is no expression": lambda r: r.update(condition="A"),
    "contradicts itself": lambda r: r["data"][0]["model"].update(refId="X"),
    "another data source": lambda r: r["data"][0].update(datasourceUid="other"),
    "an expression over nothing": lambda r: r["data"][1]["model"].update(expression="Z"),
    "expand a variable": lambda r: r["data"][0]["model"].update(rawSql="SELECT $1"),
    "it is silent": lambda r: r.update(execErrState="OK"),
    "no summary": lambda r: r["annotations"].clear(),
}


@pytest.mark.parametrize("mistake", RULE_MISTAKES)
def test_a_mistake_in_an_alert_rule_is_noticed(mistake: str) -> None:
    found = copy.deepcopy(alerting())
    RULE_MISTAKES[mistake](found["groups"][0]["rules"][0])
    assert mistake in "; ".join(rule_problems(found))


# --- deliberate mistakes ---------------------------------------------------------------------------------------------------


def first(board: Dashboard) -> dict[str, Any]:
    panel: dict[str, Any] = board["panels"][0]
    return panel


MISTAKES: dict[str, Callable[[Dashboard], Any]] = {
    "unknown type": lambda d: first(d).update(type="tabel"),
    "one id": lambda d: first(d).update(id=2),
    "too wide": lambda d: first(d)["gridPos"].update(w=25),
    "overlaps": lambda d: first(d)["gridPos"].update(w=13),
    "no description": lambda d: first(d).update(description=""),
    "no empty state": lambda d: first(d)["fieldConfig"]["defaults"].pop("noValue"),
    "another data source": lambda d: first(d).update(datasource={"type": "postgres", "uid": "other"}),
    "another data source of the target": lambda d: first(d)["targets"][0].update(datasource={"uid": "chmm"}),
    "no statement": lambda d: first(d)["targets"][0].update(rawSql=""),
    "no variable": lambda d: d["templating"]["list"].pop(0),
    "unknown unit": lambda d: first(d)["fieldConfig"]["overrides"].append(
        {"matcher": {}, "properties": [{"id": "unit", "value": "percentunits"}]}
    ),
    "a link to": lambda d: first(d)["fieldConfig"]["overrides"].append(
        {"matcher": {}, "properties": [{"id": "links", "value": [{"url": "/d/chm-clients"}]}]}
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_dashboard_is_noticed(mistake: str) -> None:
    board = copy.deepcopy(dashboard("chm-overview"))
    MISTAKES[mistake](board)
    assert mistake.removesuffix(" of the target") in " ".join(problems(board))


@pytest.mark.parametrize(
    ("old", "new"), [("ORDER BY", "ODER BY"), ("h.health", "h.helth"), ("$__timeFrom()", "$__timeFrm()")]
)
def test_a_mistake_in_a_statement_is_noticed(old: str, new: str, reader: "psycopg.Connection[dict[str, Any]]") -> None:
    statements = [panel["targets"][0]["rawSql"] for panel in dashboard("chm-overview")["panels"]]
    (spoiled, *_) = (text.replace(old, new) for text in statements if old in text)
    with pytest.raises((psycopg.Error, ValueError)):
        reader.execute(filled(spoiled).encode())

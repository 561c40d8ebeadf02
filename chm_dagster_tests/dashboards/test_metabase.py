"""The generated collection for Metabase: in step with the contract, consistent, and each statement runs as the BI role."""

import copy
import datetime
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import yaml

from chm_dagster.presentation.dashboards import DASHBOARDS
from chm_dagster.presentation.metabase import DATABASE, FILTERS, FOLDER, build, cards, collection, dashboards
from chm_dagster.shipped import checkout
from chm_dagster.warehouse.named_queries import ask, queries
from chm_dagster_tests.contracts.histories import DAY, NOW

pytestmark = pytest.mark.alone

ROOT = checkout()
assert ROOT is not None
VALIDATOR = "@metabase/representations@1.2.0"
DISPLAYS = {"table", "line", "bar"}
WIDGETS = {"text": "string/=", "date": "date/single"}
SINCE, UNTIL = (NOW - 7 * DAY).date(), (NOW + DAY).date()
Entities = list[dict[str, Any]]


def entities() -> Entities:
    """A copy of everything that is generated, which tests may spoil: the collection, questions, dashboards."""
    return copy.deepcopy([collection(), *cards(), *dashboards()])


def of(found: Entities, model: str) -> Entities:
    return [e for e in found if e["serdes/meta"][-1]["model"] == model]


def native(card: dict[str, Any]) -> dict[str, Any]:
    (stage,) = card["dataset_query"]["stages"]
    assert isinstance(stage, dict)
    return stage


def compiled(statement: str, values: dict[str, Any]) -> tuple[str, list[Any]]:
    """A statement as Metabase sends it, by its documentation: `[[...]]` is left out if a tag in it has no value, and each
    tag becomes a parameter of the statement. Raises ValueError for a tag without a value outside of brackets."""
    given: list[Any] = []

    def tag(found: re.Match[str]) -> str:
        if values.get(found[1]) is None:
            raise ValueError(f"no value for {found[1]}")
        given.append(values[found[1]])
        return "%s"

    def part(found: re.Match[str]) -> str:
        return found[1] if all(values.get(name) is not None for name in TAG.findall(found[1])) else ""

    return TAG.sub(tag, re.sub(r"\[\[(.*?)\]\]", part, statement.replace("%", "%%"), flags=re.DOTALL)), given


TAG = re.compile(r"\{\{\s*(\w+)\s*\}\}")


# --- what Metabase's validator misses --------------------------------------------------------------------------------------


def problems(found: Entities) -> Iterator[str]:
    """What is wrong although each file by itself is valid."""
    known = {e["entity_id"]: e for e in found}
    ids = Counter(i for e in found for i in [e["entity_id"], *(d["entity_id"] for d in e.get("dashcards", ()))])
    yield from (f"the entity id {own} is there {times} times" for own, times in ids.items() if times > 1)
    for entity in found:
        where = entity["name"]
        if entity["serdes/meta"][-1]["id"] != entity["entity_id"]:
            yield f"{where}: another id in serdes/meta"
        if entity.get("collection_id", found[0]["entity_id"]) not in known:
            yield f"{where}: an unknown collection"
    for card in of(found, "Card"):
        yield from card_problems(card)
    for dashboard in of(found, "Dashboard"):
        yield from dashboard_problems(dashboard, known)


def card_problems(card: dict[str, Any]) -> Iterator[str]:
    where, stage = card["name"], native(card)
    tags = {tag["name"]: tag["type"] for tag in stage["template-tags"]}
    used = set(TAG.findall(stage["native"]))
    yield from (f"{where}: the tag {name} is not described" for name in sorted(used - set(tags)))
    yield from (f"{where}: the tag {name} is not used" for name in sorted(set(tags) - used))
    if "?" in stage["native"]:
        yield f"{where}: JDBC takes a question mark for a parameter"
    if card["display"] not in DISPLAYS:
        yield f"{where}: unknown display {card['display']}"
    if {card["database_id"], card["dataset_query"]["database"]} != {DATABASE}:
        yield f"{where}: another database"
    if not card["description"]:
        yield f"{where}: no description"
    asked = {p["slug"]: p for p in card["parameters"]}
    if set(asked) != set(tags):
        yield f"{where}: its filters are not its tags"
    for name, parameter in asked.items():
        if parameter["type"] != WIDGETS.get(tags.get(name, "")):
            yield f"{where}: the filter {name} has another type than its tag"
    yield from column_problems(card)


def column_problems(card: dict[str, Any]) -> Iterator[str]:
    (name,) = re.findall(r"The query (\w+) of", card["description"] or "The query failing_now of")
    columns = {column.name for column in queries()[name].columns}
    settings = card["visualization_settings"]
    named = {c["name"] for c in settings.get("table.columns", ())}
    named |= {json.loads(key)[1] for key in settings.get("column_settings", {})}
    named |= {*settings.get("graph.dimensions", ()), *settings.get("graph.metrics", ())}
    yield from (f"{card['name']}: no column {column}" for column in sorted(named - columns))


def dashboard_problems(dashboard: dict[str, Any], known: dict[str, dict[str, Any]]) -> Iterator[str]:
    where = dashboard["name"]
    filters = {p["id"]: p for p in dashboard["parameters"]}
    taken: dict[tuple[int, int], str] = {}
    mapped = set()
    for placed in dashboard["dashcards"]:
        card = known.get(placed["card_id"])
        if card is None:
            yield f"{where}: a question that does not exist"
            continue
        if placed["col"] + placed["size_x"] > 24:
            yield f"{where}: {card['name']} is too wide"
        for x in range(placed["col"], placed["col"] + placed["size_x"]):
            for y in range(placed["row"], placed["row"] + placed["size_y"]):
                if taken.setdefault((x, y), placed["entity_id"]) != placed["entity_id"]:
                    yield f"{where}: {card['name']} overlaps another question"
        tags = {tag["name"]: tag["type"] for tag in native(card)["template-tags"]}
        for mapping in placed["parameter_mappings"]:
            parameter, (kind, (_, tag)) = filters.get(mapping["parameter_id"]), mapping["target"]
            mapped.add(mapping["parameter_id"])
            if mapping["card_id"] != placed["card_id"] or tag not in tags or kind != "variable":
                yield f"{where}: {card['name']} has no tag {tag}"
            elif parameter is None:
                yield f"{where}: {card['name']} is mapped to an unknown filter"
            elif parameter["type"] != WIDGETS[tags[tag]] or parameter["slug"] != tag:
                yield f"{where}: {card['name']} gets another filter than its tag"
        if {m["target"][1][1] for m in placed["parameter_mappings"]} != set(tags):
            yield f"{where}: {card['name']} does not follow all filters"
        yield from link_problems(where, placed, known)
    yield from (f"{where}: the filter {filters[own]['name']} filters nothing" for own in sorted(set(filters) - mapped))


def link_problems(where: str, placed: dict[str, Any], known: dict[str, dict[str, Any]]) -> Iterator[str]:
    for settings in placed["visualization_settings"].get("column_settings", {}).values():
        link = settings["click_behavior"]
        target = known.get(link["targetId"], {})
        there = {p["id"] for p in target.get("parameters", ())}
        if not set(link["parameterMapping"]) <= there or not there:
            yield f"{where}: a link to a dashboard or filter that does not exist"


def test_the_entities_are_consistent() -> None:
    assert list(problems(entities())) == []


def test_the_files_are_those_that_the_contract_gives() -> None:
    assert ROOT is not None
    found = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / FOLDER).rglob("*") if p.is_file()}
    assert found == build(), "run `python -m chm_dagster.presentation.metabase`"
    assert [yaml.safe_load(text) for text in build().values()] == entities()


def test_every_panel_is_a_question_on_the_same_dashboard() -> None:
    names = {c["entity_id"]: c["name"] for c in cards()}
    found = [(d["name"], [names[p["card_id"]] for p in d["dashcards"]]) for d in dashboards()]
    assert found == [(title, [p.title for p in panels]) for title, panels in DASHBOARDS.values()]


# --- statements ------------------------------------------------------------------------------------------------------------


def run(reader: "psycopg.Connection[dict[str, Any]]", card: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    """The rows of a question, its tags bound as typed parameters, which is how JDBC sends them."""
    statement, given = compiled(native(card)["native"], values)
    try:
        return reader.execute(statement.encode(), given).fetchall()
    finally:
        reader.rollback()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"client": "acme", "environment": "prod", "platform": "generic", "pipeline": "orders"},
        {"client": "nobody"},
        {"since": SINCE, "until": UNTIL},
        {"client": "bolt", "since": SINCE, "until": UNTIL},
    ],
    ids=lambda values: ", ".join(values) or "no filter",
)
def test_every_question_shows_what_the_contract_answers(
    values: dict[str, Any], engine: sa.Engine, reader: "psycopg.Connection[dict[str, Any]]"
) -> None:
    midnight = datetime.time(tzinfo=datetime.UTC)
    filled = 0
    for card, panel in zip(cards(), (p for _, panels in DASHBOARDS.values() for p in panels), strict=True):
        query = queries()[panel.query]
        given: dict[str, Any] = {}
        for parameter in (p.name for p in query.parameters if p.name in FILTERS):
            value = values.get(FILTERS[parameter].name)
            given[parameter] = datetime.datetime.combine(value, midnight) if isinstance(value, datetime.date) else value
        wanted, found = ask(engine, query.name, **given), run(reader, card, **values)
        assert without_moving(found) == without_moving(wanted), query.name
        filled += bool(wanted)
    assert filled >= (3 if values.get("client") == "nobody" else 9)


def without_moving(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "failing_seconds"} for row in rows]


def test_a_value_cannot_leave_its_place(reader: "psycopg.Connection[dict[str, Any]]") -> None:
    assert run(reader, cards()[0], client="') OR true --") == []


# --- deliberate mistakes ---------------------------------------------------------------------------------------------------


def respell(old: str, new: str) -> Callable[[Entities], None]:
    """Replace a text in the first question's statement."""

    def spoil(found: Entities) -> None:
        stage = native(found[1])
        assert old in stage["native"]
        stage["native"] = stage["native"].replace(old, new)

    return spoil


def placed(found: Entities) -> dict[str, Any]:
    first: dict[str, Any] = of(found, "Dashboard")[0]["dashcards"][0]
    return first


MISTAKES: dict[str, Callable[[Entities], Any]] = {
    "the tag clint is not described": respell("{{client}}", "{{clint}}"),
    "the tag environment is not used": respell("{{environment}}", "'prod'"),
    "JDBC takes a question mark": respell("h.health_since,", "h.health_since, '{}'::jsonb ? 'a' AS a,"),
    "unknown display": lambda e: e[1].update(display="tabel"),
    "another database": lambda e: e[1]["dataset_query"].update(database="Sample Database"),
    "no description": lambda e: e[1].update(description=""),
    "its filters are not its tags": lambda e: e[1]["parameters"].pop(),
    "has another type than its tag": lambda e: e[1]["parameters"][0].update(type="number/="),
    "no column helth": lambda e: e[1]["visualization_settings"]["table.columns"].append({"name": "helth"}),
    "is there 2 times": lambda e: e[2].update(entity_id=e[1]["entity_id"]),
    "another id in serdes/meta": lambda e: e[1]["serdes/meta"][0].update(id="0" * 21),
    "an unknown collection": lambda e: e[1].update(collection_id="0" * 21),
    "a question that does not exist": lambda e: placed(e).update(card_id="0" * 21),
    "is too wide": lambda e: placed(e).update(size_x=25),
    "overlaps another question": lambda e: placed(e).update(size_x=13),
    "has no tag clint": lambda e: placed(e)["parameter_mappings"][0]["target"].__setitem__(
        1, ["template-tag", "clint"]
    ),
    "is mapped to an unknown filter": lambda e: of(e, "Dashboard")[0]["parameters"].pop(0),
    "gets another filter than its tag": lambda e: of(e, "Dashboard")[0]["parameters"][0].update(type="date/single"),
    "does not follow all filters": lambda e: placed(e)["parameter_mappings"].pop(),
    "filters nothing": lambda e: of(e, "Dashboard")[3]["parameters"].append({"id": "x", "name": "X"}),
    "a link to a dashboard": lambda e: placed(e)["visualization_settings"]["column_settings"]['["name","client_name"]'][
        "click_behavior"
    ].update(targetId="0" * 21),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_entity_is_noticed(mistake: str) -> None:
    spoiled = entities()
    MISTAKES[mistake](spoiled)
    assert mistake in "; ".join(problems(spoiled))


@pytest.mark.parametrize(
    ("old", "new"),
    [("ORDER BY", "ODER BY"), ("h.health_since", "h.helth_since"), ("[[|| {{client}}]]", "|| {{client}}")],
)
def test_a_mistake_in_a_statement_is_noticed(old: str, new: str, reader: "psycopg.Connection[dict[str, Any]]") -> None:
    spoiled = entities()
    respell(old, new)(spoiled)
    with pytest.raises((psycopg.Error, ValueError)):
        run(reader, spoiled[1])


# --- Metabase's own validator ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metabase's validator, installed from npm; only its schemas are used, offline."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Metabase's validator is an npm package, and this machine has no npm")
    folder = tmp_path_factory.mktemp("validator")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    done = subprocess.run([*command, VALIDATOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "node_modules" / "@metabase" / "representations" / "dist" / "bin" / "cli.js"


def validated(validator: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", str(validator), "validate-schema", "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_files_are_valid_by_metabases_own_validator_which_notices_a_mistake(
    validator: Path, tmp_path: Path
) -> None:
    for name, text in build().items():
        path = tmp_path / Path(name).relative_to(FOLDER)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    good = validated(validator, tmp_path)
    assert good.returncode == 0 and f"{len(build())} passed, 0 failed" in good.stdout, good.stdout
    for old, new in (("display: table", "display: tabel"), ("- variable", "- variabel"), ("native: |-", "sql: |-")):
        spoiled = path.read_text() if old in path.read_text() else next(t for t in build().values() if old in t)
        path.write_text(spoiled.replace(old, new, 1))
        assert validated(validator, tmp_path).returncode != 0, new

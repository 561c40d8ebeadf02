"""What is written is true: commands exist and work, links lead somewhere, every setting and every command is explained."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from typer.exceptions import TyperException

from chm_dagster import settings
from chm_dagster.api.app import create_app
from chm_dagster.api.serving import serve_in_thread
from chm_dagster.cli.main import app
from chm_dagster.local.postgres import _programs
from chm_dagster.settings import Settings
from chm_dagster.warehouse.contract import queries
from chm_dagster.warehouse.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("contracts/*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"
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
"""Programs that pages call and that are not ours to prove."""
NOT_SETTINGS = {"CHM_STACK_ID", "CHM_POSTGRES_PASSWORD"}
"""A mark on processes, and a password that compose alone knows."""


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
    """Commands of ours that stand in backticks, in prose or in code; with substitutions, those inside."""
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
    if path.suffix != ".md"
]
"""Files that speak to people outside of pages: messages, docstrings, comments of configuration."""

LINES = [line for page in PAGES for line in shell_lines(page)]
SPOKEN = sorted(
    {Line(p.relative_to(ROOT).as_posix(), c) for p in PAGES for c in spoken(prose(p.read_text(encoding="utf-8")))}
    | {Line(p.relative_to(ROOT).as_posix(), c) for p in TALKING for c in spoken(p.read_text(encoding="utf-8"))},
    key=str,
)


# --- commands ------------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def complaint(words: list[str], *, named: bool = False) -> str | None:
    """Why a command line of ours would be refused; None if it would run. One that is only `named` may lack arguments."""
    if words[0] == "make":
        wanted = [word for word in words[1:] if "=" not in word]
        return next((f"no target {word}" for word in wanted if word not in targets()), None)
    if words[0] == "chm":
        return parse(words[1:], named=named)
    if words[0] == "python" and words[1] == "-m":
        path = ROOT / words[2].replace(".", "/")
        return None if path.with_suffix(".py").exists() or (path / "__main__.py").exists() else f"no module {words[2]}"
    return None if words[0] in OTHERS_PROGRAMS or (PROGRAMS / words[0]).exists() else f"no program {words[0]}"


def parse(words: list[str], *, named: bool) -> str | None:
    """What the real parser of `chm` says against these words, down to options and types."""
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


def test_there_is_enough_to_check() -> None:
    pages = {line.page for line in LINES}
    assert {"README.md", "CONTRIBUTING.md", "docs/operations.md"} <= pages
    assert sum(line.words[:1] == ["chm"] for line in LINES) >= 10


@pytest.mark.parametrize("line", LINES, ids=str)
def test_every_command_of_a_page_exists(line: Line) -> None:
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
    """Every command, with the words that call it. Resolving loads those that are imported when they are called."""
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


# --- the cheap ones, for real ----------------------------------------------------------------------------------------------

READING = {"status", "failing", "changed", "latest", "flaky", "list"}
WRITING = {"create", "record"}


def harmless(page: str) -> list[Line]:
    """The commands of a page that need no partner, in their order: a reader types them one after the other."""
    return [x for x in LINES if x.page == page and x.words[:1] == ["chm"] and set(x.words[1:3]) & (READING | WRITING)]


def test_the_readmes_commands_work_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    own = {settings.DATABASE_URL: database_url, settings.DAGSTER_DATABASE_URL: database_url}
    environment = {**os.environ, **own, settings.HOME: str(tmp_path), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    for line in harmless("README.md"):
        done = subprocess.run(["sh", "-c", line.text], capture_output=True, text=True, env=environment, cwd=ROOT)
        # 1 would be: something is failing. Nothing ran yet.
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout.strip(), line


def test_the_readme_shows_how_to_write_and_how_to_ask() -> None:
    words = {word for line in harmless("README.md") for word in line.words[1:3]}
    assert {"failing", "changed", "latest", "flaky", "client", "pipeline", "create"} <= words


def test_the_pings_of_the_page_end_in_the_ledger(engine: sa.Engine, tmp_path: Path) -> None:
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
def test_a_backup_made_as_the_page_says_brings_both_databases_back(tmp_path: Path) -> None:
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


def test_a_query_runs_by_hand_as_the_contracts_page_says(database_url: str, tmp_path: Path) -> None:
    (script,) = blocks((ROOT / "contracts" / "README.md").read_text(encoding="utf-8"), "sh")
    own = {settings.DATABASE_URL: database_url, settings.DAGSTER_DATABASE_URL: database_url}
    environment = {**os.environ, **own, "PATH": f"{_programs(18)}:{PROGRAMS}:{os.environ['PATH']}"}
    script = script.replace("contracts/", f"{ROOT}/contracts/")
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failing_since" in done.stdout and not done.stderr


# --- links -----------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
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
def test_every_link_and_image_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One heading, and more\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#one-heading-and-more) [b](gone.md) ![c](gone.png) [d](there.md#two) [e](https://x.y)\n"
    )
    assert broken_links(page) == ["gone.md", "gone.png", "there.md#two"]


def lost_paths(page: Path) -> list[str]:
    """Files and folders that a page names in backticks, and that are not there."""
    named = re.findall(
        r"`((?:chm_dagster\w*|contracts|docs|deploy|migrations|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    return [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    # deploy/compose.env is made by whoever starts the containers.
    assert set(lost_paths(page)) <= {"deploy/compose.env"}


def test_a_file_that_is_gone_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("see `chm_dagster/settings.py`, `chm_dagster/setings.py` and `docs/glossary`\n")
    assert lost_paths(page) == ["chm_dagster/setings.py", "docs/glossary"]


# --- settings, checks, decisions -------------------------------------------------------------------------------------------


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading of the operations page, by their first cell's code."""
    rows = re.findall(r"^\| `([^`]+)`(.*)\|$", section(OPERATIONS, heading), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")[1:]] for name, rest in rows}


def test_exactly_the_settings_that_exist_are_explained() -> None:
    assert set(table("Settings")) == set(settings.KNOWN)


def test_the_defaults_are_as_explained() -> None:
    plain = Settings()
    real = {f"CHM_{field.name.upper()}": getattr(plain, field.name) for field in fields(Settings)}
    shown = {name: cells[0].strip("`") for name, cells in table("Settings").items()}
    assert shown == {name: "none" if value is None else str(value) for name, value in real.items()}


def test_no_page_or_file_names_a_setting_that_does_not_exist() -> None:
    places = [*PAGES, ROOT / "Makefile", ROOT / "docker-compose.yml", *(ROOT / "deploy").iterdir()]
    named = {
        name for place in places for name in re.findall(r"\bCHM_[A-Z_]+[A-Z]\b", place.read_text(encoding="utf-8"))
    }
    assert named <= settings.KNOWN | NOT_SETTINGS


def test_the_code_names_its_settings_in_settings_alone() -> None:
    for path in (ROOT / "chm_dagster").rglob("*.py"):
        named = set(re.findall(r"\bCHM_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
        assert named <= settings.KNOWN | NOT_SETTINGS, path


def test_exactly_the_checks_that_exist_are_explained() -> None:
    code = (ROOT / "chm_dagster/defs/ingestion/checks.py").read_text(encoding="utf-8")
    checks = re.findall(r"^@dg\.asset_check\((.*?)^def (\w+)\(", code, re.MULTILINE | re.DOTALL)
    assert set(table("When something is red")) == {name for _, name in checks}
    rows = section(OPERATIONS, "When something is red")
    for options, name in checks:
        is_gate = "blocking=True" in options and "asset=RUNS" in options
        assert is_gate == (f"`{name}` (gate)" in rows), name


def test_exactly_the_queries_that_exist_are_listed() -> None:
    page = (ROOT / "contracts" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(queries())


def decisions() -> dict[str, Path]:
    return {path.name: path for path in (ROOT / "docs" / "adr").glob("*.md")}


def test_every_decision_that_is_referred_to_is_written_down() -> None:
    for path in [*(ROOT / "chm_dagster").rglob("*.py"), *(ROOT / "migrations").rglob("*.py"), *PAGES]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\badr/(\d{4}[\w.-]*\.md)", text):
            assert name in decisions(), path
        for number in re.findall(r"\bADR (\d{4})", text):
            assert any(name.startswith(number) for name in decisions()), path


def test_every_decision_has_a_number_of_its_own_and_says_why_what_and_what_then() -> None:
    numbers = [name.split("-")[0] for name in decisions()]
    assert len(set(numbers)) == len(numbers)
    for name, path in decisions().items():
        text = path.read_text(encoding="utf-8")
        assert re.match(rf"# {name.split('-')[0]}: \S", text), name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], name
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE), name


def test_the_changelog_is_of_the_agreed_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
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
    """Locks that hold addresses, and files that hold a machine's settings or somebody's secrets."""
    secret = (".pem", ".key", "compose.env")
    return [n for n in names if Path(n).name in LOCKS_WITH_ADDRESSES | {".env"} or n.endswith(secret)]


def test_no_tracked_file_is_a_lock_with_addresses_or_holds_settings_of_a_machine() -> None:
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
    assert not offences("/var/lib/chm /opt/dagster/home/storage ./home/x ~/work/x the index is simple")

"""`chm` as a process: what it imports, how it behaves on a terminal, with Tab, Ctrl-C and a closed pipe."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chm_dagster.cli.main import COMMANDS
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster_tests.cli.conftest import Chm

CHM = (sys.executable, "-m", "chm_dagster.cli.main")
HEAVY = ("dagster", "fastapi", "uvicorn", "pandas", "httpx", "alembic", "yaml")


def run(environment: dict[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment, **more}
    return subprocess.run([*CHM, *words], capture_output=True, text=True, env=everything, timeout=60)


@pytest.mark.parametrize("words", [("client", "list"), ("failing",), ("pipeline", "get", "acme/orders"), ("--help",)])
def test_a_quick_command_imports_only_what_it_needs(
    acme: Chm, environment: dict[str, str], words: tuple[str, ...]
) -> None:
    code = f"""
import sys
from chm_dagster.cli.main import main
sys.argv = ["chm", *{words!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(call: Chm, name: str) -> None:
    answer = call(name, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"Usage: chm {name}" in answer.out
    assert "--install-completion" not in answer.out


def test_the_help_explains_the_exit_codes(call: Chm) -> None:
    answer = call("--help")
    words = " ".join(answer.out.split())
    assert "Exit codes: 0 all is well; 1 found something that needs attention, such as a failing pipeline; " in words
    assert "2 could not run; 130 Ctrl-C." in words
    assert all(name in words for name in COMMANDS)


def test_the_version_is_that_of_the_package(call: Chm) -> None:
    from importlib.metadata import version

    answer = call("--version")
    assert (answer.code, answer.out) == (0, f"chm {version('chm-dagster')}\n")


def on_a_terminal(environment: dict[str, str], *words: str) -> str:
    """The output of `chm` on a terminal with 80 columns."""
    outside, inside = pty.openpty()
    everything = {**os.environ, **environment, "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen([*CHM, *words], stdin=inside, stdout=inside, stderr=inside, env=everything) as process:
        os.close(inside)
        written = b""
        while True:
            try:
                chunk = os.read(outside, 65_536)
            except OSError:
                break
            if not chunk:
                break
            written += chunk
        process.wait(60)
    os.close(outside)
    return written.decode()


def test_a_terminal_gets_a_table_in_colour(acme: Chm, environment: dict[str, str]) -> None:
    acme("run", "record", "acme/orders", "--status", "failed", "--run", "r1")
    written = on_a_terminal(environment, "latest")
    assert "pipeline" in written and "{" not in written
    assert "\x1b[1;31mfailed" in written
    assert on_a_terminal(environment, "latest", "--format", "json").startswith("[")


@pytest.mark.slow
def test_the_shell_completes_commands_options_and_slugs(acme: Chm, environment: dict[str, str]) -> None:
    def complete(line: str) -> list[str]:
        more = {"_CHM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return run(environment, **more).stdout.split()

    assert complete("chm cl") == ["client"]
    assert complete("chm client dis") == ["disable"]
    assert complete("chm client get ") == ["acme", "cafe-nord"]
    assert complete("chm client get c") == ["cafe-nord"]
    assert complete("chm run list acme/") == ["acme/invoices", "acme/orders"]
    assert complete("chm pipeline list --platform air") == ["airflow", "airbyte"] or complete(
        "chm pipeline list --platform airf"
    ) == ["airflow"]
    assert complete("chm latest --client a") == ["acme"]


def test_shell_completion_starts_no_server_and_prints_no_errors(tmp_path: Path) -> None:
    more = {"_CHM_COMPLETE": "complete_bash", "COMP_WORDS": "chm client get ", "COMP_CWORD": "3"}
    ended = run({"CHM_HOME": str(tmp_path / "home")}, **more)
    assert (ended.stdout.split(), ended.stderr) == ([], "")
    assert not (tmp_path / "home").exists()
    broken = run({"CHM_HOME": str(tmp_path), "CHM_DATABASE_URL": "mysql://x"}, **more)
    assert (broken.stdout.split(), broken.stderr) == ([], "")


@pytest.mark.parametrize("payload", [10, 60_000], ids=["a little", "a lot"])
def test_a_closed_pipe_causes_no_traceback(acme: Chm, environment: dict[str, str], payload: int) -> None:
    for number in range(3):
        more = ("--run", f"r{number}", "--payload", f'{{"x": "{"y" * payload}"}}')
        acme("run", "record", "acme/orders", "--status", "success", *more)
    script = f"{' '.join(CHM)} run list acme/orders | true"
    everything = {**os.environ, **environment, "PYTHONUNBUFFERED": ""}
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=everything, timeout=60)
    assert ended.stderr == ""


def test_ctrl_c_ends_a_command_with_130_and_without_a_traceback(acme: Chm, environment: dict[str, str]) -> None:
    everything = {**os.environ, **environment}
    command = [*CHM, "run", "import", "-", "--as", "jsonl", "--pipeline", "acme/orders"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=everything, text=True
    ) as process:
        assert process.stdin is not None
        # More than a pipe buffers: once it is written, the import has started.
        process.stdin.write('{"id": "r1", "status": "success", "started_at": "2026-03-01T06:00:00Z"}\n' * 5_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.slow
def test_a_server_started_with_db_start_stays(tmp_path: Path) -> None:
    home = {"CHM_HOME": str(tmp_path / "home")}
    server = EmbeddedPostgres(tmp_path / "home")
    try:
        assert run(home, "migrate").returncode == 0
        assert not server.is_running()
        assert run(home, "db", "start").returncode == 0
        assert run(home, "client", "create", "Acme").returncode == 0
        assert server.is_running()
        assert run(home, "db", "stop").returncode == 0
        assert not server.is_running()
        assert run(home, "client", "get", "acme").returncode == 0
        assert not server.is_running()
    finally:
        server.stop()

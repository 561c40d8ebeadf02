"""The embedded server under the conditions of laptops, containers and crashes. One real server per test."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

import chm_dagster
from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres

ROOT = Path(chm_dagster.__file__).parent.parent
SITE = Path(psutil.__file__).parent.parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights away")


def query(postgres: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def server(postgres: EmbeddedPostgres) -> psutil.Process:
    return psutil.Process(int((postgres.data / "postmaster.pid").read_text().split("\n")[0]))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own."""
    folder = Path(f"/tmp/chm-test-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("version", [16, 18])
def test_data_survives_a_stop_and_a_start(fresh_home: Path, version: int) -> None:
    postgres = EmbeddedPostgres(fresh_home, version=version)
    with postgres.running():
        postgres.ensure_database("chm")
        postgres.ensure_database("chm")
        query(postgres, "CREATE TABLE kept AS SELECT 42 AS n")
        assert query(postgres, "SELECT current_setting('server_version_num')::int / 10000") == version
        assert query(postgres, "SELECT current_setting('data_checksums')") == "on"
        assert query(postgres, "SELECT count(*) FROM pg_database WHERE datname = 'chm'") == 1
    assert not postgres.is_running()
    with EmbeddedPostgres(fresh_home, version=version).running() as again:
        assert query(again, "SELECT n FROM kept") == 42
    assert not again.is_running()


def test_a_second_process_joins_and_the_last_one_stops_the_server(home: Path) -> None:
    first, second = EmbeddedPostgres(home), EmbeddedPostgres(home)
    first.start()
    pid = server(first).pid
    second.start()
    assert (first.started_here, second.started_here) == (True, False)
    assert server(second).pid == pid
    assert first.release() is False, "it was stopped under its second user"
    assert query(second, "SELECT 1") == 1
    assert second.release() is True
    assert not second.is_running()


def test_a_command_that_found_it_running_leaves_it_running(home: Path) -> None:
    service = EmbeddedPostgres(home)
    service.start()
    with EmbeddedPostgres(home).running() as command:
        assert not command.started_here
    assert service.is_running()


def test_the_server_is_private(fresh_home: Path) -> None:
    with EmbeddedPostgres(fresh_home).running() as postgres:
        url = postgres.url("postgres")
        password = (fresh_home / "postgres.password").read_text()
        assert len(password) >= 32
        assert password not in repr(postgres)
        assert stat.S_IMODE((fresh_home / "postgres.password").stat().st_mode) == 0o600
        assert server(postgres).net_connections(kind="inet") == []
        folder = Path(str(query(postgres, "SHOW unix_socket_directories")))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace(password, "wrong"))
        assert os.getsid(server(postgres).pid) != os.getsid(0), "a Ctrl-C in the terminal would reach it"
        assert password not in " ".join(server(postgres).cmdline())
        assert password not in postgres.log_path.read_text()


def test_postgres_environment_variables_of_the_caller_are_ignored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere.invalid", "PGUSER": "x", "PGDATA": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(home).running() as postgres:
        assert query(postgres, "SELECT 1") == 1


def test_a_stale_pid_file_with_the_pid_of_another_program_is_ignored(home: Path) -> None:
    with EmbeddedPostgres(home).running() as postgres:
        lines = (postgres.data / "postmaster.pid").read_text().split("\n")
    owner = postgres.data.stat()
    # Runs as the server's own user: Postgres detects a process of another user by itself.
    user = owner.st_uid if os.geteuid() == 0 else None
    stranger = subprocess.Popen(["sleep", "300"], user=user, cwd="/")
    for path in (postgres.data / "postmaster.pid", Path(lines[4]) / f".s.PGSQL.{lines[3]}.lock"):
        path.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        os.chown(path, owner.st_uid, owner.st_gid)
    try:
        assert not postgres.is_running()
        with postgres.running():
            assert query(postgres, "SELECT 1") == 1
        assert stranger.poll() is None, "a process that is none of ours was ended"
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "garbage\n"])
def test_a_truncated_pid_file_is_ignored(home: Path, content: str) -> None:
    with EmbeddedPostgres(home).running() as postgres:
        pass
    (postgres.data / "postmaster.pid").write_text(content)
    with postgres.running():
        assert query(postgres, "SELECT 1") == 1


def test_after_a_kill_9_committed_rows_are_there(home: Path) -> None:
    postgres = EmbeddedPostgres(home)
    postgres.start()
    query(postgres, "CREATE TABLE kept AS SELECT 42 AS n")
    busy = psycopg.connect(postgres.url("postgres"))
    # A busy session does not notice by itself that its server is gone.
    busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
    server(postgres).kill()
    with EmbeddedPostgres(home).running() as again:
        assert again.started_here
        assert query(again, "SELECT n FROM kept") == 42
    busy.close()
    postgres.release()


def test_a_half_finished_first_start_is_cleared_away(fresh_home: Path) -> None:
    half = fresh_home / "postgres.init-abc" / "data"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(fresh_home).running() as postgres:
        assert query(postgres, "SELECT 1") == 1
    assert not half.parent.exists()
    assert not list(fresh_home.glob("postgres.init-*"))


def test_data_of_another_version_is_rejected_in_one_line(fresh_home: Path) -> None:
    (fresh_home / "postgres").mkdir(parents=True)
    (fresh_home / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigError, match=r"Postgres 15.*Postgres 18.*CHM_HOME") as caught:
        EmbeddedPostgres(fresh_home).start()
    assert "\n" not in str(caught.value)


def test_a_folder_with_foreign_files_is_left_alone(fresh_home: Path) -> None:
    (fresh_home / "postgres").mkdir(parents=True)
    (fresh_home / "postgres" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no Postgres data"):
        EmbeddedPostgres(fresh_home).start()
    assert (fresh_home / "postgres" / "thesis.txt").read_text() == "mine"


def test_a_missing_password_file_is_named(home: Path) -> None:
    with EmbeddedPostgres(home).running() as postgres:
        pass
    (home / "postgres.password").unlink()
    with pytest.raises(ConfigError, match=r"postgres\.password is missing"):
        postgres.start()


def test_a_failed_start_shows_the_end_of_the_log(home: Path) -> None:
    with EmbeddedPostgres(home).running() as postgres:
        pass
    with (postgres.data / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(ConfigError, match="no_such_setting"):
        postgres.start()
    assert not postgres.is_running()
    (postgres.data / "postgresql.conf").write_text("")
    with postgres.running():
        assert query(postgres, "SELECT 1") == 1


def test_a_home_path_too_long_for_a_socket_works_and_survives_a_cleaned_tmp(tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / ("d" * 100) / ("e" * 100))
    for _ in range(2):
        with postgres.running():
            folder = Path(str(query(postgres, "SHOW unix_socket_directories")))
            assert not folder.is_relative_to(tmp_path)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        shutil.rmtree(folder)


def test_a_path_that_a_url_would_misread_works(open_folder: Path) -> None:
    home = open_folder / "a,'\" $HOME?%41é"
    assert len(os.fsencode(home)) < 80, "too long a path would take the same way out"
    with EmbeddedPostgres(home).running() as postgres:
        assert query(postgres, "SELECT 1") == 1
        sockets = Path(str(query(postgres, "SHOW unix_socket_directories")))
    shutil.rmtree(sockets)


def test_a_moved_home_works_whether_running_or_stopped(home: Path, tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(home)
    postgres.start()
    moved = EmbeddedPostgres(home.rename(tmp_path / "elsewhere"))
    assert moved.is_running()
    assert query(moved, "SELECT 1") == 1
    moved.stop()
    postgres.release()
    with moved.running():
        assert query(moved, "SELECT 1") == 1
    assert not moved.is_running()


def test_a_copied_home_starts_next_to_the_original(home: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres(home).running() as postgres:
        query(postgres, "CREATE TABLE kept AS SELECT 42 AS n")
    shutil.copytree(home, tmp_path / "copy")  # root's copy belongs to root
    (tmp_path / "copy" / "postgres").chmod(0o755)
    with postgres.running(), EmbeddedPostgres(tmp_path / "copy").running() as copy:
        assert query(copy, "SELECT n FROM kept") == 42
        assert server(copy).pid != server(postgres).pid


# --- rights ------------------------------------------------------------------------------------------------------


def capabilities(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapEff")), 16)


@needs_root
def test_root_drops_all_rights_where_the_account_reaches_the_home(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder / "home").running() as postgres:
        assert server(postgres).uids().effective != 0
        assert capabilities(server(postgres)) == 0


@needs_root
def test_root_with_a_private_home_changes_no_rights_of_its_parents(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "clone").mkdir(mode=0o700)
    before = [(p, p.stat().st_mode, p.stat().st_uid) for p in (private / "clone").parents]
    with EmbeddedPostgres(private / "clone" / ".chm").running() as postgres:
        assert query(postgres, "SELECT 1") == 1
        assert server(postgres).uids().effective != 0
        assert bin(capabilities(server(postgres))).count("1") == 1, "it got more than the right to walk"
    assert [(p, p.stat().st_mode, p.stat().st_uid) for p in (private / "clone").parents] == before
    assert stat.S_IMODE((private / "clone").stat().st_mode) == 0o700


SELF_TEST = """
import sys, psycopg
from pathlib import Path
from chm_dagster.local.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])).running() as postgres:
    postgres.ensure_database("chm")
    print(psycopg.connect(postgres.url("chm")).execute("SELECT current_user").fetchone()[0])
"""


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_container_root_without_the_traversal_capability_can_still_use_a_private_home(tmp_path: Path) -> None:
    bounded = ["setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search"]
    done = subprocess.run(
        [*bounded, sys.executable, "-c", SELF_TEST, str(tmp_path / "home")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "postgres", done.stderr


@needs_root
def test_root_without_access_to_the_home_gets_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # setpriv does not exist there
    with pytest.raises(ConfigError, match=r"cannot reach .*: set CHM_HOME to a folder") as caught:
        EmbeddedPostgres(tmp_path / "home").start()
    assert "\n" not in str(caught.value)


def interpreter_for_all() -> str | None:
    """A Python of the same version that an unprivileged account can run."""
    for candidate in (
        sys.executable,
        shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin"),
    ):
        if candidate is None:
            continue
        try:
            subprocess.run([candidate, "-c", ""], user=65534, group=65534, extra_groups=[], cwd="/", check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


@needs_root
def test_a_plain_user_without_a_home_runs_the_server(open_folder: Path) -> None:
    python = interpreter_for_all()
    if python is None:
        pytest.skip("no interpreter that everybody may run")
    (open_folder / "his").mkdir()
    os.chown(open_folder / "his", 65534, 65534)
    done = subprocess.run(
        [python, "-c", SELF_TEST, str(open_folder / "his" / "home")],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": f"{ROOT}:{SITE}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "postgres", done.stderr
    assert (open_folder / "his" / "home" / "postgres").stat().st_uid == 65534
    # Root continues later, as the owner of the data, who must not be locked out.
    with EmbeddedPostgres(open_folder / "his" / "home").running() as postgres:
        assert server(postgres).uids().effective == 65534
        postgres.stop()
    assert not postgres.is_running()

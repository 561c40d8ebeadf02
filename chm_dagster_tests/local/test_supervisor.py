"""The supervisor with real children: what starts, what is restarted, and that nothing is left behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.processes import STACK_ID, members
from chm_dagster.local.supervisor import Child, Supervisor
from chm_dagster.serving import connects, port_free, require_free_ports

Start = Callable[..., "subprocess.Popen[str]"]
NothingLeft = Callable[[Path, float], list[psutil.Process]]


def python(name: str, script: str, home: Path, *, ready: Callable[[], bool] | None = None) -> Child:
    env = {"PATH": os.defpath, "TEST_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    return Child(name, (sys.executable, "-c", script), env, ready, ready_seconds=20)


def test_the_supervisor_waits_for_a_child_and_keeps_its_output(fresh_home: Path) -> None:
    sign = fresh_home / "ready"
    script = (
        f"import time, pathlib; print('hello'); time.sleep(0.3); pathlib.Path({str(sign)!r}).touch(); time.sleep(99)"
    )
    with Supervisor(fresh_home) as supervisor:
        supervisor.start(python("web", script, fresh_home, ready=sign.exists))
        assert sign.exists()
    log = fresh_home / "logs" / "web.log"
    assert log.read_text() == "hello\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_has_grown_too_large_is_rotated(fresh_home: Path) -> None:
    log = fresh_home / "logs" / "web.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * 10_000_001)
    with Supervisor(fresh_home) as supervisor:
        supervisor.start(python("web", "print('new')", fresh_home))
        while not log.read_text():
            time.sleep(0.02)
    assert log.read_text() == "new\n"
    assert (fresh_home / "logs" / "web.log.1").stat().st_size == 10_000_001


def test_a_child_that_ends_before_it_is_ready_shows_the_end_of_its_log(fresh_home: Path) -> None:
    (fresh_home / "logs").mkdir(parents=True)
    (fresh_home / "logs" / "web.log").write_text("words of yesterday\n")
    with (
        Supervisor(fresh_home) as supervisor,
        pytest.raises(ConfigError, match=r"web ended with code 3 while starting; .*\nno such table$") as caught,
    ):
        supervisor.start(python("web", "print('no such table'); exit(3)", fresh_home, ready=lambda: False))
    assert "yesterday" not in str(caught.value)


def test_a_child_that_is_never_ready_is_an_error_and_is_stopped(fresh_home: Path, nothing_left: NothingLeft) -> None:
    child = Child("slow", ("sleep", "99"), {"TEST_HOME": str(fresh_home)}, lambda: False, ready_seconds=0.2)
    with pytest.raises(ConfigError, match="slow was not ready"), Supervisor(fresh_home) as supervisor:
        supervisor.start(child)
    assert nothing_left(fresh_home, 5) == []


def test_a_missing_program_is_an_error_in_one_line(fresh_home: Path) -> None:
    with Supervisor(fresh_home) as supervisor, pytest.raises(ConfigError, match="no-such-program"):
        supervisor.start(Child("web", ("no-such-program",), {}))


def test_the_environment_of_a_child_is_not_in_its_repr() -> None:
    assert "hunter2" not in repr(Child("web", ("true",), {"TOKEN": "hunter2"}))


def test_a_child_that_keeps_dying_is_restarted_three_times_and_then_all_stops(
    fresh_home: Path, nothing_left: NothingLeft
) -> None:
    said: list[str] = []
    with Supervisor(fresh_home, say=said.append, restart_pause=0.0) as supervisor:
        supervisor.start(python("steady", "import time; time.sleep(99)", fresh_home))
        supervisor.start(python("frail", "print('ouch'); exit(7)", fresh_home))
        assert supervisor.wait() == 1
    assert [line.split(";")[1].strip()[:17] for line in said] == ["starting it again"] * 3 + ["giving up"]
    assert said[-1].endswith("ouch")
    assert (fresh_home / "logs" / "frail.log").read_text() == "ouch\n" * 4
    assert nothing_left(fresh_home, 5) == []


def test_a_second_start_in_the_same_home_names_the_first(fresh_home: Path) -> None:
    with Supervisor(fresh_home):
        with pytest.raises(ConfigError, match=rf"already runs in {fresh_home} \(pid {os.getpid()}\)") as caught:
            Supervisor(fresh_home).__enter__()
        assert "\n" not in str(caught.value)
    with Supervisor(fresh_home):
        pass


def test_signal_handlers_are_restored(fresh_home: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Supervisor(fresh_home):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# --- nothing is left ---------------------------------------------------------------------------------------------

STACK = """
import os, sys
from pathlib import Path
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.supervisor import Child, Supervisor

home = Path(sys.argv[1])
env = {"PATH": os.defpath, "TEST_HOME": str(home)}
# A wanderer leaves its session, and its parent ends: only its environment still tells whose it is.
wanderer = "import subprocess; subprocess.Popen(['sleep', '301'], start_new_session=True)"
parent = (
    "import subprocess, sys, time; subprocess.Popen(['sleep', '302']);"
    f"subprocess.run([sys.executable, '-c', {wanderer!r}]); open(sys.argv[1], 'w').close(); time.sleep(303)"
)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); time.sleep(304)"
def run(supervisor):
    if "postgres" in sys.argv:
        supervisor.start_postgres(EmbeddedPostgres(home))
    sign = home / "family"
    supervisor.start(Child("family", (sys.executable, "-c", parent, str(sign)), env, sign.exists))
    last = deaf if "deaf" in sys.argv else "print('set', flush=True); import time; time.sleep(305)"
    log = home / "logs" / "last.log"
    supervisor.start(Child("last", (sys.executable, "-c", last), env, lambda: "set" in log.read_text()))
    print("up", flush=True)
    return supervisor.wait()

try:
    with Supervisor(home) as supervisor:
        code = run(supervisor)
except KeyboardInterrupt:
    code = 0
print("down", flush=True)
sys.exit(code)
"""


def up(start: Start, home: Path, *options: str) -> "subprocess.Popen[str]":
    process = start(STACK, home, *options)
    assert process.stdout
    for line in process.stdout:
        if line == "up\n":
            return process
    raise AssertionError(f"the stack did not start: {process.wait()}")


def stack_of(home: Path) -> str:
    return str(json.loads((home / "children.json").read_text())["stack"])


def guardian_of(process: "subprocess.Popen[str]") -> psutil.Process:
    children = psutil.Process(process.pid).children()
    return next(child for child in children if "chm_dagster.local.processes" in child.cmdline())


def test_ctrl_c_ends_everything_in_order(home: Path, start: Start, nothing_left: NothingLeft) -> None:
    process = up(start, home, "postgres")
    assert len(members(stack_of(home))) == 4, "two children, a grandchild and a wanderer"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(15) == 0
    assert process.stdout
    assert process.stdout.read() == "down\n"
    assert nothing_left(home, 0) == []
    assert not (home / "postgres" / "postmaster.pid").exists(), "the server was not stopped in order"
    assert not (home / "children.json").exists()


def test_after_a_kill_9_nothing_is_left(home: Path, start: Start, nothing_left: NothingLeft) -> None:
    process = up(start, home, "postgres")
    assert len(nothing_left(home, 0)) > 6
    process.kill()
    assert nothing_left(home, 15) == []
    assert not (home / "postgres" / "postmaster.pid").exists(), "the server was not stopped in order"


@pytest.mark.slow
def test_the_guardian_kills_processes_that_ignore_signals(
    fresh_home: Path, start: Start, nothing_left: NothingLeft
) -> None:
    process = up(start, fresh_home, "deaf")
    process.kill()
    assert nothing_left(fresh_home, 15) == []


def test_the_guardian_survives_the_signals_of_a_closing_terminal(
    fresh_home: Path, start: Start, nothing_left: NothingLeft
) -> None:
    process = up(start, fresh_home)
    guardian = guardian_of(process)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        guardian.send_signal(number)
    process.kill()
    assert nothing_left(fresh_home, 15) == []


def test_a_killed_guardian_is_replaced(fresh_home: Path, start: Start, nothing_left: NothingLeft) -> None:
    process = up(start, fresh_home)
    first = guardian_of(process)
    first.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if guardian_of(process).pid != first.pid:
                break
        except (StopIteration, psutil.Error):
            pass
        time.sleep(0.1)
    process.kill()
    assert nothing_left(fresh_home, 15) == []


def test_a_second_ctrl_c_stops_faster(fresh_home: Path, start: Start, nothing_left: NothingLeft) -> None:
    process = up(start, fresh_home, "deaf")
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert time.monotonic() - begin < 8, "it waited out the grace"
    assert nothing_left(fresh_home, 5) == []


def answers(postgres: EmbeddedPostgres) -> bool:
    try:
        with psycopg.connect(postgres.url("postgres")) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_a_killed_postgres_is_started_again(home: Path, start: Start, nothing_left: NothingLeft) -> None:
    process = up(start, home, "postgres")
    first = int((home / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(first, signal.SIGKILL)
    assert process.stdout
    assert process.stdout.readline().startswith("Postgres stopped; starting it again")
    deadline = time.monotonic() + 10
    while not answers(EmbeddedPostgres(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answers(EmbeddedPostgres(home))
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert nothing_left(home, 0) == []


def test_processes_left_by_a_crash_without_guardian_are_ended_at_the_next_start(
    fresh_home: Path, start: Start, nothing_left: NothingLeft, stranger: "subprocess.Popen[bytes]"
) -> None:
    process = up(start, fresh_home)
    guardian = guardian_of(process)
    guardian.kill()
    process.kill()
    process.wait()
    assert len(nothing_left(fresh_home, 0.5)) == 4
    noted = json.loads((fresh_home / "children.json").read_text())
    noted["children"].append({"name": "reused", "pid": stranger.pid, "create_time": 1.0})
    (fresh_home / "children.json").write_text(json.dumps(noted))
    said: list[str] = []
    with Supervisor(fresh_home, say=said.append):
        assert members(noted["stack"]) == []
    assert nothing_left(fresh_home, 0) == []
    assert said == ["ending 4 processes that an earlier start left behind"]
    assert stranger.poll() is None, "a process with a reused pid was ended"


@pytest.mark.parametrize("content", ["", "[]", '{"stack": "x", "children": [{"pid": "y"}]}'])
def test_a_truncated_children_file_does_not_prevent_a_start(fresh_home: Path, content: str) -> None:
    fresh_home.mkdir()
    (fresh_home / "children.json").write_text(content)
    with Supervisor(fresh_home):
        pass


def test_unrelated_processes_are_not_touched(stranger: "subprocess.Popen[bytes]") -> None:
    marked = subprocess.Popen(["sleep", "300"], env={STACK_ID: "one"})
    try:
        deadline = time.monotonic() + 5
        while not (found := members("one")) and time.monotonic() < deadline:
            time.sleep(0.01)  # until the child has become `sleep`
        assert [process.pid for process in found] == [marked.pid]
        assert members("two") == []
    finally:
        marked.kill()
        marked.wait()


# --- ports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_names_the_setting_and_the_holder(address: str) -> None:
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_free(port)
        assert connects(port)()
        with pytest.raises(ConfigError, match=rf"port {port} is in use by .*\(pid {os.getpid()}\); set CHM_UI_PORT"):
            require_free_ports({"CHM_UI_PORT": ("127.0.0.1", port)})


def test_two_settings_with_the_same_port_are_rejected_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    require_free_ports({"CHM_UI_PORT": ("127.0.0.1", port)})
    with pytest.raises(ConfigError, match=f"CHM_UI_PORT and CHM_API_PORT are both {port}; set one of them"):
        require_free_ports({"CHM_UI_PORT": ("127.0.0.1", port), "CHM_API_PORT": ("0.0.0.0", port)})


def test_all_ports_in_use_are_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
        with pytest.raises(ConfigError) as raised:
            require_free_ports(
                {"CHM_UI_PORT": ("127.0.0.1", ports[0]), "CHM_API_PORT": ("127.0.0.1", ports[1])},
            )
    lines = str(raised.value).splitlines()
    assert [line.rsplit("; ")[-1] for line in lines] == [
        "set CHM_UI_PORT to a free one",
        "set CHM_API_PORT to a free one",
    ]


def test_a_port_is_free_again_right_after_its_server_has_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            server.accept()[0].close()  # the server closes first: its side stays in TIME_WAIT
            connection.recv(1)
    assert port_free(port)
    require_free_ports({"CHM_UI_PORT": ("127.0.0.1", port)})
    assert not connects(port)()

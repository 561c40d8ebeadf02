"""`chm up` as a person starts it: a separate process, from an empty home to a running Dagster UI and back."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from chm_dagster_tests.another_user import ask, connectable, needs_root, readable
from chm_dagster_tests.e2e.conftest import READY, Up, until

STATE = """{
  assetNodeOrError(assetKey: {path: ["runs"]}) { ... on AssetNode { partitionStats { numMaterialized numPartitions } } }
  runsOrError(limit: 50) { ... on Runs { results { status tags { key value } } } }
  instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } }
}"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody can enter. Pytest's own are private, and would hide what CHM leaves open."""
    with tempfile.TemporaryDirectory(prefix="chm-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def state(port: int) -> dict[str, Any]:
    answer = httpx.post(f"http://127.0.0.1:{port}/graphql", json={"query": STATE}, timeout=30, trust_env=False).json()
    assert "errors" not in answer, answer
    data: dict[str, Any] = answer["data"]
    return data


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join([*process.cmdline(), process.environ().get("CHM_HOME", ""), process.cwd()]):
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.pid != os.getpid()]


def synced_by_schedule(port: int) -> bool:
    return any(
        run["status"] == "SUCCESS" and {"key": "dagster/schedule_name", "value": "sync_schedule"} in run["tags"]
        for run in state(port)["runsOrError"]["results"]
    )


@pytest.mark.slow
def test_an_empty_home_starts_stops_and_starts_again_with_a_ticking_schedule(
    up: Callable[[], Up], ports: dict[str, int], tmp_path: Path
) -> None:
    home, ui = tmp_path / "home", ports["CHM_UI_PORT"]

    first = up()
    first.wait_for(READY)
    assert "inserted" in "".join(first.lines)
    stats = state(ui)["assetNodeOrError"]["partitionStats"]
    assert stats["numPartitions"] == stats["numMaterialized"] == 24
    assert until(lambda: synced_by_schedule(ui), 150), "the schedule did not tick by itself"
    daemons = state(ui)["instance"]["daemonHealth"]["allDaemonStatuses"]
    assert all(daemon["healthy"] for daemon in daemons if daemon["required"])
    api = f"http://127.0.0.1:{ports['CHM_API_PORT']}"
    assert f"Board            {api}\n" in "".join(first.lines)
    assert f"API              {api}/docs" in "".join(first.lines)
    assert httpx.get(f"{api}/readyz", trust_env=False).status_code == 200
    assert len(httpx.get(f"{api}/api/v1/health/latest", trust_env=False).json()["items"]) == 24

    second = subprocess.run(
        [sys.executable, "-m", "chm_dagster.cli.main", "up"],
        env=first.environment,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert len(second.stderr.strip().splitlines()) == 1
    assert "Traceback" not in second.stderr + second.stdout

    assert first.stop() == 0
    assert until(lambda: processes_of(home) == [], 20), processes_of(home)

    again = up()
    again.wait_for(READY)
    assert "inventory was empty" not in "".join(again.lines), "the second start did not go on where the first stopped"
    again.process.kill()
    assert until(lambda: processes_of(home) == [], 30), f"orphans after kill -9: {processes_of(home)}"

    third = up()
    third.wait_for(READY)
    # Right after the last line, Ctrl-C may still count as one during startup.
    assert third.stop() in (0, 130)
    assert until(lambda: processes_of(home) == [], 20), processes_of(home)


@pytest.mark.slow
@needs_root
def test_another_user_of_the_machine_can_read_nothing_and_start_nothing(
    up: Callable[..., Up], ports: dict[str, int], public_folder: Path
) -> None:
    home = public_folder / "home"
    one = up(home)
    one.wait_for(READY)
    # The schedule's runs have written their logs by now, and the code server has started.
    assert until(lambda: synced_by_schedule(ports["CHM_UI_PORT"]), 150)
    sockets = {c.laddr for p in processes_of(home) for c in p.net_connections("unix") if str(c.laddr).startswith("/")}
    assert {"postgres", "code server"} <= {"postgres" if ".s.PGSQL" in str(s) else "code server" for s in sockets}
    assert readable(home) == []
    assert connectable(sorted(map(str, sockets))) == []
    body = '{"query": "mutation { terminateRun(runId: \\"x\\") { __typename } }"}'
    head = "POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = ask(f"http://127.0.0.1:{ports['CHM_UI_PORT']}", f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
    assert answer.startswith("HTTP/1.1 403 ")
    assert one.stop() == 0


@pytest.mark.parametrize("setting", ["CHM_UI_PORT", "CHM_API_PORT"])
def test_a_port_in_use_is_reported_in_one_line_that_names_the_setting(
    tmp_path: Path, ports: dict[str, int], setting: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[setting]))
        other.listen()
        one = Up(tmp_path / "home", ports)
        assert one.process.wait(60) == 2
    one.wait_for(f"set {setting} to a free one")
    assert not any("Traceback" in line for line in one.lines)
    assert processes_of(tmp_path / "home") == []

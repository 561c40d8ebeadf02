import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import chm_dagster
from chm_dagster.local.postgres import EmbeddedPostgres

ROOT = Path(chm_dagster.__file__).parent.parent


@pytest.fixture(scope="session")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose server has been started once: copying it is much cheaper than initdb."""
    folder = tmp_path_factory.mktemp("initialized") / "home"
    with EmbeddedPostgres(folder).running():
        pass
    return folder


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Path]:
    """A place for a home; its server is stopped at the end in any case."""
    folder = tmp_path / "home"
    yield folder
    if folder.is_dir():
        EmbeddedPostgres(folder).stop()


@pytest.fixture
def home(fresh_home: Path, initialized: Path) -> Path:
    """A home with data whose server is stopped."""
    shutil.copytree(initialized, fresh_home)
    return fresh_home


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a Python script in its own process group, which is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *args: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, args)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        assert process.stdout
        process.stdout.close()


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A running process that does not belong to CHM."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def of_home(home: Path) -> list[psutil.Process]:
    """Every running process that names the home or works in its data folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            named = any(str(home) in word for word in process.cmdline())
            if named or process.environ().get("TEST_HOME") == str(home) or process.cwd() == str(home / "postgres"):
                found.append(process)
    return found


@pytest.fixture
def nothing_left() -> Callable[[Path, float], list[psutil.Process]]:
    """Wait until no process of a home is left. Returns those still running after `seconds`."""

    def wait(home: Path, seconds: float) -> list[psutil.Process]:
        deadline = time.monotonic() + seconds
        while (found := of_home(home)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    return wait

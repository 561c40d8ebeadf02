"""deploy/Dockerfile, built as it is, and its services, run in containers on a real Postgres.

It needs root, debootstrap, buildah and podman, but no Docker. Where no registry of images can be reached, the base image is made of Debian's
packages: its Python is Debian's build of the same minor version, not the one of the official image.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster_tests.conftest import PLAIN_HTTP
from chm_dagster_tests.deploy.compose import DOCKERFILE, ROOT, load, services
from chm_dagster_tests.deploy.services import TOKEN, given, is_ready, wait_for

TOOLS = ("debootstrap", "buildah", "podman", "crun", "unshare")
MISSING = [name for name in TOOLS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="building an image here needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
INCLUDED = "python3,python3-venv,ca-certificates"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (command[0], done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def storage(folder: Path) -> list[str]:
    """Images and containers live in this folder only."""
    return ["--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]


def make_base(folder: Path) -> None:
    """The base image that the Dockerfile names, made of Debian's packages."""
    (name,) = set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE))
    release, root = name.rsplit("-", 1)[1], folder / "base"
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {release}", "Component: main")
    if not targets:
        pytest.skip(f"apt knows no packages of Debian {release}")
    run("debootstrap", "--variant=minbase", f"--include={INCLUDED}", release, root, targets.splitlines()[0])
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    made = run("buildah", *storage(folder), "from", "scratch").strip()
    run("buildah", *storage(folder), "add", made, root, "/")
    run("buildah", *storage(folder), "config", "--env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", made)
    run("buildah", *storage(folder), "commit", "--rm", made, f"docker.io/library/{name}")
    shutil.rmtree(root)


def pip_mounts() -> list[str]:
    """What pip reads on this machine, so that it finds its packages during the build too. Nothing of it stays."""
    said = run(sys.executable, "-m", "pip", "config", "debug") + run(sys.executable, "-m", "pip", "config", "list")
    found = {Path(path) for path in re.findall(r"(?<![\w/.:-])(?:file://)?(/[\w./-]+)", said)}
    own = {path.parent if path.name == "simple" else path for path in found if path.exists()}
    return [word for path in sorted(own) for word in ("--volume", f"{path}:{path}:ro")]


@pytest.fixture(scope="module")
def image(wheel: Path) -> Iterator[tuple[Path, str]]:
    """The folder of the image, and its name. It is built from the files that a clone has, and the wheel."""
    with tempfile.TemporaryDirectory(prefix="chm-image-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        make_base(folder)
        (folder / "context").mkdir()
        shutil.copytree(ROOT / "deploy", folder / "context" / "deploy")
        for path in ("dagster.yaml", "requirements.lock", ".dockerignore"):
            shutil.copy(ROOT / path, folder / "context" / path)
        (folder / "context" / "dist").mkdir()
        shutil.copy(wheel, folder / "context" / "dist")
        tag = services(load())["api"]["image"]
        options = ["--isolation", "chroot", "--pull-never", "--network", "host", *pip_mounts()]
        build = ["bud", *options, "-f", "deploy/Dockerfile", "-t", tag, "."]
        run("buildah", *storage(folder), *build, cwd=folder / "context")
        yield folder, f"localhost/{tag}"


class Containers:
    """Runs services of compose in containers of the image, as hard as compose makes them."""

    def __init__(self, image: tuple[Path, str], server: EmbeddedPostgres) -> None:
        self._folder, self._image = image
        self._server = server
        (self.sockets,) = urllib.parse.parse_qs(urllib.parse.urlsplit(server.url("chm")).query)["host"]

    def command(self, service: str, *words: str, **more: str) -> list[str]:
        """The command that runs `words` in a container of a service."""
        spec = services(load())[service]
        options = ["--rm", "--network", "host", "--user", spec["user"], "--cap-drop", *spec["cap_drop"]]
        options += ["--security-opt", "no-new-privileges"] * ("no-new-privileges:true" in spec["security_opt"])
        options += ["--read-only"] * spec["read_only"] + ["--read-only-tmpfs=false", "--tmpfs", "/tmp:mode=1777"]
        options += ["--volume", f"{self.sockets}:{self.sockets}", "--volume", "/var/lib/chm"]
        for name, value in (given(self._server, service) | more).items():
            options += ["--env", f"{name}={value}"]
        # Without control groups and limits of its own: not every kernel lets a container set them.
        options += ["--cgroups", "disabled", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        podman = ["podman", *storage(self._folder), "run", *options, self._image, *words]
        # Podman takes a machine with both versions of control groups for one that has the newer alone.
        hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        return ["unshare", "--mount", "sh", "-c", hide, "sh", *podman]

    def run(self, service: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(service, *words), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def containers(image: tuple[Path, str], server: EmbeddedPostgres) -> Containers:
    """Containers after `migrate` has ended."""
    containers = Containers(image, server)
    # The user of the containers is another one than the server's; each role still needs its password.
    Path(containers.sockets).chmod(0o711)
    for path in Path(containers.sockets).glob(".s.PGSQL.*[0-9]"):
        path.chmod(0o777)
    probe = containers.run("migrate", "true")
    if "not supported" in probe.stderr or "not permitted" in probe.stderr:
        pytest.skip(f"this kernel runs no containers: {probe.stderr.strip().splitlines()[-1]}")
    done = containers.run("migrate", *services(load())["migrate"]["command"])
    assert done.returncode == 0, done.stderr
    return containers


def test_the_image_runs_as_a_user_without_rights_on_a_file_system_that_it_cannot_write(containers: Containers) -> None:
    look = "id -u; touch /x || true; touch /var/lib/chm/x && echo kept; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    done = containers.run("code", "sh", "-c", look)
    assert done.stdout.split() == ["10001", "kept", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    assert "Read-only file system" in done.stderr


def test_no_address_of_the_build_stays_in_the_image(containers: Containers) -> None:
    done = containers.run("code", "sh", "-c", "cat /etc/pip.conf /etc/xdg/pip/* 2>/dev/null; pip config list; echo end")
    assert done.stdout.endswith("end\n") and "://" not in done.stdout


def test_the_api_in_a_container_is_ready_and_asks_for_the_token(containers: Containers) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = containers.command("api", *services(load())["api"]["command"], CHM_API_PORT=str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, trust_env=False, verify=PLAIN_HTTP, timeout=60) as client:
                wait_for(lambda: process.poll() is None and is_ready(client))
                assert client.get("/healthz").status_code == 200
                assert client.get("/api/v1/clients").status_code == 401
                own = {"Authorization": f"Bearer {TOKEN}"}
                assert client.post("/api/v1/clients", json={"name": "Bolt"}, headers=own).status_code == 201
        finally:
            process.terminate()
            process.communicate(timeout=60)
    listed = containers.run("code", "chm", "client", "list", "--format", "json")
    assert [client["slug"] for client in json.loads(listed.stdout)] == ["bolt"]

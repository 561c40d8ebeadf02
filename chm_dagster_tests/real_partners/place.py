"""The home of a real server: its own environment, state folder and logs, all ended with the tests."""

import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from chm_dagster.local.postgres_setup import tail
from chm_dagster.local.supervisor import Child, Supervisor

ROOT = Path(__file__).parents[2]
READY_SECONDS = 240.0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The home of one server: `.chm/partners/{name}`. `state` is empty at the start of every session."""

    name: str
    supervisor: Supervisor

    @property
    def home(self) -> Path:
        return home_of(self.name)

    @property
    def state(self) -> Path:
        return self.home / "state"

    def program(self, name: str) -> str:
        return str(self.home / "venv" / "bin" / name)

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        """The complete environment of the server: nothing from the caller's shell, and so no PYTHONDONTWRITEBYTECODE."""
        path = f"{self.home / 'venv' / 'bin'}:{os.defpath}"
        # Airflow does not run as a user without a name, which is common in containers.
        user = {"USER": "chm", "LOGNAME": "chm", "HOME": str(self.state)}
        return {"PATH": path, "LANG": "C.UTF-8", "TZ": "UTC", **user, **settings}

    def run(self, environ: Mapping[str, str], *argv: str) -> None:
        """Run one of the server's programs to completion."""
        log = self.home / "logs" / "preparation.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            command = [self.program(argv[0]), *argv[1:]]
            done = subprocess.run(
                command, env=dict(environ), cwd=self.state, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        assert done.returncode == 0, f"{' '.join(argv)} ended with code {done.returncode}; see {log}:\n{tail(log, 0)}"

    def start(self, name: str, environ: Mapping[str, str], argv: list[str], ready: Callable[[], bool]) -> None:
        """Start one of the server's processes and wait until it is ready."""
        command = (self.program(argv[0]), *argv[1:])
        self.supervisor.start(Child(name, command, environ, ready, cwd=self.state, ready_seconds=READY_SECONDS))


def home_of(name: str) -> Path:
    return ROOT / ".chm" / "partners" / name


@contextmanager
def place(name: str) -> Iterator[Place]:
    """Take the home of a server. Processes started there end with the context or with the test process."""
    home = home_of(name)
    if not (home / "venv" / ".installed").exists():
        pytest.fail(f"the real {name} is not installed: run `make test-partners`", pytrace=False)
    with Supervisor(home, say=lambda _: None) as supervisor:
        shutil.rmtree(home / "logs", ignore_errors=True)
        shutil.rmtree(home / "state", ignore_errors=True)
        (home / "state").mkdir()
        yield Place(name, supervisor)


def free_port() -> int:
    """A free port, for servers that do not support port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str, needs: Callable[[httpx.Response], bool] = lambda answer: True) -> Callable[[], bool]:
    """A readiness test: this URL must respond with 200 and the given content."""

    def ask() -> bool:
        try:
            answer = httpx.get(url, trust_env=False, timeout=5)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and needs(answer)

    return ask

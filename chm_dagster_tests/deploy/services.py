"""The services of compose, started as compose starts them, with the addresses of a test."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster_tests.deploy.compose import ROOT, load, services
from chm_dagster_tests.deploy.conftest import PASSWORDS, VARIABLES

TOKEN = "a-token-of-the-tests"
Result = subprocess.CompletedProcess[str]
_SECRETS = {"CHM_API_TOKEN": TOKEN, **{VARIABLES[role]: PASSWORDS[role] for role in PASSWORDS}}


def given(server: EmbeddedPostgres, service: str) -> dict[str, str]:
    """The environment of a service: what compose sets, with the databases of this server, on loopback only."""

    def value(text: str) -> str:
        if address := re.fullmatch(r"(\S+)@postgres:5432/(\w+)", text):
            return f"{address[1]}@{server.url(address[2]).split('@', 1)[1]}"
        if word := re.fullmatch(r"\$\{(\w+):\?.*\}", text):
            return _SECRETS[word[1]]
        return re.sub(r"\$\{\w+:-(.*)\}", r"\1", text).replace("0.0.0.0", "127.0.0.1")

    environment = services(load())[service]["environment"]
    return {name: value(str(text)) for name, text in environment.items() if text is not None}


class Services:
    """Starts commands as compose does: through the entrypoint, with the environment of a service and no other."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.more: dict[str, str] = {}
        (folder / "dagster").mkdir()
        (folder / "dagster" / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")

    def environment(self, service: str) -> dict[str, str]:
        """What compose sets, with the addresses and folders of this test."""
        return {
            **given(self._server, service),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self._folder),
            "PGPASSFILE": str(self._folder / f"{service}.pgpass"),
            "CHM_HOME": str(self._folder / service),
            "DAGSTER_HOME": str(self._folder / "dagster"),
        }

    def start(self, service: str, *words: str, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(ROOT / "deploy/entrypoint.sh"), *words],
            env=self.environment(service) | self.more | more,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, service: str, *words: str) -> Result:
        with self.start(service, *words) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def chm(self, *words: str) -> Any:
        """What `chm` prints in the container of the code."""
        done = self.run("code", "chm", *words, "--format", "json")
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)

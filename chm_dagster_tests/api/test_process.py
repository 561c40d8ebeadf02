"""`python -m chm_dagster.api` as an operator sees it: starting, refusing to start, probing, stopping."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.errors import ConfigError
from chm_dagster.settings import Settings
from chm_dagster.shipped import checkout
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster_tests.api.calls import refused
from chm_dagster_tests.api.conftest import caller

pytestmark = pytest.mark.alone


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """The process and its output."""

    def __init__(self, **settings: str) -> None:
        self.port = int(settings.setdefault("CHM_API_PORT", str(free_port())))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chm_dagster.api"],
            cwd=checkout(),
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> "Api":
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("chm: API on http://"), line + self.end()[1]
        return self

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, err, out

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.end()


@pytest.fixture
def start(database_url: str) -> Iterator[Callable[..., Api]]:
    started: list[Api] = []

    def start(**settings: str) -> Api:
        databases = {"CHM_DATABASE_URL": database_url, "CHM_DAGSTER_DATABASE_URL": database_url}
        started.append(Api(**{**databases, **settings}))
        return started[-1]

    yield start
    for api in started:
        if api.process.poll() is None:
            api.process.kill()
        api.process.communicate()


Start = Callable[..., Api]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_then_shuts_down_cleanly(start: Start, number: signal.Signals) -> None:
    api = start().wait()
    with caller(api.url) as calls:
        assert calls.post("/api/v1/clients", json={"name": "Acme"}).status_code == 201
        assert calls.get("/readyz").json() == {"status": "ready", "revision": schema.head()}
    code, err, out = api.stop(number)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {"request"} < {line["event"] for line in lines}


def test_a_request_in_progress_is_completed_at_shutdown(start: Start, database_url: str) -> None:
    api = start().wait()
    answers: list[httpx.Response] = []
    with caller(api.url) as calls:
        calls.post("/api/v1/clients", json={"name": "Acme"})
        with make_engine(database_url).begin() as holder:
            holder.execute(sa.text("LOCK TABLE clients IN ACCESS EXCLUSIVE MODE"))
            thread = threading.Thread(target=lambda: answers.append(calls.get("/api/v1/clients/acme")))
            thread.start()
            until(lambda: bool(waiting(database_url)))
            api.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        thread.join(20)
    assert api.end()[0] == 0
    assert answers[0].json()["slug"] == "acme"


def waiting(database_url: str) -> Any:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        return connection.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted"))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_configured_token_is_required_and_never_shown(start: Start) -> None:
    token = "correct-horse-battery-staple"
    api = start(CHM_API_TOKEN=token, CHM_API_HOST="0.0.0.0").wait()
    with caller(api.url) as stranger, caller(api.url, token) as friend:
        refused(stranger.get("/api/v1/clients"), 401)
        assert friend.get("/api/v1/clients").status_code == 200
        assert friend.get("/api/v1/clients", headers={"Host": "chm.example"}).status_code == 200
    code, err, out = api.stop()
    assert code == 0
    assert token not in out + err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CHM_API_HOST": "0.0.0.0"}, "CHM_API_HOST lets other machines in, so CHM_API_TOKEN must be set"),
        ({"CHM_API_HOST": "::"}, "CHM_API_TOKEN must be set"),
        ({"CHM_API_HOST": "192.0.2.1"}, "CHM_API_TOKEN must be set"),
        ({"CHM_API_HOST": "::ffff:127.0.0.1"}, "CHM_API_TOKEN must be set"),
        ({"CHM_API_HOST": "example.com"}, "CHM_API_HOST is not an IP address"),
        ({"CHM_API_TOKEN": "two words"}, "CHM_API_TOKEN holds characters"),
        ({"CHM_API_TOKEN": "x"}, "CHM_API_TOKEN is too short to be safe: use at least 16 random characters"),
        ({"CHM_API_TOKEN": "x" * 15}, "CHM_API_TOKEN is too short to be safe"),
        ({"CHM_API_TOKEN": "  "}, "CHM_API_TOKEN is set but empty"),
        ({"CHM_API_PORT": "70000"}, "CHM_API_PORT is not a port number"),
        ({"CHM_API_TOKE": "x"}, "did you mean CHM_API_TOKEN?"),
    ],
    ids=str,
)
def test_unsafe_or_meaningless_settings_are_rejected(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Settings.from_env(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    assert Settings.from_env({"CHM_API_HOST": host}).api_host == host.strip("[]")


def test_the_token_is_not_shown_with_the_settings() -> None:
    assert "s3cret" not in repr(Settings.from_env({"CHM_API_TOKEN": "s3cret-0123456789"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CHM_API_HOST": "0.0.0.0", "CHM_API_PRT": "1"}, "CHM_API_TOKEN must be set"),
        ({"CHM_API_HOST": "192.0.2.1", "CHM_API_TOKEN": "t" * 16}, "cannot listen on 192.0.2.1"),
    ],
    ids=str,
)
def test_each_problem_at_startup_is_reported_in_one_line(settings: dict[str, str], message: str) -> None:
    api = Api(**settings)
    code, err, out = api.end()
    assert (code, out) == (2, "")
    assert message in err
    assert all(line.startswith("chm: ") for line in err.splitlines())


def test_a_port_in_use_is_named(start: Start) -> None:
    first = start().wait()
    second = start(CHM_API_PORT=str(first.port))
    code, err, _ = second.end()
    assert (code, err) == (2, f"chm: cannot listen on 127.0.0.1:{first.port}: Address already in use\n")


def test_without_a_database_url_it_uses_the_embedded_one(tmp_path: Path) -> None:
    api = Api(CHM_HOME=str(tmp_path / "home")).wait()
    try:
        with caller(api.url) as calls:
            answer = calls.get("/readyz")
            refused(answer, 503)
            assert "was never migrated" in answer.json()["error"]["message"]
            assert "chm migrate" in answer.json()["error"]["message"]
    finally:
        code, err, _ = api.stop()
    assert (code, err) == (0, "")
    assert not (tmp_path / "home" / "postgres" / "postmaster.pid").exists()


# --- probes --------------------------------------------------------------------------------------------------------


def test_with_a_database_at_another_revision_it_is_alive_but_not_ready(api: httpx.Client, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
    answer = api.get("/readyz")
    refused(answer, 503)
    assert f"is at revision 0000, this release needs {schema.head()}" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert api.get("/healthz").json() == {"status": "alive"}


def test_with_a_hanging_database_readiness_fails_within_seconds(api: httpx.Client, database_url: str) -> None:
    with make_engine(database_url).begin() as holder:
        holder.execute(sa.text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        begin = time.monotonic()
        answer = api.get("/readyz")
        assert time.monotonic() - begin < 10
        refused(answer, 503)
        assert api.get("/healthz").status_code == 200
    until(lambda: api.get("/readyz").status_code == 200)

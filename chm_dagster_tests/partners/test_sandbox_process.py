import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from chm_dagster.partners.sandbox.__main__ import main

COMMAND = [sys.executable, "-m", "chm_dagster.partners.sandbox"]
TOKEN = "process-test-token"


@contextmanager
def sandbox(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environ = {**os.environ, "SANDBOX_TEST_TOKEN": TOKEN}
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--token-env", "SANDBOX_TEST_TOKEN", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        assert process.stdout
        assert select.select([process.stdout], [], [], 20)[0], "no word from the sandbox"
        line = process.stdout.readline()
        yield process, line.split()[2]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(url: str, timeout: float = 10) -> httpx.Response:
    return httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=timeout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_with_its_options_and_a_signal_ends_it_cleanly_in_under_a_second(number: signal.Signals) -> None:
    with sandbox("--pipelines", "3", "--seed", "11", "--misbehave", "server_error*1") as (process, base_url):
        assert base_url.startswith("http://127.0.0.1:")
        assert get(f"{base_url}/healthz").status_code == 200
        assert [get(f"{base_url}/pipelines").status_code for _ in range(2)] == [500, 200]
        assert len(get(f"{base_url}/pipelines").json()["pipelines"]) == 3
        assert httpx.get(f"{base_url}/runs", trust_env=False).status_code == 401
        started = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - started < 1
        assert (process.returncode, out, err) == (0, "", "")


def test_a_slow_response_does_not_delay_shutdown() -> None:
    with sandbox("--misbehave", "slow") as (process, base_url):
        asked = threading.Event()

        def ask() -> None:
            asked.set()
            try:
                get(f"{base_url}/runs")
            except httpx.HTTPError:
                return

        caller = threading.Thread(target=ask)
        caller.start()
        asked.wait()
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert time.monotonic() - started < 1
        assert process.returncode == 0
        caller.join(timeout=5)


def refused(*options: str, token: str | None = None) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "SANDBOX_TEST_TOKEN"}
    if token is not None:
        environ["SANDBOX_TEST_TOKEN"] = token
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, env=environ, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    return done.stderr


def test_a_port_in_use_is_one_clear_line_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused("--port", str(port))


@pytest.mark.parametrize("token", [None, "  "])
def test_a_missing_or_empty_token_variable_is_rejected(token: str | None) -> None:
    assert "SANDBOX_TEST_TOKEN" in refused("--port", "0", "--token-env", "SANDBOX_TEST_TOKEN", token=token)


@pytest.mark.parametrize(
    "options", [("--pipelines", "0"), ("--port", "70000"), ("--misbehave", "lazy"), ("--misbehave", "slow@no-such")]
)
def test_wrong_options_are_rejected_in_one_line(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert options[0] in err

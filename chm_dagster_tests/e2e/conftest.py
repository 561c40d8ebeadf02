"""`chm up` as a person starts it: a separate process in a home of its own."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

READY = "Ctrl-C stops all of it."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Up:
    """A running `chm up` whose output is being read."""

    def __init__(self, home: Path, ports: dict[str, int]) -> None:
        # Every minute, so that a test sees the schedule tick.
        own = {"CHM_HOME": str(home), "CHM_SYNC_CRON": "* * * * *", **{name: str(p) for name, p in ports.items()}}
        self.environment = {**os.environ, **own}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chm_dagster.cli.main", "up"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, text: str, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while True:
            line = self._queue.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "chm up ended:\n" + "".join(self.lines)
            self.lines.append(line)
            if text in line:
                return

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("CHM_UI_PORT", "CHM_API_PORT", "CHM_SANDBOX_PORT")}


@pytest.fixture
def up(tmp_path: Path, ports: dict[str, int]) -> Iterator[Callable[..., Up]]:
    """Starts `chm up` in the same home every time it is called."""
    started: list[Up] = []

    def start(home: Path = tmp_path / "home") -> Up:
        started.append(Up(home, ports))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True

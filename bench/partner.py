"""The sandbox partner as a separate process whose clock its parent controls, and which measures its own response time.

It reads commands from standard input, one per line: `advance SECONDS` moves the clock; `busy` returns the seconds spent
on responses and the number of requests since the last `busy`. The process ends when its input ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import IO

from starlette.types import ASGIApp, Receive, Scope, Send

from chm_dagster.partners.sandbox import SettableClock, World, create_app
from chm_dagster.partners.sandbox.server import SERVER_OPTIONS
from chm_dagster.serving import LOOPBACK, base_url, bind, serve

SEED = 7
WINDOW = timedelta(minutes=5)


class Partner:
    """The parent's side of the process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.base_url = self._read()

    def advance(self) -> None:
        """Advance the partner's clock by one window, so that it has news."""
        self._command(f"advance {WINDOW.total_seconds()}")

    def busy(self) -> tuple[float, int]:
        """Seconds that the partner has spent on responses, and the number of requests, since the last call."""
        seconds, requests = self._command("busy").split()
        return float(seconds), int(requests)

    def _command(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the sandbox partner has ended")
        return line


@contextlib.contextmanager
def partner(pipelines: int, new_runs: int, runs_per_pipeline: int, start: datetime) -> Iterator[Partner]:
    """A partner whose clock starts at `start` and that gets exactly `new_runs` new runs in every window."""
    arguments = [str(pipelines), str(new_runs), str(runs_per_pipeline), start.isoformat()]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.partner", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield Partner(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=10)


class Stopwatch:
    """Measures the time during which at least one request is open, from arrival to the last byte of its response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = 0
        self._begin = 0.0
        self._seconds = 0.0
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._open == 0:
            self._begin = time.perf_counter()
        self._open += 1
        self._requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
            if self._open == 0:
                self._seconds += time.perf_counter() - self._begin

    def read(self) -> tuple[float, int]:
        """Seconds and requests since the last call."""
        read = self._seconds, self._requests
        self._seconds, self._requests = 0.0, 0
        return read


def _obey(lines: IO[str], clock: SettableClock, watch: Stopwatch) -> None:
    for line in lines:
        match line.split():
            case ["advance", seconds]:
                print(clock.advance(timedelta(seconds=float(seconds))).isoformat(), flush=True)
            case ["busy"]:
                print(*watch.read(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main(pipelines: str, new_runs: str, runs_per_pipeline: str, start: str) -> None:
    """Serve until the standard input ends."""
    world = World.bench(
        SEED, int(pipelines), runs_per_pipeline=int(runs_per_pipeline), new_runs=int(new_runs), window=WINDOW
    )
    clock = SettableClock(datetime.fromisoformat(start))
    watch = Stopwatch(create_app(world, None, now=clock))
    listener = bind(LOOPBACK, 0)
    print(base_url(listener), flush=True)
    threading.Thread(target=_obey, args=(sys.stdin, clock, watch), daemon=True).start()
    serve(watch, listener, **SERVER_OPTIONS)


if __name__ == "__main__":
    main(*sys.argv[1:])

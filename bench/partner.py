"""The sandbox partner as a process of its own, with a clock that its parent moves, and a watch on how long it answers.

Every line on its standard input is a question: `advance SECONDS` moves its clock, `busy` asks for the seconds that it
has spent answering since it was last asked, and for the number of requests. It ends when its input does.
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
from chm_dagster.partners.sandbox.serving import base_url, bind, serve

SEED = 7
WINDOW = timedelta(minutes=5)


class Partner:
    """The parent's side of the process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.base_url = self._read()

    def advance(self) -> None:
        """Let a window pass at the partner: its news are there to be fetched."""
        self._ask(f"advance {WINDOW.total_seconds()}")

    def busy(self) -> tuple[float, int]:
        """Seconds that the partner has spent answering since it was last asked this, and how many requests."""
        seconds, requests = self._ask("busy").split()
        return float(seconds), int(requests)

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the sandbox partner has ended")
        return answer


@contextlib.contextmanager
def partner(pipelines: int, new_runs: int, runs_per_pipeline: int, start: datetime) -> Iterator[Partner]:
    """A partner whose clock says `start`, and to which every window brings exactly `new_runs` new runs."""
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
    """Measures how long at least one request is being answered: from its arrival to its last byte."""

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
        """Seconds and requests since it was last read."""
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
    listener = bind(0)
    print(base_url(listener), flush=True)
    threading.Thread(target=_obey, args=(sys.stdin, clock, watch), daemon=True).start()
    serve(watch, listener)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The parent of everything that `chm up` runs.

Each child has its own session and its own log. None of them outlives `chm up`, however it ends: a clean stop, a
Ctrl-C, a crash of a child, or a `kill -9` of `chm up` itself, which the guardian process notices.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import psutil

import chm_dagster
from chm_dagster import settings
from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.postgres_setup import make_home, open_log, tail, write_private
from chm_dagster.local.processes import STACK_ID, end, members, same_process
from chm_dagster.serving import instance_of

STOP_SECONDS = 10.0
MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 300.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_KEYPRESS_SECONDS = 0.5
_TICK_SECONDS = 0.1
_POSTGRES = "postgres"


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """A program to keep running. `env` is its complete environment; `ready` says when it can be used (None: at once).

    `log_path` defaults to `{home}/logs/{name}.log`.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(repr=False)
    ready: Callable[[], bool] | None = None
    log_path: Path | None = None
    cwd: Path | None = None
    ready_seconds: float = 60.0


@dataclasses.dataclass(slots=True)
class _Running:
    child: Child
    process: subprocess.Popen[bytes]
    log_path: Path
    begin: int
    """Where in the log this start begins."""

    def last_words(self) -> str:
        return f"the end of {self.log_path}:\n{tail(self.log_path, self.begin)}"


class Supervisor:
    """Runs children until it is stopped. Use it in the main thread, as a context manager, once.

    Signals that arrive before `wait` raise KeyboardInterrupt, so leaving the context stops everything. `say` gets the
    few lines that a person at the terminal should see. `restart_pause` is in seconds: the second restart of a child
    waits that long, and each further restart as much longer.
    """

    def __init__(self, home: Path, *, say: Callable[[str], None] = print, restart_pause: float = 2.0) -> None:
        self.home = home.absolute()
        self._say = say
        self._restart_pause = restart_pause
        self.stack = secrets.token_hex(16)
        self.instance = instance_of(self.stack)
        self._running: list[_Running] = []
        self._postgres: EmbeddedPostgres | None = None
        self._deaths: dict[str, list[float]] = {}
        self._guardian: subprocess.Popen[bytes] | None = None
        self._pipe: IO[bytes] | None = None
        self._lock: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._signals: list[float] = []
        self._patient = False

    def __enter__(self) -> Self:
        """Lock the home and end leftovers of an earlier crash. Raises ConfigError if CHM is already running there."""
        self._take_lock()
        for number in _SIGNALS:
            # nohup, or a shell's `&`, ignores it, and that is what the caller wants.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        try:
            self._end_leftovers()
            self._start_guardian()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything and release the home."""
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def start_postgres(self, postgres: EmbeddedPostgres) -> None:
        """Start or join the server, keep it running, and release it when stopping."""
        self._postgres = postgres
        self._tell(postgres=str(postgres.home), version=postgres.version)
        postgres.start()

    def start(self, child: Child) -> None:
        """Start a child and wait until it is ready. Raises ConfigError with the end of its log on timeout."""
        running = self._launch(child)
        deadline = time.monotonic() + child.ready_seconds
        while child.ready is not None:
            if running.process.poll() is not None:
                code = running.process.returncode
                raise ConfigError(f"{child.name} ended with code {code} while starting; {running.last_words()}")
            if child.ready():
                return
            if time.monotonic() > deadline:
                waited = f"was not ready after {child.ready_seconds:.0f} s"
                raise ConfigError(f"{child.name} {waited}; {running.last_words()}")
            time.sleep(_TICK_SECONDS)

    def wait(self) -> int:
        """Keep everything running until a signal (returns 0) or until a child dies too often (returns 1)."""
        self._patient = True
        ticks = 0
        while not self._signals:
            for running in [r for r in self._running if r.process.poll() is not None]:
                if not self._restart(running):
                    return 1
            if self._guardian is not None and self._guardian.poll() is not None:
                self._start_guardian()
            # More expensive to check than a child.
            if ticks % 20 == 0 and not self._keep_postgres():
                return 1
            ticks += 1
            time.sleep(_TICK_SECONDS)
        return 0

    def stop(self) -> None:
        """Stop the children, last started first: SIGTERM, and after 10 s, or at another Ctrl-C, SIGKILL.

        Then Postgres, unless another process uses it. Stopping twice does nothing more.
        """
        self._patient = True
        begin = time.monotonic()
        sessions = [running.process.pid for running in reversed(self._running)]
        end(
            lambda: members(self.stack, sessions),
            grace=STOP_SECONDS,
            hasten=lambda: any(at > begin + _SAME_KEYPRESS_SECONDS for at in self._signals),
        )
        for running in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=1)
        self._running.clear()
        if self._postgres is not None:
            self._postgres.release()
            self._postgres = None
        self._note_children()
        self._dismiss_guardian()

    # --- children --------------------------------------------------------------------------------------------------

    def _launch(self, child: Child) -> _Running:
        path = child.log_path or self.home / "logs" / f"{child.name}.log"
        with open_log(path) as log:
            begin = log.tell()
            try:
                process = subprocess.Popen(  # noqa: S603 - programs of the stack, no shell
                    child.argv,
                    env={**child.env, STACK_ID: self.stack},
                    cwd=child.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Files of the child, such as the output of Dagster runs, are private.
                    umask=0o077,
                )
            except OSError as error:
                raise ConfigError(f"{child.name} cannot be started: {child.argv[0]}: {error.strerror}") from None
        running = _Running(child, process, path, begin)
        self._running.append(running)
        self._tell(session=process.pid)
        self._note_children()
        return running

    def _restart(self, dead: _Running) -> bool:
        """Restart a dead child. Returns False and shows the end of its log if it has died too often."""
        name, code = dead.child.name, dead.process.returncode
        pid = dead.process.pid
        end(lambda: [p for p in members("", [pid]) if p.pid != pid], grace=STOP_SECONDS)
        self._running.remove(dead)
        self._tell(gone=pid)
        if not self._try_again(name):
            self._say(f"{name} ended with code {code} again; giving up; {dead.last_words()}")
            return False
        self._say(f"{name} ended with code {code}; starting it again (log: {dead.log_path})")
        try:
            self._launch(dead.child)
        except ConfigError as error:
            self._say(str(error))
            return False
        return True

    def _try_again(self, name: str) -> bool:
        now = time.monotonic()
        recent = [at for at in self._deaths.get(name, []) if now - at < RESTART_WINDOW_SECONDS]
        self._deaths[name] = [*recent, now]
        if len(recent) >= MAX_RESTARTS:
            return False
        # The cause, such as a restarting database, may need some time to pass.
        while not self._signals and time.monotonic() < now + self._restart_pause * len(recent):
            time.sleep(_TICK_SECONDS)
        return True

    def _keep_postgres(self) -> bool:
        if self._postgres is None or self._postgres.is_running():
            return True
        if not self._try_again(_POSTGRES):
            self._say(f"Postgres stopped again; giving up; see {self._postgres.log_path}")
            return False
        self._say(f"Postgres stopped; starting it again (log: {self._postgres.log_path})")
        try:
            self._postgres.start()
        except ConfigError as error:
            self._say(str(error))
            return False
        return True

    # --- one supervisor per home -----------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        path = self.home / "up.lock"
        try:
            make_home(self.home)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = f"cannot write to {self.home} ({error.strerror})"
            raise ConfigError(f"{reason}; set {settings.HOME} to a folder of your own") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise ConfigError(
                f"CHM already runs in {self.home} (pid {holder or 'unknown'}): stop that one first, "
                f"or set {settings.HOME} to another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock = fd

    def _note_children(self) -> None:
        path = self.home / "children.json"
        if not self._running:
            path.unlink(missing_ok=True)
            return
        noted = []
        for running in self._running:
            with contextlib.suppress(psutil.Error):
                created = psutil.Process(running.process.pid).create_time()
                noted.append({"name": running.child.name, "pid": running.process.pid, "create_time": created})
        write_private(path, json.dumps({"stack": self.stack, "children": noted}))

    def _end_leftovers(self) -> None:
        """End the remaining processes of a stack whose supervisor and guardian were both killed."""
        path = self.home / "children.json"
        try:
            noted = json.loads(path.read_text())
            stack = str(noted["stack"])
            children = [(int(child["pid"]), float(child["create_time"])) for child in noted["children"]]
        except (OSError, ValueError, KeyError, TypeError):
            return

        def find() -> list[psutil.Process]:
            known = [process for pid, created in children for process in same_process(pid, created)]
            return list(dict.fromkeys([*known, *members(stack)]))

        if found := find():
            self._say(f"ending {len(found)} processes that an earlier start left behind")
            end(find, grace=STOP_SECONDS)
        path.unlink(missing_ok=True)

    # --- the guardian ----------------------------------------------------------------------------------------------

    def _start_guardian(self) -> None:
        if self._pipe is not None:
            self._close_pipe()
        with open_log(self.home / "logs" / "guardian.log") as log, _signals_blocked():
            self._guardian = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-m", "chm_dagster.local.processes", str(self.home)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(chm_dagster.__file__).parent.parent,
                start_new_session=True,
            )
        self._pipe = self._guardian.stdin
        self._tell(stack=self.stack)
        for running in self._running:
            self._tell(session=running.process.pid)
        if self._postgres is not None:
            self._tell(postgres=str(self._postgres.home), version=self._postgres.version)

    def _tell(self, **note: Any) -> None:
        if self._pipe is None:
            return
        with contextlib.suppress(BrokenPipeError):  # a dead guardian is noticed and replaced in wait()
            self._pipe.write(json.dumps(note).encode() + b"\n")
            self._pipe.flush()

    def _dismiss_guardian(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            guardian.kill()  # before the pipe closes: there is nothing left to clean up
            guardian.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals.append(time.monotonic())
        if not self._patient:
            self._patient = True  # one Ctrl-C may arrive twice, because of make; only the first one interrupts
            raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Programs started within ignore the stop signals from the start; the caller gets the signals afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

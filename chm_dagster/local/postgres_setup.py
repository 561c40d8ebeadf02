"""What the embedded server needs: the account it runs as, private files, and its socket, memory and log settings."""

import dataclasses
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from chm_dagster import settings
from chm_dagster.errors import ConfigError

_CANDIDATES = ("postgres", "nobody")
_CAPABILITIES = ("dac_read_search", "dac_override")
"""The smaller one first. Containers usually withhold the first one from their root but not the second."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerAccount:
    """How to run a server program. `uid` and `gid` own the data; `drop_to` is None if the caller runs it directly.

    `prefix` is a command that drops the rights itself, for cases in which a plain setuid would lock the server out.
    """

    uid: int
    gid: int
    drop_to: int | None = None
    prefix: tuple[str, ...] = ()

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program to completion, capturing its output as text. Raises OSError if it cannot be started."""
        return subprocess.run(  # noqa: S603 - our own programs, no shell
            [*self.prefix, *argv],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            user=self.drop_to,
            group=None if self.drop_to is None else self.gid,
            extra_groups=None if self.drop_to is None else [],
        )

    def launch(self, argv: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a server in its own session: a Ctrl-C in the terminal must not reach it."""
        return subprocess.Popen(  # noqa: S603 - our own programs, no shell
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            user=self.drop_to,
            group=None if self.drop_to is None else self.gid,
            extra_groups=None if self.drop_to is None else [],
        )

    def own(self, path: Path) -> None:
        """Change the owner of a path inside CHM's home, recursively, to the account. Does nothing for a plain user."""
        if os.geteuid() != 0:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for folder, names, files in os.walk(path):
            for name in (*names, *files):
                os.chown(Path(folder, name), self.uid, self.gid, follow_symlinks=False)


def choose_account(home: Path, data: Path, program: Path) -> ServerAccount:
    """The account that runs the server of `data` (which may not exist yet); `program` is one of the server's programs.

    A plain user runs the server directly. For root, it is the owner of the data, else `postgres`, else `nobody`.
    Raises ConfigError if the data belongs to somebody else, or no account can reach it.
    """
    owner = data.stat() if data.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise ConfigError(f"{data} belongs to user {_name(owner.st_uid)}; run as that user or set {settings.HOME}")
        return ServerAccount(os.geteuid(), os.getegid())
    uid, gid = (owner.st_uid, owner.st_gid) if owner is not None and owner.st_uid != 0 else _unprivileged()
    plain = ServerAccount(uid, gid, drop_to=uid)
    if _reaches(plain, home, program):
        return plain
    setpriv = shutil.which("setpriv")
    for capability in _CAPABILITIES if setpriv else ():
        drop = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
        caps = (f"--inh-caps=-all,+{capability}", f"--ambient-caps=-all,+{capability}")
        account = ServerAccount(uid, gid, prefix=(str(setpriv), *drop, *caps, "--"))
        if _reaches(account, home, program):
            return account
    raise ConfigError(
        f"Postgres cannot run as root, and user {_name(uid)} cannot reach {home} or {program.parent}: "
        f"set {settings.HOME} to a folder that it can reach, or run CHM as a plain user"
    )


def _unprivileged() -> tuple[int, int]:
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ConfigError("Postgres cannot run as root, and there is no user postgres or nobody: run CHM as a plain user")


def _reaches(account: ServerAccount, home: Path, program: Path) -> bool:
    # Asking the kernel as that account is exact; mode bits alone would miss ACLs and mounts.
    probe = 'test -x "$1" && test -x "$2"'
    try:
        return account.run(["/bin/sh", "-c", probe, "sh", str(home), str(program)]).returncode == 0
    except OSError as error:
        raise ConfigError(f"cannot switch to user {_name(account.uid)}: run CHM as a plain user") from error


def _environment() -> dict[str, str]:
    # The caller's PGPORT, PGDATA, LD_LIBRARY_PATH and credentials must not affect the server.
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


MAX_LOG_BYTES = 10_000_000
TAIL_LINES = 12


def make_home(home: Path) -> None:
    """Create CHM's home and missing parent folders, private to their owner. An existing home keeps its mode.

    For root, others may traverse it (not list it): the embedded server's account has to reach its data.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for missing in reversed([one for one in (home, *home.parents) if not one.exists()]):
        missing.mkdir(mode=mode, exist_ok=True)


def make_private(folder: Path) -> None:
    """Create a private folder inside CHM's home, and make an existing one private."""
    make_home(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        folder.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Write a private file atomically: after a crash, it is either complete or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending. If it is larger than `MAX_LOG_BYTES`, it is first renamed to `.1`."""
    make_private(path.parent)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def tail(path: Path, begin: int, lines: int = TAIL_LINES) -> str:
    """The last lines that were written after byte `begin`; from the start if the log was rotated since."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin if begin <= size else 0, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(nothing was logged)"


PORT = 5432
"""Only part of the socket's name; nothing listens on the network."""

_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_MEGABYTE = 1 << 20


class SocketFolder:
    """The private folder of the server's socket: `{home}/run`, or one under /tmp if that cannot hold a socket.

    The kernel allows 107 bytes for the path of a socket, and some file systems allow no sockets at all.
    """

    def __init__(self, home: Path) -> None:
        self._inside = home / "run"
        self._note = home / "postgres.socket"

    def make(self, account: ServerAccount) -> Path:
        """An empty folder that only `account` may enter. No server may be running. Raises OSError."""
        folder = self._inside
        folder.mkdir(mode=0o700, exist_ok=True)
        if _holds_sockets(folder):
            self._note.unlink(missing_ok=True)
        else:
            folder = self._remembered(account) or self._short()
        for leftover in folder.iterdir():
            leftover.unlink()
        account.own(folder)
        return folder

    def find(self, said: str | None) -> Path:
        """The folder in use. `said` is the one that the server recorded; the home may have been moved since."""
        noted = self._note.read_text().strip() if self._note.is_file() else None
        folders = [*(Path(known) for known in (said, noted) if known), self._inside]
        return next((folder for folder in folders if _socket_file(folder).exists()), folders[-1])

    def _remembered(self, account: ServerAccount) -> Path | None:
        # Everybody can write to /tmp: after a reboot, the folder could belong to somebody else, or be a link.
        try:
            folder = Path(self._note.read_text().strip())
            found = folder.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
        return folder if private and found.st_uid in (account.uid, os.geteuid()) else None

    def _short(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="chm-", dir="/tmp"))
        write_private(self._note, str(folder))
        return folder


def configuration(sockets: Path) -> dict[str, str]:
    """The settings of a start. They override postgresql.conf, so that an old data folder gets the current ones."""
    memory = psutil.virtual_memory().total
    return {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": f"{max(16, min(256, memory // 8 // _MEGABYTE))}MB",
        "dynamic_shared_memory_type": _shared_memory(),
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "idle_in_transaction_session_timeout": "10min",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %a ",
        "log_min_duration_statement": "5s",
        "log_parameter_max_length": "0",
        "log_lock_waits": "on",
    }


def _shared_memory() -> str:
    # Containers often have only 64 MB here, and a parallel query that needs more fails.
    shared = Path("/dev/shm")  # noqa: S108 - asked for its size only
    return "posix" if not shared.is_dir() or shutil.disk_usage(shared).total >= 512 * _MEGABYTE else "mmap"


def _holds_sockets(folder: Path) -> bool:
    # A comma or a quote in the path would be read as a list by the server and by libpq.
    if not _PLAIN_PATH.fullmatch(str(folder)):
        return False
    path = _socket_file(folder)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return False
    path.unlink()
    return True


def _socket_file(folder: Path) -> Path:
    return folder / f".s.PGSQL.{PORT}"

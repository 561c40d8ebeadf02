"""How the embedded server is set up: its socket, its memory, its log."""

import os
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import psutil

from chm_dagster.local.account import ServerAccount
from chm_dagster.local.files import write_private

PORT = 5432
"""Names the socket file only; nothing listens on the network."""

_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_MEGABYTE = 1 << 20


class SocketFolder:
    """The private folder of the server's socket: `{home}/run`, or one under /tmp where that cannot hold a socket.

    The kernel allows 107 bytes for a socket's whole path, and some file systems allow no sockets at all.
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
        """The folder in use. `said` is what the server wrote down; the home may have been moved since."""
        noted = self._note.read_text().strip() if self._note.is_file() else None
        folders = [*(Path(known) for known in (said, noted) if known), self._inside]
        return next((folder for folder in folders if _socket_file(folder).exists()), folders[-1])

    def _remembered(self, account: ServerAccount) -> Path | None:
        # Everybody may write to /tmp: after a reboot the name could be somebody else's, or a link.
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
    """The settings of a start. They win over postgresql.conf, so an old data folder gets today's."""
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
    # Containers often get 64 MB here, and a parallel query that outgrows them fails.
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

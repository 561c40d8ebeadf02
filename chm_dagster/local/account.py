"""Who the embedded Postgres runs as.

Postgres refuses to run as root, yet containers and servers often are root. Its programs then run as an account
without rights that exists already. Where that account cannot reach the data (a clone under a private /root), the
programs get the one capability to walk through folders, so that no permission of anybody's folders has to change.
"""

import dataclasses
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from chm_dagster import settings
from chm_dagster.errors import ConfigError

_CANDIDATES = ("postgres", "nobody")
_CAPABILITIES = ("dac_read_search", "dac_override")
"""Least first. Containers usually withhold the first one from their root and leave it the second."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerAccount:
    """How to run a server program. `uid` and `gid` own the data; `drop_to` is None where the caller runs it himself.

    `prefix` is a command that drops the rights on its own, where a plain setuid would lock the server out.
    """

    uid: int
    gid: int
    drop_to: int | None = None
    prefix: tuple[str, ...] = ()

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; its output is captured as text. Raises OSError if it cannot be started."""
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
        """Start a server in a session of its own: a Ctrl-C in the terminal must not reach it."""
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
        """Give a path inside CHM's home, and all below it, to the account. Does nothing for a plain user."""
        if os.geteuid() != 0:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for folder, names, files in os.walk(path):
            for name in (*names, *files):
                os.chown(Path(folder, name), self.uid, self.gid, follow_symlinks=False)


def choose_account(home: Path, data: Path, program: Path) -> ServerAccount:
    """The account that runs the server of `data` (which may not exist yet), with `program` standing for all of them.

    A plain user runs it himself. For root it is the owner of the data, else `postgres`, else `nobody`.
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
    # The caller's PGPORT, PGDATA, LD_LIBRARY_PATH and credentials are none of the server's business.
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""A local user without rights: what one can do is tried with the system's own programs, under an account of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UID = 54_321
"""Of nobody on this machine: neither root nor the account that runs the embedded Postgres."""
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("bash") is None, reason="only root can act as another user"
)


def run(script: str, *arguments: str, uid: int = UID) -> str:
    """What a bash script prints when that user runs it."""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    return done.stdout


def ask(url: str, request: str, *, then: str = "cat <&3", uid: int = UID) -> str:
    """The response to a raw request that a user sends to a port of this machine."""
    host, _, port = url.removeprefix("http://").partition(":")
    script = f"exec 3<>/dev/tcp/$1/$2 || exit 1; printf '%s' \"$3\" >&3; {then}"
    return run(script, host, port, request, uid=uid)


def readable(folder: Path) -> list[str]:
    """The files and folders below a folder that the user can read or list."""
    script = 'id -u; find "$1" -mindepth 1 -readable 2>/dev/null'
    who, *found = run(script, str(folder)).splitlines()
    assert who == str(UID)
    return found


def connectable(sockets: list[str]) -> list[str]:
    """Those of these Unix sockets that the user may connect to; the kernel asks for the right to write."""
    return run('for s in "$@"; do test -w "$s" && echo "$s"; done', *sockets).splitlines()

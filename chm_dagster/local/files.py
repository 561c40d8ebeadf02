"""Private files and logs in CHM's home folder."""

import os
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 10_000_000
TAIL_LINES = 12


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads. It is there whole or not at all, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to. One that has grown past `MAX_LOG_BYTES` is kept as `.1`, in place of the older one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def tail(path: Path, begin: int, lines: int = TAIL_LINES) -> str:
    """The last lines that were written after byte `begin`; from the start if the log was exchanged since."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin if begin <= size else 0, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(nothing was logged)"
